"""A real SLURM as sites set it up: preemption that cancels, small limits, a user's environment."""

import time
from pathlib import Path

import pytest

from pipeline.commands.slurm import cancel
from pipeline.executors.slurm.ledger import read_ledger
from pipeline.executors.slurm.queue import SlurmError
from tests.slurm.conftest import HERE, project_on, started
from tests.slurm.test_survival import all_done, chain, result, slurm, starts

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TAKE_ALL = (
    "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null",
    "--wrap=sleep 2",
)  # fmt: skip


def test_a_job_preempted_by_cancelling_is_submitted_again(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    folder = tmp_path_factory.mktemp("cut")  # a short path: SLURM's sockets lie in it
    more = "PartitionName=cut Nodes=n[1-2] PriorityTier=1 PreemptMode=CANCEL GraceTime=0\n"
    with (
        started(folder / "c", more) as cluster,
        project_on(cluster, folder / "p", monkeypatch) as project,
    ):
        project.behave("a", steps=25, step_s=0.2)
        plan = project.plan(partition="cut")
        project.run(plan)
        first = project.wait_steps(plan, "pretrain/a", 3).job_id
        slurm(*TAKE_ALL)
        standings = project.wait(plan, lambda v: v["pretrain/a"].status == "failed")
        assert f"job {first} ended as PREEMPTED" in str(standings["pretrain/a"].reason)
        began = time.monotonic()
        assert cancel(plan, project.output) == 0 and time.monotonic() - began < 30
        project.run(plan)
        all_done(project, plan, 90)
        assert result(plan, "pretrain/a") == chain(25)


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_preempted_while_a_job_starts(project, delay: float) -> None:
    plan = project.plan(short=True)
    project.run(plan)
    job = project.standings(plan)["pretrain/a"].job_id
    deadline = time.monotonic() + 30
    while "RUNNING" not in slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T"):
        assert time.monotonic() < deadline
    time.sleep(delay)
    slurm(*TAKE_ALL)
    all_done(project, plan, 90)
    assert result(plan, "pretrain/a") == chain(2)


def test_a_stage_ended_before_it_could_hear_the_signal_waits_again(project) -> None:
    once = 'srun() { mkdir ended 2>/dev/null && return 143; command srun "$@"; }'
    plan = project.plan(short=True, setup=[once])
    project.run(plan)
    all_done(project, plan, 90)
    assert result(plan, "pretrain/a") == chain(2)
    assert (project.folder / "ended").exists()


def test_neither_environment_nor_setup_changes_what_a_stage_is_given(project, monkeypatch) -> None:
    for name in ("SBATCH_EXPORT", "SLURM_EXPORT_ENV"):
        monkeypatch.setenv(name, "NONE")
    for name in ("SBATCH_TIMELIMIT", "SBATCH_NO_REQUEUE", "SLURM_TIMELIMIT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SBATCH_ARRAY_INX", "5-6")
    monkeypatch.setenv("SQUEUE_PARTITION", "urgent")
    path = f"export PYTHONPATH=$PYTHONPATH:{HERE}:{HERE.parents[1]}"
    plan = project.plan(setup=[path, "cd /"], extra={"export": "NONE"})
    project.run(plan)
    job = project.standings(plan)["pretrain/a"].job_id
    shown = slurm("scontrol", "--oneliner", "show", "job", job)
    assert " TimeLimit=00:10:00 " in shown and " Requeue=1 " in shown
    all_done(project, plan, 90)
    page = plan.config.root / "report" / "results.json"
    project.wait(plan, lambda standings: page.exists(), 30)


def test_a_job_that_may_not_be_put_back_says_so_and_run_goes_on(project) -> None:
    project.behave("a", steps=40, step_s=0.2)
    plan = project.plan(short=True)
    project.run(plan)
    job = project.wait_steps(plan, "pretrain/a", 3).job_id
    slurm("scontrol", "update", f"JobId={job}", "Requeue=0")
    slurm("scancel", "--signal=TERM", job)
    standing = project.wait(plan, lambda v: v["pretrain/a"].status == "failed", 30)["pretrain/a"]
    assert "saved, but not put back into the queue" in str(standing.reason)
    assert "disabled" in str(standing.reason)
    project.run(plan)
    all_done(project, plan)
    assert result(plan, "pretrain/a") == chain(40) and starts(plan, "pretrain/a")[1] >= 3


def test_what_fails_before_the_worker_is_explained_by_slurms_output(project) -> None:
    plan = project.plan(short=True, setup=["echo no module cuda here >&2", "exit 3"])
    project.run(plan)
    standing = project.wait_done(plan)["pretrain/a"]
    assert standing.status == "failed" and standing.log.endswith(f"batch-{standing.job_id}.log")
    assert "no module cuda here" in Path(standing.log).read_text(encoding="utf-8")


@pytest.mark.parametrize(("resources", "words"), [
    ({"mem_gb": 100}, "resources.pretrain.mem_gb: 100, but no node of main has more than 7.8"),
    ({"cpus_per_gpu": 9}, "resources.pretrain.cpus_per_gpu: 9 cores a node"),
    ({"nodes": 3}, "resources.pretrain.nodes: 3, but main has 2"),
    ({"partition": "nowhere"}, "resources.pretrain.partition: sbatch: "),
    ({"constraint": "h100"}, "resources.pretrain"),
])  # fmt: skip
def test_what_can_never_run_is_refused_before_anything_is_queued(
    project, resources: dict, words: str
) -> None:
    plan = project.plan(short="nodes" in resources, **resources)
    with pytest.raises(SlurmError) as refused:
        project.run(plan)
    assert words in str(refused.value)
    in_queue = slurm("squeue", "--noheader", "--states=PENDING,RUNNING")
    assert read_ledger(plan.config.root) == [] and in_queue == ""


def test_small_limits_are_filled_and_the_rest_follows(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    folder = tmp_path_factory.mktemp("few")
    more = (
        "MaxArraySize=3\nMaxJobCount=8\nMinJobAge=2\n"
        "PartitionName=short Nodes=n[1-2] MaxTime=5\n"
        "PartitionName=off Nodes=n[1-2] State=INACTIVE\n"
    )
    with (
        started(folder / "c", more) as cluster,
        project_on(cluster, folder / "p", monkeypatch) as project,
    ):
        for partition, key in (("short", "timeout_min: 10"), ("off", "partition: sbatch")):
            with pytest.raises(SlurmError, match=rf"resources.pretrain.{key}"):
                project.run(project.plan(partition=partition))
        plan = project.plan(("a", "b", "c"))
        deadline = time.monotonic() + 240
        while {each.status for each in project.standings(plan).values()} != {"done"}:
            assert time.monotonic() < deadline
            try:
                project.run(plan)
            except SlurmError as full:  # the controller forgets ended jobs once a minute
                assert "MaxJobCount=8 leaves" in str(full)
                time.sleep(5)
            project.wait(
                plan, lambda v: not {s.status for s in v.values()} & {"queued", "running"}, 60
            )
        assert result(plan, "pretrain/a") == chain(2)
        said = Path("said.txt").read_text(encoding="utf-8")
    assert "stages are left: MaxJobCount=8 leaves room for" in said
