"""Pretraining on two nodes of a real SLURM equals two processes of the local executor."""

import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pipeline.config.schema import PipelineConfig
from pipeline.executors.local import Progress, run_local
from pipeline.plan.plan import Plan
from pipeline.stages.stage import STAGE_KINDS, Stage, StageKind
from pretrain.config.pretrain import PretrainConfig
from tests.slurm.conftest import HERE

pytestmark = pytest.mark.slurm
RECIPE = {
    "method": "w-mse",
    "augment": {"size": 32},
    "model": {"projector_hidden": 16, "embedding_dim": 4},
    "loss": {"name": "w-mse", "sub_batch": 8},
    "optimizer": {"lr": 0.001, "warmup_steps": 0},
    "batch_size": 8,
    "max_steps": 40,
}


def plan_of(name: str, images: Path, **resources: int) -> Plan:
    config = PipelineConfig.model_validate(
        {
            "name": name,
            "backbones": [{"name": "a", "pretrain": "x.yaml"}],
            "tasks": [{"name": "voc", "config": "voc.yaml"}],
            "seeds": [0],
            "resources": {"pretrain": {"cpus_per_gpu": 1, **resources}},
        }
    )
    recipe = RECIPE | {"data": {"name": "tiny", "root": str(images)}}
    settings = PretrainConfig.model_validate(recipe).model_dump(mode="json")
    stage = Stage("pretrain", "a", settings, settings, config.output_dir / name, {}, "a")
    return Plan(config, Path("x.yaml"), (), (stage,))


def manifest(plan: Plan) -> dict:
    path = plan.stages[0].run_dir / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))


def use_small_network(patch: pytest.MonkeyPatch) -> None:
    kind = StageKind("small_pretraining", 1, ("backbone.pth",), "backbone.pth")
    patch.setitem(STAGE_KINDS, "pretrain", kind)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(8):
        image = Image.effect_noise((48, 48), 20.0 + 20 * index).convert("RGB")
        image.save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def metrics_here(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What two processes of the local executor end with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        patch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
        patch.setenv("OMP_NUM_THREADS", "1")
        use_small_network(patch)
        here = plan_of("here", images, gpus=2)
        with Progress(Console(quiet=True), 1, 0) as progress:
            states = run_local(here, progress)
        assert states["pretrain/a"].status == "done", states
        return manifest(here)["metrics"]


def test_two_nodes_pretrain_as_two_processes_here_do(
    project, images, metrics_here, monkeypatch
) -> None:
    use_small_network(monkeypatch)
    two = plan_of("two", images, nodes=2)
    assert project.run(two) == 0
    standings = project.wait_done(two, 120)
    assert {standing.status for standing in standings.values()} == {"done"}, standings
    assert standings["pretrain/a"].node == "n[1-2]"
    logs = sorted(path.name for path in two.stages[0].run_dir.glob("log*.txt"))
    assert logs == ["log-rank1.txt", "log.txt"]
    assert manifest(two)["metrics"] == pytest.approx(metrics_here, rel=1e-4)


@pytest.mark.slow
def test_two_nodes_preempted_in_the_middle_end_as_undisturbed_ones(
    project, images, metrics_here, monkeypatch
) -> None:
    use_small_network(monkeypatch)
    two = plan_of("two", images, nodes=2)
    assert project.run(two) == 0
    job = project.wait_steps(two, "pretrain/a", 3).job_id
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    standings = project.wait_done(two, 240)
    assert {standing.status for standing in standings.values()} == {"done"}, standings
    lines = (two.stages[0].run_dir / "jobs.jsonl").read_text("utf-8").splitlines()
    assert sum("started" in json.loads(line) for line in lines) == 2
    assert manifest(two)["metrics"] == pytest.approx(metrics_here, rel=1e-3)
