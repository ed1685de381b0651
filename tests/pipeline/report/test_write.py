import json
import math
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pipeline.report.data import Curve, ProbeRow, ReportData, ResultRow, TaskInfo, summarise
from pipeline.report.html import html
from pipeline.report.schema import results_json
from pipeline.report.text import findings, markdown, rich_tables
from pipeline.report.write import results_csv, write_files, write_report

FILES = [
    "index.html",
    "report.md",
    "results.csv",
    "results.json",
    "results.schema.json",
    "table.tex",
]
VOC = TaskInfo("voc", "Faster R-CNN on VOC", ("bbox/AP50", "bbox/AP", "bbox/AP75"))
COCO = TaskInfo("coco", "Mask R-CNN on COCO", ("bbox/AP", "segm/AP"))
EVIL = "<script>alert('x')</script>"


def row(backbone, task, seed, values, **more):
    metrics = dict(zip(task.metrics, values, strict=True)) if values else {}
    given = {
        "status": "done",
        "metrics": metrics,
        "reason": None,
        "log": None,
        "pictures": (),
        "ground_truth": (),
        "wall_time_s": 65.0,
        "run_dir": f"runs/demo/finetune/{backbone}-{task.name}-{seed}",
        "dirty": False,
        "signature": "0123456789abcdef",
    }
    return ResultRow(backbone, task.name, seed, **(given | more))


def case(ours="cw-rgp", reason="out of memory"):
    """Two tasks, two seeds; on COCO one fine-tuning of `ours` failed."""
    log = tuple({"step": float(i), "total_loss": 1 / (1 + i), "bbox/AP": i / 9} for i in range(9))
    return ReportData(
        pipeline="demo",
        backbones=("random", ours),
        tasks=(VOC, COCO),
        baseline="random",
        rows=(
            row("random", VOC, 0, (30.0, 16.0, 14.0)),
            row("random", VOC, 1, (32.0, 17.0, 15.0)),
            row(ours, VOC, 0, (50.0, 27.0, 25.0)),
            row(ours, VOC, 1, (53.0, 29.0, 26.0), dirty=True),
            row("random", COCO, 0, (10.0, 9.0)),
            row("random", COCO, 1, (11.0, 8.0)),
            row(ours, COCO, 0, (20.0, math.nan)),
            row(ours, COCO, 1, (), status="failed", reason=reason, log="runs/demo/log.txt"),
        ),
        probes=(ProbeRow(ours, "knn", {"top1": 71.25}),),
        pretraining=(Curve(ours, ours, None, None, ({"step": 1.0, "loss": 2.0, "lr": 0.1},) * 2),),
        finetuning=(Curve(f"{ours} 0", ours, "voc", 0, log),),
        provenance={
            "versions": {"torch": "2.14.1"},
            "commit": "abc",
            "dirty": True,
            "wall_time_s": {"pretrain": 3725.0},
            "configs": {"demo": {"seeds": [0, 1]}},
        },
        command="run_pipeline.py run",
    )


def python(code, *arguments):
    """Run code in another process, with another hash seed."""
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, text):
        self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


# --- results.json and results.csv


def test_results_json_keeps_the_contract():
    found = json.loads(results_json(case()))
    assert found["rows"][0] == {
        "backbone": "random",
        "task": "voc",
        "seed": 0,
        "metrics": {"bbox/AP50": 30.0, "bbox/AP": 16.0, "bbox/AP75": 14.0},
    }
    assert [(r["backbone"], r["task"], r["seed"]) for r in found["rows"]] == [
        ("random", "voc", 0),
        ("random", "voc", 1),
        ("cw-rgp", "voc", 0),
        ("cw-rgp", "voc", 1),
        ("random", "coco", 0),
        ("random", "coco", 1),
        ("cw-rgp", "coco", 0),
    ]
    assert all(set(r) == {"backbone", "task", "seed", "metrics"} for r in found["rows"])
    assert found["probes"] == [{"backbone": "cw-rgp", "probe": "knn", "metrics": {"top1": 71.25}}]
    assert found["unfinished"] == [
        {
            "backbone": "cw-rgp",
            "task": "coco",
            "seed": 1,
            "status": "failed",
            "reason": "out of memory",
            "log": "runs/demo/log.txt",
        }
    ]


def test_results_json_has_null_for_nan():
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(results_json(case()), parse_constant=refuse)
    assert found["rows"][-1]["metrics"] == {"bbox/AP": 20.0, "segm/AP": None}


def test_results_json_summary_holds_the_paired_difference():
    found = json.loads(results_json(case()))["summary"]
    [ap] = [
        e for e in found if (e["backbone"], e["metric"], e["task"]) == ("cw-rgp", "bbox/AP", "voc")
    ]
    # 27-16 and 29-17
    assert (ap["mean"], ap["n"], ap["planned"], ap["verdict"]) == (28.0, 2, 2, "yes")
    assert ap["difference"] == {
        "mean": 11.5,
        "std": pytest.approx(math.sqrt(0.5)),
        "n": 2,
        "paired": True,
    }


