"""Published tables as data: the built-in file, files of one's own, and what is refused in them."""

import json
import tomllib
from pathlib import Path

import pytest

from pipeline.config.references import BUILT_IN, load_references
from pipeline.config.schema import PipelineConfig
from pipeline.plan.build import load_plan

ROOT = Path(__file__).resolve().parents[3]
C4_1X = {"data": "COCO 2017", "detector": "Mask R-CNN R50-C4", "schedule": "1x"}
OURS = {
    "sources": {"lab": "our lab, unpublished"},
    "detection": [
        C4_1X
        | {
            "name": "coco-mask-rcnn-r50-c4-1x",
            "protocol": "as MoCo",
            "rows": [{"backbone": "Ours", "source": "lab", "box": [None, 41, None]}],
        }
    ],
}


def written(folder: Path, content: object, name: str = "my_rows.yaml") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return path


def changed(**row: object) -> dict:
    [table] = OURS["detection"]
    return OURS | {"detection": [table | {"rows": [table["rows"][0] | row]}]}


def test_the_built_in_tables_and_how_many_rows_each_has() -> None:
    references = load_references()
    assert {table.name: len(table.rows) for table in references.detection} == {
        "voc-0712-faster-rcnn-r50-c4-24k": 17,
        "voc-07-faster-rcnn-r50-c4-9k": 8,
        "coco-mask-rcnn-r50-c4-1x": 11,
        "coco-mask-rcnn-r50-c4-2x": 4,
        "coco-mask-rcnn-r50-fpn-1x": 4,
        "coco-mask-rcnn-r50-fpn-2x": 3,
    }
    assert {(table.data, table.arch): len(table.rows) for table in references.probes} == {
        ("cifar10", "resnet18"): 2, ("cifar100", "resnet18"): 2, ("stl10", "resnet18"): 2,
        ("tiny-imagenet", "resnet18"): 2, ("imagenet", "resnet50"): 7,
    }  # fmt: skip


def test_cw_rgp_on_coco_is_of_the_schedule_that_is_inferred() -> None:
    tables = {table.name: table for table in load_references().detection}
    [row] = [r for r in tables["coco-mask-rcnn-r50-c4-2x"].rows if r.backbone == "CW-RGP"]
    assert (row.label, row.inferred) == ("CW-RGP, 200 epochs, 4 views", ("schedule",))
    assert (row.box, row.box_std) == ((60.5, 40.7, 44.1), (0.28, 0.14, 0.14))
    assert (row.mask, row.mask_std) == ((57.3, 35.5, 37.9), (0.16, 0.12, 0.14))
    assert row.source == "README of github.com/winci-ai/CW-RGP"
    assert all(r.backbone != "CW-RGP" for r in tables["coco-mask-rcnn-r50-c4-1x"].rows)


def test_the_search_for_a_learning_rate_is_said_of_every_row_of_that_paper() -> None:
    rows = [row for table in load_references().detection for row in table.rows]
    searched = {row.source for row in rows if row.search}
    assert searched == {"arXiv 2011.10566, table 5"}
    assert all(row.search for row in rows if row.source in searched)


def test_what_is_known_from_memory_only_is_not_there() -> None:
    references = load_references()
    rows = [row for t in (*references.detection, *references.probes) for row in t.rows]
    assert not [row for row in rows if "W-MSE" in row.backbone]
    assert all(row.source for row in rows)


def test_the_file_is_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert BUILT_IN.name in settings["tool"]["setuptools"]["package-data"]["pipeline.config"]
    assert BUILT_IN == ROOT / "pipeline" / "config" / "references.yaml"


