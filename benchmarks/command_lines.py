"""CPU seconds until a command line refuses or helps, and of `status` of a large plan."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.rows import Table, print_rows
from pipeline.plan.build import load_plan
from pipeline.stages.files import read_json, write_json
from pipeline.stages.provenance import origin, provenance
from pipeline.stages.run_folder import JOB, METRICS, prepare, write_manifest

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PRETRAINING = str(CONFIGS / "pretrain" / "digits_w_mse.yaml")
PROBE = str(CONFIGS / "pretrain" / "probe_digits.yaml")
TASK = str(CONFIGS / "transfer" / "digits_faster_rcnn_voc.yaml")
DEMO = str(CONFIGS / "pipeline" / "demo.yaml")
# What is refused by each script: a wrong argument, a file that is not there. `--help` all have.
REFUSED: dict[str, tuple[tuple[str, ...], ...]] = {
    "benchmark.py": (("nosuch",),),
    "check_data.py": (("--nosuch",), ("nosuch",), ("--config-file", "nosuch.yaml"),
                      ("--make-splits", "0", "nosuch")),
    "collapse.py": (("--methods", "nosuch"), ("--output", "nosuch/plot.png")),
    "convert_to_detectron2.py": (("--nosuch",), ("nosuch.pth", "out.pkl"),
                                 ("nosuch.pth", "out.pth"),
                                 ("nosuch.pth", "out.pkl", "--format", "nosuch")),
    "digits_knn.py": (("--methods", "nosuch"), ()),
    "doctor.py": (("--nosuch",),),
    "export_backbone.py": (("--nosuch",), ("nosuch.pth", "out", "--format", "timm"),
                           ("nosuch.pth", "out", "--format", "nosuch")),
    "get_data.py": (("--nosuch",), ("nosuch",)),
    "install_detectron2.py": (("--nosuch",), ("--archive", "nosuch.tar.gz")),
    "make_bundle.py": (("--nosuch",), ("--platform", "nosuch")),
    "make_digits.py": (("--nosuch",),),
    "pretrain.py": (("--nosuch",), ("--config-file", "nosuch.yaml", "--output-dir", "out"),
                    ("--config-file", PRETRAINING, "--output-dir", "out", "nosuch=1"),
                    ("--config-file", PRETRAINING, "--output-dir", "out", "data.root=nosuch")),
    "probe.py": (("--nosuch",), ("random:nosuch", "--config-file", PROBE),
                 ("nosuch.pth", "--config-file", PROBE),
                 ("nosuch.pth", "--config-file", "nosuch.yaml"),
                 ("nosuch.pth", "--config-file", PROBE, "--format", "nosuch"),
                 ("random:resnet18", "--config-file", PROBE),
                 ("random:resnet18", "--config-file", PROBE, "--output", "nosuch/numbers.json")),
    "run_pipeline.py": (("nosuch",), ("status",), ("plan", "--config-file", "nosuch.yaml"),
                        ("plan", "--config-file", DEMO), ("report", "nosuch", "nosuch"),
                        ("logs", "--config-file", DEMO, "--stage", "nosuch"), ("init",)),
    "simulate.py": (("--nosuch",), ("--config-file", "nosuch.yaml"),
                    ("--config-file", DEMO, "--rates", "nosuch.yaml")),
    "track.py": (("--nosuch",), ("{wandbb: {}}", "out", "true"), ("{wandb: {}}", "out")),
    "train_net.py": (("--nosuch",), ("--config-file", "nosuch.yaml"), ("--config-file", TASK),
                     ("--config-file", TASK, "NOSUCH.KEY", "1"),
                     ("--config-file", TASK, "MODEL.WEIGHTS", "nosuch.pkl")),
}  # fmt: skip


def benchmark_commands(*, stages: int = 200, rounds: int = 3) -> list[Table]:
    """Print for each script the dearest of its answers, then `status` of a plan that is done."""
    with tempfile.TemporaryDirectory() as folder:
        columns = ("command", "CPU s:.2f")
        answers = print_rows(
            "answers that need no torch", columns, _refused_rows(Path(folder), rounds)
        )
        config = finished_plan(Path(folder), stages)
        words = ("run_pipeline.py", "status", "--config-file", str(config))
        row = f"status of {stages} finished stages", dearest_s(Path(folder), [words], rounds)
        return [answers, print_rows("a large plan", columns, [row])]


def _refused_rows(folder: Path, rounds: int) -> Iterator[tuple[str, float]]:
    for script, answers in REFUSED.items():
        yield f"{script} --help", dearest_s(folder, [(script, "--help")], rounds)
        commands = [(script, *words) for words in answers]
        yield f"{script}, {len(commands)} refusals", dearest_s(folder, commands, rounds)


def dearest_s(folder: Path, commands: Sequence[Sequence[str]], rounds: int) -> float:
    """Return the CPU seconds of the dearest command, each at its best of several rounds."""
    return max(min(cpu_s(folder, words) for _ in range(rounds)) for words in commands)


def cpu_s(folder: Path, command: Sequence[str]) -> float:
    """Return the user and system seconds of a script of `tools/`, run in `folder`.

    Compiled code is kept in `folder`, as Python keeps it for whoever runs the script again.
    """
    script, *words = command
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, str(ROOT / "tools" / script), *words],
        cwd=folder, capture_output=True, check=False,
        env=os.environ | {
            "DETECTRON2_DATASETS": str(folder / "datasets"),
            "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
        },
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def finished_plan(folder: Path, num_stages: int) -> Path:
    """Write a plan of so many seeds of one task, each finished in pretence; return its config."""
    images = folder / "images"
    images.mkdir()
    (images / "1.jpg").write_bytes(b"1")
    entries = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": []}
    write_json(folder / "one.json", entries)
    content = {
        "name": "finished",
        "output_dir": str(folder / "runs"),
        "backbones": [{"name": "random", "random": True}],
        "datasets": {"one": {"format": "coco", "annotations": str(folder / "one.json"),
                             "images": str(images)}},
        "tasks": [{"name": "task", "config": TASK,
                   "overrides": ["DATASETS.TRAIN=[one]", "DATASETS.TEST=[one]"]}],
        "seeds": list(range(num_stages)),
    }  # fmt: skip
    config = folder / "finished.yaml"
    config.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    metrics = {f"bbox/AP-class{number}": 50.0 for number in range(80)} | {"bbox/AP": 50.0}
    for stage in load_plan(config, []).stages:
        prepare(stage)
        job = read_json(stage.run_dir / JOB)
        for name in job["outputs"]:
            path = stage.run_dir / name.replace("*", "1")
            path.parent.mkdir(exist_ok=True)
            path.write_text("pretended", encoding="utf-8")
        (stage.run_dir / METRICS).write_text('{"step": 1, "max_steps": 1}\n' * 50, encoding="utf-8")
        made = provenance({"started": "", **origin()}, stage.run_dir) | {"wall_time_s": 1.0}
        write_manifest(stage.run_dir, job, metrics, made)
    return config
