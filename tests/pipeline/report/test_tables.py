"""The tables in every format: marks, published rows, and names that try to break them."""

import json
import re
from dataclasses import replace

from pipeline.commands.result_tables import rich_tables
from pipeline.report.data import ProbeRow, results_json
from pipeline.report.html import html
from pipeline.report.published import Protocol, published_probes, published_rows
from pipeline.report.tables import TableCell, latex, markdown, paper_table, results_csv
from tests.pipeline.report.cases import COCO, COCO_2X, REFERENCES, VOC, case, paper_case, row, shown


def test_markdown_tables():
    text = markdown(case())
    assert "| random | 2 | 31.0 ± 1.4 (2) | 16.5 ± 0.7 (2) | 14.5 ± 0.7 (2) | baseline |" in text
    assert (
        "| cw-rgp † | 2 | **51.5 ± 2.1 (2)** | **28.0 ± 1.4 (2)** | **25.5 ± 0.7 (2)** | yes |"
    ) in text
    assert "| cw-rgp | +20.5 ± 0.7, p = 0.016 | +11.5 ± 0.7, p = 0.028 | +11.0 ± 0.0 |" in text
    assert "| cw-rgp | 1 of 2 (1 failed) | 20.0 ± – (1) | – | n/a |" in text
    assert "- **failed**: cw-rgp, seed 1: out of memory (log: runs/demo/log.txt)" in text
    assert "| cw-rgp | 71.2 |" in text or "| cw-rgp | 71.3 |" in text


def test_every_format_says_first_what_the_numbers_allow():
    said = "higher than random: cw-rgp (+11.5, 95 % interval 5.1 to 17.9)"
    assert said in markdown(case()).split("|")[0] and said in html(case()).split("<table")[0]
    assert said.replace("%", r"\%") in latex(case())


def test_a_verdict_names_its_metric_in_every_format():
    text, page = markdown(case()), html(case())
    for heading in ("Box AP higher than random", "Box AP, Mask AP higher than random"):
        assert f"| {heading} (95 % interval) |" in text
        assert f">{heading} (95 % interval)</th>" in page
        assert f"“{heading} (95 % interval)”" in text and f"“{heading} (95 % interval)”" in page
    assert "(95 % interval)”, of that metric alone: yes if" in text
    voc, coco, *_ = (shown(table) for table in rich_tables(case(), 80))
    heads = [re.split(" *┃ *", line)[-2] for line in voc.splitlines() if "┃" in line]
    assert " ".join(filter(None, heads)) == "Box AP higher (95 %)"
    assert "Box AP," in coco and "Mask AP" in coco


def test_markdown_names_cannot_break_the_table():
    text = markdown(case(ours="a|b\n| <i>`*"))
    assert r"| a\|b \| &lt;i&gt;\`\* † | 2 |" in text


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


def test_results_csv_is_wide_with_one_line_per_planned_run():
    lines = results_csv(case()).splitlines()
    assert lines[0] == "backbone,task,seed,status,bbox/AP50,bbox/AP,bbox/AP75,segm/AP,ap_rule"
    assert lines[1] == "random,voc,0,done,30.0,16.0,14.0,,"
    assert lines[7] == "cw-rgp,coco,0,done,,20.0,,,"
    assert lines[8] == "cw-rgp,coco,1,failed,,,,,"
    assert len(lines) == 9


# --- all tasks side by side


def test_columns_are_all_tasks_side_by_side():
    assert paper_table(paper_case()).groups == (
        ("VOC, box", ("AP50", "AP", "AP75")),
        ("COCO, box", ("AP50", "AP", "AP75")),
        ("COCO, mask", ("AP50", "AP", "AP75")),
    )


def test_own_lines_then_published_ones_with_their_source():
    table = paper_table(paper_case())
    names = [line.marked for line in table.lines]
    assert names[:4] == ["random", "ours", "random [1] §", "supervised ImageNet [2]"]
    assert names[-1] == "INTL, 200 epochs, multi-crop [7]" and len(names) == 22
    [shared] = [line.cells for line in table.lines if line.name.startswith("CW-RGP")]
    assert [cell.mean for cell in shared] == [
        "82.2", "57.2", "63.8", "60.5", "40.7", "44.1", "57.3", "35.5", "37.9",
    ]  # fmt: skip
    assert [cell.std for cell in shared][3:6] == ["0.28", "0.14", "0.14"]
    assert all(cell == TableCell() for cell in table.lines[2].cells[3:])


