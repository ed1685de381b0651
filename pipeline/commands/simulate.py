"""A plan on paper: wall time, storage and what limits it, on any number of GPUs.

Rates are measured elsewhere and come from a file that says where each is from; the schedule is
simulated from the plan's own stages and dependencies.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from pipeline.config.yaml_files import load_yaml, validated
from pipeline.executors.slurm.arrays import plan_groups, stage_resources
from pipeline.plan.plan import Plan
from pipeline.stages.stage import Stage


class Rates(BaseModel):
    """What one kind of machine does; hours of a stage follow from these and its config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hardware: str
    sources: tuple[str, ...]
    views_per_s_per_gpu: dict[str, PositiveFloat]  # pretraining, by architecture
    num_images: dict[str, PositiveInt]  # by data set
    s_per_iteration: dict[str, PositiveFloat]  # fine-tuning on 8 GPUs: faster-c4, mask-fpn, ...
    sync_batchnorm_factor: PositiveFloat  # on the seconds an iteration, where it is trained so
    s_per_test_image: PositiveFloat  # on one GPU
    hours: dict[str, PositiveFloat]  # stages that take about as long whatever they do
    storage_gb: dict[str, PositiveFloat]  # what a stage leaves behind

    def look_up(self, table: str, key: str) -> float:
        """Return an entry of one of the tables.

        Raises:
            KeyError: it is not there; its text names it.
        """
        entries: dict[str, float] = getattr(self, table)
        if key not in entries:
            raise KeyError(f"{table} of {key}")
        return entries[key]


@dataclass(frozen=True)
class Job:
    """A stage on paper: it holds `gpus` GPUs for `hours` once everything in `needs` has ended.

    `num_jobs` is in how many jobs of SLURM, each as long as its time limit, it comes to its end.
    """

    name: str
    kind: str
    gpus: int
    hours: float
    storage_gb: float
    needs: tuple[str, ...] = ()
    num_jobs: int = 1


@dataclass(frozen=True)
class Schedule:
    """Start and end of every job in hours, and what kept it from ending sooner."""

    num_gpus: int
    spans: dict[str, tuple[float, float]]
    busy_gpu_hours: float
    longest_chain: tuple[str, ...]
    chain_hours: float

    @property
    def hours(self) -> float:
        """Wall time."""
        return max((end for _, end in self.spans.values()), default=0.0)

    @property
    def utilisation(self) -> float:
        """Share of the GPUs that work, in [0, 1]."""
        return self.busy_gpu_hours / (self.num_gpus * self.hours) if self.hours else 0.0

    @property
    def limit(self) -> str:
        """What to change for an earlier end, in words."""
        if self.hours <= 1.05 * self.chain_hours:
            return f"the longest chain, {' -> '.join(self.longest_chain)}"
        return "the number of GPUs"


def read_rates(path: Path) -> Rates:
    """Read a file of rates.

    Raises:
        ValueError: one line for every fault.
    """
    return validated(Rates, load_yaml(path), str(path))


def jobs_of(plan: Plan, rates: Rates) -> list[Job]:
    """Return the plan's stages as jobs.

    Raises:
        ValueError: the rates lack something that the plan needs, or a stage takes more jobs than
            it may, one line each.
    """
    jobs, faults = [], []
    for stage in plan.stages:
        try:
            jobs.append(_job(stage, plan, rates))
        except KeyError as missing:
            faults.append(f"{stage.name}: the rates say nothing of {missing.args[0]}")
            continue
        resources = plan.config.resources.of(stage.kind)
        if jobs[-1].num_jobs > resources.max_jobs:
            faults.append(
                f"{stage.name}: {jobs[-1].hours:.1f} h take {jobs[-1].num_jobs} jobs of "
                f"{resources.timeout_min} min (timeout_min), wanted at most {resources.max_jobs} "
                "(max_jobs)"
            )
    if faults:
        raise ValueError("\n".join(faults))
    return jobs


def _job(stage: Stage, plan: Plan, rates: Rates) -> Job:
    resources = stage_resources(plan.config.resources, stage)
    gpus = resources.num_gpus
    if stage.kind in TRAINING:
        gpus = max(gpus, 1)  # the rates are those of GPUs
        hours = TRAINING[stage.kind](stage.settings, gpus, rates)
    else:
        hours = rates.look_up("hours", stage.kind)
    storage = rates.look_up("storage_gb", stage.kind)
    needs = tuple(source.name for source in stage.inputs.values())
    worked_s = resources.timeout_min * 60 - (resources.save_s if resources.max_jobs > 1 else 0)
    num_jobs = math.ceil(hours * 3600 / worked_s)
    return Job(stage.name, stage.kind, gpus, hours, storage, needs, num_jobs)


def _pretrain_hours(settings: dict[str, Any], gpus: int, rates: Rates) -> float:
    rate = rates.look_up("views_per_s_per_gpu", settings["model"]["arch"]) * gpus
    if settings["max_steps"] is not None:
        images = settings["max_steps"] * settings["batch_size"]
    else:
        images = settings["epochs"] * rates.look_up("num_images", settings["data"]["name"])
    return float(images * settings["num_views"] / rate / 3600)


