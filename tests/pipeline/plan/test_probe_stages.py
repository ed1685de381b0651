"""Probes in a plan: what they need, what their signature covers, what a report shows of them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from pipeline.executors import preflight
from pipeline.executors.local import Progress, run_local
from pipeline.executors.preflight import Answer, check_before_start
from pipeline.plan.build import load_plan
from pipeline.plan.plan import Plan
from pipeline.report.collect import collect
from pipeline.report.write import write_report
from pipeline.stages import stage
from pipeline.stages.run_folder import State
from pipeline.stages.stage import StageKind
from tests.pipeline.edits import CONFIG, edit

PROBE = {
    "data": {"name": "labelled", "root": "data/labelled", "format": "imagefolder"},
    "image": {"size": 8},
    "knn": {"k": 1},
    "random_arch": "resnet18",
}


@pytest.fixture
def probed(project: Path) -> Path:
    """Add a probe on four labelled images, and an existing checkpoint, to the small project."""
    for split in ("train", "val"):
        for name in ("one", "two"):
            folder = project / "data" / "labelled" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (9 * len(name), 9, 9 * len(split))).save(folder / "0.png")
    (project / "configs" / "probe.yaml").write_text(yaml.safe_dump(PROBE), encoding="utf-8")
    (project / "weights.pth").write_bytes(b"one")

    def add(content: dict[str, Any]) -> None:
        content["probes"] = [{"name": "knn", "config": "probe.yaml"}]
        content["backbones"].append({"name": "given", "checkpoint": "weights.pth"})

    edit("configs/tiny.yaml", add)
    return project


def stages(*overrides: str) -> dict[str, stage.Stage]:
    return {entry.name: entry for entry in load_plan(CONFIG, list(overrides)).stages}


def faults(*overrides: str) -> list[str]:
    with pytest.raises(ValueError, match=r"^\S") as caught:
        load_plan(CONFIG, list(overrides))
    return str(caught.value).splitlines()


def test_a_probe_reads_the_first_stage_of_its_backbone(probed: Path) -> None:
    found = stages()
    needs = {
        name: [source.name for source in entry.inputs.values()]
        for name, entry in found.items()
        if entry.kind == "probe"
    }
    assert needs == {
        "probe/random--knn": [],
        "probe/a--knn": ["pretrain/a"],
        "probe/b--knn": ["pretrain/b"],
        "probe/given--knn": ["convert/given"],
    }
    assert found["probe/a--knn"].probe == "knn" and found["probe/a--knn"].backbone == "a"
    root = found["probe/a--knn"].settings["data"]["root"]
    assert Path(root) == probed / "data" / "labelled"


def test_probes_alone_need_no_task_no_seed_and_no_conversion(probed: Path) -> None:
    found = stages("tasks=[]", "seeds=[]")
    assert sorted(found) == [
        "convert/given", "pretrain/a", "pretrain/b",
        "probe/a--knn", "probe/b--knn", "probe/given--knn", "probe/random--knn",
    ]  # fmt: skip
    assert "nothing to do with the backbones" in faults("tasks=[]", "probes=[]")[0]
    assert "seeds: the tasks need at least one" in faults("seeds=[]")[0]


def test_a_signature_covers_backbone_data_and_settings(probed: Path) -> None:
    def signatures() -> dict[str, str]:
        return {name: entry.signature for name, entry in stages().items()}

    before = signatures()
    edit("configs/probe.yaml", lambda content: content.update(batch_size=7))
    edit("configs/probe.yaml", lambda content: content["data"].update(num_workers=3))
    assert signatures() == before
    edit("configs/a.yaml", lambda content: content.update(seed=5))
    after = signatures()
    assert {name for name in before if before[name] != after[name] and "probe" in name} == {
        "probe/a--knn"
    }
    edit("configs/probe.yaml", lambda content: content.update(random_arch="resnet50"))
    wider = signatures()
    assert {name for name in after if after[name] != wider[name]} == {"probe/random--knn"}
    (probed / "data" / "labelled" / "val" / "one" / "0.png").write_bytes(b"another")
    assert {name for name, value in signatures().items() if value != wider[name]} == {
        name for name in wider if name.startswith("probe/")
    }


def test_probes_do_not_change_what_was_there(probed: Path) -> None:
    before = {name: entry.signature for name, entry in stages("probes=[]").items()}
    after = {name: entry.signature for name, entry in stages().items()}
    assert {name: after[name] for name in before} == before
    edit("configs/a.yaml", lambda content: content.update(probe={"every_epochs": 1}))
    assert stages()["pretrain/a"].signature == before["pretrain/a"]


def test_the_data_of_a_probe_in_training_are_found_from_any_folder(probed: Path) -> None:
    section = {"every_epochs": 1, "data": PROBE["data"]}
    edit("configs/a.yaml", lambda content: content.update(probe=section))
    settings = stages()["pretrain/a"].settings
    assert Path(settings["probe"]["data"]["root"]) == probed / "data" / "labelled"
    assert stages()["pretrain/b"].settings["probe"] is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda: edit("configs/probe.yaml", lambda c: c.update(knn=None)), "measures nothing"),
        (lambda: edit("configs/probe.yaml", lambda c: c.update(kn=1)), "probe.yaml: kn:"),
        (lambda: edit("configs/probe.yaml", lambda c: c.pop("random_arch")), "random_arch: give"),
        (lambda: Path("configs/probe.yaml").unlink(), "probe.yaml: no such config file"),
        (lambda: Path("data/labelled").rename("gone"), "data/labelled: no such folder"),
    ],
)
def test_faults(probed: Path, change: Callable[[], object], expected: str) -> None:
    change()
    lines = faults()
    assert len(lines) == 1 and expected in lines[0], lines


def test_faults_of_probes_show_beside_those_of_the_pipeline(probed: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content.update(sedes=[1]))
    edit("configs/probe.yaml", lambda content: content.update(knn=None))
    lines = faults()
    assert any("sedes" in line for line in lines)
    assert any("probe.yaml: (whole file): measures nothing" in line for line in lines)
    edit("configs/tiny.yaml", lambda content: content.pop("sedes"))
    edit("configs/tiny.yaml", lambda content: content["probes"].append(content["probes"][0]))
    assert any("probes: named twice: knn" in line for line in faults())


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("overrides", [["tasks=[]", "seeds=[]"], ["seeds=[0]"]])
def test_a_report_shows_what_probes_measured(
    probed: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    for name in stage.STAGE_KINDS:
        kind = StageKind("fake_stages", 1, ("out.txt",), "out.txt")
        monkeypatch.setitem(stage.STAGE_KINDS, name, kind)
    plan: Plan = load_plan(CONFIG, overrides)
    with Progress(Console(quiet=True), len(plan.stages), 0) as progress:
        states = run_local(plan, progress)
    assert {state.status for state in states.values()} == {"done"}
    write_report(collect(plan), Path("report"))
    results = json.loads(Path("report/results.json").read_text("utf-8"))
    assert [(row["backbone"], row["probe"]) for row in results["probes"]] == [
        ("random", "knn"), ("a", "knn"), ("b", "knn"), ("given", "knn")
    ]  # fmt: skip
    assert results["probes"][1]["metrics"]["bbox/AP"] == 10.0  # as the fake stage returns it
    assert "## Probes" in Path("report/report.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["labelled", "tiny-imagenet"])
def test_images_that_are_trained_on_and_measured_on_are_seen(
    probed: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(preflight, "_answers", lambda _, jobs, __: [Answer() for _ in jobs])
    root = probed / "data" / "labelled"
    (root / "val" / "one" / "7.png").write_bytes((root / "train" / "two" / "0.png").read_bytes())
    edit("configs/probe.yaml", lambda content: content["data"].update(name=name))
    plan = load_plan(CONFIG, [])
    line = (
        f"{root / 'val'}: 1 of 3 images is trained on too (val/one/7.png is a copy of "
        "train/two/0.png); "
    )
    waiting = {stage.name: State("missing") for stage in plan.stages}
    if name == "labelled":
        with pytest.raises(ValueError, match=re.escape(f"{line}take them out of one of the two")):
            check_before_start(plan, waiting)
    else:
        notes = check_before_start(plan, waiting)
        assert f"note: {line}they are measured on as published" in notes
