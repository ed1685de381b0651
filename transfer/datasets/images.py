"""Whether images can be read, and are what their annotations say of them."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from transfer.datasets.findings import Findings

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
BATCH = 64


class ImageJob(NamedTuple):
    """An image, its (width, height) as annotated, and the file that says so."""

    path: Path
    size: tuple[int, int]
    annotation: Path


def check_images(findings: Findings, jobs: Iterable[ImageJob], *, decode: bool) -> None:
    """Open every image, and decode it if asked to; in as many threads as there are cores.

    Pillow decodes outside the interpreter's lock, so threads work side by side.
    """

    def check(batch: list[ImageJob]) -> list[tuple[str, str]]:
        return [found for job in batch for found in image_faults(job, decode=decode)]

    Image.init()  # before the threads: it registers what FORMATS names
    with warnings.catch_warnings(), ThreadPoolExecutor(num_cores()) as threads:
        warnings.simplefilter("ignore")  # of large images and odd EXIF blocks
        for found in threads.map(check, _batches(jobs)):
            for kind, line in found:
                findings.fault(kind, line)


def _batches(jobs: Iterable[ImageJob]) -> Iterator[list[ImageJob]]:
    held = iter(jobs)
    while batch := list(islice(held, BATCH)):
        yield batch


def num_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def image_faults(job: ImageJob, *, decode: bool) -> Iterator[tuple[str, str]]:
    """Yield (kind, line) of how an image differs from what its annotation says of it."""
    path, annotation = job.path, job.annotation
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            yield "unreadable images", f"{path}: not a file; {annotation} points at it"
            return
        with Image.open(path, formats=FORMATS) as image:
            yield from _header_faults(job, image)
            if decode:
                image.load()
    except FileNotFoundError:
        yield "missing images", f"{path}: no such image; {annotation} points at it"
    except Exception as error:  # noqa: BLE001  (decoders trip over damage in many ways)
        reason = str(error) or type(error).__name__
        yield (
            "unreadable images",
            f"{path}: not a readable image ({reason}); {annotation} points at it",
        )


def _header_faults(job: ImageJob, image: Image.Image) -> Iterator[tuple[str, str]]:
    path, size, annotation = job
    orientation = image.getexif().get(ORIENTATION)
    seen = image.size[::-1] if orientation in SIDEWAYS else image.size
    if seen != size:
        turned = f" as its EXIF orientation {orientation} shows it" if seen != image.size else ""
        yield (
            "images of another size",
            f"{path}: size {seen}{turned}, but {annotation} says {size} (width, height)",
        )
    if image.mode.startswith(("I", "F")):
        yield (
            "images of other depth",
            f"{path}: mode {image.mode}; a detector reads 8 bits a channel, convert the image",
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # cameras put a preview beside the picture in an MPO
        yield "animated images", f"{path}: {frames} frames; wanted a single image"
