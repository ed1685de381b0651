"""Whether a "segmentation" is one that COCO's C code reads without harm: polygons, or runs."""

from __future__ import annotations

import math
from typing import Any

from transfer.datasets.findings import is_whole, shown

MIN_NUMBERS = 6  # three corners


def mask_fault(shape: Any, size: tuple[int, int]) -> tuple[str, bool] | None:
    """Return what is wrong with a segmentation, and whether training merely drops it; else None.

    `size` is the image's (width, height).
    """
    if isinstance(shape, dict):
        fault = _runs_fault(shape, size)
        return None if fault is None else (fault, False)
    if not isinstance(shape, list):
        return f"is {shown(shape)}, wanted polygons or runs", False
    for polygon in shape:
        if (fault := _polygon_fault(polygon, size)) is not None:
            return fault, False
    for polygon in shape:
        if len(polygon) < MIN_NUMBERS or len(polygon) % 2:
            return f"has a polygon of {len(polygon)} numbers, wanted pairs, three or more", True
    return None


def _polygon_fault(polygon: Any, size: tuple[int, int]) -> str | None:
    reach = max(size)
    try:
        sound = isinstance(polygon, list) and math.isfinite(sum(polygon))
        inside = sound and (not polygon or -reach <= min(polygon) <= max(polygon) <= 2 * reach)
    except (TypeError, OverflowError):
        return f"has a polygon {shown(polygon)}, wanted a list of numbers"
    if not sound:
        return f"has a polygon {shown(polygon)}, wanted a list of numbers"
    if not inside:
        return f"has a polygon {shown(polygon)} far outside its image"
    return None


def _runs_fault(shape: dict[str, Any], size: tuple[int, int]) -> str | None:
    wanted = [size[1], size[0]]
    if shape.get("size") != wanted:
        return f"has runs of size {shown(shape.get('size'))}, wanted {wanted} (height, width)"
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = _decoded(counts)
    if not isinstance(counts, list) or not all(is_whole(run) and run >= 0 for run in counts):
        return f"has counts {shown(shape.get('counts'))}, wanted runs of pixels"
    if sum(counts) != size[0] * size[1]:
        return f"has runs of {sum(counts)} pixels, wanted {size[0] * size[1]}"
    return None


def _decoded(text: str) -> list[int] | None:
    """Return the runs that COCO packs five bits to a character, or None where it is not so."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None
