"""A detectron2 config on the machine it is for."""

import hashlib
import json
from pathlib import Path

import pytest

from transfer.config.data import KNOWN_DATASETS, CocoData, VocData
from transfer.config.recipe import batch_fault, recipe_faults
from transfer.detection.cfg import (
    check_companion,
    data_faults,
    notes_before_start,
)
from transfer.detection.cli import read_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"


@pytest.mark.parametrize(("depth", "contradicts"), [(18, False), (50, True)])
def test_the_stride_counts_where_a_block_has_a_1x1_convolution(
    tmp_path: Path, depth: int, contradicts: bool
) -> None:
    weights = tmp_path / "w.pkl"
    weights.write_bytes(b"w")
    demands = {"MODEL.RESNETS.DEPTH": depth, "MODEL.RESNETS.STRIDE_IN_1X1": False}
    digest = hashlib.sha256(b"w").hexdigest()
    companion = {"output_sha256": digest, "detectron2": demands}
    weights.with_suffix(".json").write_text(json.dumps(companion), encoding="utf-8")
    changes = ["MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.STRIDE_IN_1X1", "True"]
    cfg = read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), changes)
    if not contradicts:
        return check_companion(cfg, weights)
    with pytest.raises(ValueError, match="STRIDE_IN_1X1 is True, wanted False"):
        check_companion(cfg, weights)


@pytest.mark.parametrize(
    ("images", "reference", "num_processes", "remedy"),
    [
        (16, 8, 3, None),
        (6, 0, 3, None),
        (2, 8, 1, "a multiple of 8, SOLVER.REFERENCE_WORLD_SIZE (the GPUs it is meant for); set "
         "SOLVER.IMS_PER_BATCH to 8, or SOLVER.REFERENCE_WORLD_SIZE to 0, which trains with 2 "
         "images a step on 1 process(es)"),
        (9, 8, 4, "a multiple of 8, SOLVER.REFERENCE_WORLD_SIZE (the GPUs it is meant for); set "
         "SOLVER.IMS_PER_BATCH to 16"),
        (2, 0, 4, "a multiple of 4, the number of processes; set SOLVER.IMS_PER_BATCH to 4, or "
         "start another number of them"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_dealt_names_the_key_that_fixes_it(
    images: int, reference: int, num_processes: int, remedy: str | None
) -> None:
    changes = ["SOLVER.IMS_PER_BATCH", str(images), "SOLVER.REFERENCE_WORLD_SIZE", str(reference)]
    cfg = read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), changes)
    wanted = remedy and f"SOLVER.IMS_PER_BATCH is {images}, wanted {remedy}"
    assert batch_fault(cfg, num_processes) == wanted
    assert recipe_faults(cfg, KNOWN_DATASETS, num_processes) == ([wanted] if wanted else [])


@pytest.mark.parametrize(
    ("task", "kept", "is_fault"),
    [
        ("mask_rcnn_coco", 100, False),
        ("mask_rcnn_coco", 101, True),
        ("faster_rcnn_voc", 300, False),
    ],
)
def test_more_detections_than_coco_counts_are_refused(task: str, kept: int, is_fault: bool) -> None:
    changes = ["TEST.DETECTIONS_PER_IMAGE", str(kept)]
    cfg = read_config(str(CONFIGS / f"digits_{task}.yaml"), changes)
    faults = recipe_faults(cfg, KNOWN_DATASETS, 1)
    wanted = f"DETECTIONS_PER_IMAGE is {kept}, but digits_coco_val is measured by COCO's AP, which"
    assert [wanted in fault for fault in faults] == [True] * is_fault


@pytest.mark.parametrize(
    ("freeze_at", "has_weights", "parts"),
    [
        (0, False, ""),
        (2, True, ""),
        (1, False, "its stem stays"),
        (3, False, "its stem, res2, res3 stay"),
    ],
)
def test_frozen_random_weights_are_noted(freeze_at: int, has_weights: bool, parts: str) -> None:
    changes = ["MODEL.BACKBONE.FREEZE_AT", str(freeze_at)]
    cfg = read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), changes)
    notes = notes_before_start(cfg, KNOWN_DATASETS, has_weights=has_weights)
    wanted = f"FREEZE_AT is {freeze_at}: of a backbone that starts at random, {parts} random"
    assert [wanted in note for note in notes] == [True] * bool(parts)


