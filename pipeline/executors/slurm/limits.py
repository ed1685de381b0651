"""Limits of a site, asked before anything is submitted: arrays, jobs, nodes, partitions."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.schema import Resources
from pipeline.executors.slurm.arrays import MAX_ARRAY, JobGroup
from pipeline.executors.slurm.environment import sbatch_environment
from pipeline.executors.slurm.queue import SlurmError, call, count_jobs, parse_time
from pipeline.executors.slurm.sbatch import options_of, sbatch_parameters, sbatch_text
from pipeline.stages.stage import Stage

KEY_OF = {  # what sbatch complains about, and the key of `resources` that says it
    "time limit": "timeout_min",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "feature": "constraint",
    "constraint": "constraint",
    "gres": "gpus",
    "memory": "mem_gb",
    "cpu": "cpus_per_gpu",
    "node count": "nodes",
}
UNMET = "node configuration is not available"  # also said while all nodes are down or drained
NODE_FORMAT = "%P|%l|%D|%c|%m|%G|%T"
AWAY = ("down", "drain", "fail", "maint", "boot", "unk", "power", "plnd", "no_respond", "resv")


@dataclass(frozen=True)
class SiteLimits:
    """How large an array may be, and how many jobs there is room for; None: no limit known."""

    max_array: int = MAX_ARRAY
    room: int | None = None
    room_is: str = ""


@dataclass(frozen=True)
class Nodes:
    """Nodes of one size in one partition, as sinfo lists them; `max_s` None: without end."""

    partition: str
    is_default: bool
    max_s: int | None
    count: int
    cpus: int
    mem_mb: int
    gpus: int
    is_up: bool


def read_limits(asked: Iterable[Resources] = ()) -> SiteLimits:
    """Return the limits of this site for jobs of these resources, and what is left of them.

    Raises:
        SlurmError: scontrol or squeue failed.
    """
    site = parse_config(call(["scontrol", "show", "config"]))
    rooms = []
    if (most := site.get("MaxJobCount", 0)) > 0:
        rooms.append((most - 1 - count_jobs(), f"MaxJobCount={most}"))
    if site.get("accounting"):
        user = getpass.getuser()
        show = ["sacctmgr", "--noheader", "--parsable2", "show"]
        columns = "format=Account,DefaultQOS,MaxSubmitJobs,GrpSubmitJobs"
        limits = "format=Name,MaxSubmitJobsPerUser,GrpSubmitJobs"
        with contextlib.suppress(SlurmError):  # sbatch will say it
            assoc = call([*show, "assoc", f"user={user}", columns])
            submit = parse_submit_limit(assoc, call([*show, "qos", limits]), asked, os.environ)
            if submit is not None:
                rooms.append((submit - count_jobs(user), f"MaxSubmitJobs={submit}"))
    max_array = array_limit(site)
    return SiteLimits(max_array, *min(rooms)) if rooms else SiteLimits(max_array)


def max_array_here() -> int:
    """Return how many tasks an array may have here, or as SLURM has it where there is none."""
    try:
        return array_limit(parse_config(call(["scontrol", "show", "config"])))
    except SlurmError:
        return MAX_ARRAY


def array_limit(site: Mapping[str, int]) -> int:
    """Return how many tasks an array may have, by the controller's config."""
    sizes = [site[key] for key in ("MaxArraySize", "max_array_tasks") if key in site]
    return max(1, min(sizes, default=MAX_ARRAY))


def parse_submit_limit(
    assoc: str, qos: str, asked: Iterable[Resources], environment: Mapping[str, str]
) -> int | None:
    """Return how many jobs a user may have in the queue, by associations and the QOS in use.

    `assoc` has rows of account, default QOS and limits, `qos` of name and limits. Of several
    associations that may be meant the most generous one counts: sbatch knows better.
    """
    asked = list(asked)
    accounts = {each.account or environment.get("SBATCH_ACCOUNT") for each in asked} - {None}
    rows = [line.split("|") for line in assoc.splitlines() if line.count("|") == 3]
    rows = [row for row in rows if not accounts or row[0] in accounts]
    of_rows = [[int(word) for word in row[2:] if word.isdigit()] for row in rows]
    limits = [max(map(min, of_rows))] if of_rows and all(of_rows) else []
    defaults = {row[1] for row in rows if row[1]}
    names = {each.qos or environment.get("SBATCH_QOS") for each in asked} - {None}
    for line in qos.splitlines():
        name, *numbers = line.split("|")
        if name in (names or defaults or {"normal"}):
            limits += [int(word) for word in numbers if word.isdigit()]
    return min(limits, default=None)


def parse_config(text: str) -> dict[str, int]:
    """Return the numbers of `scontrol show config` that limit a plan.

    >>> parse_config("MaxArraySize   = 1001")
    {'MaxArraySize': 1001}
    """
    site: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition("="))
        if name in ("MaxArraySize", "MaxJobCount") and value.isdigit():
            site[name] = int(value)
        elif name == "AccountingStorageType":
            site["accounting"] = int(value not in ("accounting_storage/none", "(null)", ""))
        elif name == "SchedulerParameters" and (
            tasks := re.search(r"max_array_tasks=(\d+)", value)
        ):
            site["max_array_tasks"] = int(tasks[1])
    return site


def fitting(waiting: Sequence[Stage], limits: SiteLimits) -> list[Stage]:
    """Return the stages there is room for beside the report; inputs come before what needs them.

    Raises:
        SlurmError: there is room for none.
    """
    if limits.room is None or len(waiting) < limits.room:
        return list(waiting)
    if limits.room < 2:
        raise SlurmError(
            f"no room for {len(waiting)} stages and the report: {limits.room_is} leaves "
            f"{max(0, limits.room)} jobs; run again when jobs in the queue are over"
        )
    return list(waiting[: limits.room - 1])


