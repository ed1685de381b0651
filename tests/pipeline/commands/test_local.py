"""`run` and its report on this machine, with fake stages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands.local import show_plan
from pipeline.commands.main import Options, execute
from pipeline.commands.status import show_status
from pipeline.plan.build import load_plan
from pipeline.report.write import make_report
from pipeline.stages.run_folder import MANIFEST, State, lock, prepare, read_state
from tests.pipeline.edits import edit
from tests.pipeline.local_runs import CONFIG, ONLY_A, ONLY_RANDOM, RUN, ran, run, small_plan, until
from transfer.config import finetune


@pytest.mark.usefixtures("in_process")
def test_a_plan_is_shown_and_nothing_runs(fakes: Path) -> None:
    console = Console(width=200, record=True, file=StringIO())
    assert show_plan(small_plan(ONLY_A), console) == 0
    lines = console.export_text().splitlines()
    assert lines[-1] == "4 stages, 4 to run; folder runs/tiny"
    assert any("convert/a" in line and "pretrain/a" in line for line in lines)
    assert ran() == [] and not list(Path("runs").glob("**/config.json"))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_a_plan_with_faults_shows_them_alone(
    fakes: Path, capsys: pytest.CaptureFixture[str], executor: str
) -> None:
    assert execute("run", CONFIG, ONLY_RANDOM) == 0
    Path("check.txt").write_text("an odd recipe", encoding="utf-8")
    capsys.readouterr()
    change = "tasks.0.overrides=[SOLVER.MAX_ITER=3]"
    assert execute("plan", CONFIG, [*ONLY_RANDOM, change], Options(executor=executor)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "an odd recipe" in shown.err
    assert execute("run", CONFIG, [*ONLY_RANDOM, change]) == 2
    assert "again: " not in capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("backbone", ["random", "random-" * 8])
@pytest.mark.parametrize("shown", [show_plan, show_status])
def test_a_narrow_table_has_every_name_in_full(fakes: Path, backbone: str, shown: Callable) -> None:
    plan = load_plan(CONFIG, [f"backbones=[{{name: {backbone}x, random: true}}]", "seeds=[0, 1]"])
    plan.stages[0].run_dir.mkdir(parents=True)
    console = Console(width=80, record=True, file=StringIO())
    shown(plan, console)
    lines = console.export_text().splitlines()
    place = next(
        number for number, line in enumerate(lines) if {"stage", "state"} <= {*line.split()}
    )
    begin = lines[place].index("stage")
    end = lines[place].index("signature" if shown is show_plan else "state")
    column = "".join(line[begin:end].strip() for line in lines[place + 1 :])
    for stage in plan.stages:
        hidden = "" if shown is show_plan else f"{backbone}x--"
        assert stage.name.replace(hidden, "") in column


@pytest.mark.usefixtures("in_process")
def test_an_interrupted_stage_is_told_with_what_goes_on(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {stage.kind: stage for stage in small_plan(ONLY_A).stages}
    files = {
        "pretrain": {"last.pth": "", "metrics.jsonl": '{"step": 40, "max_steps": 60}\n'},
        "finetune": {"last_checkpoint": "model_0000009.pth", "model_0000009.pth": ""},
        "convert": {"last_checkpoint": "model_0000009.pth"},  # which is not there
    }
    for kind, contents in files.items():
        prepare(stages[kind])
        for name, text in contents.items():
            (stages[kind].run_dir / name).write_text(text, encoding="utf-8")
    assert execute("status", CONFIG, ONLY_A) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "pretrain/a: interrupted, last logged step 40 of 60; run goes on from last.pth",
        f"{stages['finetune'].name}: interrupted; run goes on from model_0000009.pth",
    ]
    assert execute("run", CONFIG, ONLY_A) == 0 and execute("status", CONFIG, ONLY_A) == 0
    assert "run goes on from" not in capsys.readouterr().out


def test_a_stage_that_ended_without_a_word_is_told_with_its_log(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a full disk, where neither a result nor a reason could be written."""
    stage = small_plan(ONLY_A).stages[0]
    prepare(stage)
    job, log = stage.run_dir / "job.json", stage.run_dir / "log.txt"
    said = f"{stage.name}: ended without a word (stopped, killed, or a full disk); its log: {log}\n"
    for has_log, age_s, is_said in ((False, 60, False), (True, 0, False), (True, 60, True)):
        if has_log:
            log.write_text("half a li", encoding="utf-8")
        os.utime(job, (time.time() - age_s,) * 2)  # a process may be about to take its lock
        assert execute("status", CONFIG, ONLY_A) == 0
        assert (said in capsys.readouterr().out) == is_said
    with lock(stage.run_dir / "lock"):
        assert execute("status", CONFIG, ONLY_A) == 0
    assert "without a word" not in capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
