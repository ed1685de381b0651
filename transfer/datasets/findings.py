"""Findings of a check by kind, a bounded number of lines each; the checks that layouts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

MAX_PER_KIND = 10
MAX_SHOWN = 80
MAX_LINE = 600
LIMIT = 1e15  # beyond it a number is a mistake, and whole numbers stop being exact in floats
NOTES = ("object counts",)  # kinds that stop nothing
LOSSES = ("empty boxes", "boxes outside the image", "short polygons")  # that training does without

Finding = tuple[str, str]  # its kind, and a line


class ImageJob(NamedTuple):
    """An image to be opened, its (width, height) as annotated, and the file that says so."""

    path: Path
    size: tuple[int, int]
    annotation: Path


class Needs(NamedTuple):
    """Uses of a set: an evaluation reads more than training, Mask R-CNN wants masks."""

    evaluated: bool
    masks: bool


@dataclass
class Findings:
    """Faults stop a run; notes name what training drops or clips without a word.

    A published set (`is_published`) is measured on as it is, oddities and all: COCO's train2017 has
    two boxes without height (annotations 918 and 2206849; cocodataset/cocoapi, issue 355).
    """

    needs: Needs
    place: Path
    is_published: bool = False
    num_images: int = 0
    num_objects: int = 0
    num_counted: int = 0
    jobs: list[ImageJob] = field(default_factory=list)
    lines: dict[str, list[str]] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)

    def add(self, findings: Iterable[Finding]) -> None:
        """Keep the first lines of each kind, and count the rest."""
        for kind, line in findings:
            self.totals[kind] += 1
            if self.totals[kind] <= MAX_PER_KIND:
                self.lines.setdefault(kind, []).append(one_line(line))

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


def read_text(path: Path) -> str:
    """Return the text of a regular file (a pipe would be waited on for ever).

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or no regular file.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    return path.read_text(encoding="utf-8")


def one_line(text: str) -> str:
    """Return a text that a terminal can print on one line, whatever a file put into it."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE // 2]} .. {text[-MAX_LINE // 2 :]}"


def shown(value: Any) -> str:
    """Return a value as a message can hold it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}.."


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number of a sane size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LIMIT


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number of a sane size."""
    return isinstance(value, int) and is_number(value)


def path_fault(name: Any) -> str | None:
    """Return why a name does not lie below its folder, or None."""
    if not isinstance(name, str) or not name or "\0" in name:
        return "is not a file name"
    path = Path(name)
    return "leaves the folder of the set" if path.is_absolute() or ".." in path.parts else None


def box_findings(
    where: str, edges: tuple[float, float, float, float], size: tuple[int, int]
) -> Iterator[Finding]:
    """Yield that a box `(x0, y0, x1, y1)` is empty or beyond an image of `(width, height)`."""
    x0, y0, x1, y1 = edges
    width, height = size
    slack = 2  # pixels: rounding, and boxes that count from 1
    if not (x1 > x0 and y1 > y0):
        yield "empty boxes", f"{where}, wanted a width and a height above 0"
    elif x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack:
        line = f"{where} lies outside the image of {width} x {height} pixels"
        yield "boxes outside the image", line