def test_notes_say_sources_protocols_searches_and_what_is_inferred():
    notes = paper_table(paper_case()).notes
    assert notes[1].startswith(
        "Published numbers, not measured here: [1] arXiv 2011.10566, table 5;"
    )
    assert notes[2:] == (
        "§ the fine-tuning learning rate was searched for each backbone: another protocol than "
        "one rate for all, as here.",
        "Not said whether the learning rate was searched: [4], [5].",
        "Beside VOC: VOC 07+12, Faster R-CNN R50-C4, 24k; trained on trainval of 2007 and 2012, "
        "measured on test of 2007.",
        "Beside COCO: COCO 2017, Mask R-CNN R50-C4, 2x; trained on train2017, measured on val2017.",
        "Beside COCO: schedule inferred, not said by the source, of CW-RGP, 200 epochs, 4 views.",
        "AP of VOC: the 11 points'.",
    )
    assert r"CW-RGP, 200 epochs, 4 views. AP of VOC: the 11 points'." in latex(paper_case())
    assert r"\textit{random [1] \S{}}" in latex(paper_case())


def test_rows_of_one_name_and_source_beside_one_task_keep_their_lines():
    rows = published_rows(REFERENCES, COCO_2X)[2:3]
    other = replace(rows[0], metrics={"bbox/AP": 1.0})
    [voc, coco] = paper_case().tasks
    data = replace(paper_case(), tasks=(voc, replace(coco, published=(*rows, other))))
    found = [line for line in paper_table(data).lines if line.name.startswith("CW-RGP")]
    assert [[cell.mean for cell in line.cells][3:5] for line in found] == [
        ["60.5", "40.7"],
        ["–", "1.0"],
    ]


def test_a_row_of_another_schedule_says_so_in_every_format():
    rows = published_rows(
        REFERENCES, Protocol("COCO 2017", "Mask R-CNN R50-C4", "1x"), "coco-mask-rcnn-r50-c4-2x"
    )
    [voc, coco] = paper_case().tasks
    data = replace(paper_case(), tasks=(voc, replace(coco, published=rows)))
    name = "CW-RGP, 200 epochs, 4 views (2x schedule, inferred)"
    assert f"| *{name} \\[3\\]* | published | – | – | – | *60.5 ± 0.28* |" in markdown(data)
    assert name in latex(data) and name in html(data)
    [entry] = [
        e
        for e in json.loads(results_json(data))["tasks"][1]["published"]
        if e["backbone"] == "CW-RGP"
    ]
    assert entry == {
        "table": "coco-mask-rcnn-r50-c4-2x", "backbone": "CW-RGP", "epochs": 200, "views": 4,
        "data": "COCO 2017", "detector": "Mask R-CNN R50-C4", "schedule": "2x",
        "protocol": "trained on train2017, measured on val2017", "search": False,
        "inferred": ["schedule"], "differs": ["schedule"],
        "source": "README of github.com/winci-ai/CW-RGP",
        "metrics": {
            "bbox/AP50": 60.5, "bbox/AP": 40.7, "bbox/AP75": 44.1,
            "segm/AP50": 57.3, "segm/AP": 35.5, "segm/AP75": 37.9,
        },
        "stds": {
            "bbox/AP50": 0.28, "bbox/AP": 0.14, "bbox/AP75": 0.14,
            "segm/AP50": 0.16, "segm/AP": 0.12, "segm/AP75": 0.14,
        },
    }  # fmt: skip


def test_published_rows_beside_probes():
    settings = {"data": {"name": "cifar10"}, "linear": {}, "knn": None}
    rows = published_probes(REFERENCES, "cifar", settings, {"resnet18"})
    probes = (ProbeRow("cw-rgp", "cifar", {"linear/top1": 90.0, "linear/top5": 99.0}),)
    data = replace(case(), probes=probes, published_probes=rows)
    text = markdown(data)
    assert "| cw-rgp | 90.0 | 99.0 |\n" in text
    assert "| *CW-RGP, 1000 epochs, 4 views \\[1\\]* | *92.47* | – |" in text
    assert "- Beside cifar: cifar10, resnet18; linear classifier on features of the" in text
    assert "CW-RGP, 1000 epochs, 4 views [1]</th>" in html(data)
    assert "92.47" not in shown(rich_tables(data, 80)[-1])  # a terminal shows what is measured here
    [_, entry] = json.loads(results_json(data))["published_probes"]
    assert (entry["probe"], entry["arch"], entry["views"]) == ("cifar", "resnet18", 4)
    assert entry["metrics"] == {"linear/top1": 92.47}


