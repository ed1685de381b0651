"""Remarks on a plan's results: what makes a number mean less than it seems to, a line each."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.plan.compatibility import task_value
from pipeline.plan.data_identity import cheaper_parts
from pipeline.plan.plan import Plan
from pipeline.stages.files import one_line, read_json, tail
from pipeline.stages.provenance import code_fault, origin
from pipeline.stages.run_folder import JOB, MANIFEST, METRICS, read_states
from pipeline.stages.stage import DATA, Stage, differences
from pipeline.stages.staleness import by_name, files_read

PARTS = ("its stem", "res2", "res3", "res4", "res5")
RANKED = ("encoding", "embedding")
TAIL_BYTES = 65_536
Manifests = dict[str, dict[str, Any]]  # of finished stages, by name


def remarks(plan: Plan, done: Manifests) -> list[str]:
    """Return the remarks on shared runs, data, backbones, what was pretrained, and origins.

    `done` are the manifests of the finished stages.
    """
    of_plan = shared_remarks(plan) + data_remarks(plan) + frozen_remarks(plan)
    of_plan += conversion_remarks(plan, done) + probe_remarks(plan, done)
    return of_plan + collapse_remarks(plan, done) + origin_remarks(plan, done)


def shared_remarks(plan: Plan) -> list[str]:
    """Return a line for all backbones that are one run under several names."""
    folders: dict[str, dict[Path, str]] = {}
    for stage in plan.stages:
        folders.setdefault(stage.backbone, {})[stage.run_dir] = stage.kind
    names: dict[frozenset[Path], list[str]] = {}
    for backbone, kinds in folders.items():
        names.setdefault(frozenset(kinds), []).append(backbone)
    lines = []
    for first, *others in names.values():
        what = "pretraining" if "pretrain" in folders[first].values() else "backbone"
        if others:
            listed = ", ".join([first, *others[:-1]])
            lines.append(f"{listed} and {others[-1]} are one {what}: equal settings")
    return lines


def data_remarks(plan: Plan) -> list[str]:
    """Return a line for every set of which a part is known by less than its content."""
    lines = [
        f"data set {name}: {part} (identity: blocks): what changes between them is not seen"
        for stage in plan.stages
        for name, content in by_name(stage.settings, stage.identity.get(DATA)).items()
        for part in cheaper_parts(content)
    ]
    return list(dict.fromkeys(lines))


def frozen_remarks(plan: Plan) -> list[str]:
    """Return a line for every random backbone and task where not all of it is trained."""
    lines = []
    titles = {task.name: task.title or task.name for task in plan.config.tasks}
    for stage in plan.stages:
        if stage.kind != "finetune" or stage.inputs:
            continue
        frozen = task_value(stage.settings["detectron2"], "MODEL.BACKBONE.FREEZE_AT")
        if isinstance(frozen, int) and frozen > 0:
            lines.append(
                f"{stage.backbone} on {titles[stage.task or '']}: MODEL.BACKBONE.FREEZE_AT is "
                f"{frozen}: {', '.join(PARTS[:frozen])} {'stays' if frozen == 1 else 'stay'} "
                "random to the end, which costs AP"
            )
    return list(dict.fromkeys(lines))


def conversion_remarks(plan: Plan, manifests: Manifests) -> list[str]:
    """Return a line for everything that the converter warned of, with the backbones it is true of.

    Only conversions that are finished are looked at.
    """
    backbones: dict[str, dict[str, None]] = {}
    for stage in plan.stages:
        if stage.kind == "convert" and stage.name in manifests:
            for text in conversion_warnings(stage):
                backbones.setdefault(text, {})[stage.backbone] = None
    return [f"{', '.join(names)}: {text}" for text, names in backbones.items()]


def conversion_warnings(stage: Stage) -> list[str]:
    """Return the warnings in a conversion's companion; one that is older or damaged has none."""
    try:
        companion = read_json(stage.result.with_suffix(".json"))
    except (OSError, ValueError):
        return []
    warnings = companion.get("warnings") if isinstance(companion, dict) else None
    return list(map(one_line, warnings)) if isinstance(warnings, list) else []


def probe_remarks(plan: Plan, manifests: Manifests) -> list[str]:
    """Return a line for every finished pretraining that was probed otherwise than the config says.

    A probe leaves no trace in what is trained, so it is no part of what a pretraining is known by.
    """
    lines = []
    for stage in plan.stages:
        probe = stage.settings.get("probe")
        if stage.kind != "pretrain" or not probe or stage.name not in manifests:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            made = read_json(stage.run_dir / JOB)["settings"].get("probe")
            if made and made != probe:
                from pretrain.config.pretrain import TrainingProbeConfig  # noqa: PLC0415  (slow)

                before, now = (TrainingProbeConfig(**side).measured_by() for side in (made, probe))
                if changes := "; ".join(differences(before, now, names=("before", "now"))):
                    lines.append(
                        f"{stage.name}: its k-NN scores are of another probe ({changes}) than the "
                        "config's; put that back, or measure by an entry of `probes:`"
                    )
    return lines


