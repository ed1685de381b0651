"""The plan's benchmark plans what the full comparison plans, on generated files."""

from pathlib import Path

import pytest

from benchmarks import plan_scale
from benchmarks.plan_scale import CONFIG, benchmark_plan, generated
from pipeline.plan.build import load_plan


def test_the_full_comparison_is_planned_on_generated_files(tmp_path: Path) -> None:
    with generated(tmp_path, images=40, voc_images=30):
        plan = load_plan(CONFIG, [])
    assert len(plan.stages) == len(load_plan(CONFIG, [], on_paper=True).stages)


def test_it_prints_seconds_and_rates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_scale, "SETTLED_S", 0.0)
    monkeypatch.setattr(plan_scale, "IMAGE_BYTES", 100)
    benchmark_plan(images=20, voc_images=9, rounds=2)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if row[0] in ("empty", "warm", "content", "blocks")] == [
        "empty", "warm", "warm", "content", "blocks",
    ]  # fmt: skip
