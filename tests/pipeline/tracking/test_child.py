"""Trackers beside stages: what they show of a run, a killed one, a report; and when they fail."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.main import execute
from pipeline.plan.plan import Plan, select
from pipeline.report.write import make_report
from pipeline.stages.files import sha256_of
from pipeline.stages.provenance import with_this_code
from pipeline.stages.run_folder import prepare
from pipeline.tracking import child
from pipeline.tracking.child import Tracking, fault_of, tracking_by_hand
from pipeline.tracking.writers import TrackedRun
from tests.pipeline.local_runs import CONFIG, ONLY_A, ONLY_RANDOM, run, small_plan
from tests.pipeline.tracking.stores import Shown, need, shown_in, stub

ROOT = Path("runs/tiny")
SECTIONS = {
    "wandb": "{wandb: {mode: offline}}",
    "mlflow": "{mlflow: {tracking_uri: runs/tiny/mlruns}}",
    "trackio": "{trackio: {}}",
}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def alone(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose trackers know no account and write below it."""
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("TRACKIO_DIR", str(fakes / "trackio"))
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*others, *sys.path]))
    return fakes


def tracked(section: str, changes: list[str]) -> Plan:
    return small_plan([*changes, f"tracking={section}"])


def behaves(stage: str, what: str) -> None:
    Path(f"behaviour-{stage}").write_text(what, encoding="utf-8")


def values(shown: Shown, name: str) -> list[tuple[int, float]]:
    return shown.points[name]


@pytest.mark.parametrize("tracker", SECTIONS)
def test_a_killed_stage_goes_on_in_the_same_run_with_each_step_once_and_writes_no_key(
    tracker: str, alone: Path
) -> None:
    need(tracker)
    behaves("random--voc--seed0", "log 8 5")
    changes = [*ONLY_RANDOM, "tasks=[{name: voc, config: voc.yaml}]"]
    plan = tracked(SECTIONS[tracker], changes)
    stage = plan.stages[0]
    assert run(plan)[stage.name].status == "failed"
    behaves("random--voc--seed0", "log 8")
    assert run(plan)[stage.name].status == "done"
    (shown,) = shown_in(tracker, ROOT)
    assert (shown.project, shown.status) == ("tiny", "finished")
    assert (shown.name, shown.group) == (stage.name, "random/voc")
    assert values(shown, "loss") == [(step, 1 / step) for step in range(1, 9)]
    assert values(shown, "knn/top1") == [(step, step) for step in (2, 4, 6, 8)]
    assert [value for _, value in values(shown, "final/bbox/AP")] == [10.0]
    log = (stage.run_dir / "log.txt").read_text("utf-8")
    assert "tracking" not in log and fault_of(stage.run_dir, tracker) is None
    files = [path for path in alone.rglob("*") if path.is_file()]
    assert len(files) > 30 and not any(KEY.encode() in path.read_bytes() for path in files)