def _finetune_hours(settings: dict[str, Any], gpus: int, rates: Rates) -> float:
    """Fewer GPUs than the 8 of the rates take proportionally longer, more take as long as 8."""
    config = settings["detectron2"]
    iteration_s = rates.look_up("s_per_iteration", architecture(config))
    if "syncbn" in str(config["MODEL"].get("RESNETS", {}).get("NORM", "")).lower():
        iteration_s *= rates.sync_batchnorm_factor
    train_s = config["SOLVER"]["MAX_ITER"] * iteration_s * 8 / min(gpus, 8)
    num_tests = sum(rates.look_up("num_images", name) for name in config["DATASETS"]["TEST"])
    return float(train_s + num_tests * rates.s_per_test_image / gpus) / 3600


TRAINING = {"pretrain": _pretrain_hours, "finetune": _finetune_hours}


def architecture(config: dict[str, Any]) -> str:
    """Return `mask-c4`, `faster-fpn`, ... of a detectron2 config."""
    model = config.get("MODEL", {})
    fpn = "fpn" in str(model.get("BACKBONE", {}).get("NAME", "")).lower()
    return f"{'mask' if model.get('MASK_ON') else 'faster'}-{'fpn' if fpn else 'c4'}"


def simulate(jobs: Iterable[Job], num_gpus: int) -> Schedule:
    """Return the schedule of jobs that start as soon as their needs and GPUs allow.

    Of those that could start, the one with the longest chain behind it goes first (list
    scheduling). Jobs without GPUs wait for nothing but their needs.

    Raises:
        ValueError: a job needs more GPUs than there are, or there are none.
    """
    if num_gpus < 1:
        raise ValueError(f"{num_gpus} GPUs: wanted at least one")
    by_name = {job.name: job for job in jobs}
    for job in by_name.values():
        if job.gpus > num_gpus:
            raise ValueError(f"{job.name}: needs {job.gpus} GPUs of {num_gpus}; give it fewer")
    behind = _hours_behind(by_name)
    waiting = sorted(by_name.values(), key=lambda job: -behind[job.name])
    spans: dict[str, tuple[float, float]] = {}
    running: list[tuple[float, str]] = []
    free, now = num_gpus, 0.0
    while waiting or running:
        left = []
        for job in waiting:
            ready = all(need in spans and spans[need][1] <= now for need in job.needs)
            if ready and job.gpus <= free:
                free -= job.gpus
                spans[job.name] = (now, now + job.hours)
                heapq.heappush(running, (now + job.hours, job.name))
            else:
                left.append(job)
        waiting = left
        now, name = heapq.heappop(running)
        free += by_name[name].gpus
    chain = _longest_chain(by_name, behind)
    busy = sum(job.gpus * job.hours for job in by_name.values())
    return Schedule(num_gpus, spans, busy, chain, sum(by_name[name].hours for name in chain))


def _hours_behind(jobs: dict[str, Job]) -> dict[str, float]:
    """Return the hours from each job's start to the end of the longest chain that it begins."""
    behind = {name: job.hours for name, job in jobs.items()}
    for job in reversed(list(jobs.values())):  # inputs stand before what needs them
        for need in job.needs:
            behind[need] = max(behind[need], jobs[need].hours + behind[job.name])
    return behind


def _longest_chain(jobs: dict[str, Job], behind: dict[str, float]) -> tuple[str, ...]:
    starts = [name for name, job in jobs.items() if not job.needs]
    if not starts:
        return ()
    chain = [max(starts, key=behind.__getitem__)]
    while following := [name for name, job in jobs.items() if chain[-1] in job.needs]:
        chain.append(max(following, key=behind.__getitem__))
    return tuple(chain)


def summary(plan: Plan, rates: Rates, gpu_counts: Iterable[int]) -> str:
    """Return the tables of a plan's simulation as Markdown.

    Raises:
        ValueError: one line for everything that keeps the plan from being simulated.
    """
    jobs = jobs_of(plan, rates)
    lines = [
        f"{len(jobs)} stages in {len(plan_groups(plan))} sbatch calls, on {rates.hardware}.",
        "",
        "| stage | stages | jobs | GPUs each | hours each | GPU hours | GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in dict.fromkeys(job.kind for job in jobs):
        part = [job for job in jobs if job.kind == kind]
        hours = _span(round(job.hours, 2) for job in part)
        lines.append(_row(kind, part, f" {_span(job.gpus for job in part)} | {hours} "))
    lines += [
        _row("all", jobs, " | "),
        "",
        "| GPUs | wall time, days | GPUs at work | what limits it |",
        "| ---: | ---: | ---: | --- |",
    ]
    for count in gpu_counts:
        done = simulate(jobs, count)
        lines.append(f"| {count} | {done.hours / 24:.1f} | {done.utilisation:.0%} | {done.limit} |")
    lines += ["", *(f"- {source}" for source in rates.sources)]
    return "\n".join(lines)


def _row(kind: str, jobs: Sequence[Job], each: str) -> str:
    gpu_hours = sum(job.gpus * job.hours for job in jobs)
    stored, num_jobs = sum(job.storage_gb for job in jobs), sum(job.num_jobs for job in jobs)
    return f"| {kind} | {len(jobs)} | {num_jobs} |{each}| {gpu_hours:.0f} | {stored:.0f} |"


def _span(values: Iterable[float]) -> str:
    different = sorted(set(values))
    first, last = different[0], different[-1]
    return f"{first:g}" if len(different) == 1 else f"{first:g} to {last:g}"
