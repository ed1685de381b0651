"""The data of a report, from run folders that are done, at work, failed or not begun."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.report.collect import all_states, collect, failed_log, report_key
from pipeline.stages.run_folder import FAILURE, METRICS, prepare
from pipeline.stages.stage import RULE, Stage
from tests.pipeline.local_runs import ONLY_A, ran, run, small_plan

pytestmark = pytest.mark.usefixtures("in_process")


def by_name(stages: tuple[Stage, ...]) -> dict[str, Stage]:
    return {entry.name: entry for entry in stages}


def test_a_failure_reaches_what_needs_it_with_its_reason_and_its_log(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    pretrain = by_name(plan.stages)["pretrain/a"]
    prepare(pretrain)
    (pretrain.run_dir / FAILURE).write_text('{"reason": "out of memory"}', encoding="utf-8")
    reasons = {name: state.reason for name, state in all_states(plan).items()}
    assert reasons["pretrain/a"] == "out of memory"
    needs = "needs pretrain/a, which failed: out of memory"
    assert reasons["convert/a"] == needs
    assert reasons["finetune/a--voc--seed0"] == needs  # that which failed itself, once
    rows = {row.task: row for row in collect(plan).rows}
    assert (rows["voc"].status, rows["voc"].metrics) == ("missing", {})
    assert rows["voc"].log == str(pretrain.run_dir / "log.txt")
    assert failed_log(by_name(plan.stages)["convert/a"]) == rows["voc"].log


def test_a_result_is_read_with_its_numbers_and_its_command(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    data = collect(plan)
    assert (data.pipeline, data.backbones, data.baseline) == ("tiny", ("a",), None)
    assert {row.task for row in data.rows} == {"coco", "voc"}
    for row in data.rows:
        assert row.status == "done" and row.metrics["bbox/AP"] == 10.0
        assert row.log is None and "bbox/AP50" not in row.metrics  # not a number
        assert row.command == (
            "python tools/run_pipeline.py run --config-file configs/tiny.yaml "
            f"'{ONLY_A[0]}' 'seeds=[0]' --only finetune/a--{row.task}--seed0"
        )
    assert set(data.provenance["wall_time_s"]) == set(by_name(plan.stages))


def test_the_baseline_is_the_one_named_else_the_first_random_one(fakes: Path) -> None:
    assert collect(small_plan()).baseline == "random"
    assert collect(small_plan(["baseline=a"])).baseline == "a"


def test_a_curve_has_a_point_a_step_and_no_half_written_line(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    pretrain = by_name(plan.stages)["pretrain/a"]
    prepare(pretrain)
    lines = [{"step": 1, "loss": 2.0}, {"step": 1, "knn": 50}, {"step": 2, "loss": 1, "by": "x"}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo'
    (pretrain.run_dir / METRICS).write_text(text, encoding="utf-8")
    (curve,) = collect(plan).pretraining
    assert curve.points == ({"step": 1.0, "loss": 2.0, "knn": 50.0}, {"step": 2.0, "loss": 1.0})


def test_a_report_is_made_anew_when_what_it_shows_has_changed(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    keys = [report_key(plan)]
    run(plan)
    keys.append(report_key(plan))
    assert report_key(plan) == keys[-1]
    keys.append(report_key(small_plan([*ONLY_A, "tasks.0.title=Renamed"])))
    (plan.stages[0].run_dir / "manifest.json").unlink()
    keys.append(report_key(plan))
    assert all(one != other for one, other in pairwise(keys))
    assert len(ran()) == len(plan.stages)


def test_the_report_holds_what_tells_tasks_and_backbones_from_others(fakes: Path) -> None:
    """Not the seed of a task, nor where its data lie; the bytes that each result started from."""
    plan = small_plan(["seeds=[0,3]", "backbones.1.pretrain=b.yaml"])
    run(plan)
    data = collect(plan)
    (coco, voc) = (task.identity for task in data.tasks)
    assert coco is not None and voc is not None and coco["data"] != voc["data"]
    assert "seed" not in coco and coco["identity_rule"] == RULE and coco["finetune_version"] == 1
    assert all(task.num_test_images for task in data.tasks)
    assert str(fakes) not in json.dumps(coco) and "my_coco" not in json.dumps(coco)
    weights = {row.backbone: row.weights for row in data.rows}
    assert weights["random"] == {} and weights["a"] == weights["b"]  # two names of one recipe
    assert weights["a"] is not None and [*weights["a"]] == ["out.txt"]
    assert data.made_with.keys() >= {"commit", "python"}