def collapse_remarks(plan: Plan, manifests: Manifests) -> list[str]:
    """Return a line for every finished pretraining whose features tell no images apart."""
    lines = []
    for stage in plan.stages:
        if stage.kind == "pretrain" and stage.name in manifests:
            metrics = manifests[stage.name].get("metrics", {})
            if signs := collapse_signs(stage.settings, metrics, _last_points(stage)):
                lines.append(
                    f"{stage.backbone}: the pretraining collapsed ({', '.join(signs)}); "
                    "results with it are of features that do not tell images apart"
                )
    return lines


def collapse_signs(
    settings: dict[str, Any], metrics: dict[str, Any], points: list[dict[str, Any]]
) -> list[str]:
    """Return the signs of collapse at a pretraining's end, none for a sound one.

    Args:
        settings: of the pretraining, as JSON.
        metrics: of its last step: `regularized` counts from the start, ranks are of that step.
        points: what was logged at its end, oldest first.
    """
    signs = []
    count, step = metrics.get("regularized"), metrics.get("step")
    if count and step and (loss := settings["loss"])["sub_batch"] is not None:
        rounds = loss["iterations"] * settings["num_views"] * loss["groups"]
        each_step = settings["batch_size"] // loss["sub_batch"] * rounds
        if count >= step * each_step:
            signs.append(f"all {count:,.0f} factorisations were regularised")
        else:
            before = [point for point in points if point.get("step", step) < step]
            steps = step - before[-1]["step"] if before else 0
            if steps and count - before[-1].get("regularized", 0) >= steps * each_step:
                signs.append(f"every factorisation of the last {steps:.0f} steps was regularised")
    signs += [f"the {name} has rank 0" for name in RANKED if metrics.get(f"{name}/rank") == 0]
    return signs


def _last_points(stage: Stage) -> list[dict[str, Any]]:
    """Return the last logged steps that hold a count of ridges."""
    points = []
    for line in tail(stage.run_dir / METRICS, TAIL_BYTES).split(b"\n"):
        try:
            point = json.loads(line)
        except ValueError:
            continue  # the first line of the tail is cut
        if isinstance(point, dict) and {"step", "regularized"} <= point.keys():
            points.append(point)
    return points


def read_manifests(plan: Plan, standings: Mapping[str, Any] | None = None) -> Manifests:
    """Return the manifest of every stage that is done, as its folder or one's `standings` say."""
    states = read_states(plan.stages) if standings is None else standings
    return {
        stage.name: read_json(stage.run_dir / MANIFEST)
        for stage in plan.stages
        if states[stage.name].status == "done"
    }


def origin_remarks(plan: Plan, manifests: Manifests) -> list[str]:
    """Return what differs within one table, and inputs that are not what a result was made from."""
    mixed = dict.fromkeys(mixed_rows(plan, manifests).values())
    return [*mixed, *chain_remarks(plan, manifests), *version_remarks(plan, manifests)]


def chain(stage: Stage) -> Iterator[Stage]:
    """Yield a stage and all that it is made from."""
    yield stage
    for source in stage.inputs.values():
        yield from chain(source)


def mixed_rows(plan: Plan, manifests: Manifests) -> dict[str, str]:
    """Return by stage name a remark on the backbone's fine-tunings: they read different bytes."""
    by_backbone: dict[str, dict[str, list[Stage]]] = {}
    for stage in plan.stages:
        files = files_read(manifests.get(stage.name, {}).get("inputs", {})).get("weights")
        if stage.kind == "finetune" and files:
            text = ", ".join(f"{name} {sha[:10]}" for name, sha in files.items())
            by_backbone.setdefault(stage.backbone, {}).setdefault(text, []).append(stage)
    remarks: dict[str, str] = {}
    for backbone, groups in by_backbone.items():
        if len(groups) > 1:
            parts = [f"{text} ({_places(rows)})" for text, rows in groups.items()]
            line = f"{backbone}: its fine-tunings stand on different backbones: {', '.join(parts)}"
            remarks |= {row.name: line for rows in groups.values() for row in rows}
    return remarks


def _places(rows: Iterable[Stage]) -> str:
    by_task: dict[str, list[str]] = {}
    for row in rows:
        by_task.setdefault(str(row.task), []).append(str(row.seed))
    return "; ".join(f"{task} seed {', '.join(seeds)}" for task, seeds in by_task.items())


def chain_remarks(plan: Plan, manifests: Manifests) -> list[str]:
    """Return a line for every input that has other bytes today than when it was read."""
    lines: dict[str, list[str]] = {}
    for stage in plan.stages:
        for role, files in files_read(manifests.get(stage.name, {}).get("inputs", {})).items():
            source = stage.inputs.get(role)
            outputs = (
                manifests[source.name]["outputs"] if source and source.name in manifests else {}
            )
            for name, sha in files.items():
                if source and name in outputs and (today := outputs[name]["sha256"]) != sha:
                    text = f"{name} of {source.name} {sha[:10]}, which was made again: {today[:10]}"
                    lines.setdefault(text, []).append(stage.name)
    return [f"{', '.join(names)}: made from {text}" for text, names in lines.items()]