def test_results_csv_is_wide_with_one_line_per_planned_run():
    lines = results_csv(case()).splitlines()
    assert lines[0] == "backbone,task,seed,status,bbox/AP50,bbox/AP,bbox/AP75,segm/AP"
    assert lines[1] == "random,voc,0,done,30.0,16.0,14.0,"
    assert lines[7] == "cw-rgp,coco,0,done,,20.0,,"
    assert lines[8] == "cw-rgp,coco,1,failed,,,,"
    assert len(lines) == 9


# --- tables


def test_markdown_tables():
    text = markdown(case())
    assert "| random | 2 | 31.0 ± 1.4 (2) | 16.5 ± 0.7 (2) | 14.5 ± 0.7 (2) | baseline |" in text
    assert (
        "| cw-rgp † | 2 | **51.5 ± 2.1 (2)** | **28.0 ± 1.4 (2)** | **25.5 ± 0.7 (2)** | yes |"
    ) in text
    assert "| cw-rgp | +20.5 ± 0.7, p = 0.016 | +11.5 ± 0.7, p = 0.028 | +11.0 ± 0.0 |" in text
    assert "| cw-rgp | 1 of 2 (1 failed) | **20.0 ± – (1)** | – | n/a |" in text
    assert "- **failed**: cw-rgp, seed 1: out of memory (log: runs/demo/log.txt)" in text
    assert "| cw-rgp | 71.2 |" in text or "| cw-rgp | 71.3 |" in text


def test_markdown_names_cannot_break_the_table():
    text = markdown(case(ours="a|b\n| <i>`*"))
    assert r"| a\|b \| &lt;i&gt;\`\* † | 2 |" in text


def test_findings_say_who_is_highest_and_whether_it_stands_out():
    assert findings(case()) == [
        "Faster R-CNN on VOC: cw-rgp has the highest Box AP, 28.0 ± 1.4 over 2 seeds: "
        "+11.5 ± 0.7 against random, more than the seed spread.",
        "Mask R-CNN on COCO: cw-rgp has the highest Box AP, 20.0 ± – over 1 seed: "
        "+10.0 ± – against random, too few seeds for a spread.",
    ]
    nothing = replace(case(), rows=())
    assert findings(nothing)[0] == "Faster R-CNN on VOC: no finished result."


def test_a_small_spread_is_not_printed_as_zero():
    rows = (row("random", COCO, 0, (10.0, 9.0)), row("random", COCO, 1, (10.02, 9.0)))
    assert "10.01 ± 0.01 (2)" in markdown(replace(case(), rows=rows))


def test_unpaired_differences_are_marked():
    rows = (
        row("random", COCO, 0, (10.0, 9.0)),
        row("random", COCO, 1, (14.0, 9.0)),
        row("cw-rgp", COCO, 2, (21.0, 9.0)),
        row("cw-rgp", COCO, 3, (23.0, 9.0)),
    )
    assert "| cw-rgp | +10.0 ± 3.2* | 0.0 ± 0.0* |".replace("*", r"\*") in markdown(
        replace(case(), rows=rows)
    )


def test_tables_on_the_terminal():
    voc, coco, probes = (shown(table) for table in rich_tables(case(ours="[b]x[/b]")))
    for part in ("[b]x[/b] †", "28.0 ± 1.4", "+11.5 ± 0.7", "baseline", "yes"):
        assert part in voc
    for part in ("1 of 2", "1 failed", "failed: [b]x[/b], seed 1: out of memory"):
        assert part in coco
    assert "[b]x[/b]" in probes
    assert max(len(line) for line in voc.splitlines()) <= 80


def test_several_probes_keep_the_names_of_the_backbones_on_the_terminal():
    found = {
        f"{kind}/top{k}": 90.0 + k for kind in ("knn", "weighted_knn", "linear") for k in (1, 5)
    }
    probes = shown(rich_tables(replace(case(), probes=(ProbeRow("cw-rgp", "crops", found),)))[-1])
    assert "cw-rgp" in probes and "Backbone" in probes and "weighted_knn" in probes
    assert probes.count("91.0") == probes.count("95.0") == 3 and "…" not in probes


def shown(table):
    """A table as an 80-column terminal shows it."""
    console = Console(width=80, file=StringIO())
    console.print(table)
    return console.file.getvalue()


# --- the page


def test_page_shows_numbers_failures_and_provenance():
    text = Page(html(case())).text
    for part in (
        "28.0 ± 1.4 +11.5 ± 0.7",
        "Failed cw-rgp, seed 1: out of memory (log: runs/demo/log.txt)",
        "1 of 8 fine-tunings failed",
        "1 of 8 fine-tunings from modified (uncommitted) code",
        "torch 2.14.1",
        "pretrain 1 h 02 min",
        "run_pipeline.py run",
    ):
        assert part in text.replace(" ", " ")