def test_the_rule_of_ap_and_the_classes_measured_are_said_with_the_table():
    counts = {"classes/measured": 8.0, "classes/all": 10.0}
    data = case()
    rows = tuple(
        replace(r, metrics=r.metrics | counts) if r.task == "voc" else r for r in data.rows
    )
    data = replace(data, rows=rows, tasks=(replace(VOC, rule="VOC 2007's, 11"), COCO))
    text = "VOC 2007's, 11; 8 of 10 classes measured"
    assert f"- AP of Faster R-CNN on VOC: {text}.\n" in markdown(data)
    assert f"AP of Faster R-CNN on VOC: {text}." in latex(data)
    assert f"({text})" in " ".join(shown(rich_tables(data, 80)[0]).split())
    assert json.loads(results_json(data))["tasks"][0]["rule"] == "VOC 2007's, 11"
    assert results_csv(data).splitlines()[1].endswith(',8.0,"VOC 2007\'s, 11"')
    assert "AP of" not in markdown(case())


def test_remarks_stand_before_the_numbers():
    data = replace(case(), remarks=("cw-rgp: <b> collapsed",))
    assert "\n- cw-rgp: &lt;b&gt; collapsed\n\n| Backbone" in markdown(data)
    assert "<li>cw-rgp: &lt;b&gt; collapsed</li>" in html(data)
    assert json.loads(results_json(data))["remarks"] == ["cw-rgp: <b> collapsed"]


def test_significance_is_of_the_paired_test():
    # differences 10 and 11: t = 10.5 / 0.5 = 21, p = 0.03
    assert paper_table(paper_case()).lines[1].cells[0].significant
    text = markdown(paper_case())
    assert "| ours | 2 | **31.0 ± 1.4 ‡** | " in text
    assert "two-sided paired t-test" in text
    assert "| *supervised ImageNet \\[2\\]* | published | *81.3* |" in text


def test_a_mark_is_explained_in_every_format_where_it_occurs_and_nowhere_else():
    significant, unclean = "differs from random with p", "cannot be told from clean commits"
    marks = {significant: ("‡", r"\ddag{}"), unclean: ("†", r"\dag{}")}
    rows = tuple(replace(row, dirty=False) for row in case().rows)
    one_seed = tuple(row for row in rows if row.seed == 0)
    for data, explained in (
        (case(), {significant, unclean}),
        (replace(case(), rows=rows), {significant}),
        (replace(case(), rows=one_seed), set()),
    ):
        for text in (markdown(data), latex(data), html(data)):
            assert {note for note in marks if note in text} == explained
            assert {note for note, signs in marks.items() if any(s in text for s in signs)} == (
                explained
            )


def test_latex_table_is_complete():
    text = latex(paper_case("a_b & 50% {x}"))
    assert r"a\_b \& 50\% \{x\} & 2 & $\mathbf{31.0} \pm 1.4$\ddag{}" in text
    assert r"\multicolumn{3}{c}{VOC, box} & \multicolumn{3}{c}{COCO, box}" in text
    assert r"\cmidrule(lr){3-5} \cmidrule(lr){6-8} \cmidrule(lr){9-11}" in text
    body = [
        line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert len(body) == 23 and {line.count(" & ") for line in body} == {10}


def test_published_numbers_are_never_among_the_results():
    found = json.loads(results_json(paper_case()))
    assert {entry["backbone"] for entry in found["rows"]} == {"random", "ours"}
    assert {entry["backbone"] for entry in found["summary"]} == {"random", "ours"}


def test_the_command_is_code_as_it_was_typed() -> None:
    command = "run_pipeline.py run 'seeds=[0, 1]' a<b&c|d"
    assert f"- command: `{command}`\n" in markdown(replace(case(), command=command))
    assert "- command: ``` a``b\\[ ```\n" in markdown(replace(case(), command="a``b\\["))
