"""All pipelines below a folder: states, numbers, folders that are damaged or of something else."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands.main import Options, execute
from pipeline.commands.runs import Best, pipelines_below, read_pipeline, runs_table
from pipeline.plan.plan import STAGES
from pipeline.stages.files import write_json
from pipeline.stages.run_folder import lock
from pipeline.stages.stage import RULE, STAGE_KINDS
from tests.pipeline.local_runs import CONFIG, ONLY_A, ONLY_RANDOM

ROOT = Path(__file__).resolve().parents[3]
SIGNATURE = "0123456789abcdef"


def stage(
    folder: Path, name: str, metrics: dict[str, object] | None = None, number: int = 0
) -> Path:
    """Write a finished stage's folder, of `kind/slug`."""
    signature = f"{number:016x}"
    run_dir = folder / f"{name}-{signature}"
    run_dir.mkdir(parents=True)
    kind = name.partition("/")[0]
    made = {"started": f"2026-03-0{1 + number % 9}T12:00:00+00:00"}
    content = {"signature": signature, "metrics": metrics or {}, "outputs": {}, "provenance": made}
    write_json(run_dir / "manifest.json", content)
    write_json(run_dir / "config.json", {"rule": RULE, "version": STAGE_KINDS[kind].version})
    write_json(run_dir / "job.json", {})
    return run_dir


def listed(capsys: pytest.CaptureFixture[str], folder: str = "runs") -> tuple[int, dict]:
    code = execute("runs", None, [folder], Options(as_json=True))
    return code, json.loads(capsys.readouterr().out)


def shown(pipeline: Path) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(runs_table(pipeline.parent, [read_pipeline(pipeline)]))
    return " ".join(console.export_text().split())


