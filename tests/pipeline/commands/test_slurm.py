"""The commands over a fake SLURM: submission, ledger, states, status; nothing runs by itself."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands import main as commands
from pipeline.commands import slurm as cluster
from pipeline.commands.main import Options
from pipeline.commands.status import show_status
from pipeline.executors.slurm import states, submit
from pipeline.executors.slurm.ledger import read_ledger
from pipeline.executors.slurm.plan_file import read_plan, write_plan
from pipeline.executors.slurm.queue import SlurmError
from pipeline.executors.slurm.sbatch import sbatch_parameters, sbatch_text
from pipeline.executors.slurm.states import Standing, read_standings
from pipeline.plan.build import load_plan
from pipeline.stages import stage
from pipeline.stages.run_folder import FAILURE
from pipeline.stages.stage import StageKind
from pipeline.worker import run as run_worker

HERE = Path(__file__).resolve().parents[1]
CONFIG = Path("configs/tiny.yaml")
SLURM = Options(executor="slurm")


class Fake:
    """The fake scheduler's state, as a test sees and moves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def jobs(self) -> dict:
        path = self.folder / "jobs.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def set_state(self, job_id: str, **what: object) -> None:
        jobs = self.jobs
        jobs[job_id].update(what)
        (self.folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")

    def fail(self, command: str, text: str | None) -> None:
        path = self.folder / f"{command}.fails"
        path.write_text(text, encoding="utf-8") if text else path.unlink()


@pytest.fixture
def fake(project: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = project / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel", "srun"):
        script = folder / name
        script.write_text(f"#!{sys.executable}\n" + (HERE / "fake_slurm" / "fake.py").read_text())
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.syspath_prepend(str(HERE))
    for name in stage.STAGE_KINDS:
        kind = StageKind("fake_stages", 1, ("out.txt",), "out.txt")
        monkeypatch.setitem(stage.STAGE_KINDS, name, kind)
    return Fake(folder)


def plan_of(*overrides: str):
    return load_plan(CONFIG, ["seeds=[0]", *overrides])


def run(*overrides: str) -> int:
    return commands.execute("run", CONFIG, ["seeds=[0]", *overrides], SLURM)


def views_of(*overrides: str) -> dict[str, Standing]:
    return read_standings(plan_of(*overrides))[0]


def work(fake: Fake, *overrides: str) -> list[str]:
    """Let every waiting job whose inputs are done run to its end; return what ran."""
    ran = []
    for entry in plan_of(*overrides).stages:
        view = views_of(*overrides)[entry.name]
        if view.status == "queued" and all(s.result.exists() for s in entry.inputs.values()):
            code = run_worker(entry.run_dir)
            state = "COMPLETED" if code == 0 else "FAILED"
            fake.set_state(view.job_id, state=state, node="n1")
            ran.append(entry.name)
    return ran


def test_pending_failed_retried_done(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    Path("behaviour-a").write_text("fail", encoding="utf-8")
    assert run() == 0
    assert fake.calls.count("sbatch") == 6  # two arrays, three of fine-tuning, the report
    assert {view.status for view in views_of().values()} == {"queued"}
    assert run() == 0 and "sbatch" not in fake.calls
    work(fake)
    views = views_of()
    assert views["pretrain/a"].status == "failed"
    assert views["pretrain/a"].reason == "the loss became NaN at step 3"
    assert views["finetune/a--voc--seed0"].status == "failed"
    assert views["finetune/b--voc--seed0"].status == views["convert/b"].status == "done"
    assert commands.execute("status", CONFIG, ["seeds=[0]"]) == 1
    assert "the loss became NaN at step 3" in capsys.readouterr().out
    Path("behaviour-a").unlink()
    fake.calls  # noqa: B018
    assert run() == 0
    assert fake.calls.count("sbatch") == 4
    assert work(fake) == [
        "pretrain/a", "convert/a", "finetune/a--coco--seed0", "finetune/a--voc--seed0",
    ]  # fmt: skip
    assert {view.status for view in views_of().values()} == {"done"}
    assert run() == 0 and "sbatch" not in fake.calls
    assert Path("runs/tiny/report/results.json").exists()


def test_the_text_shown_is_the_text_submitted(fake: Fake) -> None:
    run()
    plan = plan_of()
    groups = {g.name: g for g in submit.job_groups(plan.stages, plan.config.resources, {})}
    for entry in read_ledger(plan.config.root):
        folder = plan.config.root.absolute() / "slurm" / entry.token
        (script,) = folder.glob("*_submission.sh")
        written = script.read_text(encoding="utf-8")
        dependency = re.search(r"--dependency=(\S+)", written)
        code = next((plan.config.root.absolute() / "code").iterdir())
        group = groups[entry.group]
        parameters = sbatch_parameters(
            group, entry.job_name, dependency[1].strip("'") if dependency else "", folder, code
        )
        assert sbatch_text(parameters, group, folder, sys.executable) == written


def test_one_queue_call_and_one_accounting_call_whatever_the_size(fake: Fake) -> None:
    run("seeds=[0,1,2,3,4,5,6,7]")
    fake.calls  # noqa: B018
    read_standings(plan_of("seeds=[0,1,2,3,4,5,6,7]"))
    assert fake.calls == ["squeue"]
    for job in fake.jobs:
        fake.set_state(job, state="NODE_FAIL", purged=True)
    views, notes = read_standings(plan_of("seeds=[0,1,2,3,4,5,6,7]"))
    assert sorted(fake.calls) == ["sacct", "squeue"] and notes == []
    assert "ended as NODE_FAIL" in str(views["pretrain/a"].reason)


def test_without_accounting_the_run_folder_decides(fake: Fake) -> None:
    run()
    fake.fail("sacct", "sacct: error: Slurm accounting storage is disabled")
    work(fake)
    for job in fake.jobs:
        fake.set_state(job, purged=True)
    views, notes = read_standings(plan_of())
    assert {view.status for view in views.values()} == {"done"} and notes == []
    (plan_of().stages[0].run_dir / "manifest.json").unlink()
    views, notes = read_standings(plan_of())
    assert len(notes) == 1 and "accounting storage is disabled" in notes[0]
    assert "gone" in str(views[plan_of().stages[0].name].reason)


def test_without_a_queue_nothing_is_submitted(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    fake.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    views, notes = read_standings(plan_of())
    assert {view.status for view in views.values()} == {"queued"} and len(notes) == 1
    fake.calls  # noqa: B018
    assert run() == 2 and "sbatch" not in fake.calls
    assert "Unable to contact slurm controller" in capsys.readouterr().err


def test_a_crash_after_sbatch_leaves_no_orphan(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    written = submit.write_submission

    def crash(root: Path, entry) -> None:
        if entry.job_id and entry.group == "convert":
            raise KeyboardInterrupt
        written(root, entry)

    with monkeypatch.context() as crashing:
        crashing.setattr(submit, "write_submission", crash)
        assert run() == 130
    before = set(fake.jobs)
    entries, _ = submit.settle(plan_of().config.root)
    assert [entry.job_id for entry in entries] == ["101", "102"]  # adopted
    assert set(fake.jobs) == before


def test_a_crash_inside_sbatch_is_cancelled_and_submitted_again(fake: Fake) -> None:
    run()
    plan = plan_of()
    (entry,) = (entry for entry in read_ledger(plan.config.root) if entry.group == "convert")
    path = plan.config.root / "slurm" / f"{entry.token}.json"
    path.write_text(path.read_text("utf-8").replace(f'"{entry.job_id}"', '""'), encoding="utf-8")
    next((plan.config.root / "slurm" / entry.token).glob("*_submitted.pkl")).unlink()
    submit.settle(plan.config.root)
    cancelled = {key for key, job in fake.jobs.items() if job["state"] == "CANCELLED"}
    assert cancelled == set(entry.task_ids)
    assert views_of()["convert/a"].status == "missing"
    assert run() == 0
    assert views_of()["convert/a"].status == "queued"


def test_what_sbatch_would_refuse_is_said_before_anything_is_submitted(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("resources.default.partition=nowhere") == 2
    errors = capsys.readouterr().err
    assert "resources.pretrain: sbatch: sbatch: error: invalid partition specified" in errors
    assert fake.jobs == {} and read_ledger(plan_of().config.root) == []


def test_cancel_leaves_nothing_and_run_goes_on(fake: Fake) -> None:
    run()
    assert commands.execute("cancel", CONFIG, ["seeds=[0]"]) == 0
    assert {job["state"] for job in fake.jobs.values()} == {"CANCELLED"}
    views = views_of()
    assert {view.status for view in views.values()} == {"missing"}
    assert views["pretrain/a"].reason == "cancelled; run goes on from here"
    assert run() == 0
    assert {view.status for view in views_of().values()} == {"queued"}


def test_tasks_that_can_never_start_are_replaced(fake: Fake) -> None:
    run()
    plan = plan_of()
    view = views_of()["pretrain/a"]
    fake.set_state(view.job_id, state="FAILED")
    (plan.stages[0].root / "pretrain").mkdir(exist_ok=True)
    pretrain = next(entry for entry in plan.stages if entry.name == "pretrain/a")
    (pretrain.run_dir / FAILURE).write_text('{"reason": "broken"}', encoding="utf-8")
    stale = views_of()["convert/a"].job_id
    fake.set_state(stale, reason="DependencyNeverSatisfied")
    assert run() == 0
    assert fake.jobs[stale]["state"] == "CANCELLED"
    assert views_of()["convert/a"].status == "queued" and views_of()["convert/a"].job_id != stale


def test_status_as_json_and_the_table_agree(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    job = views_of()["pretrain/a"].job_id
    fake.set_state(job, state="RUNNING", node="n2")
    pretrain = next(entry for entry in plan_of().stages if entry.name == "pretrain/a")
    line = {"step": 10, "max_steps": 40, "loss": 0.5}
    (pretrain.run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert commands.execute("status", CONFIG, ["seeds=[0]"], Options(as_json=True)) == 0
    content = json.loads(capsys.readouterr().out)
    view = next(entry for entry in content["stages"] if entry["stage"] == "pretrain/a")
    assert view["status"] == "running" and view["node"] == "n2" and view["job_id"] == job
    assert view["elapsed_s"] == 65 and view["left_s"] == 195 and view["limit_left_s"] == 3535
    assert content["counts"] == {"running": 1, "queued": len(content["stages"]) - 1}
    console = Console(width=200, record=True, quiet=True)
    assert states.read_standings(plan_of())[0]["pretrain/a"].metric == "step 10/40  loss 0.5"
    cluster.show_plan(plan_of(), console)


def test_the_table_names_stages_in_full_and_failures_once(fake: Fake) -> None:
    run("seeds=[0,1]")
    stages = {stage.name: stage for stage in plan_of("seeds=[0,1]").stages}
    (stages["pretrain/a"].run_dir / "failure.json").write_text('{"reason": "NaN"}', "utf-8")
    (stages["pretrain/a"].run_dir / "log.txt").write_text("one\ntwo\n", "utf-8")
    for index, state in ((0, "FAILED"), (1, "RUNNING")):
        fake.set_state(f"101_{index}", state=state, node="n2")
    console = Console(width=80, record=True, file=io.StringIO())
    assert show_status(plan_of("seeds=[0,1]"), console) == 1
    lines = console.export_text().splitlines()
    assert sum("finetune/coco--seed1" in line and "queued" in line for line in lines) == 2
    assert sum("(Priority)" in line for line in lines) == 4  # of the random backbone
    assert "pretrain/a: NaN (log: " in "\n".join(lines) and "    two" in lines
    tuned = [f"finetune/a--{task}--seed{seed}" for task in ("coco", "voc") for seed in (0, 1)]
    assert lines[-1] == f"{', '.join(tuned)}: needs convert/a, which failed: needs pretrain/a, " + (
        "which failed: NaN"
    )


def test_logs_are_found_by_the_name_of_the_stage(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    pretrain = next(entry for entry in plan_of().stages if entry.name == "pretrain/a")
    (pretrain.run_dir / "log.txt").write_text("one\ntwo\n", encoding="utf-8")
    capsys.readouterr()
    assert commands.execute("logs", CONFIG, ["seeds=[0]"], Options(stage="pretrain/a")) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["one", "two"]
    assert commands.execute("logs", CONFIG, ["seeds=[0]"], Options(stage="pretrain/z")) == 2
    assert "unknown stage 'pretrain/z'; did you mean 'pretrain/" in capsys.readouterr().err
    assert commands.execute("logs", CONFIG, ["seeds=[0]"]) == 2
    assert "--stage is missing; tiny has " in capsys.readouterr().err


def test_a_local_run_leaves_the_queue_alone(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert commands.execute("run", CONFIG, ["seeds=[0]"]) == 2
    assert "stages are in SLURM's queue" in capsys.readouterr().err


def test_a_plan_survives_being_a_file(fake: Fake) -> None:
    plan = plan_of("resources.pretrain.gpus=2")
    write_plan(plan, Path("plan.json"))
    again = read_plan(Path("plan.json"))
    assert [s.signature for s in again.stages] == [s.signature for s in plan.stages]
    assert again.config.resources.of("pretrain").gpus == 2 and again.config.root == plan.config.root


def test_status_imports_no_torch_and_no_plots() -> None:
    code = (
        "import sys, pipeline.commands.main\n"
        "bad = {'torch', 'matplotlib', 'submitit', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[1])


def test_a_path_that_slurm_would_change_is_refused(fake: Fake) -> None:
    with pytest.raises(SlurmError, match="expands '%'"):
        cluster.run(plan_of("output_dir=a%jb"), Console(quiet=True))
