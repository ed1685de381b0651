"""Job arrays of the stages that wait, and what each waits for; nothing is submitted here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.config.schema import REPORT, Resources, ResourcesConfig
from pipeline.executors.gpus import ON_GPUS
from pipeline.executors.slurm.environment import asks_for_gpus
from pipeline.plan.plan import Plan
from pipeline.stages.stage import Stage

MAX_ARRAY = 1000  # SLURM's MaxArraySize is 1001 unless the site raised it


@dataclass(frozen=True)
class Dependency:
    """What an array waits for: a group of the same submission, or a job submitted before.

    `aftercorr`: each task waits for the task of the same number. `afterok`: all wait for the task
    of a number, or for the whole job where `task` is None. `afterany`: it may have failed.
    """

    how: Literal["aftercorr", "afterok", "afterany"]
    group: str = ""
    task: int | None = None
    job_id: str = ""


@dataclass(frozen=True)
class JobGroup:
    """One sbatch call: an array with a task for each stage, or the report's single job."""

    name: str
    kind: str
    stages: tuple[Stage, ...]
    resources: Resources
    dependencies: tuple[Dependency, ...] = ()
    task_numbers: tuple[int, ...] = ()

    @property
    def num_tasks(self) -> int:
        """Return the number of array tasks."""
        return max(1, len(self.stages))

    @property
    def is_array(self) -> bool:
        """Return whether the job ids of the tasks have the form `<id>_<number>`."""
        return bool(self.task_numbers)

    @property
    def task_span(self) -> str:
        """Return the task numbers as sbatch's `--array` has them: `0-4` or `1,3-5`."""
        spans: list[list[int]] = []
        for number in self.task_numbers:
            if spans and spans[-1][-1] == number - 1:
                spans[-1][1:] = [number]
            else:
                spans.append([number])
        return ",".join("-".join(map(str, span)) for span in spans)


def plan_groups(plan: Plan, waiting: Sequence[Stage] | None = None) -> list[JobGroup]:
    """Return the groups for the whole plan, or for the stages that wait, none submitted before."""
    stages = plan.distinct if waiting is None else waiting
    return job_groups(stages, plan.config.resources, {})


def job_groups(
    waiting: Sequence[Stage],
    resources: ResourcesConfig,
    submitted: Mapping[str, str],
    max_array: int = MAX_ARRAY,
) -> list[JobGroup]:
    """Return the arrays for `waiting`, inputs before what needs them, and the report last.

    `submitted` has the job ids, by stage name, of stages that are in the queue already. Inputs in
    neither are done. An array follows another one task by task where the stages correspond;
    otherwise stages that wait for the same inputs share an array.
    """
    groups: list[JobGroup] = []
    names = {REPORT}
    place: dict[str, Dependency] = {}
    for name, job_id in submitted.items():
        job, _, number = job_id.partition("_")
        place[name] = Dependency("afterok", task=int(number) if number else None, job_id=job)
    kinds: dict[str, list[Stage]] = {}
    depths: dict[str, int] = {}
    for stage in waiting:
        kinds.setdefault(stage.kind, []).append(stage)
        depths[stage.kind] = max(_depth(stage), depths.get(stage.kind, 0))
    for kind in sorted(depths, key=depths.__getitem__):
        for label, members, numbers, dependencies in list(_partition(kinds[kind], place)):
            array = f"{kind}-{label}" if label else kind
            for part in range(0, len(members), max_array):
                name = array if part == 0 else f"{array}-{part // max_array + 1}"
                while name in names:
                    name += "x"
                names.add(name)
                chunk = tuple(members[part : part + max_array])
                tasks = numbers[part : part + max_array] or tuple(range(len(chunk)))
                tasks = tasks if len(chunk) > 1 else ()
                asked = stage_resources(resources, chunk[0])
                groups.append(JobGroup(name, kind, chunk, asked, dependencies, tasks))
                for index, stage in enumerate(chunk):
                    task = tasks[index] if tasks else None
                    place[stage.name] = Dependency("afterok", group=name, task=task)
    after = [Dependency("afterany", group=group.name) for group in groups]
    earlier = dict.fromkeys(job_id.partition("_")[0] for job_id in submitted.values())
    after += [Dependency("afterany", job_id=job_id) for job_id in earlier]
    of_report = resources.of(REPORT).model_copy(update={"container": None})  # no stage
    report = JobGroup(REPORT, REPORT, (), of_report, tuple(after))
    return [*groups, report] if after else []


def stage_resources(resources: ResourcesConfig, stage: Stage) -> Resources:
    """Return what a stage asks for: a task that says how many GPUs it trains on gets those."""
    nodes, gpus = _size(stage)
    of_task = ({"gpus": gpus} if gpus > 1 else {}) | ({"nodes": nodes} if nodes > 1 else {})
    return resources.of(stage.kind).model_copy(update=of_task)


