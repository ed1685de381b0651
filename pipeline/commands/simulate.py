"""A plan on paper: wall time, storage, price and what limits it, on any number of GPUs.

Rates are measured elsewhere and come from a file that says where each is from; images are counted
where they lie; the schedule is simulated from the plan's own stages and dependencies.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator

from pipeline.config.kinds import load_config
from pipeline.config.yaml_files import validated
from pipeline.executors.slurm.arrays import plan_groups, stage_resources
from pipeline.plan.compatibility import task_value
from pipeline.plan.data_identity import DETECTION, count_images
from pipeline.plan.plan import Plan
from pipeline.stages.stage import STAGE_KINDS, Stage
from pretrain.data.splits import FOLDER_FORMATS
from transfer.config.data import DetectionData
from transfer.config.finetune import FLOAT32, OWN_KEYS, flat

if TYPE_CHECKING:
    from pretrain.config.data import DataConfig
    from pretrain.config.pretrain import PretrainConfig

COUNTED = ", or put the set where the plan has it, to be counted"
VIEW_PX, IMAGES, NUM_GPUS, SHORT_SIDE_PX = 224, 16, 8, 800  # what the rates are of
# in forward passes, what a view costs that is trained on: its own, and two for the gradient
TRAINED = 3
STEM_STRIDE = {"imagenet": 1, "small": 2, "small-no-pool": 4}  # sides of later maps, times as long


class Rates(BaseModel):
    """What one kind of machine does; hours of a stage follow from these and its config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path  # where they are from, for messages
    hardware: str
    precision: Literal["float32", "tf32"]  # that training was timed in
    sources: tuple[str, ...]
    views_per_s_per_gpu: dict[str, PositiveFloat]  # pretraining at 224 pixels, by architecture
    num_images: dict[str, PositiveInt]  # of sets that are not where the plan has them
    s_per_iteration: dict[str, PositiveFloat]  # fine-tuning, 16 images on 8 GPUs, by detector
    sync_batchnorm_factor: PositiveFloat  # on the seconds an iteration, where it is trained so
    s_per_test_image: PositiveFloat  # on one GPU
    hours: dict[str, PositiveFloat]  # stages that take about as long whatever they do
    storage_gb: dict[str, PositiveFloat]  # what a stage leaves behind
    estimated: tuple[str, ...]  # `table.key`, or a whole `table`: what nobody has measured

    @model_validator(mode="after")
    def _estimates_are_there(self) -> Self:
        for name in self.estimated:
            table, _, key = name.partition(".")
            entries = getattr(self, table, None) if table in type(self).model_fields else None
            if entries is None or (key and (not isinstance(entries, dict) or key not in entries)):
                raise ValueError(f"estimated: {name} is not among these rates")
        return self


@dataclass
class Numbers:
    """The rates and counts that stages are worked out from: those used, and those missing.

    `used` has the words on each by `table.key`, `missing` the stages that need it.
    """

    rates: Rates
    used: dict[str, str] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)

    def of(self, table: str, key: str = "") -> float:
        """Return a rate.

        Raises:
            KeyError: the file has none; its text is `table.key`.
        """
        entries, name = getattr(self.rates, table), f"{table}.{key}" if key else table
        if key and key not in entries:
            raise KeyError(name)
        value: float = entries[key] if key else entries
        self.used[name] = f"{value:,}".removesuffix(".0")
        self.used[name] += ", estimated" if self.is_estimated(name) else ""
        return value

    def is_estimated(self, name: str) -> bool:
        """Return whether nobody has measured it."""
        return not {name, name.partition(".")[0]}.isdisjoint(self.rates.estimated)

    def images(self, name: str, data: DataConfig | DetectionData) -> float:
        """Return how many images a set has: counted where it lies, else as the rates have it."""
        if (count := count_images(data)) is None:
            return self.of("num_images", name)
        self.used[f"num_images.{name}"] = f"{count:,}, counted"
        return count


