"""The display of stages while they run."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pipeline.executors import local
from pipeline.executors.local import Progress
from pipeline.executors.slurm.states import metric_text

TRAINING = {"step": 30, "max_steps": 40, "total_loss": 1.5, "lr": 0.1}
EVALUATING = {"step": 30, "max_steps": 40, "doing": "evaluating 1,200/4,952"}


def shown(entry: dict[str, Any], folder: Path) -> str:
    path = folder / "metrics.jsonl"
    path.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    text = io.StringIO()
    stage: Any = SimpleNamespace(name="finetune/a")
    with Progress(Console(file=text), 1, 0) as progress:
        progress.started(stage)
        progress.update(stage, path)
    return text.getvalue()


def test_what_goes_on_beside_training_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LINE_EVERY_S", -1)
    assert "step 30 of 40  training  total_loss 1.5  lr 0.1" in shown(TRAINING, tmp_path)
    assert "step 30 of 40  evaluating 1,200/4,952" in shown(EVALUATING, tmp_path)
    assert metric_text(TRAINING) == "step 30/40  training  total_loss 1.5"
    assert metric_text(EVALUATING) == "step 30/40  evaluating 1,200/4,952"


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_narrow_terminal_shows_whole_numbers(tmp_path: Path, width: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(TRAINING | {"step": 3000, "max_steps": 24000}) + "\n", "utf-8")
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None)
    stage: Any = SimpleNamespace(name="finetune/w-mse-resnet18--digits-voc--seed0")
    with Progress(console, 1, 0) as progress:
        progress.started(stage)
        progress.update(stage, path)
    text.seek(0)
    text.truncate()
    console.print(progress.bars.make_tasks_table(progress.bars.tasks))
    line = " ".join(text.getvalue().split())
    assert "3000/24000" in line and "…" not in line and "━" not in line
    assert ("-:--:--" in line) is (width > 60) and ("lr 0.1" in line) is (width > 80)
    assert all(len(each) <= width for each in text.getvalue().splitlines())