def test_a_report_follows_results_that_were_made_again(fakes: Path) -> None:
    plan = small_plan(ONLY_RANDOM)
    run(plan)
    make_report(plan)
    page = Path("runs/tiny/report/index.html")
    before = page.stat().st_mtime_ns
    make_report(plan)
    assert page.stat().st_mtime_ns == before
    manifest = plan.stages[0].run_dir / MANIFEST
    manifest.write_text(manifest.read_text("utf-8").replace("10.0", "99.0"), encoding="utf-8")
    make_report(plan)
    assert "99.0" in Path("runs/tiny/report/results.csv").read_text(encoding="utf-8")
    page.unlink()
    make_report(plan)
    assert page.exists()


@pytest.mark.usefixtures("in_process")
def test_a_report_with_another_baseline_is_of_the_same_results(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `report` and by `run`, which has nothing else to do."""
    results = Path("runs/tiny/report/results.json")
    plan = ["seeds=[0, 1]", "tasks=[{name: coco, config: coco.yaml}]"]
    assert execute("run", CONFIG, plan) == 0
    assert json.loads(results.read_text("utf-8"))["baseline"] == "random"
    made = sorted(Path("runs/tiny").glob("*/*/manifest.json"))
    for command, name in (("report", "a"), ("run", "b")):
        capsys.readouterr()
        assert execute(command, CONFIG, [*plan, f"baseline={name}"]) == 0
        content = json.loads(results.read_text("utf-8"))
        assert content["baseline"] == name
        others = {each["backbone"] for each in content["summary"] if each["difference"]}
        assert others == {"random", "a", "b"} - {name}
        assert f" {name}: " in capsys.readouterr().out
    assert sorted(Path("runs/tiny").glob("*/*/manifest.json")) == made


SHORT = "tasks.0.overrides=[SOLVER.MAX_ITER=4]"


@pytest.mark.usefixtures("in_process")
def test_a_report_of_another_plan_does_not_replace_that_of_the_last_run(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two seeds were run with changes that `status` and `report` are not given: none is theirs."""
    plan = ["backbones=[{name: a, pretrain: a.yaml}]", "tasks=[{name: coco, config: coco.yaml}]"]
    assert execute("run", CONFIG, [*plan, SHORT]) == 0
    folder = Path("runs/tiny/report")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = "again: finetune/a--coco--seed0, finetune/a--coco--seed1: "
    others = "the plan that was last run in runs/tiny has 2 results that are not of this one: "
    capsys.readouterr()
    assert execute("report", CONFIG, plan) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"run_pipeline: report: nothing of this plan is finished, and {others}")
    assert "changes as to that run, or put back what was edited in its configs since" in line
    assert again in line and "SOLVER.MAX_ITER: before 4, now " in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert execute("status", CONFIG, plan) == 0
    told = capsys.readouterr().out
    assert again in told and others in told


