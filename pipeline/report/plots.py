"""The report's plots as SVG, drawn without pyplot and without lasting global state.

The same input gives the same bytes whatever matplotlibrc says. Colours in an SVG are CSS variables
with a light fallback, so that a page can restyle them (see `recolour`).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.report.data import Cell, Curve
from pipeline.report.statistics import Spread, finite

LABEL_SIZE, LABEL_RIGHT, LABEL_UP = 8.0, 6.0, 4.0  # points
INK, QUIET, GRID = "#1f2428", "#656d76", "#d8dee4"
PAGE = "#ffffff"
BASELINE = "#8c959f"
SERIES = ("#0969a8", "#c2410c", "#15803d", "#7c3aed", "#be185d", "#0e7490", "#854d0e")
CSS_NAMES = {INK: "--ink", QUIET: "--quiet", GRID: "--grid", PAGE: "--page", BASELINE: "--c0"} | {
    colour: f"--c{i}" for i, colour in enumerate(SERIES, start=1)
}
STYLE: dict[str, Any] = {
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
}
NOT_STYLE = ("backend", "backend_fallback", "date.epoch", "interactive", "toolbar")
NO_METADATA: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
MAX_POINTS = 240

Palette = Mapping[str, str]


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    colour: str


def colours(backbones: Sequence[str], baseline: str | None) -> dict[str, str]:
    """A colour per backbone: grey for the baseline, the palette in turn for the others."""
    others = [name for name in backbones if name != baseline]
    palette = {name: SERIES[i % len(SERIES)] for i, name in enumerate(others)}
    return {name: palette.get(name, BASELINE) for name in backbones}


def bar_plot(cells: Mapping[str, Cell], palette: Palette) -> bytes:
    """One bar per backbone: mean, whiskers of one standard deviation, a dot per seed."""
    with _axes(3.6, 0.55 + 0.42 * len(cells)) as (figure, axes):
        for i, (name, cell) in enumerate(cells.items()):
            _bar(axes, i, cell, palette[name])
        axes.set_yticks(range(len(cells)))
        axes.set_yticklabels([_short(name) for name in cells], parse_math=False, color=INK)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        if not any(value for cell in cells.values() for _, value in cell.values):
            axes.set_xlim(0.0, 1.0)
        _few_ticks(axes, "x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        return _svg(figure)


def _bar(axes: Axes, position: int, cell: Cell, colour: str) -> None:
    if cell.spread is None:
        axes.text(0, position, " not measured", va="center", color=QUIET, fontsize=8)
        return
    for fill, alpha in ((PAGE, 1.0), (colour, 0.4)):  # no grid lines through a pale bar
        axes.barh(position, cell.spread.mean, height=0.62, color=fill, alpha=alpha, linewidth=0)
    mean, std = cell.spread.mean, cell.spread.std
    if std is not None:
        axes.errorbar(mean, position, xerr=std, color=INK, capsize=3, elinewidth=1.1, zorder=3)
    # dots beside each other, always in seed order: no random jitter
    n = len(cell.values)
    offsets = [0.0] if n == 1 else [-0.18 + 0.36 * i / (n - 1) for i in range(n)]
    heights = [position + offset for offset in offsets]
    values = [value for _, value in cell.values]
    axes.scatter(values, heights, s=14, color=colour, edgecolors="none", zorder=4)


def line_plot(series: Sequence[Series]) -> bytes:
    """Lines over steps."""
    look: dict[str, Any] = {"linewidth": 1.3 if len(series) <= 6 else 1.0, "alpha": 0.9}
    with _axes(3.6, 2.2) as (figure, axes):
        for line in series:
            marker = "o" if len(line.x) < 3 else None
            axes.plot(line.x, line.y, color=line.colour, marker=marker, markersize=3, **look)
        axes.set_xlabel("step", parse_math=False)
        axes.grid(color=GRID, linewidth=0.6)
        axes.margins(x=0.02)
        _few_ticks(axes, "x", whole=True)
        _few_ticks(axes, "y")
        return _svg(figure)


def scatter_plot(
    places: Mapping[str, tuple[float, Spread]], palette: Palette, labels: tuple[str, str]
) -> bytes:
    """One dot per backbone at (predictor, mean of the metric), whiskers of one standard deviation.

    `labels` are those of the x and the y axis.
    """
    look: dict[str, Any] = {"fmt": "o", "capsize": 3, "markersize": 5, "elinewidth": 1.1}
    with _axes(3.6, 2.6) as (figure, axes):
        for name, (x, y) in places.items():
            axes.errorbar(x, y.mean, yerr=y.std or 0.0, color=palette[name], **look)
        axes.set_xlabel(labels[0], parse_math=False)
        axes.set_ylabel(labels[1], parse_math=False)
        axes.grid(color=GRID, linewidth=0.6)
        axes.margins(0.18, 0.12)
        _few_ticks(axes, "x")
        _few_ticks(axes, "y")
        names = [_short(name) for name in places]
        dots = [(x, y.mean) for x, y in places.values()]
        figure.draw_without_rendering()  # limits and layout are settled by drawing
        on_paper: Any = axes.transData.transform(dots) * 72 / figure.dpi if dots else []
        labelled = [(x, y, name) for (x, y), name in zip(on_paper, names, strict=True)]
        text: dict[str, Any] = {"fontsize": LABEL_SIZE, "parse_math": False}
        for name, dot, height in zip(names, dots, label_heights(labelled), strict=True):
            place = (LABEL_RIGHT, height)
            axes.annotate(name, dot, xytext=place, textcoords="offset points", **text)
        return _svg(figure)


def _few_ticks(axes: Axes, name: Literal["x", "y"], *, whole: bool = False) -> None:
    """Few ticks with short labels, over 1 % of the largest value or more: equal values look so."""
    low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
    missing = 0.01 * max(abs(low), abs(high)) - (high - low)
    if missing > 0:
        axes.set(**{f"{name}lim": (low - missing / 2, high + missing / 2)})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5, integer=whole, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))


def tick_label(value: float) -> str:
    """`37.5`, `24k`, `1.5M`: a number in few characters, with a true minus sign."""
    if abs(value) >= 1e6:
        text = f"{value / 1e6:g}M"
    else:
        text = f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"
    return text.replace("-", "−")


def label_heights(dots: Sequence[tuple[float, float, str]]) -> list[float]:
    """Return how far above its dot (x, y, label; in points) each label stands, none on another."""
    heights = [0.0] * len(dots)
    placed: list[tuple[float, float, float]] = []  # left, right, bottom; lowest first
    for number in sorted(range(len(dots)), key=lambda index: dots[index][1]):
        x, y, label = dots[number]
        left, bottom = x + LABEL_RIGHT, y + LABEL_UP
        right = left + 0.6 * LABEL_SIZE * len(label)
        for other_left, other_right, other_bottom in sorted(placed, key=lambda place: place[2]):
            beside = left < other_right and other_left < right
            if beside and abs(bottom - other_bottom) < LABEL_SIZE + 1:
                bottom = other_bottom + LABEL_SIZE + 1
        placed.append((left, right, bottom))
        heights[number] = bottom - y
    return heights


def curve_series(curves: Sequence[Curve], key: str, palette: Palette) -> tuple[list[Series], int]:
    """The lines of one measured key, and how many points at most were averaged into one."""
    lines, most = [], 1
    for curve in curves:
        x, y = points(curve, key)
        if x:
            size = -(-len(x) // MAX_POINTS)
            most = max(most, size)
            lines.append(Series(thin(x, size), thin(y, size), palette[curve.backbone]))
    return lines, most


def points(curve: Curve, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a key, where both are finite numbers."""
    pairs = [(finite(point.get("step")), finite(point.get(key))) for point in curve.points]
    kept = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def thin(values: Sequence[float], size: int) -> tuple[float, ...]:
    """Means of `size` consecutive values; the last mean may be of fewer."""
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return tuple(sum(group) / len(group) for group in groups)


def recolour(svg: str) -> str:
    """The SVG with its colours as CSS variables, the fixed colour as their fallback."""
    ours = "|".join(CSS_NAMES)
    return re.sub(
        rf"\b(fill|stroke): ?({ours})\b",
        lambda style: f"{style[1]}: var({CSS_NAMES[style[2]]}, {style[2]})",
        svg,
    )


def _short(name: str, limit: int = 20) -> str:
    name = " ".join(name.split())
    return name if len(name) <= limit else name[: limit - 1] + "…"


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure with axes; inside, matplotlib's own defaults hold and our style on top."""
    defaults: dict[Any, Any] = dict(matplotlib.rcParamsDefault)
    defaults = {key: value for key, value in defaults.items() if key not in NOT_STYLE}
    with matplotlib.rc_context(defaults | STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _svg(figure: Figure) -> bytes:
    """The SVG with ids that stay apart from another plot's on the same page, and CSS colours."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        # names in any script: the browser has the glyphs that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue()
    prefix = f"p{hashlib.sha256(svg).hexdigest()[:8]}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg.decode("utf-8"))
    return recolour(text).encode("utf-8")