def test_rows_of_ones_own_join_the_table_of_their_name(tmp_path: Path) -> None:
    ours = load_references([written(tmp_path, OURS)])
    [table] = [table for table in ours.detection if table.name == "coco-mask-rcnn-r50-c4-1x"]
    last = table.rows[-1]
    assert len(table.rows) == 12
    assert (last.label, last.source, last.protocol) == ("Ours", "our lab, unpublished", "as MoCo")
    assert (last.search, last.box) == (None, (None, 41.0, None))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (changed(boxes=[1, 2, 3]), "detection.0.rows.0.boxes: unknown key 'boxes'; did you mean"),
        (changed(box=[1, 2]), "detection.0.rows.0.box.2: Field required"),
        (changed(box=[1, 200, 3]), "box.1: Input should be less than or equal to 100, got 200"),
        (changed(box=[True, 2, 3]), "box.0: Input should be a valid number, got True"),
        (changed(box=[None] * 3), "box: give at least one of AP50, AP, AP75"),
        (changed(box_std=[0.1, None, None]), "box_std: a deviation without its mean in box"),
        (changed(search="yes"), "search: Input should be a valid boolean, got 'yes'"),
        (changed(source="moco"), "sources: not listed: moco; listed: lab"),
        (changed(inferred=["colour"]), "inferred.0: Input should be 'data', 'detector'"),
        (OURS | {"detection": [OURS["detection"][0] | {"rows": []}]}, "rows: none in coco-mask-"),
        (OURS | {"tables": []}, "tables: unknown key 'tables'; known: sources, detection, probes"),
        (
            OURS | {"detection": [OURS["detection"][0] | {"schedule": "2x"}]},
            "table coco-mask-rcnn-r50-c4-1x: schedule is 2x, wanted 1x as in the table of this "
            "name; give it another name",
        ),
        (
            {"sources": {"a": "b"},
             "probes": [{"data": "x", "arch": "resnet18", "protocol": "p",
                         "rows": [{"backbone": "c", "source": "a"}]}]},
            "probes.0.rows.0: give at least one of linear, augmented_linear, knn",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_with_its_file(tmp_path: Path, content: dict, fault: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match="my_rows") as caught:
        load_references([path])
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ") and fault in line


def test_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    first = written(tmp_path, changed(box=[1, 2, "x"]), "a.yaml")
    with pytest.raises(ValueError, match="rows") as caught:
        load_references([first, tmp_path / "absent.yaml"])
    assert str(caught.value).splitlines()[1] == f"{tmp_path / 'absent.yaml'}: no such config file"


# --- in a pipeline config


def plan_of(folder: Path, **more: object) -> Path:
    task = {"DATASETS": {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]}}
    written(folder, task, "task.yaml")
    config = {
        "name": "tiny",
        "backbones": [{"name": "random", "random": True}],
        "tasks": [{"name": "coco", "config": "task.yaml"} | more.pop("task", {})],
        "seeds": [0],
    }
    return written(folder, config | more, "plan.yaml")


@pytest.mark.parametrize("given", ["my_rows.yaml", ["my_rows.yaml"]])
def test_one_path_or_several_are_read_beside_the_config(tmp_path: Path, given: object) -> None:
    written(tmp_path, OURS)
    plan = load_plan(plan_of(tmp_path, references=given), [], on_paper=True)
    assert plan.config.references == (Path("my_rows.yaml"),)
    again = PipelineConfig.model_validate(plan.config.model_dump(mode="json", exclude_unset=True))
    assert again.references == plan.config.references  # as the report job reads it


def test_a_broken_file_is_found_when_the_plan_is_made(tmp_path: Path) -> None:
    written(tmp_path, changed(box=[1, 2]))
    with pytest.raises(ValueError, match=r"my_rows.yaml: detection.0.rows.0.box.2: Field required"):
        load_plan(plan_of(tmp_path, references="my_rows.yaml"), [], on_paper=True)


def test_a_table_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    config = plan_of(tmp_path, task={"reference": "coco-mask-rcnn-r50-c4"})
    wanted = (
        "tasks: coco: reference: unknown table 'coco-mask-rcnn-r50-c4'; "
        "did you mean 'coco-mask-rcnn-r50-c4-2x'? known: voc-0712-faster-rcnn-r50-c4-24k, "
        "voc-07-faster-rcnn-r50-c4-9k, coco-mask-rcnn-r50-c4-1x, coco-mask-rcnn-r50-c4-2x, "
        "coco-mask-rcnn-r50-fpn-1x, coco-mask-rcnn-r50-fpn-2x"
    )
    with pytest.raises(ValueError, match="unknown table") as caught:
        load_plan(config, [], on_paper=True)
    assert str(caught.value) == f"{config}: {wanted}"