def row_doubts(plan: Plan, manifests: Manifests) -> dict[str, str]:
    """Return by stage name why a result cannot be told from clean commits and one backbone."""
    mixed = mixed_rows(plan, manifests)
    doubts = dict.fromkeys(mixed, "another backbone than other results of their row")
    for stage in plan.stages:
        for each in chain(stage) if stage.name in manifests else ():
            made = manifests[each.name].get("provenance", {}) if each.name in manifests else None
            if made is not None and (fault := code_fault(made)):
                text = fault if each is stage else f"{fault} in its {each.kind}"
                doubts.setdefault(stage.name, text)
    return doubts


def unclean_remarks(doubts: Iterable[str], total: int) -> list[str]:
    """Return a line for each of the `doubts` of finished fine-tunings, and how many have it."""
    counts = Counter(doubts).items()
    return [f"{n} of {total} fine-tunings from {doubt}, marked †" for doubt, n in counts]


def version_remarks(plan: Plan, manifests: Manifests) -> list[str]:
    """Return a line for every table whose rows were made by different commits or packages."""
    titles = {task.name: task.title or task.name for task in plan.config.tasks}
    tables: dict[str, list[Stage]] = {}
    for stage in plan.stages:
        title = "probes" if stage.probe is not None else titles.get(stage.task or "")
        if title is not None and stage.name in manifests:
            tables.setdefault(title, []).append(stage)
    lines: dict[str, list[str]] = {}
    for title, rows in tables.items():
        for text in version_differences(rows, manifests):
            lines.setdefault(text, []).append(title)
    return [f"{', '.join(names)}: rows differ in {text}" for text, names in lines.items()]


def other_origins(manifests: Manifests) -> list[str]:
    """Return a line on finished stages that other code or packages made than would now."""
    now = versions_of(origin())
    counts: Counter[tuple[str, str]] = Counter()
    for manifest in manifests.values():
        made = versions_of(manifest.get("provenance", {}))
        counts.update((what, made[what]) for what in now if made.get(what, now[what]) != now[what])
    parts: list[str] = []
    for (what, before), n in counts.items():
        noun = "" if parts else " finished stage is" if n == 1 else " finished stages are"
        parts.append(f"{n}{noun} from {what} {before} (now {now[what]})")
    return [f"{', '.join(parts)}; their identity is unchanged"] if parts else []


def version_differences(rows: list[Stage], manifests: Manifests) -> list[str]:
    """Return for each version that is not the same in all rows which of them have another.

    Stages that rows are made from count by their kind: a row without one is like any other.
    """
    values: dict[str, dict[str, list[Stage]]] = {}
    for row in rows:
        for stage in chain(row):
            made = manifests.get(stage.name, {}).get("provenance", {})
            whose = "" if stage is row else f"{stage.kind}'s "
            for what, value in versions_of(made).items():
                values.setdefault(f"{whose}{what}", {}).setdefault(value, []).append(row)
    texts = []
    for what, by_value in values.items():
        if len(by_value) > 1:
            usual = max(by_value, key=lambda value: len(by_value[value]))
            others = (
                f"{value} in {row_names(by_value[value], rows)}"
                for value in by_value
                if value != usual
            )
            texts.append(f"{what}: {', '.join(others)}; else {usual}")
    return texts


def versions_of(made: dict[str, Any]) -> dict[str, str]:
    """Return what a stage was made by; several where its attempts differ."""
    seen: dict[str, dict[str, None]] = {}
    for attempt in made.get("attempts") or [made]:
        code = attempt.get("code") or {}
        changes = f" with changes {code.get('diff', '')}".rstrip() if code.get("dirty") else ""
        commit = f"{str(code.get('commit') or 'unknown')[:10]}{changes}"
        versions = {"commit": commit, "python": attempt.get("python")}
        for name, version in (versions | attempt.get("packages", {})).items():
            seen.setdefault(name, {})[str(version or "unknown")] = None
    return {name: " then ".join(versions) for name, versions in seen.items()}


def row_names(part: Iterable[Stage], rows: Iterable[Stage]) -> str:
    """Return names for some rows of a table: the backbone, and seeds where it has others too."""
    all_of = Counter(row.backbone for row in rows)
    by_backbone: dict[str, list[Stage]] = {}
    for row in part:
        by_backbone.setdefault(row.backbone, []).append(row)
    names = []
    for backbone, some in by_backbone.items():
        seeds = ", ".join(str(row.seed) for row in some)
        names.append(backbone if len(some) == all_of[backbone] else f"{backbone} (seed {seeds})")
    return ", ".join(names)
