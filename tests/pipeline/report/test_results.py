"""results.json read: what is no such file is one line, what is not finite was not measured."""

import json
from pathlib import Path

import pytest

from pipeline.report.merge import merge
from pipeline.report.results import read_results
from pipeline.report.sources import read_runs
from tests.pipeline.report.several_runs import as_older, data, write


def run(folder: Path, value: float = 20.0) -> Path:
    return write(folder, data({"ours": {0: value}}, {"ours": "1" * 64}))


def test_what_an_older_version_wrote_is_read(tmp_path: Path) -> None:
    results = read_results(as_older(run(tmp_path / "a")) / "report" / "results.json")
    assert results.origins == () and results.tasks[0].identity is None
    assert results.rows[0].metrics["bbox/AP"] == 20.0


def test_it_holds_what_tells_a_result_from_others(tmp_path: Path) -> None:
    results = read_results(run(tmp_path / "a") / "report" / "results.json")
    (origin,) = results.origins
    assert (origin.backbone, origin.task, origin.seed) == ("ours", "voc", 0)
    assert origin.weights == {"backbone.pkl": "1" * 64}
    assert results.tasks[0].identity["SOLVER"] == {"MAX_ITER": 100}
    assert results.made_with["torch"] == ("2.1",)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"rows": ' + "9" * 5000 + "}", '{"a": "\\ud800"}'],
)
def test_files_that_are_none_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.json: not ") as error:
        read_runs([path])
    assert len(str(error.value).splitlines()) == 1
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not JSON"):
        read_runs([path])


def test_nan_and_infinity_count_as_not_measured(tmp_path: Path) -> None:
    a = run(tmp_path / "a")
    path = a / "report" / "results.json"
    content = json.loads(path.read_text("utf-8"))
    content["rows"][0]["metrics"] = {"bbox/AP": float("nan"), "bbox/AP50": 20.0}
    path.write_text(json.dumps(content).replace("20.0", "1e999"), encoding="utf-8")
    report = merge(read_runs([a, run(tmp_path / "b", 9.0)]))
    assert report.rows[0].metrics == {}
