"""Real processes, killed, stopped and resumed; the weights must end the same, bit by bit."""

import json
import multiprocessing
import random
import runpy
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.run

from pretrain.config.methods import LOSS_NAMES
from pretrain.config.pretrain import PretrainConfig
from pretrain.models import BACKBONE
from pretrain.runtime.checkpoint import LAST, PREVIOUS
from pretrain.runtime.signals import EXIT_INTERRUPTED

Make = Callable[..., PretrainConfig]
Strike = tuple[int, str, int, str]
CHILD = Path(__file__).parents[1] / "child.py"
CW_RGP = {
    "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2},
    "model": {"arch": "resnet18", "projector_hidden": 16, "embedding_dim": 32},
}
MOCO = {"loss": {"name": "moco-v2", "queue": 20, "momentum": 0.9}}
CHANGES: dict[str, dict[str, Any]] = {
    "w-mse": {},
    "cw-rgp": CW_RGP,
    "whitening": {
        "loss": {"name": "whitening", "over": "batch", "method": "zca", "sub_batch": 8, "groups": 2}
    },
    "byol": {"loss": {"name": "byol", "momentum": 0.9, "predictor_hidden": 8}},
    "moco-v2": MOCO,
    "intl": {"loss": {"name": "intl", "momentum": 0.9}},
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun would export."""
    if world == 1:
        return {}
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {**{k: str(v) for k, v in values.items()}, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # fmt: skip


def job_of(config: PretrainConfig, folder: Path, *strikes: Strike) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    path = folder.with_suffix(".json")
    path.write_text(config.model_dump_json(), encoding="utf-8")
    return {"config": str(path), "output_dir": str(folder), "strike": strikes}


def run(config: PretrainConfig, folder: Path, *strikes: Strike, world: int = 1) -> list[int | None]:
    """Train in `world` processes; return their exit codes, negative for a signal."""
    context = multiprocessing.get_context("forkserver")
    job, port, processes = job_of(config, folder, *strikes), free_port(), []
    for rank in range(world):
        own = {"JOB": job | {"env": environment(rank, world, port)}}
        process = context.Process(target=runpy.run_path, args=(str(CHILD), own, "__main__"))
        process.start()
        processes.append(process)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def torchrun(*arguments: str) -> int | None:
    """Run torchrun on two processes and return its exit code.

    It comes from the fork server and they from it, which spares each the import of torch.
    """
    command = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--start-method", "fork", "--run-path", *arguments]
    context = multiprocessing.get_context("forkserver")
    agent = context.Process(target=torch.distributed.run.main, args=(command,))
    agent.start()
    agent.join()
    return agent.exitcode


def state(folder: Path, name: str = LAST) -> dict[str, Any]:
    content = torch.load(folder / name, weights_only=True)
    assert isinstance(content, dict)
    return content


def same_weights(first: Path, second: Path) -> bool:
    a, b = state(first)["model"], state(second)["model"]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_logged(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [int(json.loads(line)["step"]) for line in lines]


def test_a_process_killed_twice_ends_with_the_same_bits(tiny: Make, tmp_path: Path) -> None:
    config = tiny(max_steps=5)
    assert run(config, tmp_path / "whole") == [0]
    killed = tmp_path / "killed"
    assert run(config, killed, (0, "gradients", 2, "SIGKILL")) == [-signal.SIGKILL]
    assert not (killed / LAST).exists()
    # at step 4: the old state is set aside, the new one not yet in its place
    assert run(config, killed, (0, "rename", 2, "SIGKILL")) == [-signal.SIGKILL]
    assert not (killed / LAST).exists() and state(killed, PREVIOUS)["step"] == 2
    assert run(config, killed) == [0]
    assert same_weights(tmp_path / "whole", killed)
    assert steps_logged(killed) == steps_logged(tmp_path / "whole") == [1, 2, 3, 4, 5]
    assert not list(killed.glob(".*.tmp"))
    assert f"{LAST} is missing; taking {PREVIOUS}" in (killed / "log0.txt").read_text("utf-8")


MULTI_CROP = {
    "colours": "on_device", "size": 40, "solarize": 0.1, "blur_probability": 0.5,
    "views": [{"count": 2}, {"size": 32, "crop_scale": (0.171, 0.857)}, {"size": 28}],
}  # fmt: skip


def test_multi_crop_killed_ends_with_the_same_bits(tiny: Make, tmp_path: Path) -> None:
    config = tiny(augment=MULTI_CROP)
    assert run(config, tmp_path / "whole") == [0]
    killed = tmp_path / "killed"
    assert run(config, killed, (0, "gradients", 4, "SIGKILL")) == [-signal.SIGKILL]
    assert state(killed)["step"] == 2
    assert run(config, killed) == [0]
    assert same_weights(tmp_path / "whole", killed)
    assert steps_logged(killed) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_method_killed_at_a_random_step_ends_with_the_same_bits(
    tiny: Make, tmp_path: Path, name: str
) -> None:
    """Predictor, branch and its momentum, queue and pointer too; random, and the same each time."""
    config = tiny(**CHANGES.get(name, {"loss": {"name": name}}), max_steps=6)
    draw = random.Random(name)
    strike = (0, draw.choice(["gradients", "update"]), draw.randint(3, 6), "SIGKILL")
    assert run(config, tmp_path / "whole") == [0]
    assert run(config, tmp_path / "killed", strike) == [-signal.SIGKILL]
    assert state(tmp_path / "killed")["step"] == (strike[2] - 1) // 2 * 2
    assert run(config, tmp_path / "killed") == [0]
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert steps_logged(tmp_path / "killed") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("changes", [CW_RGP, MOCO], ids=["cw-rgp", "moco-v2"])
def test_two_processes_killed_end_with_the_same_bits(
    tiny: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny(**changes, max_steps=4)  # what they draw differs between the processes
    assert run(config, tmp_path / "whole", world=2) == [0, 0]
    killed = tmp_path / "killed"
    codes = run(config, killed, (1, "update", 3, "SIGKILL"), world=2)
    assert codes[1] == -signal.SIGKILL and codes[0] == 1  # no partner: an error, not a hang
    assert state(killed)["step"] == 2
    assert run(config, killed, world=2) == [0, 0]
    assert same_weights(tmp_path / "whole", killed)
    draws = [entry["loss_generator"] for entry in state(killed)["ranks"]]
    assert len(draws) == 2 and not torch.equal(*draws)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR2"])
def test_one_signalled_process_stops_both_at_the_same_step(
    tiny: Make, tmp_path: Path, number: str
) -> None:
    config = tiny(checkpoint_every=100, max_steps=4)
    stopped = tmp_path / "stopped"
    codes = run(config, stopped, (1, "gradients", 2, number), world=2)
    assert codes == [EXIT_INTERRUPTED, EXIT_INTERRUPTED]
    assert state(stopped)["step"] == 2 and not (stopped / BACKBONE).exists()
    assert f"signal {signal.Signals[number].value}: saved at step 2" in (
        stopped / "log0.txt"
    ).read_text("utf-8")
    assert "saved" not in (stopped / "log1.txt").read_text("utf-8")
    with pytest.raises(ValueError, match="over 2 processes, this one has 1; give it 2 processes"):
        resume_here(config, stopped)


def resume_here(config: PretrainConfig, folder: Path) -> None:
    from pretrain.train import pretrain

    pretrain(config, folder)


@pytest.mark.slow
def test_torchrun_killed_and_started_again(tiny: Make, tmp_path: Path) -> None:
    config = tiny(max_steps=3, checkpoint_every=1, log_every=3)
    assert run(config, tmp_path / "whole", world=2) == [0, 0]
    killed = tmp_path / "killed"
    for strikes in ([(1, "gradients", 3, "SIGKILL")], []):
        job = json.dumps(job_of(config, killed, *strikes))
        code = torchrun("--master-port", str(free_port()), str(CHILD), job)
        assert (code == 0) == (not strikes)
        assert state(killed)["step"] == (2 if strikes else 3)
    assert same_weights(tmp_path / "whole", killed)
