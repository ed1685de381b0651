"""From the stages that wait to job arrays and what each waits for; nothing is submitted here."""

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

    def text(self, job_ids: Mapping[str, str]) -> str:
        """Return sbatch's words, with the ids of the groups that have been submitted."""
        job = self.job_id or job_ids[self.group]
        return f"{self.how}:{job}" if self.task is None else f"{self.how}:{job}_{self.task}"


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
    stages = plan.stages if waiting is None else waiting
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
    depths = {kind: max(_depth(s) for s in waiting if s.kind == kind) for kind in kinds(waiting)}
    for kind in sorted(depths, key=depths.__getitem__):
        stages = [stage for stage in waiting if stage.kind == kind]
        for label, members, dependencies in _partition(kind, stages, place, submitted):
            for part in range(0, len(members), MAX_ARRAY):
                name = label if part == 0 else f"{label}-{part // MAX_ARRAY + 1}"
                while any(group.name == name for group in groups):
                    name += "x"
                chunk = tuple(members[part : part + MAX_ARRAY])
                needs = stage_resources(resources, chunk[0])
                group = JobGroup(name, kind, chunk, needs, dependencies)
                groups.append(group)
                place |= {stage.name: (group, index) for index, stage in enumerate(chunk)}
    after = [Dependency("afterany", group=group.name) for group in groups]
    earlier = dict.fromkeys(job_id.partition("_")[0] for job_id in submitted.values())
    after += [Dependency("afterany", job_id=job_id) for job_id in earlier]
    report = JobGroup(REPORT, REPORT, (), resources.of(REPORT), tuple(after))
    return [*groups, report] if groups else []


def stage_resources(resources: ResourcesConfig, stage: Stage) -> Resources:
    """Return what a stage asks for: a task that says how many GPUs it trains on gets those."""
    own = resources.of(stage.kind)
    nodes, gpus = _size(stage)
    wanted = {"gpus": gpus} if gpus > 1 else {}
    return own.model_copy(update=wanted | ({"nodes": nodes} if nodes > 1 else {}))


def resource_faults(plan: Plan) -> list[str]:
    """Return where `resources` contradict what tasks say that they train on."""
    own = plan.config.resources.of("finetune")
    faults = []
    for stage in plan.stages:
        if stage.kind == "finetune":
            for key, given in (("num_gpus", own.gpus), ("num_nodes", own.nodes)):
                wanted = int(stage.settings.get(key, 1))
                if given not in (wanted, 1) and (given, key) != (0, "num_gpus"):
                    faults.append(
                        f"resources.finetune.{key.removeprefix('num_')}: {given}, but task "
                        f"{stage.task} has {key}: {wanted}; results depend on it, so the task says"
                    )
    return list(dict.fromkeys(faults))


def kinds(stages: Sequence[Stage]) -> list[str]:
    """Return the kinds of stages, each once."""
    return list(dict.fromkeys(stage.kind for stage in stages))


def _depth(stage: Stage) -> int:
    """Return how many stages have to come before this one."""
    return max((1 + _depth(source) for source in stage.inputs.values()), default=0)


Part = tuple[str, list[Stage], tuple[Dependency, ...]]


def _partition(
    kind: str,
    stages: list[Stage],
    place: Mapping[str, tuple[JobGroup, int]],
    submitted: Mapping[str, str],
) -> Iterator[Part]:
    """Yield label, members and dependencies of each array of one kind of stage."""
    left = list(stages)
    for group in dict.fromkeys(group.name for group, _ in place.values()):
        followers = [stage for stage in left if _follows(stage, group, place, submitted)]
        numbers = [place[_only_input(stage).name][1] for stage in followers]
        size = place[_only_input(followers[0]).name][0].num_tasks if followers else 0
        if size > 1 and numbers == list(range(size)):
            yield (
                _label(kind, "" if size == len(stages) else group),
                followers,
                (Dependency("aftercorr", group=group),),
            )
            left = [stage for stage in left if stage not in followers]
    by_needs: dict[tuple[Dependency, ...], list[Stage]] = {}
    for stage in left:
        by_needs.setdefault(_needs(stage, place, submitted), []).append(stage)
    for needs, members in by_needs.items():
        for label, part in _by_backbone(kind, members).items():
            yield _label(kind, label), part, needs


def _by_backbone(kind: str, members: list[Stage]) -> dict[str, list[Stage]]:
    """Return fine-tuning by backbone and GPUs; other kinds are one part."""
    if kind != "finetune":
        names = {stage.backbone for stage in members}
        return {names.pop() if len(names) == 1 else "": members}
    parts: dict[str, list[Stage]] = {}
    sizes = {_size(stage) for stage in members}
    for stage in members:
        size = "-".join(map(str, _size(stage))) if len(sizes) > 1 else ""
        parts.setdefault(f"{stage.backbone}-{size}gpus" if size else stage.backbone, []).append(
            stage
        )
    return parts


def _size(stage: Stage) -> tuple[int, int]:
    return int(stage.settings.get("num_nodes", 1)), int(stage.settings.get("num_gpus", 1))


def _follows(
    stage: Stage,
    group: str,
    place: Mapping[str, tuple[JobGroup, int]],
    submitted: Mapping[str, str],
) -> bool:
    """Return whether the only input that a stage waits for is in a group."""
    needs = _needs(stage, place, submitted)
    return len(stage.inputs) == 1 and len(needs) == 1 and needs[0].group == group


def _only_input(stage: Stage) -> Stage:
    return next(iter(stage.inputs.values()))


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


def _label(kind: str, part: str) -> str:
    return f"{kind}-{part}" if part else kind
