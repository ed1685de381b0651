"""A small project folder, stages that only pretend, and a SLURM in which nothing runs by itself."""

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from pipeline import worker
from pipeline.executors import local, preflight
from pipeline.stages import stage
from pipeline.stages.run_folder import LOG
from pipeline.stages.stage import StageKind

HERE = Path(__file__).resolve().parent

PRETRAIN = {
    "method": "w-mse",
    "data": {"name": "tiny", "root": "data/images"},
    "augment": {"size": 32},
    "model": {"projector_hidden": 16, "embedding_dim": 4},
    "loss": {"name": "w-mse", "sub_batch": 8},
    "optimizer": {"lr": 0.001, "warmup_steps": 0},
    "batch_size": 8,
    "max_steps": 2,
}
VOC_XML = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>one</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""


def write_yaml(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def write_images(folder: Path, count: int, suffix: str) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        colour = (40 * index % 256, 255 - 20 * index, 128)
        Image.new("RGB", (64, 48), colour).save(folder / f"{index:03d}{suffix}")


def write_coco(root: Path, count: int = 3) -> None:
    write_images(root / "val", count, ".jpg")
    content = {
        "images": [
            {"id": i, "file_name": f"{i:03d}.jpg", "width": 64, "height": 48} for i in range(count)
        ],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [4, 5, 25, 34], "iscrowd": 0}
            for i in range(count)
        ],
        "categories": [{"id": 1, "name": "one"}],
    }
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def write_voc(root: Path, count: int = 3) -> None:
    write_images(root / "JPEGImages", count, ".jpg")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    names = [f"{index:03d}" for index in range(count)]
    for name in names:
        (root / "Annotations" / f"{name}.xml").write_text(VOC_XML, encoding="utf-8")
    (root / "ImageSets" / "Main" / "all.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write tiny data in every layout, recipes, tasks and a config into the working directory."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data" / "images", 8, ".png")
    write_coco(tmp_path / "data" / "coco")
    write_voc(tmp_path / "data" / "voc")
    write_yaml(tmp_path / "configs" / "a.yaml", PRETRAIN)
    write_yaml(tmp_path / "configs" / "b.yaml", PRETRAIN | {"seed": 1})
    for name in ("coco", "voc"):
        task = {
            "DATASETS": {"TRAIN": [f"my_{name}"], "TEST": [f"my_{name}"]},
            "INPUT": {"FORMAT": "RGB"},
            "MODEL": {
                "PIXEL_MEAN": [123.675, 116.28, 103.53],
                "PIXEL_STD": "(58.395, 57.12, 57.375)",
                "RESNETS": {"DEPTH": 18},
            },
        }
        write_yaml(tmp_path / "configs" / f"{name}.yaml", task)
    pipeline = {
        "name": "tiny",
        "backbones": [
            {"name": "random", "random": True},
            {"name": "a", "pretrain": "a.yaml"},
            {"name": "b", "pretrain": "b.yaml"},
        ],
        "tasks": [{"name": name, "config": f"{name}.yaml"} for name in ("coco", "voc")],
        "seeds": [0, 1],
        "datasets": {
            "my_coco": {
                "format": "coco",
                "annotations": "data/coco/annotations.json",
                "images": "data/coco/val",
            },
            "my_voc": {
                "format": "voc",
                "root": "data/voc",
                "split": "all",
                "class_names": ["one"],
            },
        },
    }
    write_yaml(tmp_path / "configs" / "tiny.yaml", pipeline)
    return tmp_path


@pytest.fixture
def fakes(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let `fake_stages` stand for all stages of the project."""
    for name in stage.STAGE_KINDS:
        kind = StageKind("fake_stages", 1, ("out.txt",), "out.txt")
        monkeypatch.setitem(stage.STAGE_KINDS, name, kind)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (HERE.parents[1], HERE))))
    monkeypatch.setattr(local, "POLL_S", 0.02)
    return project


def work_here(run_dir: Path, environment: object, rank: int) -> SimpleNamespace:
    """Run a stage to its end in this process; return it as a child that has ended."""
    log = (run_dir / LOG).open("a", encoding="utf-8")
    with log, redirect_stdout(log), redirect_stderr(log):
        code = worker.run(run_dir)
    return SimpleNamespace(returncode=code, poll=lambda: code)


def answer_here(command: str, jobs: list[dict[str, Any]]) -> Any:
    """Return what a worker answers, both through JSON as they go to a child and come back."""
    return json.loads(json.dumps(worker.ANSWERERS[command](json.loads(json.dumps(jobs)))))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process do the workers' work: for tests of what they leave, not of children.

    A child takes longer to start than a fake stage and all that a test asks of it.
    """
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(local, "start_worker", work_here)
    monkeypatch.setattr(preflight, "ask_worker", answer_here)


class Fake:
    """The fake scheduler's state, as a test sees and moves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def jobs(self) -> dict:
        path = self.folder / "jobs.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def set_state(self, job_id: str, **what: object) -> None:
        jobs = self.jobs
        jobs[job_id].update(what)
        (self.folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")

    def say(self, command: str, text: str) -> None:
        (self.folder / f"{command}.txt").write_text(text, encoding="utf-8")

    def refuse(self, name: str) -> None:
        (self.folder / "refuse.txt").write_text(name, encoding="utf-8")

    def fail(self, command: str, text: str | None) -> None:
        path = self.folder / f"{command}.fails"
        path.write_text(text, encoding="utf-8") if text else path.unlink()


@pytest.fixture
def fake(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a SLURM that a test moves by hand on the PATH."""
    folder = fakes / "bin"
    folder.mkdir()
    # isolated and without site-packages, Python starts in half the time
    text = f"#!{sys.executable} -IS\n" + (HERE / "fake_slurm" / "fake.py").read_text()
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "srun"):
        script = folder / name
        script.write_text(text)
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.syspath_prepend(str(HERE))
    return Fake(folder)
