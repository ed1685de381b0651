"""Many processes: what the environment says, what comes back, and how an end is told."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from transfer.detection import run
from transfer.detection.run import EXIT_FAULT, Machines, in_one_process, machines_of, run_on

TWO_NODES = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}


def test_machines_come_from_the_environment() -> None:
    assert machines_of(8, 1, {}) == Machines(8, 1, 0, "auto")
    assert machines_of(4, 2, TWO_NODES) == Machines(4, 2, 1, "tcp://n1:29500")
    assert Machines(4, 2).num_processes == 8
    with pytest.raises(ValueError, match="num_nodes is 1, but WORLD_SIZE says that 2 processes"):
        machines_of(4, 1, TWO_NODES)
    with pytest.raises(ValueError, match="2 nodes, but no RANK, MASTER_PORT in the environment"):
        machines_of(4, 2, {"WORLD_SIZE": "2", "MASTER_ADDR": "n1"})


def double(number: float) -> dict[str, float]:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return {"twice": 2 * number}


def test_one_process_is_this_one(tmp_path: Path) -> None:
    assert run_on(Machines(), double, (3,), tmp_path / "unused") == {"twice": 6}
    assert not (tmp_path / "unused").exists()


def test_too_few_gpus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="asked for 8 GPUs, this machine has 2"):
        run_on(Machines(8), double, (3,), tmp_path)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Let detectron2's launch run its function here and end as a child process would."""
    calls: list[tuple[Any, ...]] = []

    def launch(function: Any, *where: Any, args: tuple[Any, ...]) -> None:
        calls.append(where)
        try:
            function(*args)
        except SystemExit as end:
            code = int(str(end.code))
            raise ProcessExitedException("ended", 0, 1, code) from None

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(run, "launch", launch)
    return calls


def test_metrics_and_faults_come_back(launched: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert run_on(Machines(2), double, (3,), tmp_path) == {"twice": 6}
    unmeasured = run_on(Machines(2), double, (math.nan,), tmp_path)["twice"]
    assert math.isnan(unmeasured) and launched.pop() == (2, 1, 0, "auto")
    assert launched == [(2, 1, 0, "auto")]
    with pytest.raises(ValueError, match=r"^-3 is negative$"):
        run_on(Machines(2), double, (-3,), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_keeps_its_code(launched: list[tuple[Any, ...]], tmp_path: Path) -> None:
    def stop() -> dict[str, float]:
        raise SystemExit(75)

    with pytest.raises(SystemExit) as stopped:
        run_on(Machines(2), stop, (), tmp_path)
    assert stopped.value.code == 75


def test_a_process_that_dies_is_not_an_interruption(
    launched: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    def die() -> dict[str, float]:
        raise SystemExit(9)

    with pytest.raises(ProcessExitedException):
        run_on(Machines(2), die, (), tmp_path)


def test_a_fault_ends_a_child_with_its_own_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        in_one_process(double, (-1,), tmp_path)
    assert ended.value.code == EXIT_FAULT
