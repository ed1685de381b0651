"""Stages that run at a time on one machine do not share a GPU, and none waits without a reason."""

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from pipeline.commands.status import show_status
from pipeline.config.schema import ResourcesConfig
from pipeline.executors import gpus as module
from pipeline.executors import local, preflight
from pipeline.executors.gpus import GpuPool, gpus_of, visible_gpus
from pipeline.executors.preflight import check_before_start
from pipeline.stages.run_folder import JOB, MANIFEST, State
from pipeline.stages.stage import Stage
from tests.pipeline.local_runs import ONLY_A, run, small_plan

VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a driver, on which torch sees as many GPUs as a file says."""
    fake = tmp_path / "packages" / "torch"
    fake.mkdir(parents=True)
    code = f"class cuda:\n    device_count = lambda: int(open({str(tmp_path / 'number')!r}).read())"
    (fake / "__init__.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    monkeypatch.setattr(module, "DRIVERS", (tmp_path,))
    (tmp_path / "number").write_text("4", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("named", "number", "seen"),
    [
        (None, "4", ("0", "1", "2", "3")),
        ("3,1", "2", ("3", "1")),
        ("GPU-8932f937, GPU-0dd4", "2", ("GPU-8932f937", "GPU-0dd4")),
        ("0,9,1", "1", ("0",)),  # what comes after a number that is none counts no more
        ("", "0", ()),
        ("-1", "0", ()),
        (None, "broken", ()),
    ],
)
def test_what_torch_sees_is_there_under_the_names_that_were_given(
    named: str | None, number: str, seen: tuple[str, ...], machine: Path
) -> None:
    (machine / "number").write_text(number, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != VISIBLE}
    environment |= {} if named is None else {VISIBLE: named}
    assert visible_gpus(environment) == seen


def test_a_machine_without_a_driver_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRIVERS", (Path("/no/such/driver"),))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert visible_gpus() == ()


def test_gpus_are_taken_and_given_back() -> None:
    pool = GpuPool(["3", "1", "0"])
    assert pool.take(2) == ("3", "1") and pool.take(2) is None
    assert pool.take(0) == () and pool.take(1) == ("0",) and pool.take(1) is None
    pool.give_back(("1",))
    pool.give_back(("3",))
    assert pool.take(9) is None
    pool.give_back(("0",))
    assert pool.take(9) == ("3", "1", "0")
    assert GpuPool([]).take(1) == ()


@pytest.mark.parametrize(
    ("kind", "resources", "num_gpus", "needs"),
    [
        ("pretrain", {}, None, 1),
        ("pretrain", {"pretrain": {"gpus": 4}}, None, 4),
        ("pretrain", {"default": {"gpus": 0}}, None, 0),
        ("probe", {"default": {"gpus": 4}}, None, 1),
        ("probe", {"probe": {"gpus": 0}}, None, 0),
        ("convert", {"default": {"gpus": 4}}, None, 0),
        ("finetune", {}, 1, 1),
        ("finetune", {}, 2, 2),
        ("finetune", {"finetune": {"gpus": 0}}, 1, 0),
    ],
)
def test_a_stage_takes_what_it_computes_on(
    kind: str, resources: dict[str, Any], num_gpus: int | None, needs: int, tmp_path: Path
) -> None:
    settings = {} if num_gpus is None else {"num_gpus": num_gpus}
    stage = Stage(kind, "a", {}, settings, tmp_path)
    assert gpus_of(stage, ResourcesConfig.model_validate(resources)) == needs


class Pretended:
    """Stands for a child that runs through three rounds; notes what runs at the same time."""

    running: ClassVar[list["Pretended"]] = []
    at_once: ClassVar[list[list[str]]] = []

    def __init__(self, stage: Stage, _: int, __: int, gpus: tuple[str, ...]) -> None:
        self.stage, self.gpus, self.rounds, self.begun = stage, gpus, 3, 0.0
        self.processes: list[object] = []
        self.running.append(self)
        self.at_once.append([name for child in self.running for name in child.gpus])

    def is_running(self) -> bool:
        self.rounds -= 1
        return self.rounds > 0

    def ended(self) -> tuple[State, bool]:
        self.running.remove(self)
        (self.stage.run_dir / MANIFEST).write_text("{}", encoding="utf-8")
        return State("done"), False


def test_stages_at_a_time_never_share_a_gpu_and_wait_for_as_many_as_they_need(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ("4", "7"))
    monkeypatch.setattr(local, "Child", Pretended)
    monkeypatch.setattr(local, "STOP_WAIT_S", 0)
    Pretended.at_once.clear()
    plan = small_plan(["num_parallel=9", "tasks.0.num_gpus=2"])
    states = run(plan)
    assert {state.status for state in states.values()} == {"done"} and not Pretended.running
    assert all(len(names) == len(set(names)) for names in Pretended.at_once)
    assert {tuple(names) for names in Pretended.at_once} >= {("4",), ("4", "7")}


def test_a_child_sees_its_gpus_alone_and_status_shows_them(
    fakes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ("GPU-5",))
    plan = small_plan([*ONLY_A, "num_parallel=2"])
    assert {state.status for state in run(plan).values()} == {"done"}
    seen = {
        stage.kind: json.loads((stage.run_dir / MANIFEST).read_text("utf-8"))["provenance"]
        for stage in plan.stages
    }
    assert {kind: made["visible_gpus"] for kind, made in seen.items()} == {
        "pretrain": "GPU-5", "convert": "", "finetune": "GPU-5"
    }  # fmt: skip
    pretrain = plan.stages[0]
    (pretrain.run_dir / MANIFEST).unlink()
    with (pretrain.run_dir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        show_status(plan, Console(width=200, color_system=None), as_json=True)
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert rows[pretrain.name]["status"] == "running" and rows[pretrain.name]["gpus"] == "GPU-5"
    show_status(plan, Console(width=200, color_system=None))
    assert "gpus" in capsys.readouterr().out.splitlines()[1]


def test_a_machine_without_gpus_leaves_the_environment_as_it_is(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRIVERS", ())
    monkeypatch.delenv(VISIBLE, raising=False)
    plan = small_plan(["backbones=[{name: random, random: true}]", "seeds=[0]"])
    run(plan)
    made = json.loads((plan.stages[0].run_dir / MANIFEST).read_text("utf-8"))["provenance"]
    assert "visible_gpus" not in made and (plan.stages[0].run_dir / JOB).exists()


def test_more_gpus_than_there_are_are_refused_before_the_start(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(["resources={pretrain: {gpus: 4}}", "seeds=[0]"])
    states = {stage.name: State("missing") for stage in plan.stages}
    monkeypatch.setattr(preflight, "visible_gpus", lambda: ("0", "1"))
    with pytest.raises(ValueError, match=r"resources\.pretrain\.gpus is 4, but GPUs that this mac"):
        check_before_start(plan, states)
    check_before_start(plan, states, here=False)
    for names in (("0", "1", "2", "3"), ()):  # without any they are processes on CPUs
        monkeypatch.setattr(preflight, "visible_gpus", lambda names=names: names)
        check_before_start(plan, states)
