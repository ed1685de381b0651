"""Remarks on collapsed pretrainings and frozen random backbones, as rules and of a whole plan."""

import json
from pathlib import Path

import pytest

from pipeline.commands import main as commands
from pipeline.plan.build import load_plan
from pipeline.report.remarks import (
    collapse_signs,
    conversion_remarks,
    data_remarks,
    read_manifests,
    remarks,
    shared_remarks,
)
from pipeline.stages.run_folder import prepare, write_manifest
from tests.pipeline import slurm_runs
from tests.pipeline.edits import CONFIG, edit
from tests.pipeline.local_runs import small_plan

RECIPE = Path(__file__).resolve().parents[3] / "configs" / "pretrain" / "digits_w_mse.yaml"
pytestmark = pytest.mark.usefixtures("in_process")
SETTINGS = {
    "batch_size": 128,
    "num_views": 4,
    "loss": {"sub_batch": 32, "iterations": 2, "groups": 2},  # 4 x 2 x 4 x 2 = 64 a step
}


def end(step: float, count: float, **ranks: float) -> dict[str, float]:
    return {"step": step, "regularized": count, "encoding/rank": 9.0, "embedding/rank": 9.0} | {
        f"{name}/rank": value for name, value in ranks.items()
    }


@pytest.mark.parametrize(
    ("metrics", "before", "signs"),
    [
        (end(20, 0), [(10, 0)], []),
        (end(20, 20 * 64), [(10, 640)], ["all 1,280 factorisations were regularised"]),
        (end(20, 20 * 64 - 1), [(10, 640)], []),
        (end(20, 700), [(5, 0), (10, 60)],
         ["every factorisation of the last 10 steps was regularised"]),
        (end(20, 699), [(10, 60)], []),
        (end(20, 0, encoding=0.0), [], ["the encoding has rank 0"]),
        (end(20, 0, embedding=0.0), [], ["the embedding has rank 0"]),
        (end(20, 0, whitened=0.0), [], []),
        ({}, [], []),
    ],
)  # fmt: skip
def test_signs_of_collapse(metrics: dict, before: list, signs: list[str]) -> None:
    points = [end(step, count) for step, count in before] + ([metrics] if metrics else [])
    assert collapse_signs(SETTINGS, metrics, points) == signs


def test_a_loss_that_whitens_nothing_has_no_ridges_to_count() -> None:
    control = SETTINGS | {"loss": {"sub_batch": None, "iterations": 1, "groups": 1}}
    assert collapse_signs(control, end(20, 0), []) == []
    assert collapse_signs(control, end(20, 0, encoding=0.0), []) == ["the encoding has rank 0"]


def test_a_whole_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = {"TRAIN": ["voc_2007_trainval"], "TEST": ["voc_2007_test"]}
    model = {"RESNETS": {"DEPTH": 18}, "PIXEL_MEAN": [123.675, 116.28, 103.53],
             "PIXEL_STD": [58.395, 57.12, 57.375]}  # fmt: skip
    task = {"DATASETS": sets, "MODEL": model, "INPUT": {"FORMAT": "RGB"}}
    recipe = {"_BASE_": str(RECIPE), "num_views": 2, "max_steps": 3}
    tasks = [
        {"name": "voc", "config": "task.yaml", "title": "VOC"},
        {"name": "whole", "config": "task.yaml", "overrides": ["MODEL.BACKBONE.FREEZE_AT=0"]},
    ]
    config = {
        "name": "p",
        "backbones": [{"name": "random", "random": True}, {"name": "mine", "pretrain": "r.yaml"}],
        "tasks": tasks,
        "seeds": [0, 1],
    }
    for name, content in {"task": task, "r": recipe, "plan": config}.items():
        Path(f"{name}.yaml").write_text(json.dumps(content), encoding="utf-8")
    plan = load_plan(Path("plan.yaml"), [], on_paper=True)
    frozen = (  # the config is silent, and detectron2's own value is 2
        "random on VOC: MODEL.BACKBONE.FREEZE_AT is 2: its stem, res2 stay random to the end, "
        "which costs AP"
    )
    assert remarks(plan, read_manifests(plan)) == [frozen]
    [stage] = [stage for stage in plan.stages if stage.kind == "pretrain"]
    stage.run_dir.mkdir(parents=True)
    (stage.run_dir / "backbone.pth").touch()
    job = {"stage": "pretrain", "signature": stage.signature, "outputs": ["backbone.pth"]}
    write_manifest(stage.run_dir, job, end(3, 3 * 2), {})
    assert remarks(plan, read_manifests(plan)) == [
        frozen,
        "mine: the pretraining collapsed (all 6 factorisations were regularised); results with it "
        "are of features that do not tell images apart",
    ]


