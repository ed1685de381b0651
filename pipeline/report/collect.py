"""The data of a report, read from the run folders of a plan."""

from __future__ import annotations

import hashlib
import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.config.references import References, references_of
from pipeline.plan.plan import Plan
from pipeline.plan.recorded import MISSING
from pipeline.report.data import (
    AP_METRICS,
    Curve,
    ProbeRow,
    PublishedProbe,
    ReportData,
    ResultRow,
    TaskInfo,
)
from pipeline.report.published import (
    Protocol,
    ap_rule,
    protocol_of,
    published_probes,
    published_rows,
)
from pipeline.report.remarks import Manifests, read_manifests, remarks, row_doubts, versions_of
from pipeline.stages.files import read_json, sha256_of
from pipeline.stages.provenance import code_state
from pipeline.stages.run_folder import (
    CONFIG,
    JOB,
    LATE_PROBE,
    LOG,
    MANIFEST,
    METRICS,
    State,
    first_broken,
    is_kept_back,
    read_state,
    read_states,
)
from pipeline.stages.stage import DATA, RANDOM_ARCH, Stage, canonical_json
from pipeline.stages.staleness import files_read

MADE_FROM = "made_from.json"
MACHINE = ("host", "cpu", "num_cpus", "gpus", "system", "python", "packages")


def collect(plan: Plan) -> ReportData:
    """Return everything a report shows, from whatever is done."""
    states = all_states(plan)
    manifests = read_manifests(plan)
    doubts = row_doubts(plan, manifests)
    finetunes = [stage for stage in plan.stages if stage.kind == "finetune"]
    models = {stage.task: stage.settings["detectron2"].get("MODEL", {}) for stage in finetunes}
    protocols = {stage.task: protocol_of(stage.settings) for stage in finetunes}
    rules = {stage.task: ap_rule(stage.settings) for stage in finetunes}
    identities = _identities(plan, manifests)
    config = plan.config
    references = references_of(config, plan.config_file)
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
                AP_METRICS if models.get(task.name, {}).get("MASK_ON") else AP_METRICS[:3],
                published_rows(references, protocols.get(task.name, Protocol()), task.reference),
                rules.get(task.name, ""),
                identities.get(("finetune", task.name)),
            )
            for task in config.tasks
        ),
        baseline=config.baseline or next((b.name for b in config.backbones if b.random), None),
        rows=tuple(
            _row(stage, states[stage.name], manifests.get(stage.name, {}), doubts, command)
            for stage in finetunes
        ),
        probes=tuple(
            ProbeRow(
                stage.backbone,
                stage.probe,
                _numbers(manifests[stage.name]["metrics"]),
                _weights(stage, manifests[stage.name]),
            )
            for stage in plan.stages
            if stage.probe is not None and stage.name in manifests
        ),
        pretraining=tuple(_curve(stage) for stage in plan.stages if stage.kind == "pretrain"),
        finetuning=tuple(_curve(stage) for stage in finetunes),
        provenance=_provenance(manifests),
        command=command,
        remarks=tuple(remarks(plan, manifests)),
        published_probes=_published_probes(plan, references, manifests),
        probe_identities={
            name: identity for (kind, name), identity in identities.items() if kind == "probe"
        },
        made_with=_made_with(manifests),
    )


def _identities(plan: Plan, done: Manifests) -> dict[tuple[str, str], dict[str, Any] | None]:
    """Return by kind and name what tells a task (but for the seed) or probe from others.

    None where a part of it could not be read; what is done knows it rather than what is not.
    """
    identities: dict[tuple[str, str], dict[str, Any] | None] = {}
    for stage in sorted(plan.stages, key=lambda stage: stage.name not in done):
        name = stage.task or stage.probe
        if name is None or (stage.kind, name) in identities:
            continue
        record = stage.record
        aside = "seed" if stage.task else RANDOM_ARCH
        settings = {key: value for key, value in record["config"].items() if key != aside}
        content = {"data" if key == DATA else key: value for key, value in settings.items()}
        versions = {"identity_rule": record["rule"], f"{stage.kind}_version": record["version"]}
        is_read = canonical_json({MISSING: True}) not in canonical_json(content)
        identities[stage.kind, name] = versions | content if is_read else None
    return identities


def _weights(stage: Stage, manifest: dict[str, Any]) -> dict[str, str] | None:
    """Return sha256 by name of the files that a stage started from; of random ones what they are.

    None where its manifest, of an older version, does not say it.
    """
    if not stage.inputs:
        arch = stage.identity.get(RANDOM_ARCH)
        return {RANDOM_ARCH: str(arch)} if arch else {}
    try:
        (files,) = files_read(manifest.get("inputs", {})).values()
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return files or None


def _made_with(manifests: Manifests) -> dict[str, tuple[str, ...]]:
    """Return the commits and the versions of Python and packages that results were made with."""
    made: dict[str, dict[str, None]] = {}
    for manifest in manifests.values():
        for what, version in versions_of(manifest.get("provenance", {})).items():
            made.setdefault(what, {})[version] = None
    return {what: tuple(sorted(each)) for what, each in made.items()}


def _published_probes(
    plan: Plan, references: References, manifests: Manifests
) -> tuple[PublishedProbe, ...]:
    """Return the published rows beside the probes of the plan that are done."""
    stages: dict[str, list[Stage]] = {}
    for stage in plan.stages:
        if stage.probe is not None and stage.name in manifests:
            stages.setdefault(stage.probe, []).append(stage)
    return tuple(
        row
        for probe, of_probe in stages.items()
        for row in published_probes(
            references, probe, of_probe[0].settings, {arch_of(stage) for stage in of_probe}
        )
    )


