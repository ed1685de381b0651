"""`report A B ...` as it is typed: real run folders, files of others, an output folder."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands.main import Options, execute
from pipeline.commands.several import report_several
from pipeline.report.write import WRITERS
from tests.pipeline.local_runs import CONFIG
from tests.pipeline.report.several_runs import as_older
from tests.scripts import load_script

RANDOM = "backbones=[{name: random, random: true}]"
pytestmark = pytest.mark.usefixtures("in_process")


def report(*paths: str | Path, output_dir: str | None = None) -> int:
    options = Options(output_dir=output_dir and Path(output_dir))
    return execute("report", None, list(map(str, paths)), options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps what `two` ran, once for all tests."""
    return tmp_path_factory.mktemp("finished") / "runs"


@pytest.fixture
def two(fakes: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Two pipelines of the same task: seeds 0 and 1 of the baseline, and 1 and 2."""
    if finished.exists():
        shutil.copytree(finished, "runs")
        return fakes
    for name, seeds in (("first", "[0,1]"), ("second", "[1,2]")):
        changes = [RANDOM, f"seeds={seeds}", f"name={name}", "probes=[]"]
        assert execute("run", CONFIG, changes) == 0
    capsys.readouterr()
    shutil.copytree("runs", finished)
    return fakes


def test_two_runs_are_one_table_and_are_compared(two: Path, capsys) -> None:
    assert report("runs/first", "runs/second") == 0
    said = capsys.readouterr().out
    assert said.startswith("# runs/first (A) and runs/second (B)\n")
    assert "random (A, B)" in said and "│     3 │" in said
    assert "Whose: A is runs/first (pipeline first); B is runs/second (pipeline second)." in said
    assert said.splitlines()[-1].startswith("nothing is written; --output-dir FOLDER writes")
    assert not Path("out").exists()


def test_everything_is_written_where_it_is_asked_for(two: Path, capsys) -> None:
    paths = ["runs/first", "runs/second/report/results.json"]
    assert report(*paths, output_dir="out") == 0
    said = capsys.readouterr().out
    assert not said.startswith("# ") and f"report: {Path('out').absolute()}/index.html" in said
    assert {path.name for path in Path("out").iterdir()} == WRITERS.keys()
    assert f"report {' '.join(paths)} --output-dir out" in Path("out/report.md").read_text("utf-8")
    assert report("out", "runs/first") == 2
    told = "run_pipeline: out: is a report of several runs already; give these themselves: "
    assert capsys.readouterr().err == f"{told}{', '.join(paths)}\n"
    for folder, told in (
        ("runs/first/report", "is the report of a pipeline; give another --output-dir"),
        ("runs/first/report/results.csv", "is a file, wanted a folder; give another --output-dir"),
        ("runs/first", "runs/first: is the folder of a pipeline"),
    ):
        before = {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
        assert report(*paths, output_dir=folder) == 2
        assert told in capsys.readouterr().err
        assert all(path.read_bytes() == content for path, content in before.items())


def test_tasks_that_differ_are_refused_and_two_runs_compared_all_the_same(
    two: Path, capsys
) -> None:
    changes = [RANDOM, "seeds=[0]", "name=third", "tasks.0.overrides=[SOLVER.MAX_ITER=7]"]
    assert execute("run", CONFIG, changes) == 0
    capsys.readouterr()
    assert report("runs/first", "runs/third", output_dir="out") == 2
    said = capsys.readouterr()
    assert "SOLVER.MAX_ITER: A 40000, B 7" in said.out
    assert said.err.startswith(
        "run_pipeline: task coco is not the same in A (runs/first) and B (runs/third): "
        "SOLVER.MAX_ITER: A 40000, B 7; leave one out"
    )
    assert len(said.err.splitlines()) == 1 and not Path("out").exists()
    assert report("runs/first", "runs/second", "runs/third") == 2
    assert capsys.readouterr().out == ""


def test_data_of_other_content_are_another_task(two: Path, capsys) -> None:
    path = Path("data/coco/annotations.json")
    content = json.loads(path.read_text("utf-8"))
    content["annotations"][0]["bbox"] = [1, 1, 9, 9]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert execute("run", CONFIG, [RANDOM, "seeds=[0]", "name=third"]) == 0
    capsys.readouterr()
    assert report("runs/first", "runs/second", "runs/third") == 2
    assert "coco is not the same in A (runs/first) and C (runs/third): data.TEST.0." in (
        capsys.readouterr().err
    )


def test_the_same_task_at_other_paths_is_the_same(two: Path, capsys) -> None:
    """Another lab's folders, names of sets and number of workers do not count."""
    shutil.move("data", "elsewhere")
    changes = [RANDOM, "seeds=[5]", "name=third"]
    changes += ["datasets.my_coco.annotations=elsewhere/coco/annotations.json"]
    changes += ["datasets.my_coco.images=elsewhere/coco/val", "datasets.my_voc.root=elsewhere/voc"]
    assert execute("run", CONFIG, changes) == 0
    capsys.readouterr()
    assert report("runs/first", "runs/second", "runs/third") == 0
    assert "random (A, B, C)" in capsys.readouterr().out


def test_a_result_of_an_older_version_beside_a_new_one(two: Path, capsys) -> None:
    as_older(Path("runs/second"))
    assert report("runs/first", "runs/second") == 0
    said = capsys.readouterr().out
    assert "random (A)" in said and "B: of an older version, without what tells tasks" in said


def test_a_report_that_is_older_than_its_results_says_so(two: Path, capsys) -> None:
    told = ": its run folders hold results that its report has not; make that anew"
    assert report("runs/first", "runs/second") == 0
    assert told not in capsys.readouterr().out
    manifest = next(Path("runs/second/finetune").glob("*/manifest.json"))
    manifest.write_text(manifest.read_text("utf-8") + "\n", encoding="utf-8")
    assert report("runs/first", "runs/second/report/results.json") == 0
    assert f"B{told}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs/first"], "report: runs/first alone: wanted two runs or more"),
        (["runs/first", "runs/first"], "runs/first: is the same as A (runs/first); wanted each"),
        (["runs/first", "absent"], "absent/report/results.json: no such file; wanted the folder"),
        (["runs/first", "runs/second", "x.json"], "x.json/report/results.json: no such file"),
        (["results.json", "runs/first"], "results.json: not JSON"),
    ],
)
def test_what_cannot_be_merged_is_one_line(two: Path, capsys, words: list[str], told: str) -> None:
    Path("results.json").write_text("{", encoding="utf-8")
    script = load_script("run_pipeline")
    assert script.main(["report", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert said.err.startswith(f"run_pipeline: {told}")


def test_the_command_is_what_the_report_names(two: Path) -> None:
    paths = [Path("runs/first"), Path("runs/second")]
    assert report_several(paths, Console(quiet=True), Path("two words")) == 0
    command = "report runs/first runs/second --output-dir 'two words'"
    assert command in Path("two words/report.md").read_text("utf-8")


def test_an_output_folder_goes_with_several_runs_alone(two: Path, capsys) -> None:
    assert execute("report", CONFIG, ["name=first"], Options(output_dir=Path("out"))) == 2
    assert "--output-dir goes with report of several runs" in capsys.readouterr().err
