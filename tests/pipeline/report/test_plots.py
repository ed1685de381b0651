"""Plots as SVG: well formed, the same everywhere, legible with long curves and close dots."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest

from pipeline.report.data import Cell, Curve
from pipeline.report.plots import (
    BASELINE,
    MAX_POINTS,
    SERIES,
    Series,
    bar_plot,
    colours,
    curve_series,
    label_heights,
    line_plot,
    points,
    recolour,
    thin,
    tick_label,
)
from pipeline.report.statistics import Spread

CELLS = {
    "random": Cell("bbox/AP", ((0, 1.0), (1, 3.0)), Spread(2.0, 1.414, 2), None, "baseline", False),
    "<b>&$\\frac{$": Cell("bbox/AP", ((0, 4.0),), Spread(4.0, None, 1), None, "n/a", True),
    "日本\n語": Cell("bbox/AP", (), None, None, "n/a", False),
}
PALETTE = colours(list(CELLS), "random")


def test_bar_plot_is_well_formed_and_keeps_any_name():
    root = ElementTree.fromstring(bar_plot(CELLS, PALETTE))
    texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]
    assert [
        text.strip() for text in texts if text.strip() in ("random", "<b>&$\\frac{$", "日本 語")
    ]
    assert "<b>&$\\frac{$" in texts
    assert "日本 語" in texts
    assert "not measured" in [text.strip() for text in texts]


def test_plots_are_the_same_whatever_the_users_settings(monkeypatch):
    before = bar_plot(CELLS, PALETTE)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "mine")
    assert bar_plot(CELLS, PALETTE) == before
    assert matplotlib.rcParams["font.size"] == 30.0
    assert matplotlib.rcParams["svg.hashsalt"] == "mine"


def test_svg_holds_no_date_and_no_tool_metadata():
    text = bar_plot(CELLS, PALETTE).decode()
    assert "dc:date" not in text
    assert "Matplotlib v" not in text


def test_recolour_touches_styles_only():
    assert recolour(f'style="fill: {BASELINE}"') == f'style="fill: var(--c0, {BASELINE})"'
    assert recolour(f"<text>{BASELINE}</text>") == f"<text>{BASELINE}</text>"
    assert recolour('style="stroke: #123456"') == 'style="stroke: #123456"'


def test_colours_keep_grey_for_the_baseline():
    found = colours(["a", "random", "b"], "random")
    assert found == {"a": SERIES[0], "random": BASELINE, "b": SERIES[1]}
    many = colours([str(i) for i in range(len(SERIES) + 1)], None)
    assert many[str(len(SERIES))] == SERIES[0]


def test_points_skip_what_is_not_there():
    curve = Curve(
        "a", "a", None, None,
        ({"step": 1, "loss": 2.0}, {"step": 2}, {"loss": 3.0}, {"step": 4, "loss": float("nan")}),
    )  # fmt: skip
    assert points(curve, "loss") == ([1.0], [2.0])
    assert points(curve, "knn") == ([], [])


def test_thin_averages_neighbours():
    assert thin([1.0, 3.0, 5.0, 7.0, 10.0], 2) == (2.0, 6.0, 10.0)
    assert thin([1.0, 3.0], 1) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("n", "kept", "size"), [(MAX_POINTS, MAX_POINTS, 1), (MAX_POINTS + 1, MAX_POINTS // 2 + 1, 2)]
)
def test_long_curves_are_averaged_and_say_so(n, kept, size):
    curve = Curve("a", "random", None, None, tuple({"step": i, "loss": 1.0} for i in range(n)))
    [series], most = curve_series([curve], "loss", PALETTE)
    assert (len(series.x), len(series.y), most) == (kept, kept, size)
    ElementTree.fromstring(line_plot([series]))


def test_labels_of_dots_that_are_close_stand_above_each_other():
    assert label_heights([]) == []
    assert label_heights([(0.0, 0.0, "a"), (0.0, 40.0, "b"), (90.0, 0.0, "c")]) == [4.0, 4.0, 4.0]
    assert label_heights([(0.0, 5.0, "upper"), (2.0, 0.0, "lower")]) == [8.0, 4.0]
    assert label_heights([(0.0, 0.0, "ab"), (8.0, 0.0, "ab"), (20.0, 0.0, "ab")]) == [
        4.0,
        13.0,
        4.0,
    ]
    stack = label_heights([(0.0, 0.0, "one"), (0.0, 1.0, "two"), (0.0, 2.0, "three")])
    assert stack == [4.0, 12.0, 20.0]


def texts(svg: bytes) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(TEXT)]


TEXT = "{http://www.w3.org/2000/svg}text"


def test_a_step_alone_is_the_only_step_that_is_named() -> None:
    assert texts(line_plot([Series((4,), (1.9,), SERIES[0])]))[:2] == ["4", "step"]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((1e6, 2e6), (1234567.0, 1234568.0)),
        ((0.0, 199_000.0), (1e-5, 2e-3)),
        ((1.0, 3.0), (37.123451, 37.123452)),
        ((24_000.0,), (0.0,)),
        ((1.0, 2.0), (-4e-5, -3e-5)),
    ],
)
def test_labels_of_ticks_are_few_short_and_whole(
    x: tuple[float, ...], y: tuple[float, ...]
) -> None:
    """None stands on another, none is a factor or an offset in a corner, no two are equal."""
    labels = texts(line_plot([Series(x, y, SERIES[0])]))
    steps, values = labels[: labels.index("step")], labels[labels.index("step") + 1 :]
    for part in (steps, values):
        assert len(part) in range(1, 8) and len(set(part)) == len(part)
        assert all(re.fullmatch(r"−?[\d.]+(e−\d+)?[kM]?", label) for label in part), part
        assert max(map(len, part)) <= 9


def test_labels_of_ticks_by_hand() -> None:
    assert [tick_label(value) for value in (0.1 + 0.2, -2.5, 9999, 24_000, 1.5e6, 3e-5)] == [
        "0.3", "−2.5", "9999", "24k", "1.5M", "3e−05",
    ]  # fmt: skip


def test_bars_of_nothing_but_zeros_stand_at_zero() -> None:
    zero = Cell("bbox/AP", ((0, 0.0),), Spread(0.0, None, 1), None, "n/a", False)
    assert texts(bar_plot({"random": zero}, PALETTE))[:2] == ["0", "0.2"]