@pytest.mark.usefixtures("in_process")
def test_a_report_that_leaves_results_of_the_last_run_out_says_which(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("run", CONFIG, [*ONLY_A[:1], "seeds=[0, 1]"]) == 0
    capsys.readouterr()
    assert execute("report", CONFIG, [*ONLY_A[:1], "seeds=[0, 1]"]) == 0
    assert "last run" not in capsys.readouterr().out
    assert execute("report", CONFIG, ONLY_A) == 0
    told = capsys.readouterr().out
    assert "2 results that are not of this one: finetune/a--coco--seed1, finetune/a--voc--" in told
    Path("runs/tiny/stages.json").write_text("[1]", encoding="utf-8")
    assert execute("report", CONFIG, [*ONLY_A, SHORT]) == 0  # which plan was run is not known
    assert "last run" not in capsys.readouterr().out


def test_status_says_that_a_stage_is_at_work_for_another_plan(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (other,) = [stage for stage in small_plan([*ONLY_RANDOM, SHORT]).stages if stage.task == "coco"]
    prepare(other)
    with lock(other.run_dir / "lock"):
        assert execute("status", CONFIG, ONLY_RANDOM) == 0
    told = capsys.readouterr().out
    assert f"finetune/random--coco--seed0: at work in {other.run_dir} for another plan; " in told
    assert "SOLVER.MAX_ITER: before 4, now " in told


@pytest.mark.usefixtures("in_process")
def test_status_and_report_of_finished_runs_need_no_data(
    fakes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert execute("run", CONFIG, []) == 0
    results = Path("runs/tiny/report/results.json")
    before = results.read_text("utf-8")
    shutil.rmtree("data")
    monkeypatch.setattr(finetune, "find_spec", lambda _: None)
    finetune.defaults.cache_clear()
    capsys.readouterr()
    assert execute("status", CONFIG, [], Options(as_json=True)) == 0
    told = capsys.readouterr()
    assert set(json.loads(told.out)["counts"]) == {"done"}
    [line] = told.err.splitlines()
    assert "data/coco" in line and line.endswith("taken as the folders in runs/tiny have it")
    assert execute("status", CONFIG, ["output_dir=elsewhere"]) == 0
    told = capsys.readouterr()
    assert told.err == "" and "there is no folder" in told.out  # of which nothing was taken
    results.unlink()
    assert execute("report", CONFIG, []) == 0
    assert results.read_text("utf-8") == before
    assert execute("run", CONFIG, []) == 2
    assert "data/images" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_without_data_the_results_of_other_settings_are_nobodys(fakes: Path) -> None:
    assert execute("run", CONFIG, ONLY_A) == 0
    shutil.rmtree("data")
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.5))
    plan = load_plan(CONFIG, ONLY_A, recorded=True)
    assert {read_state(stage).status for stage in plan.stages} == {"missing"}


@pytest.mark.usefixtures("in_process")
def test_a_failed_stage_whose_data_changed_since_is_shown(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("behaviour-a").write_text("fail", encoding="utf-8")
    assert execute("run", CONFIG, ONLY_A) == 1
    shutil.copy("data/images/000.png", "data/images/one_more.png")
    capsys.readouterr()
    assert execute("status", CONFIG, ONLY_A) == 0
    why = (
        "what it is made from has changed since: data set tiny has changed (pretrain images: "
        "before 8 files, now 9 files)"
    )
    told = capsys.readouterr().out
    assert "pretrain/a: the latest attempt failed: the loss became NaN at step 3 (log: " in told
    assert why in told and told.count("latest attempt") == 1
    assert execute("logs", CONFIG, ONLY_A, Options(stage="pretrain/a")) == 0
    first, path, *lines = capsys.readouterr().out.splitlines()
    assert why in first and path.endswith("log.txt") and "NaN" in "".join(lines)
    assert execute("logs", CONFIG, ONLY_A, Options(stage="convert/a")) == 2


def test_exit_code_and_report_say_that_a_stage_failed(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["backbones=[{name: random, random: true}]"]
    Path("behaviour-random--voc--seed1").write_text("fail", encoding="utf-8")
    assert execute("run", CONFIG, changes) == 1
    assert "report:" in capsys.readouterr().out
    results = json.loads(Path("runs/tiny/report/results.json").read_text(encoding="utf-8"))
    failed = ("random", "voc", 1)
    named = {(row["backbone"], row["task"], row["seed"]) for row in results["rows"]}
    assert len(results["rows"]) == len(named) == 3 and failed not in named
    assert all(row["metrics"]["bbox/AP"] == 10.0 + row["seed"] for row in results["rows"])
    markdown = Path("runs/tiny/report/report.md").read_text(encoding="utf-8")
    assert "the loss became NaN at step 3" in markdown
    assert execute("status", CONFIG, changes) == 1
    Path("behaviour-random--voc--seed1").unlink()
    assert execute("run", CONFIG, changes) == 0
    capsys.readouterr()
    ran()
    page = Path("runs/tiny/report/index.html").stat().st_mtime_ns
    assert execute("run", CONFIG, changes) == 0
    assert ran() == []
    assert Path("runs/tiny/report/index.html").stat().st_mtime_ns == page


def test_interrupted_run_leaves_nothing_at_work_and_goes_on(fakes: Path) -> None:
    Path("behaviour-a").write_text("hang", encoding="utf-8")
    script = RUN.format(paths=sys.path, changes=ONLY_A)
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    until(lambda: Path("hanging").exists() or parent.poll() is not None)
    assert parent.poll() is None
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 2
    parent.send_signal(signal.SIGTERM)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 130 and "interrupted" in errors
    pretrain = next(entry for entry in small_plan(ONLY_A).stages if entry.name == "pretrain/a")
    assert read_state(pretrain) == State("missing")
    ran()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert ran()[0] == "a"
