"""Findings of a check by kind, a bounded number of lines each; the checks that layouts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transfer.config.data import MAX_DETECTIONS
from transfer.files import few, number_of, printable, share_of

MAX_PER_KIND = 10
MAX_SHOWN = 80
MAX_CLASSES = 20  # names in a line
MAX_LINE = 600
NOTES = (  # kinds that stop nothing
    "object counts", "parts of sets", "classes without objects", "classes that are not trained on",
    "images left out of training", "images of many objects", "orientation tags",
    "images twice in training", "copies in published sets", "files passed over",
    "images in two training sets", "areas that boxes contradict",
)  # fmt: skip
LOSSES = (  # that training drops, clips or takes as they are
    "empty boxes", "narrow boxes", "boxes outside the image", "short polygons", "empty masks",
)  # fmt: skip
OF_SIZE = ("boxes outside the image", "broken masks", "areas")  # follow from a wrong size
NOTHING = "sets without objects to train on"
# pixels: detectron2 drops a box that is at most 1e-5 wide or high; 1 % more is for rounding
MIN_SIDE = 1.01e-5
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")

Finding = tuple[str, str]  # its kind, and a line
Edges = tuple[float, float, float, float]  # x0, y0, x1, y1 of a box


class ImageJob(NamedTuple):
    """An image to be opened, its (width, height) as annotated, and the file that says so."""

    path: Path
    size: tuple[int, int]
    annotation: Path


class ImageFile(NamedTuple):
    """An image that is there: device and inode of its resolved path, and its size in bytes."""

    path: Path
    device: int
    inode: int
    size: int


class Needs(NamedTuple):
    """Uses of a set: an evaluation reads more than training, Mask R-CNN wants masks."""

    evaluated: bool
    masks: bool
    trained: bool = False  # a set that is not evaluated is for training anyway
    polygons: bool = False  # what is trained on are masks in polygons (INPUT.MASK_FORMAT)
    drops_empty: bool = True  # DATALOADER.FILTER_EMPTY_ANNOTATIONS
    num_kept: int = MAX_DETECTIONS  # TEST.DETECTIONS_PER_IMAGE
    train_sets: tuple[tuple[str, ...], ...] = ()  # DATASETS.TRAIN of each task that evaluates it

    @property
    def in_training(self) -> bool:
        """Return whether the set is trained on."""
        return self.trained or not self.evaluated


@dataclass
class Tally:
    """Objects of a set by class, and images by how many objects they hold."""

    class_names: tuple[str, ...] = ()
    counted: Counter[str] = field(default_factory=Counter)  # objects that AP counts
    trained: Counter[str] = field(default_factory=Counter)  # objects that are trained on
    left_out: list[str] = field(default_factory=list)  # images without an object to train on
    counted_in: Counter[str] = field(default_factory=Counter)  # objects that AP counts, by image

    def add_image(self, name: str, num_counted: int, num_trained: int) -> None:
        """Count an image with so many objects that AP counts, and that are trained on."""
        if not num_trained:
            self.left_out.append(name)
        self.counted_in[name] = num_counted


@dataclass
class Findings:
    """Faults stop a run; notes name what training drops or clips without a word.

    A published set (`is_published`) is measured on as it is, oddities and all: COCO's train2017 has
    two boxes without height (annotations 918 and 2206849; cocodataset/cocoapi, issue 355).
    """

    needs: Needs
    place: Path
    image_root: Path
    name: str = ""
    is_published: bool = False
    num_images: int = 0
    num_objects: int = 0
    published: tuple[int, int] = 0, 0  # images and objects as the field's statistics count them
    num_decoded: int = 0
    is_read: bool = False  # without a fault in the annotations, so that `tally` holds
    tally: Tally = field(default_factory=Tally)
    jobs: list[ImageJob] = field(default_factory=list)
    files: list[ImageFile] = field(default_factory=list)
    of_size: list[tuple[str, Finding]] = field(default_factory=list)
    other_size: set[Path] = field(default_factory=set)  # images that are not as annotated
    lines: dict[str, list[str]] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)

    def add(self, findings: Iterable[Finding]) -> None:
        """Keep the first lines of each kind, and count the rest."""
        for kind, line in findings:
            self.totals[kind] += 1
            if self.totals[kind] <= MAX_PER_KIND:
                self.lines.setdefault(kind, []).append(bounded(line))

    def set_aside(self, image: str, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Keep what may be wrong only because its image's size is, and yield the rest.

        `image` is its path below `image_root`.
        """
        for finding in findings:
            if finding[0] in OF_SIZE:
                self.of_size.append((image, finding))
            else:
                yield finding

    def add_of_size(self) -> None:
        """Add what was set aside of images that have the size they are annotated with."""
        root, other_size = self.image_root, self.other_size
        self.add(finding for image, finding in self.of_size if root / image not in other_size)

    def report(self, *, notes: bool) -> list[str]:
        """Return the notes, or else the faults, and how many more there are of each kind.

        What training can do without is a fault where a set of one's own measures AP.
        """
        refused = self.needs.evaluated and not self.is_published
        noted = NOTES if refused else NOTES + LOSSES
        report = []
        for kind, lines in self.lines.items():
            if (kind in noted) == notes:
                report += lines
                if more := self.totals[kind] - len(lines):
                    total = f"{kind}: {self.totals[kind]:,} in all"
                    report.append(f"{self.place}: {more:,} more like these ({total})")
        return report


