"""A real SLURM of two nodes for a session, and plans of tiny stages to run on it."""

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.commands import slurm
from pipeline.config.schema import PipelineConfig
from pipeline.executors.slurm.states import Standing, read_standings
from pipeline.plan.plan import Plan
from pipeline.stages.run_folder import is_kept_back
from pipeline.stages.stage import STAGE_KINDS, Stage, StageKind

HERE = Path(__file__).resolve().parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "unshare", "nsenter")
OF_NODE = """found=
for process in /proc/[0-9]*; do
    if grep -qx slurmstepd $process/comm; then
        found="${{process#/proc/}} $found"
    elif tr '\\0' '\\n' <$process/environ 2>/dev/null | grep -qx SLURMD_NODENAME={node}; then
        found="$found ${{process#/proc/}}"
    fi
done
"""
AWKWARD = 'o\'clock "runs"\nhere'  # a folder's name that has to be quoted everywhere
PARTS = {"timeout_min": 10, "save_s": 60, "cpus_per_gpu": 1}


def why_not() -> str | None:
    """Return why SLURM cannot be started here, or None."""
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return (
            f"no SLURM here: {', '.join(missing)} not found; "
            "apt-get install slurmctld slurmd slurm-client munge"
        )
    if os.geteuid() != 0:
        return "wants root, to start SLURM's daemons as two nodes"
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    if subprocess.run(namespaces, check=False, capture_output=True).returncode != 0:
        return "this machine does not allow mount namespaces"
    return None


class Cluster:
    """The two nodes; commands inside their namespaces go through `inside`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def inside(self, script: str) -> None:
        outer = (self.folder / "unshare.pid").read_text(encoding="utf-8").strip()
        answer = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", outer], check=True, capture_output=True, text=True
        )
        script = (
            f"cd {shlex.quote(str(self.folder))} && export SLURM_CONF=$PWD/slurm.conf; {script}"
        )
        command = ["nsenter", "-t", answer.stdout.split()[0], "-m", "-p", "bash", "-c", script]
        environment = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin"}
        subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)

    def kill_daemon(self, name: str) -> None:
        """Kill a daemon by the process id that it recorded."""
        self.inside(f"kill -KILL $(cat {name}.pid)")

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and all that it started, as a power cut would; the other is idle."""
        self.kill_daemon(f"slurmd-{node}")
        self.inside(f"{OF_NODE.format(node=node)} kill -KILL $found")

    def start_node(self, node: str) -> None:
        self.inside(f"kill -0 $(cat slurmd-{node}.pid) 2>/dev/null || slurmd -N {node}")

    def stop_controller(self) -> None:
        self.inside("pid=$(cat slurmctld.pid); kill $pid; while kill -0 $pid; do sleep 0.1; done")

    def wait_idle(self) -> None:
        """Return once both nodes can take jobs."""
        deadline = time.monotonic() + 30
        idle = ["sinfo", "--noheader", "--format=%D", "--states=idle", "--partition=main"]
        while subprocess.run(idle, capture_output=True, check=False).stdout.strip() != b"2":
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def start_controller(self) -> None:
        self.inside("kill -0 $(cat slurmctld.pid) 2>/dev/null || slurmctld")

    def signal_task(self, name: str) -> None:
        """Send a signal to the one task of ours that runs, without SLURM's help."""
        self.inside(f"kill -{name} $(pgrep -f '^[^ ]*python.*submitit.core._submit')")


