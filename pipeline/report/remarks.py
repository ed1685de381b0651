"""Remarks on a plan's results: what makes a number mean less than it seems to, a line each."""

from __future__ import annotations

import json
from typing import Any

from pipeline.plan.compatibility import task_value
from pipeline.plan.data_identity import cheaper_parts
from pipeline.plan.plan import Plan
from pipeline.report.origins import Manifests, origin_remarks, read_manifests
from pipeline.stages.files import tail
from pipeline.stages.run_folder import METRICS
from pipeline.stages.signature import DATA
from pipeline.stages.stage import Stage
from pipeline.stages.staleness import by_name

PARTS = ("its stem", "res2", "res3", "res4", "res5")
RANKED = ("encoding", "embedding")
TAIL_BYTES = 65_536


def remarks(plan: Plan) -> list[str]:
    """Return the remarks on data, frozen random backbones, on what was pretrained, and origins."""
    done = read_manifests(plan)
    of_plan = data_remarks(plan) + frozen_remarks(plan)
    return of_plan + collapse_remarks(plan, done) + origin_remarks(plan, done)


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