@dataclass(frozen=True)
class Job:
    """A stage on paper: it holds `gpus` GPUs for `hours` once everything in `needs` has ended.

    `num_jobs` is in how many jobs of SLURM, each as long as its time limit, it comes to its end;
    `is_estimated`, whether its hours stand on a rate that nobody has measured.
    """

    name: str
    kind: str
    gpus: int
    hours: float
    storage_gb: float
    needs: tuple[str, ...] = ()
    num_jobs: int = 1
    is_estimated: bool = False


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
    return validated(Rates, load_config(path, "file of rates") | {"file": path}, str(path))


def jobs_of(plan: Plan, numbers: Numbers) -> list[Job]:
    """Return the plan's stages as jobs.

    Raises:
        ValueError: the rates lack something that the plan needs, or a stage takes more jobs than
            it may, one line each.
    """
    jobs, faults = [], []
    for stage in plan.stages:
        try:
            jobs.append(_job(stage, plan, numbers))
        except KeyError as missing:
            numbers.missing.setdefault(missing.args[0], []).append(stage.name)
            continue
        except ValueError as fault:
            faults.append(f"{stage.source}: {fault}")
            continue
        resources = plan.config.resources.of(stage.kind)
        if jobs[-1].num_jobs > resources.max_jobs:
            faults.append(
                f"{plan.config_file}: resources.{stage.kind}: {stage.name} takes "
                f"{jobs[-1].hours:.1f} h, {jobs[-1].num_jobs} jobs of {resources.timeout_min} min "
                f"(timeout_min), wanted at most {resources.max_jobs} (max_jobs); raise one of them"
            )
    for name, stages in numbers.missing.items():
        table, _, key = name.partition(".")
        more = f" and {len(stages) - 1} more" if len(stages) > 1 else ""
        faults.append(
            f"{numbers.rates.file}: {table}: nothing of {key}, which {stages[0]}{more} needs; add "
            f"it there{COUNTED if table == 'num_images' else ''}"
        )
    if faults:
        raise ValueError("\n".join(dict.fromkeys(faults)))
    return jobs


def _job(stage: Stage, plan: Plan, numbers: Numbers) -> Job:
    resources = stage_resources(plan.config.resources, stage)
    gpus, of_stage = resources.num_gpus, Numbers(numbers.rates)
    if stage.kind in TRAINING:
        gpus = max(gpus, 1)  # the rates are those of GPUs
        hours = TRAINING[stage.kind](stage.settings, gpus, of_stage)
    else:
        hours = of_stage.of("hours", stage.kind)
    is_estimated = any(map(of_stage.is_estimated, of_stage.used))
    storage = of_stage.of("storage_gb", stage.kind)
    numbers.used |= of_stage.used
    needs, num_jobs = tuple(source.name for source in stage.inputs.values()), 1
    if "resources" in plan.config.model_fields_set:  # without them nothing has a time limit
        saving_s = resources.save_s if resources.max_jobs > 1 else 0
        num_jobs = math.ceil(hours * 3600 / (resources.timeout_min * 60 - saving_s))
    return Job(stage.name, stage.kind, gpus, hours, storage, needs, num_jobs, is_estimated)


def _recipe(settings: dict[str, Any]) -> PretrainConfig:
    from pretrain.config.pretrain import PretrainConfig  # noqa: PLC0415  (--help needs none)

    return PretrainConfig.model_validate(settings)


