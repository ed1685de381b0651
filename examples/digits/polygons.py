"""Exact polygons around binary masks, as COCO's "segmentation" wants them.

A polygon follows the borders between pixels (pixel (x, y) covers x..x+1, y..y+1), so filling it
gives the mask back. COCO's polygons know no holes: a hole is reached over a bridge that is walked
forth and back, which the even-odd fill of pycocotools cancels exactly. Holes run against the
outline's direction, so that fills by winding number leave them open too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]
Loop = list[Point]


def mask_to_polygons(mask: NDArray[np.bool_], *, x: int = 0, y: int = 0) -> list[list[int]]:
    """One flat [x0, y0, x1, y1, ...] polygon per 4-connected part of `mask`, shifted by (x, y)."""
    loops = _trace(mask)
    outlines = [loop for loop in loops if _signed_area(loop) > 0]
    paths = [list(outline) for outline in outlines]
    for hole in loops:
        if _signed_area(hole) < 0:
            owner = _owner(hole, outlines)
            paths[owner] = _join(paths[owner], hole)
    return [[value for px, py in path for value in (px + x, py + y)] for path in paths]


def _trace(mask: NDArray[np.bool_]) -> list[Loop]:
    """Closed loops of corner points with the mask on the right-hand side of each step."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    borders = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # above a pixel: walk right
        (padded[1:-1, 2:], (1, 0), (0, 1)),  # right of it: down
        (padded[2:, 1:-1], (1, 1), (-1, 0)),  # below: left
        (padded[1:-1, :-2], (0, 1), (0, -1)),  # left: up
    )
    leaving: dict[Point, list[Point]] = {}
    for neighbour, (corner_x, corner_y), step in borders:
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            leaving.setdefault((column + corner_x, row + corner_y), []).append(step)
    unused = {(point, step) for point, steps in leaving.items() for step in steps}
    return [_walk(leaving, unused, side) for side in sorted(unused) if side in unused]


def _walk(
    leaving: dict[Point, list[Point]], unused: set[tuple[Point, Point]], side: tuple[Point, Point]
) -> Loop:
    """The corners of the loop through `side`; its sides are taken from `unused`.

    Where two pixels touch at a corner only, two sides leave; the right turn stays with its pixel.
    """
    loop = []
    while side in unused:
        unused.remove(side)
        (x, y), (step_x, step_y) = side
        point, right = (x + step_x, y + step_y), (-step_y, step_x)
        following = right if right in leaving[point] else leaving[point][0]
        if following != (step_x, step_y):
            loop.append(point)
        side = (point, following)
    return loop


def _signed_area(loop: Loop) -> float:
    """Positive for outlines, negative for holes (y points down)."""
    following = loop[1:] + loop[:1]
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(loop, following, strict=True)) / 2


def _owner(hole: Loop, outlines: list[Loop]) -> int:
    """Index of the smallest outline around the mask pixel next to the hole's first step."""
    (x0, y0), (x1, y1) = hole[0], hole[1]
    step_x, step_y = np.sign(x1 - x0), np.sign(y1 - y0)
    x, y = x0 + (step_x - step_y) / 2, y0 + (step_y + step_x) / 2
    around = [i for i, outline in enumerate(outlines) if _contains(outline, x, y)]
    return min(around, key=lambda i: _signed_area(outlines[i]))


def _contains(loop: Loop, x: float, y: float) -> bool:
    """Even-odd test by a ray to the right; a loop has only level and upright sides."""
    sides = zip(loop, loop[1:] + loop[:1], strict=True)
    return sum(a[0] > x and (a[1] > y) != (b[1] > y) for a, b in sides) % 2 == 1


def _join(path: Loop, hole: Loop) -> Loop:
    """`path` with a detour around `hole` over the shortest bridge between their corners."""
    difference = np.array(path)[:, None] - np.array(hole)[None, :]
    nearest = np.argmin((difference**2).sum(axis=2))
    at, first = divmod(int(nearest), len(hole))
    return path[: at + 1] + hole[first:] + hole[: first + 1] + path[at:]