def check_accepted(
    groups: Sequence[JobGroup], folder: Path, code: Path, room: int | None = None
) -> None:
    """Ask SLURM whether it would take each kind and size of job, before any is submitted.

    An array is tried with all its tasks, or as many as there is room for.

    Raises:
        SlurmError: one line for every kind that it refuses.
    """
    if shutil.which("srun") is None or shutil.which("sbatch") is None:
        raise SlurmError("sbatch: no such command here; is this a SLURM machine?")
    largest: dict[object, JobGroup] = {}
    for group in groups:
        asked = (group.kind, group.resources.model_dump_json())
        if asked not in largest or largest[asked].num_tasks < group.num_tasks:
            largest[asked] = group
    nodes = parse_nodes(
        call(["sinfo", "--noheader", "--all", "--exact", f"--format={NODE_FORMAT}"])
    )
    faults = []
    for whole in largest.values():
        most = whole.num_tasks if room is None else max(1, room - 1)
        stages, tasks = whole.stages[:most], whole.task_numbers[:most]
        group = replace(whole, stages=stages, task_numbers=tasks if most > 1 else ())
        partition = group.resources.partition or os.environ.get("SBATCH_PARTITION", "")
        beyond = beyond_partition(group, nodes_of(nodes, partition))
        if beyond or (said := try_sbatch(group, folder, code)) is None:
            faults += [f"resources.{group.kind}.{key}: {why}" for key, why in beyond.items()]
            continue
        if UNMET in said and not enough_up(group, nodes_of(nodes, partition)):
            continue  # nodes that could do it are down or drained: the job waits for them
        key = next((f".{key}" for word, key in KEY_OF.items() if word in said.lower()), "")
        faults.append(f"resources.{group.kind}{key}: {said}")
    if faults:
        raise SlurmError("\n".join(dict.fromkeys(faults)))


def try_sbatch(group: JobGroup, folder: Path, code: Path) -> str | None:
    """Return what `sbatch --test-only` has against a group of this size, or None."""
    alone = replace(group, dependencies=())
    parameters = sbatch_parameters(alone, "check", "", folder, code)
    text = sbatch_text(parameters, alone, folder, sys.executable)
    with tempfile.TemporaryDirectory() as temporary:
        script = Path(temporary) / "check.sh"
        script.write_text(text, encoding="utf-8")
        try:
            environment = sbatch_environment(os.environ, options_of(text))
            call(["sbatch", "--test-only", str(script)], environment)
        except SlurmError as error:
            return str(error)
    return None


def parse_nodes(text: str) -> list[Nodes]:
    """Return the rows of sinfo's partition, time limit, nodes, cores, memory, gres and state."""
    rows = []
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) != 7 or not all(part.rstrip("+").isdigit() for part in parts[2:5]):
            continue
        partition, limit, (count, cpus, mem), gres, state = (
            parts[0],
            parts[1],
            parts[2:5],
            *parts[5:],
        )
        gpus = sum(int(number) for number in re.findall(r"gpu(?::[^:,(]+)*?:(\d+)", gres))
        size = (int(count), int(cpus.rstrip("+")), int(mem.rstrip("+")), gpus)
        is_up = not state.lower().startswith(AWAY) and "*" not in state
        max_s = parse_time(limit) if ":" in limit else None  # else `infinite`
        rows.append(Nodes(partition.rstrip("*"), partition.endswith("*"), max_s, *size, is_up))
    return rows


def nodes_of(nodes: Sequence[Nodes], partitions: str) -> list[Nodes]:
    """Return the nodes of partitions named `a,b`, or of the default one."""
    names = set(partitions.split(",")) if partitions else set()
    return [each for each in nodes if (each.partition in names if names else each.is_default)]


def beyond_partition(group: JobGroup, nodes: Sequence[Nodes]) -> dict[str, str]:
    """Return by key what no node of these partitions has, or what is above their time limit."""
    asked = group.resources
    if not nodes:
        return {}  # sbatch says more
    cpus = asked.cpus_per_task(group.kind) * asked.tasks_per_node(group.kind)
    mem_mb = round((asked.mem_gb or 0) * 1024)
    faults = {}
    where = "/".join(dict.fromkeys(each.partition for each in nodes))
    if mem_mb > (most := max(each.mem_mb for each in nodes)):
        faults["mem_gb"] = f"{asked.mem_gb:g}, but no node of {where} has more than {most / 1024:g}"
    if cpus > (most := max(each.cpus for each in nodes)):
        faults["cpus_per_gpu"] = f"{cpus} cores a node, but no node of {where} has more than {most}"
    if asked.gpus > (most := max(each.gpus for each in nodes)):
        faults["gpus"] = f"{asked.gpus}, but no node of {where} has more than {most}"
    if asked.nodes > sum(each.count for each in nodes):
        faults["nodes"] = f"{asked.nodes}, but {where} has {sum(each.count for each in nodes)}"
    limits = [each.max_s for each in nodes]
    if asked.qos is None and None not in limits:  # a QOS may be above its partition's limit
        most = max(limit for limit in limits if limit is not None) // 60
        if asked.timeout_min > most:
            faults["timeout_min"] = f"{asked.timeout_min}, but the limit of {where} is {most}"
    return faults


def enough_up(group: JobGroup, nodes: Sequence[Nodes]) -> bool:
    """Return whether as many nodes as a job needs are up, of those that are large enough."""
    large = [each for each in nodes if not beyond_partition(group, [each]).keys() - {"nodes"}]
    return sum(each.count for each in large if each.is_up) >= group.resources.nodes
