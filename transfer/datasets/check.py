"""Find what is wrong with a detection set before hours are spent on it. Imports no torch."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

from transfer.config.data import CocoData, VocData
from transfer.datasets.coco import check_coco
from transfer.datasets.findings import Findings, Needs
from transfer.datasets.images import check_images
from transfer.datasets.voc import check_voc

logger = logging.getLogger(__name__)
Decode = Literal["auto", "all", "none"]
DECODE_LIMIT = 2_000

# Images and objects. VOC's are those of its own statistics, without the difficult ones; COCO's are
# the entries of its annotation files, crowds included (cocodataset/cocoapi, issue 117).
KNOWN_COUNTS = {
    "voc_2007_trainval": (5_011, 12_608),
    "voc_2007_train": (2_501, 6_301),
    "voc_2007_val": (2_510, 6_307),
    "voc_2007_test": (4_952, 12_032),
    "voc_2012_trainval": (11_540, 27_450),
    "voc_2012_train": (5_717, 13_609),
    "voc_2012_val": (5_823, 13_841),
    "coco_2017_train": (118_287, 860_001),
    "coco_2017_val": (5_000, 36_781),
}


class SetReport(NamedTuple):
    """What a check found: `faults` stop a run, `notes` name what training leaves out or clips."""

    num_images: int
    num_objects: int
    num_decoded: int
    faults: list[str]
    notes: list[str]

    def summary(self) -> str:
        """Return one line of counts and the verdict."""
        verdict = "NOT sound" if self.faults else "sound"
        return (
            f"{self.num_images:,} images ({self.num_decoded:,} decoded), "
            f"{self.num_objects:,} objects: {verdict}"
        )


def check_set(
    name: str, data: CocoData | VocData, needs: Needs, decode: Decode = "auto"
) -> SetReport:
    """Check annotations, ids, boxes, masks, images, and the counts of the sets everybody knows.

    Every image is opened and its size compared; `auto` decodes them in sets of up to 2,000 images.
    At most ten lines of a kind are kept, and one that says how many more there are.
    """
    place = data.annotations if isinstance(data, CocoData) else data.root
    findings = Findings(needs, place, is_published=name in KNOWN_COUNTS)
    jobs = check_coco(data, findings) if isinstance(data, CocoData) else check_voc(data, findings)
    _count(name, findings)
    decoded = decode == "all" or (decode == "auto" and len(jobs) <= DECODE_LIMIT)
    check_images(findings, jobs, decode=decoded)
    return SetReport(
        num_images=findings.num_images,
        num_objects=findings.num_objects,
        num_decoded=len(jobs) if decoded else 0,
        faults=findings.fault_lines(),
        notes=findings.note_lines(),
    )


def detection_faults(
    data: CocoData | VocData, evaluated: bool = True, masks: bool = False, name: str = ""
) -> list[str]:
    """Return the faults of `check_set`, one a line; its notes are logged.

    A set that is only trained on may lack what only an evaluation reads; `masks` asks for masks.
    """
    report = check_set(name, data, Needs(evaluated, masks))
    for line in report.notes:
        logger.warning("%s", line)
    return report.faults


def _count(name: str, findings: Findings) -> None:
    """Compare a set that everybody has with what everybody has; images must agree."""
    if name not in KNOWN_COUNTS or not findings.num_images:
        return
    images, objects = KNOWN_COUNTS[name]
    if findings.num_images != images:
        findings.fault(
            "counts",
            f"{findings.place}: {findings.num_images:,} images, but {name} has {images:,}; "
            "download it again, or name a set of your own anew",
        )
    elif findings.num_counted != objects:
        findings.note(
            "counts",
            f"{findings.place}: {findings.num_counted:,} objects to count, but {name} as published "
            f"has {objects:,}; AP will not compare with others'",
        )
