"""Job arrays of the stages that wait, and what each waits for; nothing is submitted here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config.resources import REPORT, Resources, ResourcesConfig
from pipeline.plan.plan import Plan
from pipeline.stages.stage import Stage

MAX_ARRAY = 1000  # SLURM's MaxArraySize is 1001 unless the site raised it


@dataclass(frozen=True)
class Dependency:
    """What an array waits for: a group of the same submission, or a job submitted before.

    `aftercorr`: each task waits for the task of the same number. `afterok`: all wait for one task,
    or for the whole group where `task` is None. `afterany`: it may have failed.
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

    @property
    def num_tasks(self) -> int:
        """Return the number of array tasks."""
        return max(1, len(self.stages))

    @property
    def is_array(self) -> bool:
        """Return whether the job ids of the tasks have the form `<id>_<number>`."""
        return len(self.stages) > 1


def plan_groups(plan: Plan, waiting: Sequence[Stage] | None = None) -> list[JobGroup]:
    """Return the groups for the whole plan, or for the stages that wait, none submitted before."""
    stages = plan.distinct if waiting is None else waiting
    return job_groups(stages, plan.config.resources, {})


def job_groups(
    waiting: Sequence[Stage],
    resources: ResourcesConfig,
    submitted: Mapping[str, str],
) -> list[JobGroup]:
    """Return the arrays for `waiting`, inputs before what needs them, and the report last.

    `submitted` has the job ids, by stage name, of stages that are in the queue already. Inputs in
    neither are done. An array follows another one task by task where the stages correspond;
    otherwise stages that wait for the same inputs share an array.
    """
    groups: list[JobGroup] = []
    place: dict[str, tuple[JobGroup, int]] = {}
    depths: dict[str, int] = {}
    for stage in waiting:
        depths[stage.kind] = max(_depth(stage), depths.get(stage.kind, 0))
    for kind in sorted(depths, key=depths.__getitem__):
        stages = [stage for stage in waiting if stage.kind == kind]
        needs = {stage.name: _needs(stage, place, submitted) for stage in stages}
        for label, members, dependencies in list(_partition(stages, needs, groups)):
            array = f"{kind}-{label}" if label else kind
            for part in range(0, len(members), MAX_ARRAY):
                name = array if part == 0 else f"{array}-{part // MAX_ARRAY + 1}"
                while any(group.name == name for group in groups):
                    name += "x"
                chunk = tuple(members[part : part + MAX_ARRAY])
                asked = stage_resources(resources, chunk[0])
                groups.append(JobGroup(name, kind, chunk, asked, dependencies))
                place |= {stage.name: (groups[-1], index) for index, stage in enumerate(chunk)}
    after = [Dependency("afterany", group=group.name) for group in groups]
    earlier = dict.fromkeys(job_id.partition("_")[0] for job_id in submitted.values())
    after += [Dependency("afterany", job_id=job_id) for job_id in earlier]
    report = JobGroup(REPORT, REPORT, (), resources.of(REPORT), tuple(after))
    return [*groups, report] if groups else []


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


def _depth(stage: Stage) -> int:
    """Return how many stages have to come before this one."""
    return max((1 + _depth(source) for source in stage.inputs.values()), default=0)


def _needs(
    stage: Stage, place: Mapping[str, tuple[JobGroup, int]], submitted: Mapping[str, str]
) -> tuple[Dependency, ...]:
    needs = []
    for source in stage.inputs.values():
        if source.name in place:
            group, index = place[source.name]
            task = index if group.is_array else None
            needs.append(Dependency("afterok", group=group.name, task=task))
        elif source.name in submitted:
            needs.append(Dependency("afterok", job_id=submitted[source.name]))
    return tuple(needs)


def _partition(
    stages: Sequence[Stage],
    needs: Mapping[str, tuple[Dependency, ...]],
    groups: Sequence[JobGroup],
) -> Iterator[tuple[str, list[Stage], tuple[Dependency, ...]]]:
    """Yield label, members and dependencies of each array of one kind of stage."""
    left = list(stages)
    for group in groups:
        tasks = [(Dependency("afterok", group.name, task),) for task in range(group.num_tasks)]
        followers = [
            stage
            for stage in left
            if len(stage.inputs) == 1 and [need.group for need in needs[stage.name]] == [group.name]
        ]
        if group.is_array and [needs[stage.name] for stage in followers] == tasks:
            label = "" if len(followers) == len(stages) else group.name
            yield label, followers, (Dependency("aftercorr", group.name),)
            left = [stage for stage in left if stage not in followers]
    by_needs: dict[tuple[Dependency, ...], list[Stage]] = {}
    for stage in left:
        by_needs.setdefault(needs[stage.name], []).append(stage)
    for dependencies, members in by_needs.items():
        for label, part in _by_backbone(members).items():
            yield label, part, dependencies


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
