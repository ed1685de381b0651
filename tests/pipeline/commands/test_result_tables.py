"""The tables that `run` and `report` print: no word and no number is cut."""

import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from pipeline.commands.result_tables import rich_tables, show_tables
from pipeline.report.data import ProbeRow
from tests.pipeline.report.cases import VOC, case, row, shown


def test_tables_on_the_terminal():
    voc, coco, failed, probes = (shown(table) for table in rich_tables(case(ours="[b]x[/b]"), 80))
    for part in ("[b]x[/b] †", "28.0 ± 1.4", "+11.5 ± 0.7", "baseline", "yes"):
        assert part in voc
    (line,) = (line for line in voc.splitlines() if "+11.5 ± 0.7" in line)
    assert re.search(r"^\W*difference\W", line) and voc.count("difference") == 1
    assert "1 of 2" in coco and "1 failed" in coco
    assert "failed: [b]x[/b], seed 1: out of memory" in failed
    assert "[b]x[/b]" in probes
    assert max(len(line) for line in voc.splitlines()) <= 80


def test_a_path_in_what_failed_is_not_cut():
    rows = (row("cw-rgp", VOC, 0, (), status="failed", reason="x", log=f"runs/{'long/' * 40}log"),)
    console = Console(width=60, file=StringIO())
    show_tables(replace(case(), tasks=(VOC,), rows=rows), console)
    assert f"failed: cw-rgp, seed 0: x (log: {rows[0].log})\n" in console.file.getvalue()


def test_several_probes_keep_the_names_of_the_backbones_on_the_terminal():
    found = {
        f"{kind}/top{k}": 90.0 + k for kind in ("knn", "weighted_knn", "linear") for k in (1, 5)
    }
    probes = shown(
        rich_tables(replace(case(), probes=(ProbeRow("cw-rgp", "crops", found),)), 80)[-1]
    )
    assert "cw-rgp" in probes and "Backbone" in probes and "weighted_knn" in probes
    assert probes.count("91.0") == probes.count("95.0") == 3 and "…" not in probes


WIDE = (
    row("random", VOC, 0, (30.0, 16.0, 14.0)),
    row("random", VOC, 1, (52.0, 37.0, 45.0)),
    row("cw-rgp", VOC, 0, (50.0, 27.0, 25.0)),
    row("cw-rgp", VOC, 1, (93.0, 89.0, 86.0)),
    row("cw-rgp", VOC, 2, (), status="failed", reason="x", log="l"),
)
NARROW = tuple(replace(one, metrics={k: 9 + v / 9 for k, v in one.metrics.items()}) for one in WIDE)
WORDS = ("difference", "Backbone", "Seeds", "baseline", "failed", "told", "AP75", "higher")


@pytest.mark.parametrize("width", [67, 72, 80, 120])
@pytest.mark.parametrize("rows", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["cw-rgp", "a-name-that-is-longer-than-any-column"])
def test_no_word_and_no_number_is_folded(rows, width, name):
    """Seeds and verdicts are, between words, where the terminal is narrow, and names are."""
    rows = tuple(replace(one, backbone=one.backbone.replace("cw-rgp", name)) for one in rows)
    data = replace(case(ours=name), tasks=(VOC,), rows=rows)
    text = shown(rich_tables(data, width)[0], width)
    assert len(re.findall(r"\d+\.\d ± \d+\.\d", text)) == 9 and "…" not in text
    assert [word for word in WORDS if word not in text] == []
    lines = text.splitlines()
    names = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert name in names and max(map(len, lines)) <= width
