"""Read the run folders of a plan into the plain data of the report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from pipeline.plan.plan import Plan
from pipeline.report.data import Curve, ProbeRow, ReportData, ResultRow, TaskInfo
from pipeline.stages.files import read_json, sha256_of
from pipeline.stages.provenance import code_state
from pipeline.stages.run_folder import LOG, MANIFEST, METRICS, State, first_broken, read_state
from pipeline.stages.stage import Stage

MADE_FROM = "made_from.json"
BOX_METRICS = ("bbox/AP50", "bbox/AP", "bbox/AP75")
MASK_METRICS = ("segm/AP50", "segm/AP", "segm/AP75")


def collect(plan: Plan) -> ReportData:
    """Return everything a report shows, from whatever is done."""
    states = all_states(plan)
    finetunes = [stage for stage in plan.stages if stage.kind == "finetune"]
    config = plan.config
    command = "python tools/run_pipeline.py run --config-file " + shlex.join(
        [str(plan.config_file), *plan.overrides]
    )
    return ReportData(
        pipeline=config.name,
        backbones=tuple(backbone.name for backbone in config.backbones),
        tasks=tuple(
            TaskInfo(
                task.name,
                task.title or task.name,
                _metrics(finetunes, task.name),
                task.reference,
            )
            for task in config.tasks
        ),
        baseline=next((backbone.name for backbone in config.backbones if backbone.random), None),
        rows=tuple(_row(stage, states[stage.name], command) for stage in finetunes),
        probes=tuple(
            ProbeRow(stage.backbone, stage.probe, _numbers(_manifest(stage)["metrics"]))
            for stage in plan.stages
            if stage.probe is not None and states[stage.name].status == "done"
        ),
        pretraining=tuple(_curve(stage) for stage in plan.stages if stage.kind == "pretrain"),
        finetuning=tuple(_curve(stage) for stage in finetunes),
        provenance=_provenance(plan, states),
        command=command,
    )


def all_states(plan: Plan) -> dict[str, State]:
    """Return the state of every stage; one whose input failed counts as failed, with the reason."""
    states: dict[str, State] = {}
    for stage in plan.stages:
        state = read_state(stage)
        failed_inputs = [s for s in stage.inputs.values() if states[s.name].status == "failed"]
        if state.status != "done" and failed_inputs:
            state = State("failed", first_broken(failed_inputs, states))
        states[stage.name] = state
    return states


def _metrics(finetunes: list[Stage], task: str) -> tuple[str, ...]:
    """Return the columns of a task: boxes, and masks where its config has them."""
    for stage in finetunes:
        if stage.task == task:
            model = stage.settings["detectron2"].get("MODEL", {})
            return (*BOX_METRICS, *(MASK_METRICS if model.get("MASK_ON") else ()))
    return BOX_METRICS


def _row(stage: Stage, state: State, command: str) -> ResultRow:
    manifest = _manifest(stage) if state.status == "done" else {}
    made = manifest.get("provenance", {})
    pictures = stage.run_dir / "pictures"
    done = state.status == "done"
    code = made.get("code", {})
    assert stage.task is not None and stage.seed is not None
    return ResultRow(
        backbone=stage.backbone,
        task=stage.task,
        seed=stage.seed,
        status=state.status,
        metrics=_numbers(manifest.get("metrics", {})),
        reason=state.reason,
        log=failed_log(stage) if state.status == "failed" else None,
        pictures=tuple(sorted(pictures.glob("*-detections.jpg"))) if done else (),
        ground_truth=tuple(sorted(pictures.glob("*-ground_truth.jpg"))) if done else (),
        wall_time_s=made.get("wall_time_s"),
        run_dir=str(stage.run_dir),
        dirty=bool(code.get("dirty")),
        signature=stage.signature,
        num_gpus=len(made.get("gpus", ())),
        commit=code.get("commit"),
        command=f"{command} --only {stage.name}",
        config={"signature covers": stage.record, "settings": stage.settings},
    )


def failed_log(stage: Stage) -> str:
    """Return the log that says why: the stage's own, or that of the input that failed."""
    for source in stage.inputs.values():
        if read_state(source).status != "done":
            return failed_log(source)
    return str(stage.run_dir / LOG)


def _curve(stage: Stage) -> Curve:
    """Return the log of a stage; what was logged of one step, at one time or two, is one point."""
    points: list[dict[str, float]] = []
    path = stage.run_dir / METRICS
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                point = _numbers(json.loads(line))
            except ValueError:
                continue  # the last line of a stage at work may be half-written
            if points and "step" in point and points[-1].get("step") == point["step"]:
                points[-1] |= point
            else:
                points.append(point)
    return Curve(stage.slug, stage.backbone, stage.task, stage.seed, tuple(points))


def _provenance(plan: Plan, states: dict[str, State]) -> dict[str, Any]:
    made = {
        stage.name: _manifest(stage).get("provenance", {})
        for stage in plan.stages
        if states[stage.name].status == "done"
    }
    keys = ("host", "cpu", "num_cpus", "gpus", "system", "python", "packages")
    machines: list[dict[str, Any]] = []
    for entry in made.values():
        machine = {key: entry.get(key) for key in keys}
        if machine not in machines:
            machines.append(machine)
    commits = sorted({str(entry.get("code", {}).get("commit")) for entry in made.values()})
    return {
        "report_made_from": code_state(),
        "commits_of_results": commits,
        "machines": machines,
        "wall_time_s": {name: entry.get("wall_time_s") for name, entry in made.items()},
    }


def _manifest(stage: Stage) -> dict[str, Any]:
    content: dict[str, Any] = read_json(stage.run_dir / MANIFEST)
    return content


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in entry.items() if isinstance(value, int | float)}


def report_key(plan: Plan) -> list[list[str | None]]:
    """Return what a report depends on, to tell whether one that exists is up to date."""
    states = all_states(plan)
    return [
        [stage.name, state.status, state.reason, _made(stage) if state.status == "done" else None]
        for stage, state in ((stage, states[stage.name]) for stage in plan.stages)
    ] + [[task.name, task.title] for task in plan.config.tasks]


def _made(stage: Stage) -> str:
    return sha256_of(stage.run_dir / MANIFEST)


def report_dir(plan: Plan) -> Path:
    """Return the folder that holds the report."""
    return plan.config.root / "report"