def test_a_training_set_that_is_listed_twice_is_a_fault() -> None:
    name = "digits_voc_trainval"
    cfg = read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), [])
    cfg.DATASETS.TRAIN = (name, name)
    (fault,) = recipe_faults(cfg, KNOWN_DATASETS, 1)
    assert fault == f"DATASETS.TRAIN lists {name} 2 times, wanted sets that differ"


def test_a_part_of_a_set_is_not_measured_on() -> None:
    """Its detections would be measured against all objects of the whole file."""
    name = "coco_2017_train_1pct_seed0"
    cfg = read_config(
        str(CONFIGS / "digits_mask_rcnn_coco.yaml"), ["DATASETS.TEST", f"('{name}',)"]
    )
    assert recipe_faults(cfg, KNOWN_DATASETS, 1) == [
        f"{name}: a part of a set is for training; DATASETS.TEST wants a whole one"
    ]


@pytest.mark.parametrize("task", ["mask_rcnn_coco", "faster_rcnn_voc"])
def test_fewer_detections_than_usual_are_noted(task: str) -> None:
    changes = ["TEST.DETECTIONS_PER_IMAGE", "50"]
    cfg = read_config(str(CONFIGS / f"digits_{task}.yaml"), changes)
    assert notes_before_start(cfg, KNOWN_DATASETS, has_weights=True) == [
        "TEST.DETECTIONS_PER_IMAGE is 50: AP is of at most 50 detections an image, others' of 100"
    ]
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    assert notes_before_start(cfg, KNOWN_DATASETS, has_weights=True) == []


@pytest.mark.parametrize(("year", "is_noted"), [(None, True), (2007, True), (2012, False)])
def test_a_set_of_ones_own_is_told_which_rule_of_voc_it_gets(
    year: int | None, is_noted: bool
) -> None:
    cfg = read_config(
        str(CONFIGS / "digits_faster_rcnn_voc.yaml"), ["DATASETS.TEST", "('my_test',)"]
    )
    content = {"root": "my", "split": "test"} | ({"year": year} if year else {})
    notes = notes_before_start(cfg, {"my_test": VocData.model_validate(content)}, has_weights=True)
    wanted = (
        "my_test: AP is VOC 2007's, the mean of 11 precisions, as for every set without a `year`"
    )
    assert [wanted in note for note in notes] == [True] * is_noted


def test_a_tasks_sets_are_checked_for_what_the_task_does(coco: CocoData, voc: VocData) -> None:
    cfg = read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), [])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("learn",), ("measure",)
    sets = {"learn": coco, "measure": voc, "other": voc.model_copy(update={"split": "absent"})}
    (fault,) = data_faults(cfg, sets)  # the two are drawn alike
    assert "3 of 3 images are trained on too, in learn (JPEGImages/000.jpg is a copy" in fault
    assert data_faults(cfg, sets, trains=False) == []
    for path in (voc.root / "JPEGImages").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    assert data_faults(cfg, sets) == []
    text = coco.annotations.read_text(encoding="utf-8")
    runs = '{"size": [48, 64], "counts": [3000, 72]}'
    coco.annotations.write_text(
        text.replace("[[4, 5, 29, 5, 29, 39, 4, 39]]", runs, 1), encoding="utf-8"
    )
    assert data_faults(cfg, sets) == []
    cfg.MODEL.MASK_ON, cfg.DATASETS.TEST = True, ()
    assert "set INPUT.MASK_FORMAT=bitmask" in data_faults(cfg, sets)[0]
    cfg.INPUT.MASK_FORMAT = "bitmask"
    assert data_faults(cfg, sets) == []
