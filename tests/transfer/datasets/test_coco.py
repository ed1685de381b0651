"""Every fault of a set in COCO's layout is one line that names the file and what was expected."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.transfer.datasets.edits import Content, Faults, category, check_set, edit, first, image
from transfer.config.data import MAX_DETECTIONS, CocoData
from transfer.datasets.coco import mask_fault
from transfer.datasets.findings import Needs

NAN, INF = float("nan"), float("inf")
SQUARE = [4, 5, 29, 5, 29, 39, 4, 39]
RUNS = {"size": [48, 64], "counts": [3000, 72]}
COCO_FAULTS: list[tuple[Callable[[Content], object], str]] = [
    (first(image_id=9), "annotation 1: image_id 9 is not among the images"),
    (first(image_id="0"), "annotation 1: image_id '0' is not"),
    (first(image_id=[0]), r"annotation 1: image_id \[0\] is not"),
    (first(image_id=True), "annotation 1: image_id True is not"),
    (first(category_id=8), "annotation 1: category_id 8 is not among the categories"),
    (first(category_id=None), "annotation 1: category_id None is not"),
    (first(category_id={}), "annotation 1: category_id {} is not"),
    (lambda c: c["annotations"][0].pop("category_id"), "annotation 1: category_id None is not"),
    (first(bbox=[1, 2, 0, 4]), r"annotation 1: bbox \[1, 2, 0, 4\], wanted a width and"),
    (first(bbox=[1, 2, -3, 4]), r"annotation 1: bbox \[1, 2, -3, 4\], wanted a width"),
    (first(bbox=[1, 2, 3]), "annotation 1: bbox .* wanted .x, y, width"),
    (first(bbox="1 2 3 4"), "annotation 1: bbox"),
    (first(bbox=None), "annotation 1: bbox None"),
    (first(bbox=[1, 2, NAN, 4]), "annotation 1: bbox .*nan"),
    (first(bbox=[1, 2, INF, 4]), "annotation 1: bbox .*inf"),
    (first(bbox=[1, 2, True, 4]), "annotation 1: bbox .*True"),
    (first(bbox=[1, 2, "3", 4]), "annotation 1: bbox"),
    (first(bbox=[1, 2, [3], 4]), "annotation 1: bbox"),
    (first(bbox=[10**400, 2, 3, 4]), "annotation 1: bbox .*wanted"),
    (first(bbox=[1e9, 2, 3, 4]), "annotation 1: bbox .* lies outside the image of 64 x 48"),
    (first(bbox=[-30, 2, 10, 4]), "annotation 1: bbox .* lies outside the image"),
    (first(bbox=[60, 2, 10, 4]), "annotation 1: bbox .* lies outside the image"),
    (first(bbox=[1, 2, 10, 400]), "annotation 1: bbox .* lies outside the image"),
    (first(id=0), "annotation id 0 .*from 1"),
    (first(id=-4), "annotation id -4 .*from 1"),
    (first(id=2), r"annotation id 2 \(2 times\)"),
    (first(id="a"), r"annotations\[0\]: id is 'a', wanted a whole number"),
    (first(id=1.5), r"annotations\[0\]: id is 1.5"),
    (first(id=[1]), r"annotations\[0\]: id is \[1\]"),
    (lambda c: c["annotations"][0].pop("id"), r"annotations\[0\]: id is None"),
    (lambda c: c["annotations"].append(3), r"annotations\[3\] is 3, wanted an object"),
    (lambda c: c["annotations"][0].pop("area"), "annotation 1: area is None, wanted a number"),
    (first(area=-1), "annotation 1: area is -1"),
    (first(area=NAN), "annotation 1: area is nan"),
    (first(area="9"), "annotation 1: area is '9'"),
    (first(area=1e9), "annotation 1: area is 1000000000.0, more than its image"),
    (first(iscrowd=2), "annotation 1: iscrowd 2"),
    (first(iscrowd="no"), "annotation 1: iscrowd 'no'"),
    (first(ignore=1), "annotation 1: iscrowd 0 and ignore 1"),
    (first(keypoints=["a"]), "annotation 1: keypoints"),
    (first(bbox=[30, 2, -3, 4]), "annotation 1: .* is inverted, and detectron2 trains on its mir"),
    (first(segmentation=[[1, 2, 3]]), "annotation 1: segmentation has a polygon of 3 numbers"),
    (first(segmentation=[[1, 2, 3, 4]]), "annotation 1: segmentation has a polygon of 4"),
    (first(segmentation=[[*SQUARE, 3]]), "annotation 1: segmentation has a polygon of 9"),
    (first(segmentation=[SQUARE, []]), "annotation 1: segmentation has a polygon of 0"),
    (first(segmentation=SQUARE), "annotation 1: segmentation has a polygon 4, wanted a list"),
    (first(segmentation=[["a"] * 6]), "annotation 1: segmentation has a polygon .'a'"),
    (first(segmentation=[[NAN] * 6]), "annotation 1: segmentation has a polygon .nan"),
    (first(segmentation=[[1e300] * 6]), "annotation 1: segmentation has a polygon .* far outside"),
    (first(segmentation=[[10**400] * 6]), "annotation 1: segmentation has a polygon"),
    (first(segmentation="RLE"), "annotation 1: segmentation is 'RLE'"),
    (first(segmentation=RUNS | {"size": [64, 48]}), r"runs of size \[64, 48\], wanted \[48, 64\]"),
    (first(segmentation=RUNS | {"size": "48"}), "runs of size '48'"),
    (first(segmentation=RUNS | {"counts": [3000, 71]}), "runs of 3071 pixels, wanted 3072"),
    (first(segmentation=RUNS | {"counts": [3073, -1]}), "has counts .* wanted runs"),
    (first(segmentation=RUNS | {"counts": 5}), "has counts 5"),
    (first(segmentation=RUNS | {"counts": "~~~"}), "has counts '~~~'"),
    (first(segmentation=RUNS | {"counts": "oooooooooooooooooo"}), "has counts 'ooo"),
    (first(segmentation=RUNS | {"counts": "1"}), "has runs of 1 pixels"),
    (first(segmentation={"size": [48, 64]}), "has counts None"),
    (lambda c: c["images"][0].pop("file_name"), r"images\[0\] has file_name None"),
    (image(file_name=""), "has file_name '', which is not a file name"),
    (image(file_name=7), "has file_name 7"),
    (image(file_name="a\0.jpg"), "has file_name .* which is not a file name"),
    (image(file_name="../../../etc/hostname"), "which leaves the folder of the set"),
    (image(file_name="/etc/hostname"), "which leaves the folder of the set"),
    (image(file_name="x.jpg"), "x.jpg: no such image; .* points at it"),
    (image(file_name="\x1b[2J\ud800\n.jpg"), "val/ .2J  .jpg: "),
    (image(file_name="."), "val: not a file"),
    (image(file_name="a" * 5000), "aaa .. .*aaa.*points at it"),
    (image(width=65), r"000.jpg: size \(64, 48\), but .* says \(65, 48\)"),
    (image(width=0), r"images\[0\] has width 0, wanted pixels"),
    (image(width="64"), r"images\[0\] has width '64'"),
    (image(height=-48), r"images\[0\] has height -48"),
    (image(height=NAN), r"images\[0\] has height nan"),
    (image(height=10**300), r"images\[0\] has height 1000.*\.\., wanted pixels"),
    (image(id="0"), r"images\[0\] has id '0', wanted a whole number"),
    (image(id=None), r"images\[0\] has id None"),
    (image(id=1), r"images\[1\] has id 1 as one before"),
    (lambda c: c["images"].append([]), r"images\[3\] is \[\], wanted an object"),
    (category(id="7"), r"categories\[0\] has id '7', wanted whole numbers"),
    (category(name=""), r"categories\[0\] has name '', wanted names"),
    (lambda c: c["categories"][0].pop("name"), r"categories\[0\] has name None"),
    (lambda c: c["categories"].append({"id": 7, "name": "b"}), r"categories\[1\] has id 7"),
    (lambda c: c["categories"].append({"id": 8, "name": "one"}), r"categories\[1\] has name 'one'"),
    (lambda c: c["categories"].append("two"), r"categories\[1\] is 'two'"),
    (lambda c: c.update(annotations=[]), "no annotations to count; AP cannot be measured"),
    (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], "no annotations to count"),
    (lambda c: c.update(images=[]), "not COCO's layout"),
    (lambda c: c.update(images={}), "not COCO's layout"),
    (lambda c: c.update(annotations=None), "not COCO's layout"),
    (lambda c: c.pop("categories"), "not COCO's layout"),
]  # fmt: skip


def test_masks_that_c_code_may_read() -> None:
    size = (4, 2)  # width, height
    assert mask_fault([[0, 0, 3, 0, 3, 1]], size) is None
    assert mask_fault({"size": [2, 4], "counts": [3, 5]}, size) is None
    for shape, words in (
        ("runs", "wanted polygons or runs"),
        ([[0, 0, 3, None]], "wanted a list of numbers"),
        ([[0, 0, 99, 0, 3, 1]], "far outside its image"),
        ({"size": [4, 2], "counts": [8]}, "of size"),
        ({"size": [2, 4], "counts": [9]}, "runs of 9 pixels, wanted 8"),
    ):
        assert words in str(mask_fault(shape, size)), shape


@pytest.mark.parametrize(("change", "expected"), COCO_FAULTS, ids=range(len(COCO_FAULTS)))
@pytest.mark.parametrize("masks", [False, True])
def test_coco_faults(
    coco: CocoData,
    change: Callable[[Content], object],
    expected: str,
    masks: bool,
    detection_faults: Faults,
) -> None:
    edit(coco, change)
    faults = detection_faults(coco, masks=masks)
    assert any(re.search(expected, fault) for fault in faults), faults
    assert all(len(fault) < 610 and fault.isprintable() for fault in faults)
    # a broken image or category takes its annotations with it, nothing else has two faults
    follows = ("is not among the", "has id 1 as")
    assert len([fault for fault in faults if not any(text in fault for text in follows)]) <= 1


@pytest.mark.parametrize(
    "change",
    [
        first(segmentation=RUNS),
        first(segmentation={"size": [48, 64], "counts": "hm2X2"}),
        first(segmentation=[SQUARE, SQUARE]),
        first(iscrowd=1, segmentation=RUNS),
        first(bbox=[-0.4, 0, 64.9, 48.3]),
        first(ignore=0),
        lambda c: c["annotations"][0].pop("iscrowd"),
        lambda c: c["categories"].append({"id": 0, "name": "nothing"}),
        lambda c: c.update(info={}, licenses=[]),
    ],
)
def test_what_is_unusual_but_sound(
    coco: CocoData, change: Callable[[Content], object], detection_faults: Faults
) -> None:
    edit(coco, change)
    assert detection_faults(coco, masks=True) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2]",
        "{",
        "3",
        "\x00",
        "null",
        '{"images": [{"id": 1',
        "[" * 100_000,
        "9" * 5000,
        "\ufeff{}",
    ],
)
def test_files_that_are_not_coco(coco: CocoData, content: str, detection_faults: Faults) -> None:
    coco.annotations.write_text(content, encoding="utf-8")
    (fault,) = detection_faults(coco)
    assert str(coco.annotations) in fault and "wanted" in fault


TRAINING = Needs(evaluated=False, masks=False)


def all_of(key: str, **changes: Any) -> Callable[[Content], object]:
    """Change every entry of a list."""
    return lambda content: [entry.update(changes) for entry in content[key]]


def texts(content: Content) -> None:
    for entry in content["annotations"]:
        entry |= {"id": f"a{entry['id']}", "image_id": str(entry["image_id"]), "category_id": "x"}
    for entry in content["images"]:
        entry["id"] = str(entry["id"])
    content["categories"][0]["id"] = "x"


@pytest.mark.parametrize(
    "change", [first(id=0), first(id=-3), first(id="a"), texts, first(area=None)]
)
def test_ids_and_areas_matter_only_where_a_set_is_measured_on(
    coco: CocoData, change: Callable[[Content], object], detection_faults: Faults
) -> None:
    edit(coco, change)
    assert check_set("", coco, TRAINING).faults == []
    assert detection_faults(coco, evaluated=True) != []


def test_ids_of_two_types_or_twice_are_refused_in_training_too(
    coco: CocoData, detection_faults: Faults
) -> None:
    edit(coco, lambda content: content["images"][0].update(id="a"))
    fault = detection_faults(coco, evaluated=False)[0]
    assert "ids of images are numbers and texts, wanted one of the two" in fault
    edit(coco, lambda content: content["images"][0].update(id=0))
    edit(coco, first(id=2))
    (fault,) = detection_faults(coco, evaluated=False)
    assert "annotation id 2 (2 times); detectron2 wants ids that differ" in fault


@pytest.mark.parametrize("where", ["images", "categories"])
@pytest.mark.parametrize("broken", [{"id": None}, {"id": 1.5}, {"id": "0"}, {"id": [1]}])
def test_a_broken_entry_is_one_line_whatever_points_at_it(
    coco: CocoData, where: str, broken: Content, detection_faults: Faults
) -> None:
    def change(content: Content) -> None:
        key = {"images": "image_id", "categories": "category_id"}[where]
        first_id = content[where][0]["id"]
        for entry in content["annotations"]:
            entry["bbox"] = [1, 1, 2, 2]
            if entry[key] == first_id and broken["id"] is not None:
                entry[key] = broken["id"]
        content["annotations"] = [
            entry | {"id": number} for number, entry in enumerate(content["annotations"] * 31, 1)
        ]
        content[where][0].update(broken)

    edit(coco, change)
    (fault,) = detection_faults(coco)
    assert f"{where}[0] has id" in fault


def test_a_broken_size_is_one_line(coco: CocoData, detection_faults: Faults) -> None:
    edit(coco, all_of("annotations", image_id=0))
    edit(coco, image(width=0))
    (fault,) = detection_faults(coco)
    assert "images[0] has width 0" in fault


def test_images_left_out_of_training_are_noted_with_the_switch(coco: CocoData) -> None:
    edit(coco, first(iscrowd=1))
    edit(coco, lambda content: content["annotations"].pop())
    (note,) = check_set("", coco, TRAINING).notes
    assert note == (
        f"{coco.annotations}: 2 of 3 images have no objects, or crowds only (000.jpg, 002.jpg): "
        "left out of training; DATALOADER.FILTER_EMPTY_ANNOTATIONS=False keeps them"
    )
    (note,) = check_set("", coco, TRAINING._replace(drops_empty=False)).notes
    assert note.endswith("(DATALOADER.FILTER_EMPTY_ANNOTATIONS is False)")
    assert check_set("", coco, Needs(True, False)).notes == []
    both = check_set("", coco, Needs(True, False, trained=True))
    assert "left out of training" in both.notes[0]


@pytest.mark.parametrize(
    "change", [all_of("annotations", iscrowd=1), lambda content: content.update(annotations=[])]
)
def test_nothing_left_to_train_on_is_a_fault(
    coco: CocoData, change: Callable[[Content], object]
) -> None:
    edit(coco, change)
    (fault,) = check_set("", coco, TRAINING).faults
    assert "FILTER_EMPTY_ANNOTATIONS leaves them out, so nothing to train on is left" in fault


def test_classes_without_objects_are_noted_by_name(coco: CocoData) -> None:
    edit(coco, lambda content: content["categories"].insert(0, {"id": 0, "name": "digits"}))
    report = check_set("", coco, Needs(True, False))
    assert report.faults == []
    assert report.notes == [
        f"{coco.annotations}: no object to count of digits; AP is the mean over 1 of 2 classes"
    ]


def test_images_of_more_objects_than_ap_counts_are_noted(coco: CocoData) -> None:
    def many(content: Content) -> None:
        entry = content["annotations"][0]
        content["annotations"] += [entry | {"id": 4 + n} for n in range(MAX_DETECTIONS - 1)]

    edit(coco, many)
    assert check_set("", coco, Needs(True, False)).notes == []
    edit(
        coco, lambda content: content["annotations"].append(content["annotations"][0] | {"id": 999})
    )
    (note,) = check_set("", coco, Needs(True, False)).notes
    assert note.endswith(
        ": 1 image holds more than 100 objects (most: 000.jpg, 101), so perfect detections cannot "
        "reach an AP of 100: COCO's AP counts 100 detections an image, as published"
    )
    (note,) = check_set("", coco, Needs(True, False, num_kept=1)).notes
    assert note.endswith(
        ": 1 image holds more than 1 object (most: 000.jpg, 101), so perfect detections cannot "
        "reach an AP of 100: TEST.DETECTIONS_PER_IMAGE is 1; the rule of AP counts up to 100"
    )
    assert check_set("", coco, TRAINING).notes == []


def test_areas_that_boxes_contradict_are_noted_where_ap_sorts_by_them(coco: CocoData) -> None:
    def report(evaluated: bool, *areas: float) -> list[str]:
        def change(content: Content) -> None:
            for entry, area in zip(content["annotations"], areas, strict=True):
                entry["area"] = area

        edit(coco, change)
        report = check_set("mine", coco, Needs(evaluated, False))
        assert report.faults == []
        return report.notes

    assert report(True, 1, 850, 892) == []  # a thin object, a box's own, rounding
    assert report(False, 0, 0, 0) == []
    assert report(True, 0, 1700, 850) == [
        f"{coco.annotations}: 2 of 3 objects have an area of 0 or above their box's (first: "
        "annotation 1); APs, APm and APl sort objects by area"
    ]


@pytest.mark.parametrize("evaluated", [True, False])
def test_boxes_in_fractions_of_the_image_are_refused(coco: CocoData, evaluated: bool) -> None:
    def change(content: Content) -> None:
        for entry in content["annotations"]:
            entry |= {"bbox": [0.1, 0.2, 0.5, 0.8], "area": 0.4}

    edit(coco, change)
    (fault,) = check_set("mine", coco, Needs(evaluated, False)).faults
    assert fault == (
        f"{coco.annotations}: all boxes end within the first pixel, so they seem to be fractions "
        "of the image; wanted [x, y, width, height] in pixels"
    )


def test_runs_are_refused_where_polygons_are_trained_on(coco: CocoData) -> None:
    edit(coco, first(segmentation=RUNS))
    polygons = Needs(evaluated=False, masks=True, polygons=True)
    (fault,) = check_set("", coco, polygons).faults
    assert fault == (
        f"{coco.annotations}: 1 of 3 masks is in runs (first: annotation 1), but INPUT.MASK_FORMAT "
        "is polygon; set INPUT.MASK_FORMAT=bitmask, which takes both kinds"
    )
    for needs in (polygons._replace(polygons=False), polygons._replace(evaluated=True)):
        assert check_set("", coco, needs).faults == []
    edit(coco, first(iscrowd=1))
    assert check_set("", coco, polygons).faults == []  # COCO's crowds are runs


def test_a_part_is_counted_as_a_part_and_measured_as_a_whole(coco: CocoData) -> None:
    part = coco.model_copy(update={"fraction": 0.01})
    report = check_set("mine", part, TRAINING)
    assert report[:3] == (1, 1, 1) and report.faults == []
    assert report.notes == [f"{coco.annotations}: 1 of 3 images is the part that is used"]
    report = check_set("coco_2017_train_1pct_seed0", part, TRAINING)
    (fault,) = report.faults
    assert "3 images, but coco_2017_train has 118,287; download it again" in fault


def test_a_wrong_size_is_one_line_whatever_lies_in_the_image(
    coco: CocoData, detection_faults: Faults
) -> None:
    def change(content: Content) -> None:
        content["images"][0]["width"] = 6
        entry = content["annotations"][0] | {"segmentation": [[4, 5, 60, 5, 60, 39]]}
        runs = entry | {"segmentation": RUNS}
        content["annotations"] += [entry | {"id": 4 + number} for number in range(20)]
        content["annotations"] += [runs | {"id": 40 + number} for number in range(20)]

    edit(coco, change)
    (fault,) = detection_faults(coco)
    assert "000.jpg: size (64, 48), but " in fault and "says (6, 48)" in fault


def test_ids_with_a_decimal_point_are_one_line(coco: CocoData) -> None:
    def change(content: Content) -> None:
        for entry in content["annotations"]:
            entry |= {"image_id": float(entry["image_id"]), "id": float(entry["id"])}

    edit(coco, lambda content: (change(content), content["images"][0].update(id=0.0)))
    content = json.loads(coco.annotations.read_text(encoding="utf-8"))
    num_ids = 2 * len(content["annotations"]) + 1
    for evaluated in (False, True):
        (line,) = check_set("mine", coco, Needs(evaluated, masks=False)).faults
        assert line == (
            f"{coco.annotations}: {num_ids} ids have a decimal point (images[0] has id 0.0), as "
            "pandas writes a column with gaps; write whole numbers"
        )


def test_absolute_file_names_are_one_line(coco: CocoData) -> None:
    def change(content: Content) -> None:
        for entry in content["images"]:
            entry["file_name"] = str(coco.images / entry["file_name"])

    edit(coco, change)
    lines = check_set("mine", coco, Needs(False, masks=False)).faults
    (line,) = [line for line in lines if "file_name" in line]
    assert re.search(r"images\[0\] .* leaves the folder of the set; (\d+) of \1 file names are "
                     "absolute: write them relative to the folder of the images", line)  # fmt: skip