def _pretrain_hours(settings: dict[str, Any], gpus: int, numbers: Numbers) -> float:
    """A view takes as long as its area; each halving that the stem leaves out doubles its side.

    What a momentum branch sees passes forward alone.
    """
    config = _recipe(settings)
    views, passes = config.augment.of_views(config.num_views), config.loss.passes(config.num_views)
    stride = STEM_STRIDE[config.model.stem]
    num_views = sum(  # as those of the rate, which are trained on
        (view.size * stride / VIEW_PX) ** 2 * each / TRAINED
        for view, each in zip(views, passes, strict=True)
    )
    rate = numbers.of("views_per_s_per_gpu", config.model.arch) * gpus
    if config.max_steps is not None:
        images: float = config.max_steps * config.batch_size
    else:
        data = config.data
        name = data.name if data.format in FOLDER_FORMATS else data.format
        images = settings["epochs"] * numbers.images(name, data)
    return float(images * num_views / rate / 3600)


def _finetune_hours(settings: dict[str, Any], gpus: int, numbers: Numbers) -> float:
    """Fewer GPUs than the 8 of the rates take proportionally longer, more take as long as 8."""
    config = settings["detectron2"]
    images_s = numbers.of("s_per_iteration", detector(config)) / IMAGES
    if "syncbn" in str(task_value(config, "MODEL.RESNETS.NORM")).lower():
        images_s *= numbers.of("sync_batchnorm_factor")
    num_images = math.prod(
        whole(config, key) for key in ("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH")
    )
    train_s = num_images * images_s * NUM_GPUS / min(gpus, NUM_GPUS)
    whole(config, "INPUT.MIN_SIZE_TRAIN")  # of which a line says more; its fault is told here
    sets = {name: DETECTION.validate_python(data) for name, data in settings["datasets"].items()}
    num_tests = sum(numbers.images(name, sets[name]) for name in config["DATASETS"]["TEST"])
    return float(train_s + num_tests * numbers.of("s_per_test_image") / gpus) / 3600


def whole(config: dict[str, Any], key: str) -> int:
    """Return a number of a detectron2 config, the largest where there are several.

    Raises:
        ValueError: it is no whole number above 0.
    """
    value = task_value(config, key)
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(type(each) is int and each > 0 for each in values):
        raise ValueError(f"{key} is {value!r}, wanted a whole number above 0")
    return int(max(values))


TRAINING = {"pretrain": _pretrain_hours, "finetune": _finetune_hours}


def detector(config: dict[str, Any]) -> str:
    """Return `mask_rcnn_r50_c4`, `faster_rcnn_r18_fpn`, ... of a detectron2 config."""
    head = str(task_value(config, "MODEL.META_ARCHITECTURE")).lower()
    if head == "generalizedrcnn":
        cascade = "Cascade" in str(task_value(config, "MODEL.ROI_HEADS.NAME"))
        keypoints = task_value(config, "MODEL.KEYPOINT_ON")
        masks = task_value(config, "MODEL.MASK_ON")
        head = "keypoint" if keypoints else "mask" if masks else "faster"
        head = f"{'cascade_' if cascade else ''}{head}_rcnn"
    neck = "fpn" if "fpn" in str(task_value(config, "MODEL.BACKBONE.NAME")).lower() else "c4"
    return f"{head}_r{task_value(config, 'MODEL.RESNETS.DEPTH')}_{neck}"


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


def summary(plan: Plan, rates: Rates, gpu_counts: Iterable[int], price: float | None = None) -> str:
    """Return the tables of a plan's simulation as Markdown; `price` is that of a GPU hour.

    Raises:
        ValueError: one line for everything that keeps the plan from being simulated.
    """
    if price is not None and not 0 < price < math.inf:
        raise ValueError(f"the price of a GPU hour is {price:g}, wanted a number above 0")
    numbers = Numbers(rates)
    jobs = jobs_of(plan, numbers)
    kinds = {kind: [job for job in jobs if job.kind == kind] for kind in STAGE_KINDS}
    stages = [_row(kind, part, price) for kind, part in kinds.items() if part]
    ends = []
    for count in gpu_counts:
        done = simulate(jobs, count)
        ends.append([count, _amount(done.hours / 24, 1), f"{done.utilisation:.0%}", done.limit])
        ends[-1] += [] if price is None else [_amount(count * done.hours * price)]
    of_all = [] if price is None else ["price"]
    headings = ["stage", "stages", "jobs", "GPUs each", "hours each", "GPU hours", "GB", *of_all]
    lines = [
        f"{len(jobs)} stages in {len(plan_groups(plan))} sbatch calls, on {rates.hardware}.",
        *_table(headings, [*stages, _row("all", jobs, price)]),
        *_table(["GPUs", "wall time, days", "GPUs at work", "what limits it", *of_all], ends),
        "",
        *(f"- {name}: {words}" for name, words in sorted(numbers.used.items())),
        *other_conditions(plan, rates),
        *(f"- {source}" for source in rates.sources),
    ]
    return "\n".join(lines)