def arch_of(stage: Stage) -> str:
    """Return the architecture that a finished probe was made of."""
    source = stage.inputs.get("backbone")
    if source is None:
        return str(stage.settings[RANDOM_ARCH])
    if source.kind == "pretrain":
        return str(source.settings["model"]["arch"])
    report = source.result.with_suffix(".json")  # of the conversion
    return str(read_json(report).get("arch")) if report.is_file() else ""


def all_states(plan: Plan) -> dict[str, State]:
    """Return the state of every stage; that one needs a failed one is its reason."""
    states = read_states(plan.stages)
    for stage in plan.stages:
        state = states[stage.name]
        waits = state.status not in ("done", "running")
        broken = first_broken(stage.inputs.values(), states) if waits else None
        states[stage.name] = state if broken is None else State("missing", broken)
    return states


def _row(
    stage: Stage, state: State, manifest: dict[str, Any], doubts: dict[str, str], command: str
) -> ResultRow:
    provenance = manifest.get("provenance", {})
    code = provenance.get("code", {})
    pictures = stage.run_dir / "pictures"
    done = state.status == "done"
    is_failure = state.status == "failed" or is_kept_back(state.reason)
    assert stage.task is not None and stage.seed is not None
    return ResultRow(
        backbone=stage.backbone,
        task=stage.task,
        seed=stage.seed,
        status=state.status,
        metrics=_numbers(manifest.get("metrics", {})),
        reason=state.reason,
        log=failed_log(stage) if is_failure else None,
        pictures=tuple(sorted(pictures.glob("*-detections.jpg"))) if done else (),
        ground_truth=tuple(sorted(pictures.glob("*-ground_truth.jpg"))) if done else (),
        wall_time_s=provenance.get("wall_time_s"),
        run_dir=str(stage.run_dir),
        dirty=stage.name in doubts,
        doubt=doubts.get(stage.name, ""),
        weights=_weights(stage, manifest) if done else None,
        signature=stage.signature,
        num_gpus=len(provenance.get("gpus", ())),
        commit=code.get("commit"),
        command=f"{command} --only {stage.name}",
        config=_settings(stage, provenance if done else None),
    )


def _settings(stage: Stage, made: dict[str, Any] | None) -> dict[str, Any]:
    """Return a run's settings; of one that is done those in its folder, whatever the plan says."""
    if made is None:
        return {"signature covers": stage.record, "settings": stage.settings}
    covers, job = (
        read_json(path) if (path := stage.run_dir / name).is_file() else {}
        for name in (CONFIG, JOB)
    )
    return {
        "signature covers": covers or None,
        "settings": job.get("settings"),
        "attempts": made.get("attempts"),
    }


def failed_log(stage: Stage) -> str:
    """Return the log that says why: the stage's own, or that of the input that failed."""
    for source in stage.inputs.values():
        if read_state(source).status != "done":
            return failed_log(source)
    return str(stage.run_dir / LOG)


def _curve(stage: Stage) -> Curve:
    """Return the log of a stage; what was logged of one step, at one time or two, is one point.

    A probe that was measured on kept states afterwards is part of it.
    """
    points: list[dict[str, float]] = []
    path = stage.run_dir / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            point = _numbers(json.loads(line))
        except ValueError:
            continue  # the last line of a stage at work may be half-written
        if points and "step" in point and points[-1].get("step") == point["step"]:
            points[-1] |= point
        else:
            points.append(point)
    with suppress(OSError, ValueError, LookupError, TypeError):
        by_step = {point["step"]: point for point in points}
        for point in map(_numbers, read_json(stage.run_dir / LATE_PROBE)["points"]):
            by_step[point["step"]] = by_step.get(point["step"], {}) | point
        points = [by_step[step] for step in sorted(by_step)]
    return Curve(stage.slug, stage.backbone, stage.task, stage.seed, tuple(points))


def _provenance(manifests: Manifests) -> dict[str, Any]:
    origins = {name: manifest.get("provenance", {}) for name, manifest in manifests.items()}
    machines: list[dict[str, Any]] = []
    for origin in origins.values():
        machine = {key: origin.get(key) for key in MACHINE}
        if machine not in machines:
            machines.append(machine)
    return {
        "report_made_from": code_state(),
        "commits_of_results": sorted(
            {str(origin.get("code", {}).get("commit")) for origin in origins.values()}
        ),
        "machines": machines,
        "wall_time_s": {name: origin.get("wall_time_s") for name, origin in origins.items()},
    }


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in entry.items() if isinstance(value, int | float)}


def report_key(plan: Plan, data: ReportData | None = None) -> list[list[str | None]]:
    """Return all that a report depends on, to tell whether one that exists is what it would be.

    Name, status, reason and the manifest's sha256 of every stage; then a digest of its data (read
    where they are not given), its pictures, and the code here.
    """
    data = data or collect(plan)
    states, key = all_states(plan), []
    for stage in plan.stages:
        state = states[stage.name]
        sha256 = sha256_of(stage.run_dir / MANIFEST) if state.status == "done" else None
        key.append([stage.name, state.status, state.reason, sha256])
    digest = hashlib.sha256(repr(data).encode("utf-8", "surrogateescape"))
    pictures = [path for row in data.rows for path in (*row.pictures, *row.ground_truth)]
    code = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".j2")]
    for path in [*pictures, *sorted(code)]:
        digest.update(sha256_of(path).encode() if path.is_file() else b"none")
    return [*key, ["source", digest.hexdigest()]]


def report_dir(plan: Plan) -> Path:
    """Return the folder that holds the report."""
    return plan.config.root / "report"
