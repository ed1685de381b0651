"""Reasons to run a stage again: data, config, version, inputs, damage."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands.main import Options, execute
from pipeline.plan.build import load_plan
from pipeline.plan.plan import Plan
from pipeline.report.collect import all_states
from pipeline.stages import stage
from pipeline.stages.run_folder import prepare, write_manifest
from pipeline.stages.stage import Stage
from pipeline.stages.staleness import changed_lines
from tests.pipeline.edits import CONFIG, edit


def finish(entry: Stage) -> None:
    """Write what a finished stage leaves, without running it."""
    prepare(entry)
    for pattern in stage.STAGE_KINDS[entry.kind].outputs:
        path = entry.run_dir / pattern.replace("*", "one")
        path.parent.mkdir(exist_ok=True)
        path.write_text(entry.signature, encoding="utf-8")
    job = json.loads((entry.run_dir / "job.json").read_text("utf-8"))
    write_manifest(entry.run_dir, job, {"bbox/AP": 1.0}, {})


@pytest.fixture
def done(project: Path) -> Plan:
    """Return the plan of one seed, all of it finished."""
    plan = load_plan(CONFIG, ["seeds=[0]"])
    for entry in plan.stages:
        finish(entry)
    return plan


def again() -> list[str]:
    plan = load_plan(CONFIG, ["seeds=[0]"])
    return changed_lines(plan.stages, all_states(plan))


COCO = ", ".join(f"finetune/{name}--coco--seed0" for name in ("random", "a", "b"))
AFTER_A = [
    "again: convert/a: made from another pretrain/a",
    "again: finetune/a--coco--seed0, finetune/a--voc--seed0: made from another convert/a",
]


def test_nothing_changed_and_nothing_was_done_before_say_nothing(done: Plan) -> None:
    assert again() == []
    shutil.rmtree("runs")
    assert again() == []


def test_a_changed_annotation_file(done: Plan) -> None:
    path = Path("data/coco/annotations.json")
    path.write_text(path.read_text("utf-8") + "\n", encoding="utf-8")
    assert again() == [f"again: {COCO}: data set my_coco has changed (annotations)"]


def test_changed_images(done: Plan) -> None:
    shutil.copy("data/coco/val/000.jpg", "data/coco/val/more.jpg")  # which nothing names
    assert again() == []
    image = Path("data/coco/val/000.jpg")
    image.write_bytes(image.read_bytes() + b"0")
    assert again() == [f"again: {COCO}: data set my_coco has changed (images)"]
    image.unlink()
    files = "images: before 3 files, now 2 files"
    assert again() == [f"again: {COCO}: data set my_coco has changed ({files})"]


def test_annotations_and_images_that_both_changed(done: Plan) -> None:
    for name in ("Annotations/001.xml", "JPEGImages/002.jpg"):
        path = Path("data/voc") / name
        path.write_bytes(path.read_bytes().replace(b"xmin>5<", b"xmin>6<") + b"\n")
    (line,) = again()
    assert line.endswith(": data set my_voc has changed (annotations, images)")


def test_images_that_are_known_another_way(done: Plan) -> None:
    edit(
        "configs/tiny.yaml",
        lambda content: content["datasets"]["my_coco"].update(identity="blocks"),
    )
    ways = "images: before known by content, now known by blocks"
    assert again() == [f"again: {COCO}: data set my_coco has changed ({ways})"]


def test_changed_images_of_a_pretraining(done: Plan) -> None:
    shutil.copy("data/images/000.png", "data/images/more.png")
    lines = again()
    files = "pretrain images: before 8 files, now 9 files"
    assert lines[0] == f"again: pretrain/a, pretrain/b: data set tiny has changed ({files})"
    assert AFTER_A[0] in lines and len(lines) == 5


def test_a_changed_setting_and_what_follows_from_it(done: Plan) -> None:
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.002))
    assert again() == ["again: pretrain/a: optimizer.lr: before 0.001, now 0.002", *AFTER_A]


def test_many_changes_are_counted(done: Plan) -> None:
    values = {"lr": 0.002, "weight_decay": 0.5, "name": "sgd", "momentum": 0.5}
    edit("configs/a.yaml", lambda content: content["optimizer"].update(values))
    (line, *_) = again()
    assert "optimizer.lr: before 0.001, now 0.002; " in line
    assert line.endswith("; and 1 more settings")


def test_the_newest_result_is_compared_with(done: Plan) -> None:
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.002))
    plan = load_plan(CONFIG, ["seeds=[0]"])
    for entry in plan.stages:
        if entry.kind == "pretrain":
            finish(entry)
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.003))
    assert again()[0] == "again: pretrain/a: optimizer.lr: before 0.002, now 0.003"
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.001))
    assert again() == []  # the oldest result is as good as ever


def test_a_raised_version(done: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = stage.STAGE_KINDS["convert"]
    monkeypatch.setitem(stage.STAGE_KINDS, "convert", replace(kind, version=kind.version + 1))
    versions = f"before {kind.version}, now {kind.version + 1}"
    lines = again()
    assert lines[0] == (
        f"again: convert/a, convert/b: what convert computes has changed (version: {versions})"
    )
    assert AFTER_A[1] in lines and len(lines) == 3


def test_another_checkpoint_of_the_same_name(project: Path) -> None:
    Path("weights.pth").write_bytes(b"one")
    edit(
        "configs/tiny.yaml",
        lambda content: content.update(
            backbones=[{"name": "given", "checkpoint": "weights.pth"}],
        ),
    )
    for entry in load_plan(CONFIG, ["seeds=[0]"]).stages:
        finish(entry)
    Path("weights.pth").write_bytes(b"two")
    path = Path("weights.pth").absolute()
    assert again()[0] == f"again: convert/given: checkpoint {path} has another content"


def test_a_conversion_that_knew_no_tables_of_families(project: Path) -> None:
    """Those of checkpoints, from before the tables were part of what they are known by."""
    Path("weights.pth").write_bytes(b"one")
    given = {"name": "given", "checkpoint": "weights.pth"}
    edit("configs/tiny.yaml", lambda content: content["backbones"].append(given))
    for entry in load_plan(CONFIG, ["seeds=[0]"]).stages:
        older = {key: value for key, value in entry.identity.items() if key != stage.TABLES}
        finish(replace(entry, identity=older))
    told = "again: convert/given: the tables of checkpoint families have changed"
    assert again() == [told]  # conversions of pretrainings are as they were


def test_a_damaged_output_and_a_folder_edited_by_hand(done: Plan) -> None:
    entry = done.stages[0]
    entry.result.write_bytes(b"")
    assert again() == [
        f"again: {entry.name}: {entry.result}: 0 bytes, wanted 16; it will be made again"
    ]
    entry.result.unlink()
    assert again() == []
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.002))
    for path in Path("runs").glob("tiny/pretrain/a-*/config.json"):
        path.write_text("{}", encoding="utf-8")
    assert not any("pretrain/a:" in line for line in again())


def test_results_of_an_older_rule_of_identity_are_said_once_and_left_alone(done: Plan) -> None:
    for path in list(Path("runs").glob("tiny/*/*/config.json")):
        content = json.loads(path.read_text("utf-8"))
        del content["rule"]
        path.write_text(json.dumps(content), encoding="utf-8")
        name = path.parent.name.rpartition("-")[0]
        path.parent.rename(path.parent.with_name(f"{name}-0123456789abcdef"))
    folders = sorted(Path("runs").glob("tiny/*/*"))
    (line,) = again()
    assert line.endswith(
        " and 4 more: the rule of identity changed (before version 1, now 2); older results under "
        "runs/tiny are kept and not used"
    )
    assert sorted(Path("runs").glob("tiny/*/*")) == folders


def test_plan_prints_it(fakes: Path, done: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.002))
    line = "again: pretrain/a: optimizer.lr: before 0.001, now 0.002"
    for executor in ("local", "slurm"):
        options = Options(executor=executor)
        assert execute("plan", CONFIG, ["seeds=[0]"], options) == 0
        assert line in capsys.readouterr().out.splitlines()
