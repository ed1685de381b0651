"""Published transfer results that stand beside this project's own, as reference rows.

Percent; `bbox` and `segm` as COCO's evaluation names them. A task of a pipeline names the set of
rows it can be compared with in `reference:`.
"""

from __future__ import annotations

from dataclasses import dataclass

CW_RGP = "README of github.com/winci-ai/CW-RGP"
MOCO = "detection/README of github.com/facebookresearch/moco, commit 7397dfe, mean of 5 trials"

Value = tuple[float, float | None]  # mean, standard deviation where it is given


@dataclass(frozen=True)
class PublishedRow:
    """A line of somebody else's table."""

    backbone: str
    metrics: dict[str, Value]
    source: str


def _box(
    ap50: float, ap: float, ap75: float, std: tuple[float, float, float] | None = None
) -> dict[str, Value]:
    spreads = std or (None, None, None)
    names = ("bbox/AP50", "bbox/AP", "bbox/AP75")
    return dict(zip(names, zip((ap50, ap, ap75), spreads, strict=True), strict=True))


PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {
    # Faster R-CNN R50-C4, VOC 07+12 trainval -> 07 test, 24k iterations
    "voc-0712-faster-rcnn-r50-c4-24k": (
        PublishedRow("supervised ImageNet", _box(81.3, 53.5, 58.8), MOCO),
        PublishedRow("MoCo v1, 200 epochs", _box(81.5, 55.9, 62.6), MOCO),
        PublishedRow("MoCo v2, 200 epochs", _box(82.4, 57.0, 63.6), MOCO),
        PublishedRow("MoCo v2, 800 epochs", _box(82.5, 57.4, 64.0), MOCO),
        PublishedRow(
            "CW-RGP 4, 200 epochs", _box(82.2, 57.2, 63.8, (0.07, 0.10, 0.11)), CW_RGP
        ),
    ),
    # Mask R-CNN R50-C4, COCO 2017 train -> val
    "coco-mask-rcnn-r50-c4": (
        PublishedRow(
            "CW-RGP 4, 200 epochs",
            _box(60.5, 40.7, 44.1, (0.28, 0.14, 0.14))
            | {"segm/AP50": (57.3, 0.16), "segm/AP": (35.5, 0.12), "segm/AP75": (37.9, 0.14)},
            CW_RGP,
        ),
    ),
}  # fmt: skip