def resource_faults(plan: Plan) -> list[str]:
    """Return where `resources` contradict what tasks say that they train on."""
    resources = plan.config.resources.of("finetune")
    faults = []
    for stage in plan.stages:
        if stage.kind == "finetune":
            for key, given in (("num_gpus", resources.gpus), ("num_nodes", resources.nodes)):
                of_task = int(stage.settings.get(key, 1))
                if given not in (of_task, 1) and (given, key) != (0, "num_gpus"):
                    faults.append(
                        f"resources.finetune.{key.removeprefix('num_')}: {given}, but task "
                        f"{stage.task} has {key}: {of_task}; results depend on it, so the task says"
                    )
    return list(dict.fromkeys(faults))


def without_gpus(groups: Iterable[JobGroup], environment: Mapping[str, str]) -> list[str]:
    """Return a line on the kinds of stages that train, or compute features, and ask for no GPU."""
    kinds = dict.fromkeys(
        group.kind
        for group in groups
        if group.kind in ON_GPUS
        and not group.resources.gpus
        and not group.resources.extra_options("gpus")
    )
    if not kinds or asks_for_gpus(environment):
        return []
    wanted = ", ".join(f"{kind}: {{gpus: 1}}" for kind in kinds)
    return [
        f"{', '.join(kinds)}: no GPU is asked for, so their jobs compute on CPU cores; to ask for "
        f"GPUs give resources: {{{wanted}}}"
    ]


def missing_images(groups: Iterable[JobGroup]) -> list[str]:
    """Return a line on each container image that is not where `resources` say."""
    kinds: dict[Path, list[str]] = {}
    for group in groups:
        path = group.resources.container.path if group.resources.container else None
        if path and not os.access(path, os.R_OK) and group.kind not in kinds.setdefault(path, []):
            kinds[path].append(group.kind)
    return [
        f"resources ({', '.join(of_image)}): container.image: {path}: no file or folder that can "
        "be read; docs/cluster.md says how to build it"
        for path, of_image in kinds.items()
    ]


def _depth(stage: Stage) -> int:
    """Return how many stages have to come before this one."""
    return max((1 + _depth(source) for source in stage.inputs.values()), default=0)


def _partition(
    stages: Sequence[Stage], place: Mapping[str, Dependency]
) -> Iterator[tuple[str, list[Stage], tuple[int, ...], tuple[Dependency, ...]]]:
    """Yield label, members, task numbers and dependencies of each array of one kind of stage.

    Where each member needs a task of its own of one array, it gets that task's number.
    """
    needs = {
        stage.name: tuple(place[s.name] for s in stage.inputs.values() if s.name in place)
        for stage in stages
    }
    chains: dict[tuple[Dependency, tuple[int, int]], list[Stage]] = {}
    for stage in stages:
        if len(needs[stage.name]) == 1 and needs[stage.name][0].task is not None:
            array = replace(needs[stage.name][0], how="aftercorr", task=None)
            chains.setdefault((array, _size(stage)), []).append(stage)
    chained: set[str] = set()
    for (array, _), members in chains.items():
        tasks = {needs[stage.name][0].task or 0: stage for stage in members}
        if 1 < len(tasks) == len(members):
            label = "" if len(members) == len(stages) else array.group or array.job_id
            numbers = tuple(sorted(tasks))
            yield label, [tasks[number] for number in numbers], numbers, (array,)
            chained |= {stage.name for stage in members}
    by_needs: dict[tuple[Dependency, ...], list[Stage]] = {}
    for stage in stages:
        if stage.name not in chained:
            by_needs.setdefault(needs[stage.name], []).append(stage)
    for dependencies, members in by_needs.items():
        for label, part in _by_backbone(members).items():
            yield label, part, (), dependencies


def _by_backbone(members: list[Stage]) -> dict[str, list[Stage]]:
    """Return fine-tuning by backbone and GPUs; other kinds are one part."""
    if members[0].kind != "finetune":
        names = {stage.backbone for stage in members}
        return {names.pop() if len(names) == 1 else "": members}
    parts: dict[str, list[Stage]] = {}
    one_size = len({_size(stage) for stage in members}) == 1
    for stage in members:
        nodes, gpus = _size(stage)
        label = stage.backbone if one_size else f"{stage.backbone}-{nodes}-{gpus}gpus"
        parts.setdefault(label, []).append(stage)
    return parts


def _size(stage: Stage) -> tuple[int, int]:
    return int(stage.settings.get("num_nodes", 1)), int(stage.settings.get("num_gpus", 1))
