"""Data, detector and schedule of every shipped config, of scaled ones and of sets of one's own."""

from pathlib import Path

import pytest

from pipeline.config.kinds import load_config
from pipeline.config.yaml_files import load_yaml
from pipeline.report.published import Protocol, ap_rule, protocol_of
from transfer.config.data import KNOWN_DATASETS, VocData

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"
FASTER, MASK = "Faster R-CNN", "Mask R-CNN"
PART = "coco_2017_train_{}pct_seed0 -> coco_2017_val"
VOC_TEST = "voc_2007_trainval -> voc_2007_test"
SHIPPED = {
    "coco10pct_mask_rcnn_r50_fpn": (PART.format(10), f"{MASK} R50-FPN", "18k"),
    "coco1pct_mask_rcnn_r50_fpn": (PART.format(1), f"{MASK} R50-FPN", "1.8k"),
    "coco_faster_rcnn_r50_fpn_1x": ("COCO 2017", f"{FASTER} R50-FPN", "1x"),
    "coco_faster_rcnn_r50_fpn_2x": ("COCO 2017", f"{FASTER} R50-FPN", "2x"),
    "coco_faster_rcnn_r50_fpn_3x": ("COCO 2017", f"{FASTER} R50-FPN", "3x"),
    "coco_mask_rcnn_r101_c4_2x": ("COCO 2017", f"{MASK} R101-C4", "2x"),
    "coco_mask_rcnn_r101_fpn_1x": ("COCO 2017", f"{MASK} R101-FPN", "1x"),
    "coco_mask_rcnn_r101_fpn_2x": ("COCO 2017", f"{MASK} R101-FPN", "2x"),
    "coco_mask_rcnn_r18_fpn_1x": ("COCO 2017", f"{MASK} R18-FPN", "1x"),
    "coco_mask_rcnn_r34_fpn_1x": ("COCO 2017", f"{MASK} R34-FPN", "1x"),
    "coco_mask_rcnn_r50_c4_1x": ("COCO 2017", f"{MASK} R50-C4", "1x"),
    "coco_mask_rcnn_r50_c4_2x": ("COCO 2017", f"{MASK} R50-C4", "2x"),
    "coco_mask_rcnn_r50_fpn_1x": ("COCO 2017", f"{MASK} R50-FPN", "1x"),
    "coco_mask_rcnn_r50_fpn_2x": ("COCO 2017", f"{MASK} R50-FPN", "2x"),
    "coco_mask_rcnn_r50_fpn_3x": ("COCO 2017", f"{MASK} R50-FPN", "3x"),
    "digits_faster_rcnn_voc": (
        "digits_voc_trainval -> digits_voc_test",
        f"{FASTER} R18-FPN",
        "0.05k",
    ),
    "digits_mask_rcnn_coco": ("digits_coco_train -> digits_coco_val", f"{MASK} R18-FPN", "0.05k"),
    "voc07_faster_rcnn_r50_c4_9k": ("VOC 07", f"{FASTER} R50-C4", "9k"),
    "voc_faster_rcnn_r101_c4_24k": ("VOC 07+12", f"{FASTER} R101-C4", "24k"),
    "voc_faster_rcnn_r18_fpn_24k": ("VOC 07+12", f"{FASTER} R18-FPN", "24k"),
    "voc_faster_rcnn_r34_fpn_24k": ("VOC 07+12", f"{FASTER} R34-FPN", "24k"),
    "voc_faster_rcnn_r50_c4_24k": ("VOC 07+12", f"{FASTER} R50-C4", "24k"),
    "voc_faster_rcnn_r50_fpn_24k": ("VOC 07+12", f"{FASTER} R50-FPN", "24k"),
}


def settings_of(content: dict, **declared: dict) -> dict:
    names = [name for listed in content["DATASETS"].values() for name in listed]
    known = {n: KNOWN_DATASETS[n].model_dump(mode="json") for n in names if n in KNOWN_DATASETS}
    return {"detectron2": content, "datasets": known | declared}


def changed(name: str, *overrides: str, **declared: dict) -> dict:
    return settings_of(
        load_config(CONFIGS / f"{name}.yaml", "detectron2 config", overrides), **declared
    )


