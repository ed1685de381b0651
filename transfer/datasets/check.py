"""Checks of a detection set before hours are spent on it: annotations, counts, images."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Literal, NamedTuple

from PIL import Image

from transfer.config.data import CocoData, VocData
from transfer.datasets.coco import check_coco
from transfer.datasets.findings import Finding, Findings, ImageJob, Needs
from transfer.datasets.voc import check_voc

logger = logging.getLogger(__name__)
Decode = Literal["auto", "all", "none"]
DECODE_LIMIT = 2_000
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # of EXIF
BATCH = 64

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
    """Results of a check: `faults` stop a run, `notes` name what training leaves out or clips."""

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

    Every image is opened and its size compared; `auto` decodes them in sets of up to 2,000 images
    and in those that AP is measured on, which else are decoded first when training is over.
    At most ten lines of a kind are kept, and one that says how many more there are.
    """
    place = data.annotations if isinstance(data, CocoData) else data.root
    findings = Findings(needs, place, is_published=name in KNOWN_COUNTS)
    check = check_coco(data, findings) if isinstance(data, CocoData) else check_voc(data, findings)
    findings.add(check)
    if name in KNOWN_COUNTS and findings.num_images:
        findings.add(_count_findings(name, findings))
    is_auto = needs.evaluated or len(findings.jobs) <= DECODE_LIMIT
    decoded = decode == "all" or (decode == "auto" and is_auto)
    findings.add(check_images(findings.jobs, decode=decoded))
    return SetReport(
        num_images=findings.num_images,
        num_objects=findings.num_objects,
        num_decoded=len(findings.jobs) if decoded else 0,
        faults=findings.report(notes=False),
        notes=findings.report(notes=True),
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


def _count_findings(name: str, findings: Findings) -> Iterator[Finding]:
    """Yield where a set that everybody has is another; images must agree."""
    images, objects = KNOWN_COUNTS[name]
    if findings.num_images != images:
        line = f"{findings.place}: {findings.num_images:,} images, but {name} has {images:,}"
        yield "image counts", f"{line}; download it again, or name a set of your own anew"
    elif findings.num_counted != objects:
        line = f"{findings.num_counted:,} objects to count, but {name} as published has {objects:,}"
        yield "object counts", f"{findings.place}: {line}; AP will not compare with others'"


def check_images(jobs: list[ImageJob], *, decode: bool) -> Iterator[Finding]:
    """Open every image, and decode it if asked to; in as many threads as there are cores.

    Pillow decodes outside the interpreter's lock, so threads work side by side.
    """

    def check(start: int) -> list[Finding]:
        batch = jobs[start : start + BATCH]
        return [finding for job in batch for finding in image_findings(job, decode=decode)]

    Image.init()  # before the threads: it registers what FORMATS names
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with warnings.catch_warnings(), ThreadPoolExecutor(cores) as threads:
        warnings.simplefilter("ignore")  # of large images and odd EXIF blocks
        yield from chain.from_iterable(threads.map(check, range(0, len(jobs), BATCH)))


def image_findings(job: ImageJob, *, decode: bool) -> Iterator[Finding]:
    """Yield how an image differs from what its annotation says of it."""
    path, annotation = job.path, job.annotation
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            yield "unreadable images", f"{path}: not a file; {annotation} points at it"
            return
        with Image.open(path, formats=FORMATS) as image:
            yield from _header_findings(job, image)
            if decode:
                image.load()
    except FileNotFoundError:
        yield "missing images", f"{path}: no such image; {annotation} points at it"
    except Exception as error:  # noqa: BLE001  (decoders trip over damage in many ways)
        line = f"{path}: not a readable image ({str(error) or type(error).__name__})"
        yield "unreadable images", f"{line}; {annotation} points at it"


def _header_findings(job: ImageJob, image: Image.Image) -> Iterator[Finding]:
    path, size, annotation = job
    orientation = image.getexif().get(ORIENTATION)
    seen = image.size[::-1] if orientation in SIDEWAYS else image.size
    if seen != size:
        exif = f" as its EXIF orientation {orientation} shows it" if seen != image.size else ""
        line = f"{path}: size {seen}{exif}, but {annotation} says {size} (width, height)"
        yield "images of another size", line
    if image.mode.startswith(("I", "F")):
        line = f"{path}: mode {image.mode}; a detector reads 8 bits a channel, convert the image"
        yield "images of other depth", line
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # cameras put a preview beside the picture in an MPO
        yield "animated images", f"{path}: {frames} frames; wanted a single image"