def test_page_escapes_names_and_reasons():
    data = replace(case(ours=EVIL, reason=f'{EVIL}" onload="x'), pipeline=EVIL, command=EVIL)
    data = replace(data, provenance={EVIL: {EVIL: EVIL}, "deep": {"a": [EVIL]}})
    text = html(data)
    page = Page(text)
    assert "<script" not in text
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert EVIL in page.text


def test_page_needs_no_network(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    data = case()
    rows = [replace(r, pictures=(tmp_path / "1.jpg",)) for r in data.rows]
    text = html(replace(data, rows=tuple(rows)))
    attributes = [(name, value) for _, attrs in Page(text).tags for name, value in attrs.items()]
    sources = [value for name, value in attributes if name == "src"]
    links = [value for name, value in attributes if name.split(":")[-1] == "href"]
    assert sources
    assert all(value.startswith("data:image/") for value in sources)
    assert links
    assert all(value.startswith("#") for value in links)
    assert all(url.startswith("#") for url in re.findall(r"url\(\s*['\"]?([^)]*)", text))
    assert "@import" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_ids_of_the_plots_stay_apart():
    ids = [a["id"] for _, a in Page(html(case())).tags if "id" in a]
    assert len(ids) > 20
    assert len(ids) == len(set(ids))


def test_pictures_stand_under_their_ground_truth(tmp_path):
    for folder in ("gt", "random", "ours"):
        (tmp_path / folder).mkdir()
        for name in ("a.jpg", "b.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
    (tmp_path / "ours" / "b.png").write_bytes(b"no picture")

    def paths(folder, *names):
        return tuple(tmp_path / folder / name for name in names)

    truth = paths("gt", "a.jpg", "b.png")
    data = case()
    rows = (
        row("random", VOC, 0, (), status="failed", pictures=paths("random", "a.jpg")),
        row(
            "random",
            VOC,
            1,
            (1, 1, 1),
            pictures=paths("random", "b.png", "a.jpg"),
            ground_truth=truth,
        ),
        row(
            "cw-rgp",
            VOC,
            0,
            (1, 1, 1),
            pictures=paths("ours", "a.jpg", "b.png"),
            ground_truth=truth,
        ),
    )
    page = Page(html(replace(data, rows=rows)))
    found = [a.get("alt") or f"absent: {a['aria-label']}" for _, a in page.tags
             if "alt" in a or a.get("class") == "absent"]  # fmt: skip
    assert found == [
        "Ground truth: picture 1 of 2, a.jpg",
        "Ground truth: picture 2 of 2, b.png",
        "Detections of random, seed 1: picture 1 of 2, a.jpg",
        "Detections of random, seed 1: picture 2 of 2, b.png",
        "Detections of cw-rgp, seed 0: picture 1 of 2, a.jpg",
        "absent: Detections of cw-rgp, seed 0: picture 2 of 2, b.png",
    ]


def test_empty_report_renders():
    empty = ReportData("demo", (), (), None, (), (), (), (), {}, "run")
    assert "demo" in Page(html(empty)).text
    assert summarise(empty) == ()
    planned = replace(case(), rows=(), probes=(), pretraining=(), finetuning=())
    assert "no finished result" in Page(html(planned)).text


def test_write_report_writes_its_files_and_nothing_else(tmp_path):
    folder = tmp_path / "a" / "report"
    assert write_report(case(), folder) == folder / "index.html"
    assert sorted(p.name for p in folder.iterdir()) == FILES


def test_same_input_same_bytes_in_another_process(tmp_path):
    code = (
        "import runpy, sys, pathlib\n"
        "m = runpy.run_path(sys.argv[1])\n"
        "m['write_report'](m['case'](), pathlib.Path(sys.argv[2]))\n"
    )
    write_report(case(), tmp_path / "here")
    python(code, __file__, tmp_path / "there")
    for name in FILES:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_full_disk_leaves_the_old_report(tmp_path):
    write_report(case(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*index\.html"):
            write_report(case(ours="other"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "c").write_bytes(b"old")
    with pytest.raises(OSError, match="b"):
        write_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]
    assert [(tmp_path / name).read_bytes() for name in "ac"] == [b"1", b"old"]


def test_faulty_data_leaves_the_old_report(tmp_path):
    (tmp_path / "index.html").write_bytes(b"old")
    with pytest.raises(ValueError, match="unknown backbone 'nobody'"):
        write_report(replace(case(), baseline="nobody"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


def test_report_needs_neither_torch_nor_pyplot():
    code = (
        "import sys, pipeline.report.write\n"
        "heavy = {'torch', 'detectron2', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    python(code)
