"""Named sets: those that are measured on, and what the tasks want of each."""

from pathlib import Path

from pipeline.plan.data_sets import sets_of_config, unused
from transfer.config.data import known_datasets


def test_unused_sets_are_measured_on_unless_the_field_trains_on_them() -> None:
    evaluated = {name for name, data in known_datasets().items() if unused(name, data).evaluated}
    assert evaluated == {"voc_2007_test", "coco_2017_val", "digits_voc_test", "digits_coco_val"}


def test_a_set_knows_what_the_tasks_want_of_it(tmp_path: Path) -> None:
    for name, content in (
        ("a", "DATASETS: {TRAIN: [x], TEST: [y]}\nMODEL: {MASK_ON: true}\n"),
        ("b", "DATASETS: {TRAIN: [y], TEST: [z]}\nDATALOADER: {FILTER_EMPTY_ANNOTATIONS: false}\n"),
        ("c", "DATASETS: {TRAIN: [x], TEST: [z]}\nMODEL: {MASK_ON: true}\n"
              "INPUT: {MASK_FORMAT: bitmask}\nTEST: {DETECTIONS_PER_IMAGE: 50}\n"),
    ):  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(
        "name: mine\nbackbones: [{name: none, random: true}]\nseeds: [0]\n"
        "tasks: [{name: a, config: a.yaml}, {name: b, config: b.yaml}, {name: c, config: c.yaml}]\n"
        "datasets:\n"
        + "".join(
            f"  {name}: {{format: coco, annotations: {name}.json, images: {name}}}\n"
            for name in "xyz"
        ),
        encoding="utf-8",
    )
    needs = {name: tuple(each)[1:] for name, each in sets_of_config(tmp_path / "plan.yaml").items()}
    assert needs == {
        # evaluated, masks, trained, polygons, drops_empty, num_kept, train_sets
        "x": (False, True, True, True, True, 100, ()),
        "y": (True, True, True, False, False, 100, (("x",),)),
        "z": (True, True, False, False, False, 50, (("y",), ("x",))),
    }