@pytest.mark.usefixtures("in_process")
def test_a_run_is_listed_by_its_folder_alone(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("run", CONFIG, ONLY_A) == 0
    Path("behaviour-random--voc--seed0").write_text("fail", encoding="utf-8")
    assert execute("run", CONFIG, [*ONLY_RANDOM, "name=second"]) == 1
    for folder in ("configs", "data"):
        shutil.rmtree(folder)
    capsys.readouterr()
    code, content = listed(capsys)
    assert code == 1  # a stage failed, as in `status`
    first, second = sorted(content["pipelines"], key=lambda each: each["pipeline"] != "tiny")
    assert (first["state"], first["counts"], first["stages"]) == ("done", {"done": 4}, 4)
    assert [(best["of"], best["backbone"], best["mean"], best["n"]) for best in first["best"]] == [
        ("coco", "a", 10.0, 1),
        ("voc", "a", 10.0, 1),
    ]
    assert first["size"] > 0 and first["newest"].startswith("20")
    assert (second["pipeline"], second["state"]) == ("second", "failed")
    assert second["counts"] == {"done": 1, "failed": 1}
    assert "second failed 1 of 2 1 of 2 coco bbox/AP 10.0 (1) random" in shown(Path("runs/second"))


@pytest.mark.usefixtures("in_process")
def test_the_plan_that_was_last_run_counts(fakes: Path, capsys) -> None:
    """What an older config left is none of its stages, what was not begun is one."""
    Path("behaviour-a").write_text("fail", encoding="utf-8")
    assert execute("run", CONFIG, ONLY_A) == 1
    capsys.readouterr()
    (entry,) = listed(capsys)[1]["pipelines"]
    assert entry["counts"] == {"failed": 1, "waiting": 3}
    assert execute("run", CONFIG, ONLY_RANDOM) == 0
    capsys.readouterr()
    code, content = listed(capsys)
    assert (code, content["pipelines"][0]["counts"]) == (0, {"done": 2})


def test_running_waiting_and_a_run_between_two_stages(tmp_path: Path) -> None:
    pipeline = tmp_path / "mine"
    stage(pipeline, "pretrain/a")
    begun = pipeline / f"convert/a-{SIGNATURE}"
    begun.mkdir(parents=True)
    assert read_pipeline(pipeline).state == "waiting"
    with lock(begun / "lock"):
        assert read_pipeline(pipeline).counts == {"done": 1, "running": 1}
    with lock(pipeline / "lock"):
        each = read_pipeline(pipeline)
        assert (each.state, each.counts) == ("running", {"done": 1, "waiting": 1})
    (begun / "failure.json").write_text("{}", encoding="utf-8")
    assert "mine failed 1 of 2 1 of 2" in shown(pipeline)


def test_the_best_is_the_highest_mean_over_seeds(tmp_path: Path) -> None:
    pipeline = tmp_path / "mine"
    numbers = {"a": (10.0, 30.0), "b": (24.0, 26.0), "c": (None, "99"), "d": (float("inf"), True)}
    number = 0
    for backbone, values in numbers.items():
        for seed, value in enumerate(values):
            run_dir = stage(pipeline, f"finetune/{backbone}--voc--seed{seed}", number=number)
            content = json.loads((run_dir / "manifest.json").read_text("utf-8"))
            content["metrics"] = {"bbox/AP50": 99, "bbox/AP": value}
            (run_dir / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
            number += 1
    stage(pipeline, "probe/a--knn", {"knn/top1": 71.0, "loss": 3.0})
    best = read_pipeline(pipeline).best
    assert best == (
        Best("voc", "bbox/AP", "b", 25.0, pytest.approx(2**0.5), 2),
        Best("knn", "knn/top1", "a", 71.0, None, 1),
    )
    assert "voc bbox/AP 25.0 ± 1.4 (2) b 2026-03-08" in shown(pipeline)


@pytest.mark.parametrize(
    ("file", "text", "told", "state"),
    [
        ("manifest.json", '{"signature": "00', "manifest.json is damaged; `run` makes", "waiting"),
        ("manifest.json", "[" * 100_000, "manifest.json is damaged; `run` makes", "waiting"),
        ("manifest.json", "[]", "manifest.json is none of a stage", "waiting"),
        ("manifest.json", '{"signature": [1], "outputs": {}}', "is of signature [1]", "failed"),
        ("config.json", '{"version": 99}', "other versions, which `run` makes again: pre", "done"),
        ("config.json", "{", "", "done"),
        (f"../../{STAGES}", "{", "stages.json is damaged; what is there is listed", "done"),
        (f"../../{STAGES}", "[1]", "stages.json is damaged; what is there is listed", "done"),
        (f"../../{STAGES}", f'{{"a": "pretrain/../../x-{SIGNATURE}"}}', "damaged", "done"),
    ],
)
def test_a_damaged_file_is_one_line(
    tmp_path: Path, capsys, file: str, text: str, told: str, state: str
) -> None:
    (stage(tmp_path / "mine", "pretrain/a") / file).write_text(text, encoding="utf-8")
    _, content = listed(capsys, str(tmp_path))
    (entry,) = content["pipelines"]
    assert entry["state"] == state
    assert [told in note for note in entry["notes"]] == [True] * bool(told)


def test_folders_of_something_else_are_told_apart(tmp_path: Path, capsys) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "configs.json").write_text("not of this project", encoding="utf-8")
    (tmp_path / "planned").mkdir()
    write_json(tmp_path / "planned" / "configs.json", ["plan.yaml"])
    (tmp_path / "images" / "pretrain" / "class-a").mkdir(parents=True)
    for name, content in {
        "handed": {
            "rows": [{"backbone": "x", "task": "voc", "metrics": {"bbox/AP": 9}}],
            "unfinished": [{"status": "failed"}, {"status": "missing"}],
        },
        "strange": {"rows": 3},
    }.items():
        (tmp_path / name / "report").mkdir(parents=True)
        write_json(tmp_path / name / "report" / "results.json", content)
    _, content = listed(capsys, str(tmp_path))
    notes = {each["pipeline"]: (each["state"], *each["notes"]) for each in content["pipelines"]}
    assert notes == {
        "foreign": ("unknown", "nothing was run yet, or it is no pipeline of this project"),
        "planned": ("planned", "nothing was run yet"),
        "handed": ("failed", "only its report is here: fine-tunings are counted"),
        "strange": (
            "unknown",
            "report/results.json is damaged, or not of this project; nothing else is here",
        ),
    }
    assert execute("runs", None, [str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "foreign: nothing was run yet" in said and "handed failed 1 of 3 1 of 3" in said


def test_links_are_followed_once_and_never_back(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "far"
    stage(elsewhere, "pretrain/a")
    runs = tmp_path / "runs"
    stage(runs / "z" / "mine", "pretrain/a")
    (runs / "a_latest").symlink_to(runs / "z" / "mine")
    (runs / "far").symlink_to(elsewhere)
    (runs / "loop").symlink_to(runs / "loop")
    (runs / "gone").symlink_to(tmp_path / "gone")
    (runs / "z" / "up").symlink_to(runs)
    (runs / "z" / "above").symlink_to(tmp_path)
    stage(runs / ".hidden", "pretrain/a")
    folders, notes, _ = pipelines_below(runs)
    assert (folders, notes) == ([runs / "far", runs / "z" / "mine"], [])
    assert pipelines_below(runs / "far")[0] == [runs / "far"]  # the folder itself


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    stage(tmp_path / "mine", "pretrain/a")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path: Path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    folders, notes, _ = pipelines_below(tmp_path)
    assert folders == [tmp_path / "mine"]
    assert notes == [f"{tmp_path / 'closed'}: Permission denied"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["absent"], "absent: no such folder; wanted a folder below which pipelines lie"),
        ([], "runs: no such folder; wanted a folder"),
        (["file"], "file: is a file; wanted a folder"),
        (["empty"], "/empty (2 folders looked at, hidden ones left out)"),
        (["empty", "file"], "runs: wanted one folder, and no config, got empty file"),
    ],
)
def test_an_empty_or_wrong_folder_is_one_line(
    tmp_path: Path, monkeypatch, capsys, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "one").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert execute("runs", None, words) == 2
    said = capsys.readouterr()
    assert said.out == "" and told in said.err and len(said.err.splitlines()) == 1


def test_options_and_configs_of_other_commands_are_refused(tmp_path: Path, capsys) -> None:
    assert execute("runs", Path("demo.yaml"), []) == 2
    assert "no config, got demo.yaml" in capsys.readouterr().err
    assert execute("runs", None, [], Options(watch=True)) == 2
    assert capsys.readouterr().err == "run_pipeline: --watch goes with status\n"


def test_names_that_a_terminal_would_obey_are_shown_and_not_obeyed(tmp_path: Path, capsys) -> None:
    stage(tmp_path / "\x1b[31mred\udcff", "finetune/[bold]b--voc--seed0", {"bbox/AP": 1.0})
    assert execute("runs", None, [str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "?[31mred?" in said and "[bold]b" in said


def test_the_list_imports_neither_torch_nor_the_configs_it_does_not_read() -> None:
    code = (
        "import sys, pipeline.commands.main, pipeline.commands.runs\n"
        "heavy = {'torch', 'numpy', 'pipeline.config.schema', 'pipeline.report.data'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
