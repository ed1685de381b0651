"""The papers' table: columns, published rows, marks, and names that try to break it."""

import json
from dataclasses import replace

from pipeline.report.data import (
    ReportData,
    ResultRow,
    Results,
    TaskInfo,
    further_summaries,
    results_json,
    schema_json,
)
from pipeline.report.html import html
from pipeline.report.paper import latex, line_name, paper_markdown, paper_table
from pipeline.report.published import PUBLISHED

BOX = ("bbox/AP50", "bbox/AP", "bbox/AP75")
MASK = ("segm/AP50", "segm/AP", "segm/AP75")
VOC = TaskInfo("voc", "VOC", BOX, "voc-0712-faster-rcnn-r50-c4-24k")
COCO = TaskInfo("coco", "COCO", BOX + MASK, "coco-mask-rcnn-r50-c4")
MORE = {"bbox/APs": 1.0, "bbox/APm": 2.0, "bbox/AP-cat": 3.0, "bbox/AP-dog": 5.0}


def row(backbone, task, seed, value):
    metrics = {metric: value + i for i, metric in enumerate(task.metrics)} | MORE
    return ResultRow(
        backbone, task.name, seed, "done", metrics, None, None, (), (), 7200.0, "run", False,
        "0" * 16, num_gpus=8, commit="abc", command="run --only x", config={"key": "value"},
    )  # fmt: skip


def case(ours="ours"):
    values = {"random": (20.0, 21.0), ours: (30.0, 32.0)}
    rows = tuple(
        row(name, task, seed, value)
        for name, found in values.items()
        for task in (VOC, COCO)
        for seed, value in enumerate(found)
    )
    return ReportData(
        "demo", tuple(values), (VOC, COCO), "random", rows, (), (), (), {}, "run"
    )  # fmt: skip


def test_columns_are_all_tasks_side_by_side():
    assert paper_table(case()).groups == (
        ("VOC, box", ("AP50", "AP", "AP75")),
        ("COCO, box", ("AP50", "AP", "AP75")),
        ("COCO, mask", ("AP50", "AP", "AP75")),
    )


def test_own_lines_then_published_ones_with_their_source():
    table = paper_table(case())
    names = [line_name(table, line) for line in table.lines]
    assert names[:3] == ["random", "ours", "supervised ImageNet [1]"]
    assert names[-1] == "CW-RGP 4, 200 epochs [2]" and len(names) == 7
    shared = table.lines[-1].cells  # one line for both tasks
    assert [cell.mean for cell in shared] == [
        "82.2", "57.2", "63.8", "60.5", "40.7", "44.1", "57.3", "35.5", "37.9",
    ]  # fmt: skip
    assert all(cell is None for cell in table.lines[2].cells[3:])


def test_significance_is_of_the_paired_test():
    # differences 10 and 11: t = 10.5 / 0.5 = 21, p = 0.03
    assert paper_table(case()).lines[1].cells[0].significant
    text = paper_markdown(case())
    assert "| ours | 2 | **31.0 ± 1.4 ‡** | " in text
    assert "two-sided paired t-test" in text
    assert "| *supervised ImageNet \\[1\\]* | published | *81.3* |" in text


def test_latex_table_is_complete():
    text = latex(case("a_b & 50% {x}"))
    assert r"a\_b \& 50\% \{x\} & 2 & $\mathbf{31.0} \pm 1.4$\ddag{}" in text
    assert r"\multicolumn{3}{c}{VOC, box} & \multicolumn{3}{c}{COCO, box}" in text
    assert r"\cmidrule(lr){3-5} \cmidrule(lr){6-8} \cmidrule(lr){9-11}" in text
    body = [
        line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert len(body) == 8 and {line.count(" & ") for line in body} == {10}


def test_published_numbers_are_never_among_the_results():
    found = json.loads(results_json(case()))
    assert {entry["backbone"] for entry in found["rows"]} == {"random", "ours"}
    assert {entry["backbone"] for entry in found["summary"]} == {"random", "ours"}
    assert all(row.source for rows in PUBLISHED.values() for row in rows)


def test_results_follow_their_schema():
    Results.model_validate_json(results_json(case()))
    schema = json.loads(schema_json())
    assert set(schema["required"]) == set(json.loads(results_json(case())))


def test_sizes_and_classes_have_tables_of_their_own():
    found = further_summaries(case(), VOC)
    assert found["By object size"].task.metrics == ("bbox/APs", "bbox/APm")
    assert found["By class"].task.metrics == ("bbox/AP-cat", "bbox/AP-dog")


def test_many_classes_are_rows_so_that_paper_and_phones_hold_them():
    data = case()
    classes = {f"bbox/AP-c{number}": 40.0 + number for number in range(5)}  # beside cat and dog
    rows = tuple(replace(row, metrics=row.metrics | classes) for row in data.rows)
    folded = html(replace(data, rows=rows)).partition("By class")[2]
    assert folded.index("</span>random</th>") < folded.index("</span>ours</th>")
    spread = "<td><strong>44.0 ± 0.0</strong></td>"
    assert f'<tr><th scope="row">Box c4</th>{spread * 2}</tr>' in folded
    assert 'scope="row">Box cat' not in html(data)  # two are columns


def test_page_holds_the_command_and_config_of_every_row():
    text = html(case())
    assert "git checkout abc\nrun --only x" in text
    assert "&#34;key&#34;: &#34;value&#34;" in text
    assert "GPU hours of fine-tuning" in text and "128.0" in text  # 8 runs x 2 h x 8 GPUs
    assert 'class="published"' in text