def test_sets_that_are_known_by_less_than_their_content(project: Path) -> None:
    config = Path("configs/tiny.yaml")
    before = data_remarks(load_plan(config, []))
    edit("configs/tiny.yaml", lambda c: c["datasets"]["my_voc"].update(identity="blocks"))
    edit("configs/b.yaml", lambda c: c["data"].update(name="huge", identity="blocks"))
    how = "files by size, first and last 16 KiB (identity: blocks)"
    end = f"{how}: what changes between them is not seen"
    after = [line for line in data_remarks(load_plan(config, [])) if line not in before]
    assert after == [
        f"data set my_voc: images: 3 {end}",
        f"data set huge: pretrain images: 8 {end}",
    ]


GIVEN = ["backbones=[{name: x, checkpoint: x.pth}, {name: y, checkpoint: y.pth}]", "seeds=[0]"]
NOTE = "of <no> *listed* family & 5_%"


def test_one_run_under_two_names_is_said(project: Path) -> None:
    def lines(backbones: str) -> list[str]:
        return shared_remarks(load_plan(CONFIG, [f"backbones=[{backbones}]"]))

    a, again = "{name: a, pretrain: a.yaml}", "{name: again, pretrain: a.yaml}"
    b, r = "{name: b, pretrain: b.yaml}", "{name: r, random: true}, {name: s, random: true}"
    assert lines(f"{a}, {b}, {again}") == ["a and again are one pretraining: equal settings"]
    assert lines(f"{a}, {b}") == []
    assert lines(f"{a}, {r}") == ["r and s are one backbone: equal settings"]
    assert remarks(load_plan(CONFIG, [f"backbones=[{a}, {again}]"]), {})[0].startswith("a and ag")


@pytest.fixture
def converted(fakes: Path) -> None:
    """Finish two conversions of which the converter warned, and nothing after them."""
    for name in ("x", "y"):
        Path(f"{name}.pth").write_text(name, encoding="utf-8")
    for stage in small_plan(GIVEN).stages:
        if stage.kind == "convert":
            prepare(stage)
            stage.result.write_text("weights", encoding="utf-8")
            warnings = [NOTE, *([] if stage.backbone == "x" else ["off by\na factor of 9.7"])]
            companion = {"notes": [*warnings, "proved with FPN only"], "warnings": warnings}
            path = stage.result.with_suffix(".json")
            path.write_text(json.dumps(companion), encoding="utf-8")
            job = {"stage": "convert", "signature": stage.signature, "outputs": ["out.txt"]}
            write_manifest(stage.run_dir, job, {}, {})


TOLD = [f"x, y: {NOTE}", "y: off by a factor of 9.7"]


def test_what_the_converter_warned_of_is_told_everywhere(
    converted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "status", "run"):
        commands.execute(command, CONFIG, GIVEN)
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        assert [lines.count(text) for text in TOLD] == [1, 1], command
    folder = small_plan(GIVEN).config.root / "report"
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert [text for text in results["remarks"] if text in TOLD] == TOLD
    page = (folder / "index.html").read_text("utf-8")
    assert page.count("x, y: of &lt;no&gt; *listed* family &amp; 5_%") == 1
    assert (folder / "report.md").read_text("utf-8").count("y: off by a factor of 9.7") == 1


def test_it_is_told_before_jobs_are_submitted(
    fake, converted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "run"):
        assert commands.execute(command, CONFIG, GIVEN, slurm_runs.SLURM) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [lines.count(text) for text in TOLD] == [1, 1], command


@pytest.mark.parametrize("text", ['{"notes": ["a"]}', '{"warnings": 3}', "[1]", "{", ""])
def test_a_companion_without_warnings_tells_nothing(converted: None, text: str) -> None:
    plan = small_plan(GIVEN)
    for stage in plan.stages:
        if stage.kind == "convert":
            stage.result.with_suffix(".json").write_text(text, encoding="utf-8")
    assert conversion_remarks(plan, read_manifests(plan)) == []
    for stage in plan.stages:
        stage.result.with_suffix(".json").unlink(missing_ok=True)
    assert conversion_remarks(plan, read_manifests(plan)) == []