def test_every_shipped_config_that_is_no_base_is_listed() -> None:
    tasks = {path.stem for path in CONFIGS.glob("*.yaml") if "DATASETS" in load_yaml(path)}
    assert tasks == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_protocol_of_a_shipped_config(name: str) -> None:
    assert protocol_of(changed(name)) == Protocol(*SHIPPED[name])


@pytest.mark.parametrize(
    ("overrides", "schedule"),
    [
        (("SOLVER.IMS_PER_BATCH=8", "SOLVER.MAX_ITER=180000"), "1x"),
        (("SOLVER.IMS_PER_BATCH=32",), "2x"),
        (("SOLVER.MAX_ITER=100000",), "1.111x"),
        (("SOLVER.MAX_ITER=many",), ""),
    ],
)
def test_a_schedule_is_a_number_of_images(overrides: tuple[str, ...], schedule: str) -> None:
    assert protocol_of(changed("coco_mask_rcnn_r50_c4_1x", *overrides)).schedule == schedule


@pytest.mark.parametrize(
    "change",
    [
        "MODEL.META_ARCHITECTURE=RetinaNet",
        "MODEL.ROI_HEADS.NAME=CascadeROIHeads",
        "MODEL.BACKBONE.NAME=build_resnet_fpn_backbone",  # with heads of C4
        "MODEL.KEYPOINT_ON=true",
        "MODEL.RESNETS.NUM_GROUPS=32",
    ],
)
def test_another_network_is_no_published_detector(change: str) -> None:
    assert protocol_of(changed("coco_mask_rcnn_r50_c4_1x", change)).detector == ""


def test_what_a_config_leaves_out_is_detectron2s_own() -> None:
    content = {"DATASETS": {"TRAIN": "('coco_2017_train',)", "TEST": ["coco_2017_val"]}}
    found = protocol_of({"detectron2": content, "datasets": {}})
    assert found == Protocol("COCO 2017", "Faster R-CNN R50-C4", "0.4444x")


def test_the_order_of_training_sets_is_no_other_data() -> None:
    turned = "DATASETS.TRAIN=[voc_2012_trainval, voc_2007_trainval]"
    assert protocol_of(changed("voc_faster_rcnn_r50_c4_24k", turned)).data == "VOC 07+12"


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({"root": "/elsewhere/VOC"}, "VOC 07"),
        ({"split": "val"}, VOC_TEST),
        ({"year": 2012}, VOC_TEST),
        ({"class_names": ["cat"]}, VOC_TEST),
    ],
)
def test_a_known_name_on_other_data_is_other_data(change: dict, data: str) -> None:
    test = KNOWN_DATASETS["voc_2007_test"].model_dump(mode="json") | change
    assert protocol_of(changed("voc07_faster_rcnn_r50_c4_9k", voc_2007_test=test)).data == data


def test_part_of_a_set_or_another_test_is_other_data() -> None:
    part = protocol_of(
        changed("coco_mask_rcnn_r50_c4_1x", "DATASETS.TRAIN=[coco_2017_train_10pct_seed0]")
    )
    other = protocol_of(changed("voc_faster_rcnn_r50_c4_24k", "DATASETS.TEST=[voc_2012_val]"))
    assert part.data == PART.format(10)
    assert other.data == "voc_2007_trainval+voc_2012_trainval -> voc_2012_val"


@pytest.mark.parametrize(
    ("year", "rule"),
    [
        (2007, "VOC 2007's, the mean of 11 precisions"),
        (2012, "VOC 2012's, the area under the curve"),
    ],
)
def test_the_year_of_the_evaluated_set_says_the_rule(year: int, rule: str) -> None:
    mine = VocData(root=Path("mine"), split="test", year=year).model_dump(mode="json")
    found = changed("voc_faster_rcnn_r50_c4_24k", "DATASETS.TEST=[mine]", mine=mine)
    assert ap_rule(found) == rule
    coco = ap_rule(changed("coco_mask_rcnn_r50_c4_1x"))
    assert coco == "COCO's, of at most 100 detections an image"
    few = "TEST.DETECTIONS_PER_IMAGE=50"
    coco = ap_rule(changed("coco_mask_rcnn_r50_c4_1x", few))
    assert coco == "COCO's, of at most 50 detections an image"
    voc = ap_rule(changed("voc_faster_rcnn_r50_c4_24k", "DATASETS.TEST=[mine]", few, mine=mine))
    assert voc == f"{rule}, of at most 50 detections an image"
