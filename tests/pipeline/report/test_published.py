"""Published rows beside tasks and probes, each under its name."""

import pytest

from pipeline.config.references import load_references
from pipeline.report.published import Protocol, published_probes, published_rows

REFERENCES = load_references()
C4 = "Mask R-CNN R50-C4"
KNN = {"k": 5, "distance": "euclidean"}


def labels(*protocol: str, named: str | None = None) -> list[str]:
    return [row.label for row in published_rows(REFERENCES, Protocol(*protocol), named)]


def test_a_1x_task_has_no_row_of_2x() -> None:
    once, twice = labels("COCO 2017", C4, "1x"), labels("COCO 2017", C4, "2x")
    assert len(once) == 11 and not [label for label in once if "CW-RGP" in label or "(" in label]
    assert twice == [
        "supervised ImageNet",
        "MoCo v1, 200 epochs, 2 views",
        "CW-RGP, 200 epochs, 4 views",
        "INTL, 200 epochs, multi-crop",
    ]


def test_a_named_table_of_another_schedule_says_so_in_every_name() -> None:
    both = published_rows(REFERENCES, Protocol("COCO 2017", C4, "1x"), "coco-mask-rcnn-r50-c4-2x")
    others = {row.label: row for row in both if row.table == "coco-mask-rcnn-r50-c4-2x"}
    assert list(others) == [
        "supervised ImageNet (2x schedule)",
        "MoCo v1, 200 epochs, 2 views (2x schedule)",
        "CW-RGP, 200 epochs, 4 views (2x schedule, inferred)",
        "INTL, 200 epochs, multi-crop (2x schedule)",
    ]
    assert all(row.differs == ("schedule",) for row in others.values())
    assert len(both) == 15  # and those of 1x as they are


def test_every_word_that_differs_is_said() -> None:
    found = labels("VOC 07+12", "Faster R-CNN R50-FPN", "24k", named="coco-mask-rcnn-r50-fpn-1x")
    assert found[0] == "random (COCO 2017 data; Mask R-CNN R50-FPN; 1x schedule)"


@pytest.mark.parametrize(
    "protocol",
    [
        ("COCO 2017", C4, "3x"),
        ("COCO 2017", "Faster R-CNN R50-C4", "1x"),
        ("COCO 2017", "Mask R-CNN R101-C4", "2x"),
        ("VOC 07+12", "Faster R-CNN R50-C4", "9k"),
        ("", "Mask R-CNN R50-C4", "1x"),
        ("", "", ""),
    ],
)
def test_where_one_of_the_three_differs_nothing_is_shown(protocol: tuple[str, ...]) -> None:
    assert labels(*protocol) == []


def test_a_table_that_is_named_and_equal_is_shown_once() -> None:
    name = "voc-0712-faster-rcnn-r50-c4-24k"
    protocol = ("VOC 07+12", "Faster R-CNN R50-C4", "24k")
    assert labels(*protocol, named=name) == labels(*protocol)


def test_values_that_a_source_does_not_give_are_not_there() -> None:
    row, *_ = published_rows(REFERENCES, Protocol("COCO 2017", "Mask R-CNN R50-FPN", "1x"))
    assert (row.metrics, row.stds) == ({"bbox/AP": 32.8, "segm/AP": 29.9}, {})


# --- probes


def probes(name: str, *archs: str, **measures: object) -> list[tuple[str, dict[str, float]]]:
    rows = published_probes(REFERENCES, "p", {"data": {"name": name}} | measures, set(archs))
    return [(row.label, row.metrics) for row in rows]


def test_probes_of_the_same_data_and_architecture() -> None:
    found = probes("cifar10", "resnet18", "resnet50", knn=KNN, linear={})
    assert found == [
        ("CW-RGP, 1000 epochs, 2 views", {"linear/top1": 91.92, "knn/top1": 89.54}),
        ("CW-RGP, 1000 epochs, 4 views", {"linear/top1": 92.47, "knn/top1": 90.74}),
    ]
    assert probes("cifar10", "resnet50", knn=KNN, linear={}) == []
    assert probes("digits-crops", "resnet18", knn=KNN, linear={}) == []


def test_only_what_is_measured_in_the_published_way_is_compared() -> None:
    [(_, found), _] = probes("cifar10", "resnet18", knn=KNN | {"k": 20}, linear={})
    assert found == {"linear/top1": 91.92}
    assert probes("cifar10", "resnet18", knn=KNN | {"distance": "cosine"}) == []
    assert probes("imagenet", "resnet50", linear={}, knn=KNN) == []  # published: random crops
    assert probes("imagenet", "resnet50", augmented_linear={})[1] == (
        "CW-RGP, 200 epochs, 4 views",
        {"augmented_linear/top1": 71.0},
    )
