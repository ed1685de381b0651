"""Rows of the parity table: how many things were compared, how many are equal, the rest by name.

A difference is relative: the largest of |theirs - ours| over the largest of |theirs|, tensor by
tensor. Equal means equal byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEADER = ("part", "compared", "things", "equal", "largest difference", "allowed", "")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `faults` are differences that nobody expects, `notes` those that are explained.
    """

    part: str
    what: str
    number: int = 0
    equal: int = 0
    difference: float = 0.0
    tolerance: float = 0.0
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether both sides are as equal as the row demands."""
        return not self.faults and self.difference <= self.tolerance

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the columns of `HEADER`."""
        numbers = (str(self.number), str(self.equal), f"{self.difference:.1e}")
        largest = "0" if self.difference == 0 else numbers[2]
        allowed = "0" if self.tolerance == 0 else f"{self.tolerance:.0e}"
        verdict = "agrees" if self.agrees else "DIFFERS"
        return (self.part, self.what, *numbers[:2], largest, allowed, verdict)


def failed(part: str, reason: str) -> Row:
    """Return the row of a part that could not be compared."""
    return Row(part, "could not be compared", difference=math.inf, faults=(reason,))


def relative_difference(theirs: Tensor, ours: Tensor) -> float:
    """Return the largest difference over the largest value; infinite where shapes or NaN differ."""
    if theirs.shape != ours.shape:
        return math.inf
    if same_bytes(theirs, ours) or theirs.numel() == 0:
        return 0.0
    first, second = theirs.detach().double(), ours.detach().double()
    largest = float((first - second).abs().max())
    if largest == 0:
        return 0.0
    scale = float(first.abs().max())
    value = largest / scale if scale > 0 else math.inf
    return value if math.isfinite(value) else math.inf


def same_bytes(theirs: Tensor, ours: Tensor) -> bool:
    """Whether type, shape and every byte are equal, so that NaN equals the same NaN."""
    if theirs.dtype != ours.dtype or theirs.shape != ours.shape:
        return False
    first, second = (one.detach().cpu().contiguous().numpy().tobytes() for one in (theirs, ours))
    return first == second


def compare_tensors(
    label: tuple[str, str],
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    *,
    tolerance: float = 0.0,
    known: Mapping[str, str] | None = None,
) -> Row:
    """Return the row of two mappings from names to tensors.

    `known` gives the reason why a name is on one side only; any other such name is a fault.
    """
    known, common = known or {}, sorted(theirs.keys() & ours.keys())
    faults: list[str] = []
    explained: dict[str, list[str]] = {}
    for side, first, second in (("theirs", theirs, ours), ("ours", ours, theirs)):
        for name in sorted(first.keys() - second.keys()):
            if name in known:
                explained.setdefault(f"only in {side}: {known[name]}", []).append(name)
            else:
                faults.append(f"{name} only in {side}")
    differences = {name: relative_difference(theirs[name], ours[name]) for name in common}
    faults += [
        f"{name} differs by {difference:.1e}"
        for name, difference in differences.items()
        if not difference <= tolerance
    ]
    faults += [] if common else ["nothing to compare"]
    return Row(
        *label,
        number=len(common),
        equal=sum(same_bytes(theirs[name], ours[name]) for name in common),
        difference=max(differences.values(), default=0.0),
        tolerance=tolerance,
        faults=tuple(faults),
        notes=tuple(f"{', '.join(names)} {text}" for text, names in explained.items()),
    )


def numbers(values: Mapping[str, float]) -> dict[str, Tensor]:
    """Return floats as tensors, to compare them."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def series(name: str, values: Iterable[float]) -> dict[str, Tensor]:
    """Return numbers in order, named by their step."""
    return numbers({f"{name} {step}": value for step, value in enumerate(values)})


def compare_values(
    label: tuple[str, str],
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    known: Mapping[str, str],
) -> Row:
    """Return the row of two mappings from keys to settings.

    `known` gives the reason why a key may differ. Lists and tuples with equal items are equal.
    """
    keys = sorted(theirs.keys() | ours.keys())
    faults: list[str] = []
    notes: list[str] = []
    for key in keys:
        first, second = (_plain(side.get(key, "not there")) for side in (theirs, ours))
        if first != second:
            explained = key in known
            reason = f": {known[key]}" if explained else ""
            line = f"{key} is {first!r} in theirs, {second!r} in ours{reason}"
            (notes if explained else faults).append(line)
    equal = len(keys) - len(faults) - len(notes)
    if not keys:
        faults.append("nothing to compare")
    return Row(*label, number=len(keys), equal=equal, faults=tuple(faults), notes=tuple(notes))


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def table(rows: Iterable[Row]) -> str:
    """Return the table as Markdown, then the explained differences, then the others."""
    rows = list(rows)
    lines = [_line(HEADER), _line(("---", "---", "---:", "---:", "---:", "---:", "---"))]
    lines += [_line(row.cells()) for row in rows]
    for title, kind in (("Explained differences:", "notes"), ("Not expected:", "faults")):
        places: dict[str, list[str]] = {}
        for row in rows:
            for text in shortened(getattr(row, kind)):
                places.setdefault(text, []).append(f"{row.part}, {row.what}")
        texts = [f"- {_places(where)}: {text}" for text, where in places.items()]
        lines += ["", title, "", *texts] if texts else []
    return "\n".join(lines)


def _places(where: list[str]) -> str:
    """Return where something was seen; after three places only how many more there are."""
    if len(where) <= 3:
        return "; ".join(where)
    return f"{where[0]} and {len(where) - 1} more rows"


def shortened(texts: tuple[str, ...], most: int = 12) -> tuple[str, ...]:
    """Return the first texts, and how many more there are."""
    more = len(texts) - most
    return texts if more <= 0 else (*texts[:most], f"and {more} more")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