def test_switched_on_later_nothing_runs_again_and_the_report_is_shown_once(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert execute("run", CONFIG, ONLY_RANDOM) == 0
    before = {path: path.stat().st_mtime_ns for path in ROOT.glob("*/*/manifest.json")}
    stub(alone / "stub", monkeypatch, "")
    on = [*ONLY_RANDOM, "tracking={trackio: {}}"]
    for _ in range(2):
        assert execute("run", CONFIG, on) == 0
    assert {path: path.stat().st_mtime_ns for path in ROOT.glob("*/*/manifest.json")} == before
    lines = Path("stub.txt").read_text(encoding="utf-8").splitlines()
    final = [f"final/random/{task}/bbox/AP" for task in ("coco", "voc")]
    assert lines == ["1 ['results']", f"1 {final!r}"]
    plan = small_plan([*on, "seeds=[0,1]"])
    run(plan)
    make_report(plan)
    lines = Path("stub.txt").read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["2 ['results']", f"2 {final!r}"]  # of new results: the same run goes on


def test_conversions_are_not_shown_and_other_stages_by_backbone_and_task(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
def init(**settings):
    with Path("settings.txt").open("a") as file:
        print(settings["name"].rpartition("-")[0], settings["group"], file=file)
    return Run()
"""
    stub(alone / "stub", monkeypatch, text)
    changes = [*ONLY_A, "tasks=[{name: voc, config: voc.yaml}]", "num_parallel=1"]
    run(tracked("{trackio: {}}", changes))
    lines = Path("settings.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["pretrain/a a", "finetune/a--voc--seed0 a/voc"]


FAULTS = {
    "import": "raise RuntimeError('no luck')",
    "init": "def init(**settings): raise RuntimeError('no luck')",
    "log": "def log(*words, **more): raise RuntimeError('no luck')\nRun.log = log",
    "finish": "def finish(): raise RuntimeError('no luck')",
    "exit": "def init(**settings): raise SystemExit('no luck')",
    "crash": "def init(**settings): os._exit(5)",
}


@pytest.mark.parametrize("where", FAULTS)
def test_a_tracker_that_fails_is_told_of_once_and_stops_nothing(
    where: str, alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(alone / "stub", monkeypatch, FAULTS[where])
    changes = [*ONLY_RANDOM, "tasks=[{name: voc, config: voc.yaml}]", "tracking={trackio: {}}"]
    behaves("random--voc--seed0", "log 8")
    assert execute("run", CONFIG, changes) == 0
    stage = small_plan(changes).stages[0]
    log = (stage.run_dir / "log.txt").read_text("utf-8")
    (line,) = [line for line in log.splitlines() if "tracking" in line]
    assert "tracking: trackio: " in line and "Traceback" not in log
    assert "ended by itself (code 5)" in line if where == "crash" else "no luck" in line
    manifest = json.loads((stage.run_dir / "manifest.json").read_text("utf-8"))
    assert manifest["metrics"]["bbox/AP"] == 10.0
    told = capsys.readouterr()
    assert where == "crash" or "trackio has not all of it: " in told.out


def test_a_library_that_is_gone_when_the_stage_runs_stops_nothing(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(alone / "stub", monkeypatch, "")
    plan = tracked("{trackio: {}}", ONLY_RANDOM)
    (alone / "stub" / "trackio.py").write_text("import no_such_module", encoding="utf-8")
    assert {state.status for state in run(plan).values()} == {"done"}
    assert "no_such_module" in str(fault_of(plan.stages[0].run_dir, "trackio"))


@pytest.mark.parametrize(
    ("raised", "status"), [(None, "finished"), (SystemExit(75), "interrupted")]
)
def test_a_tracker_that_hangs_at_the_end_is_left(
    raised: BaseException | None,
    status: str,
    alone: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = """
import time
def finish():
    Path("hangs.txt").touch()
    time.sleep(600)
"""
    stub(alone / "stub", monkeypatch, text)
    for name in ("LAST_WORDS_S", "INTERRUPTED_S"):
        monkeypatch.setattr(child, name, 4.0)
    tracking = tracking_by_hand("{trackio: {}}", alone, {})
    with pytest.raises(SystemExit) if raised else contextlib.nullcontext(), tracking:
        if raised:
            raise raised
    assert Path("hangs.txt").exists()
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "tracking: trackio: was not done in 4 s (code 77)"
    ]
    assert all(process.poll() is not None for process in tracking.children.values())


def test_without_trackers_nothing_is_started(alone: Path) -> None:
    plan = small_plan(ONLY_RANDOM)
    run(plan)
    assert not (plan.stages[0].run_dir / "tracking").exists()
    assert "tracking" not in json.loads((plan.stages[0].run_dir / "job.json").read_text("utf-8"))
    with Tracking({}, TrackedRun({}, "", "", "", {}, {}), alone) as tracking:
        assert not tracking.children


def test_a_run_by_hand_has_the_same_section(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(alone / "stub", monkeypatch, "")
    with tracking_by_hand("{trackio: {}}", Path("runs/first"), {"a": 1}) as tracking:
        Path("runs/first/metrics.jsonl").write_text('{"step": 1, "loss": 2}\n', encoding="utf-8")
        tracking.summary = {"loss": 2.0}
    assert Path("stub.txt").read_text("utf-8").splitlines() == ["1 ['loss']", "1 ['final/loss']"]
    assert tracking.trackers["trackio"]["project"] == "runs"
    for text in ("wandb", "{}", "[wandb]"):
        with pytest.raises(ValueError, match=r"wanted the trackers, such as '\{wandb"):
            tracking_by_hand(text, Path("out"), {})
    with pytest.raises(ValueError, match="unknown key 'wandbb'"):
        tracking_by_hand("{wandbb: {}}", Path("out"), {})


@pytest.mark.slow
def test_a_training_is_the_same_bit_by_bit_with_and_without_trackers(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(project / "stub", monkeypatch, "import random\nrandom.seed(7)\n")
    folders = []
    for section in ("{}", "{trackio: {}}"):
        changes = [*ONLY_A, f"tracking={section}", f"name=n{len(folders)}"]
        plan = select(small_plan(changes), ["pretrain/a"])
        prepare(plan.stages[0], plan.config.tracking.trackers(plan.config.name))
        folders.append(plan.stages[0].run_dir)
    both = "import sys; from pipeline.worker import main; [main(['run', x]) for x in sys.argv[1:]]"
    command = [sys.executable, "-c", both, *map(str, folders)]  # which import torch once
    subprocess.run(command, env=with_this_code(os.environ), check=True)
    digests = [sha256_of(folder / "backbone.pth") for folder in folders]
    assert digests[0] == digests[1]
    assert "embedding/rank" in Path("stub.txt").read_text(encoding="utf-8")