def bounded(text: str) -> str:
    """Return a text that a terminal can print on one line, whatever a file put into it."""
    text = printable(text, " ")
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE // 2]} .. {text[-MAX_LINE // 2 :]}"


def shown(value: Any) -> str:
    """Return a value as a message can hold it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}.."


def is_dropped_box(edges: Edges, size: tuple[int, int]) -> bool:
    """Return whether nothing of a box is left to train on in an image `(width, height)`.

    detectron2 takes the least and the largest of a box' transformed corners, clips them to the
    image, and drops what then has no width or no height. The image stays, as background.
    """
    x0, y0, x1, y1 = edges
    width, height = size
    in_width = min(max(x0, x1), width) - max(min(x0, x1), 0)
    in_height = min(max(y0, y1), height) - max(min(y0, y1), 0)
    return in_width < MIN_SIDE or in_height < MIN_SIDE


def box_findings(where: str, edges: Edges, size: tuple[int, int]) -> Iterator[Finding]:
    """Yield that a box is inverted, empty or beyond an image `(width, height)`."""
    x0, y0, x1, y1 = edges
    width, height = size
    slack = 2  # pixels: rounding, and boxes that count from 1
    rule = "wanted a width and a height above 0"
    if x1 < x0 or y1 < y0:
        line = f"{where}, {rule}: it is inverted, and detectron2 trains on its mirror image"
        yield "inverted boxes", line
    elif x1 - x0 < MIN_SIDE or y1 - y0 < MIN_SIDE:
        rule = rule if x1 == x0 or y1 == y0 else f"{rule}.00001"
        yield "empty boxes", f"{where}, {rule}; training drops it"
    elif (is_dropped := is_dropped_box(edges, size)) or (
        x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack
    ):
        fate = "drops it" if is_dropped else "clips it to the image"
        line = f"{where} lies outside the image of {width} x {height} pixels; training {fate}"
        yield "boxes outside the image", line


def tally_findings(findings: Findings) -> Iterator[Finding]:
    """Yield what a set has nothing of: classes, images to train on, objects to measure AP on."""
    tally, needs, place = findings.tally, findings.needs, findings.place
    if needs.evaluated:
        absent = [name for name in tally.class_names if not tally.counted[name]]
        num_classes = len(tally.class_names)
        if not tally.counted.total():
            line = f"{place}: no annotations to count; AP cannot be measured without objects"
            yield "sets without objects", line
        elif absent:
            line = f"{place}: no object to count of {few(absent, MAX_CLASSES)}; AP is the mean over"
            measured = f"{num_classes - len(absent)} of {num_classes} classes"
            yield "classes without objects", f"{line} {measured}"
    if not needs.in_training:
        return
    switch = "DATALOADER.FILTER_EMPTY_ANNOTATIONS"
    num_empty, num_images = len(tally.left_out), findings.num_images
    some = f"{place}: {share_of(num_empty, num_images, 'image', 'has', 'have')} no objects, or "
    some += "crowds only"
    if num_empty < num_images and not tally.trained.total():
        line = f"{place}: detectron2 drops every object (it is empty or outside its image)"
        yield NOTHING, f"{line}, so nothing to train on is left"
    elif num_empty and not needs.drops_empty:
        fate = f"trained on as background ({switch} is False)"
        yield "images left out of training", f"{some} ({few(tally.left_out)}): {fate}"
    elif 0 < num_empty < num_images:
        fate = f"left out of training; {switch}=False keeps them"
        yield "images left out of training", f"{some} ({few(tally.left_out)}): {fate}"
    elif num_empty:
        line = f"{some}: {switch} leaves them out, so nothing to train on is left"
        yield NOTHING, line


def crowd_findings(findings: Findings, max_counted: float) -> Iterator[Finding]:
    """Yield that images hold more objects than detections are kept and counted of them.

    `max_counted` is how many of an image the rule of AP counts.
    """
    num_kept = findings.needs.num_kept
    limit = min(num_kept, max_counted)
    crowded = [(num, name) for name, num in findings.tally.counted_in.items() if num > limit]
    if not crowded or not findings.needs.evaluated:
        return
    most, name = max(crowded)
    images = number_of(len(crowded), "image", "holds", "hold")
    line = f"{findings.place}: {images} more than {number_of(int(limit), 'object')} (most: {name}, "
    line += f"{most:,}), so perfect detections cannot reach an AP of 100: "
    if num_kept < max_counted:
        any_number = "any number" if max_counted > most else f"up to {max_counted:,}"
        line += f"TEST.DETECTIONS_PER_IMAGE is {num_kept}; the rule of AP counts {any_number}"
    else:
        line += f"COCO's AP counts {max_counted:,} detections an image, as published"
    yield "images of many objects", line


def class_findings(test: Findings, trained: Sequence[Findings]) -> Iterator[Finding]:
    """Yield classes that are measured on after training on sets that have no object of them."""
    if not all(findings.is_read for findings in (test, *trained)):
        return
    sets = ", ".join(dict.fromkeys(findings.name for findings in trained))
    learnt = {name for findings in trained for name in +findings.tally.trained}
    counted = test.tally.counted
    unseen = [name for name in test.tally.class_names if counted[name] and name not in learnt]
    if unseen and learnt:
        line = f"{test.place}: has objects of {few(unseen, MAX_CLASSES)}, but {sets} has none"
        yield "classes that are not trained on", f"{line}; their AP will be near 0"
    elif unseen and not any(findings.totals[NOTHING] for findings in trained):
        yield NOTHING, f"{sets}: no objects; nothing to train on is left"
