"""Published transfer results that stand beside this project's own, as reference rows.

Percent; `bbox` and `segm` as COCO's evaluation names them. A task of a pipeline names the set of
rows it can be compared with in `reference:`.

Tested in tests/pipeline/report/test_tables.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.data import AP_METRICS

CW_RGP = "README of github.com/winci-ai/CW-RGP"
MOCO = "detection/README of github.com/facebookresearch/moco, commit 7397dfe, mean of 5 trials"


@dataclass(frozen=True)
class PublishedRow:
    """A line of somebody else's table; means and standard deviations in the order of AP_METRICS."""

    backbone: str
    source: str
    means: tuple[float, ...]
    stds: tuple[float, ...] | None = None

    @property
    def metrics(self) -> dict[str, tuple[float, float | None]]:
        """Mean, and standard deviation where it is given, by metric."""
        stds = self.stds or (None,) * len(self.means)
        return dict(zip(AP_METRICS, zip(self.means, stds, strict=True), strict=False))


PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {
    # Faster R-CNN R50-C4, VOC 07+12 trainval -> 07 test, 24k iterations
    "voc-0712-faster-rcnn-r50-c4-24k": (
        PublishedRow("supervised ImageNet", MOCO, (81.3, 53.5, 58.8)),
        PublishedRow("MoCo v1, 200 epochs", MOCO, (81.5, 55.9, 62.6)),
        PublishedRow("MoCo v2, 200 epochs", MOCO, (82.4, 57.0, 63.6)),
        PublishedRow("MoCo v2, 800 epochs", MOCO, (82.5, 57.4, 64.0)),
        PublishedRow("CW-RGP 4, 200 epochs", CW_RGP, (82.2, 57.2, 63.8), (0.07, 0.10, 0.11)),
    ),
    # Mask R-CNN R50-C4, COCO 2017 train -> val
    "coco-mask-rcnn-r50-c4": (
        PublishedRow(
            "CW-RGP 4, 200 epochs",
            CW_RGP,
            (60.5, 40.7, 44.1, 57.3, 35.5, 37.9),
            (0.28, 0.14, 0.14, 0.16, 0.12, 0.14),
        ),
    ),
}