@contextmanager
def started(folder: Path, more: str = "") -> Iterator[Cluster]:
    """Start a cluster of two nodes, with `more` lines in its slurm.conf; end it afterwards."""
    if reason := why_not():
        pytest.skip(reason)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accounting.conf").write_text(more, encoding="utf-8")
    subprocess.run([HERE / "up.sh", folder], check=True)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield Cluster(folder)
    finally:
        subprocess.run([HERE / "down.sh", folder], check=False)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class Project:
    """A folder with a plan of fake stages; each method is what a user would do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = Console(file=(folder / "said.txt").open("w", encoding="utf-8"), width=200)

    def behave(self, slug: str, **how: object) -> None:
        (self.folder / f"{slug}.json").write_text(json.dumps(how), encoding="utf-8")

    def plan(
        self, backbones: tuple[str, ...] = ("a",), short: bool = False, **resources: object
    ) -> Plan:
        """Return a plan of all kinds of stages, or of pretraining alone if `short`."""
        config = PipelineConfig.model_validate(
            {
                "name": "tiny",
                "backbones": [{"name": name, "pretrain": "x.yaml"} for name in backbones],
                "tasks": [{"name": "voc", "config": "voc.yaml"}],
                "seeds": [0, 1],
                "resources": {"default": PARTS | resources},
            }
        )
        root, stages = config.output_dir / config.name, []
        before: dict[str, Stage] = {}
        for kind, source in (("pretrain", None), ("convert", "pretrain"), ("finetune", "convert")):
            for backbone in backbones:
                for seed in (0, 1) if kind == "finetune" else (0,):
                    slug = f"{backbone}--voc--seed{seed}" if kind == "finetune" else backbone
                    stage = Stage(
                        kind, slug, {"seed": seed}, {"seed": seed, "detectron2": {}}, root,
                        {"weights": before[source + backbone]} if source else {}, backbone,
                        task="voc" if kind == "finetune" else None,
                        seed=seed if kind == "finetune" else None,
                    )  # fmt: skip
                    before[kind + backbone] = stage
                    stages.append(stage)
        chosen = [stage for stage in stages if not short or stage.kind == "pretrain"]
        return Plan(config, Path("tiny.yaml"), (), tuple(chosen))

    def run(self, plan: Plan) -> int:
        return slurm.run(plan, self.output)

    def standings(self, plan: Plan) -> dict[str, Standing]:
        return read_standings(plan)[0]

    def wait(
        self, plan: Plan, until: Callable[[dict[str, Standing]], bool], seconds: float = 90
    ) -> dict[str, Standing]:
        """Return the standings as soon as they are as wanted."""
        deadline = time.monotonic() + seconds
        while not until(standings := self.standings(plan)):
            assert time.monotonic() < deadline, standings
            time.sleep(0.3)
        return standings

    def wait_done(self, plan: Plan, seconds: float = 40) -> dict[str, Standing]:
        return self.wait(
            plan,
            lambda standings: all(
                v.status in ("done", "failed") or is_kept_back(v.reason) for v in standings.values()
            ),
            seconds,
        )

    def wait_steps(self, plan: Plan, name: str, step: int) -> Standing:
        """Return the standing of a stage at work once it logged a step."""
        wanted = {f"step {number}/" for number in range(step, 1000)}
        standings = self.wait(plan, lambda v: any(v[name].metric.startswith(w) for w in wanted))
        return standings[name]


def stage_of(plan: Plan, name: str) -> Stage:
    return next(stage for stage in plan.stages if stage.name == name)


@contextmanager
def project_on(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """Make `folder` a project of fake stages; leave the cluster as it was."""
    cluster.wait_idle()
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
    for name, real in list(STAGE_KINDS.items()):
        kind = StageKind("slurm_stages", real.version, ("out.txt",), "out.txt")
        monkeypatch.setitem(STAGE_KINDS, name, kind)
    made = Project(folder)
    yield made
    made.output.file.close()
    cluster.start_controller()
    subprocess.run(["scancel", "--user=root"], check=False)
    for name in ("n1", "n2"):
        cluster.start_node(name)
    for name in ("n1", "n2"):
        subprocess.run(
            ["scontrol", "update", f"NodeName={name}", "State=RESUME"],
            check=False,
            capture_output=True,
        )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Iterator[Project]:
    with project_on(cluster, tmp_path / AWKWARD, monkeypatch) as project:
        yield project