def other_conditions(plan: Plan, rates: Rates) -> list[str]:
    """Return a line for every size of images and precision, other than the rates', of training."""
    sizes: dict[int, list[str]] = {}
    precisions: dict[str, list[str]] = {}
    branches: dict[tuple[int, float], list[str]] = {}
    for stage in plan.stages:
        if stage.kind == "pretrain":
            precisions.setdefault(stage.settings["compute"]["precision"], []).append(stage.name)
            config = _recipe(stage.settings)
            counted = sum(config.loss.passes(config.num_views)) / TRAINED
            if counted != config.num_views:
                branches.setdefault((config.num_views, counted), []).append(stage.name)
        if stage.task is not None:
            keys = flat(stage.settings["detectron2"])
            half = str(keys.get("SOLVER.AMP.ENABLED", False)).lower() == "true"
            precision = "fp16" if half else str(keys.get(FLOAT32, OWN_KEYS[FLOAT32]))
            precisions.setdefault(precision, []).append(stage.task)
            side = whole(stage.settings["detectron2"], "INPUT.MIN_SIZE_TRAIN")
            sizes.setdefault(side, []).append(stage.task)
    told = [
        (names, f"images of {side} pixels, the rates are of {SHORT_SIDE_PX}", side < SHORT_SIDE_PX)
        for side, names in sizes.items()
        if side != SHORT_SIDE_PX
    ] + [
        (names, f"in {precision}, the rates are of {rates.precision}", precision != "float32")
        for precision, names in precisions.items()
        if precision != rates.precision
    ]
    return [
        f"- {', '.join(names)}: {views} views count as {counted:.3g}: what a momentum branch sees "
        "passes forward alone, a third of a view that is trained on"
        for (views, counted), names in branches.items()
    ] + [
        f"- {', '.join(dict.fromkeys(names))}: {what}: it takes {'less' if less else 'more'} than "
        "this"
        for names, what, less in told
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    rule = ["---" if name in ("stage", "what limits it") else "---:" for name in headings]
    return ["", *(f"| {' | '.join(map(str, row))} |" for row in (headings, rule, *rows))]


def _row(kind: str, jobs: Sequence[Job], price: float | None) -> list[object]:
    gpu_hours = sum(job.gpus * job.hours for job in jobs)
    stored, num_jobs = sum(job.storage_gb for job in jobs), sum(job.num_jobs for job in jobs)
    each = ["", ""]
    if kind != "all":
        each = [_span(job.gpus for job in jobs), _span(job.hours for job in jobs)]
    label = f"{kind}, estimated" if any(job.is_estimated for job in jobs) else kind
    row = [label, len(jobs), num_jobs, *each, _amount(gpu_hours), _amount(stored)]
    return row + ([] if price is None else [_amount(gpu_hours * price)])


def _amount(value: float, decimals: int = 0) -> str:
    """Return a number with so many decimals, or more where it is small."""
    return (
        f"{value:,.{decimals}f}" if value >= 10 ** (1 - decimals) or not value else f"{value:.2g}"
    )


def _span(values: Iterable[float]) -> str:
    texts = [f"{value:.3g}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"
