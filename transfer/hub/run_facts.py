"""The facts about a backbone that its run folder holds: recipe, data, code, and its numbers.

A run folder is read as files alone, and may come from anybody: a fact that is not there, or is not
of the kind that it should be, is one that is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transfer.checkpoints.containers import read_content
from transfer.checkpoints.other_files import OF_STAGES, weight_files
from transfer.files import refusal, sha256_of

KINDS = ("pretrain", "convert")  # of the stages whose result is a backbone
LAST, METRICS = "last.pth", "metrics.jsonl"
JOB, CONFIG, MANIFEST = "job.json", "config.json", "manifest.json"
RESULTS, MADE_FROM = Path("report", "results.json"), Path("report", "made_from.json")
MAX_JSON, MAX_DEPTH = 2**27, 3


@dataclass(frozen=True)
class RunFacts:
    """What is known of a backbone beside its weights; empty where nothing is.

    `recipe` is the config of its pretraining without paths; `data` name, number and digest of its
    files, as text; `origin` the checkpoint that was converted; `summary` and `probes` are its rows
    of a pipeline's results.json, `tasks` their titles and `seeds` those of its finished
    fine-tunings, both by task. `no_numbers` says why there are none; `in_detectron2` is the proof
    of its conversion, where its pipeline converted it.
    """

    name: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    num_processes: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    pipeline: str = ""
    command: str = ""
    baseline: str = ""
    summary: tuple[dict[str, Any], ...] = ()
    probes: tuple[dict[str, Any], ...] = ()
    tasks: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, list[int]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    in_detectron2: tuple[str, ...] = ()
    of_run: bool = False
    no_numbers: str = "a checkpoint alone says nothing of them"


def weights_and_facts(source: Path) -> tuple[Path, RunFacts]:
    """Return the file or folder to read a backbone from, and what its run folder says of it.

    Args:
        source: the folder of a finished stage or pretraining, the weights in it, or any checkpoint.

    Raises:
        ValueError: the run is not finished, or its weights were changed since; or it is a folder
            of several backbones, or of none.
    """
    folder = source if source.is_dir() else source.parent
    if source.is_dir():
        _refuse_pipelines(source)
    elif source.name == LAST and _last_state(source)[0]:  # perhaps of one that is not finished
        return source, replace(_pretraining(folder), of_run=True, probes=())
    elif source.name not in OF_STAGES:
        return source, RunFacts()
    manifest = _read(folder / MANIFEST)
    if not {"stage", "outputs"} <= manifest.keys():
        manifest = {}  # another program's
    if not manifest and not any((folder / name).is_file() for name in (JOB, LAST)):
        return source, RunFacts()
    if (folder / JOB).is_file() and not manifest:
        raise ValueError(f"{folder}: this stage is not finished (no {MANIFEST}); run it to its end")
    if source.is_dir() and not any((folder / name).is_file() for name in OF_STAGES):
        what = "no backbone comes of this stage"
        if (folder / LAST).is_file():
            what = f"this pretraining is not finished (no {OF_STAGES[0]}); run it again"
        raise ValueError(f"{folder}: {what}; wanted the folder of a pretraining or conversion")
    weights = weight_files(source)[0]
    recorded = _dict(_dict(manifest.get("outputs")).get(weights.name)).get("sha256")
    if manifest and recorded != sha256_of(weights):
        raise ValueError(refusal(weights, f"is not what {MANIFEST} beside it says (sha256)"))
    return weights, _facts(folder, manifest)


def _refuse_pipelines(folder: Path) -> None:
    """Raise ValueError for the folder of a whole pipeline, with the folders to choose from."""
    below = [
        path.parent.relative_to(folder).as_posix()
        for kind in KINDS
        for path in sorted(folder.glob(f"{kind}/*/{OF_STAGES[0]}"))
    ]
    if below:
        raise ValueError(
            refusal(folder, f"is a pipeline's; give the folder of one backbone: {', '.join(below)}")
        )


def _facts(folder: Path, manifest: dict[str, Any]) -> RunFacts:
    kind, root = manifest.get("stage"), folder.absolute().parent.parent
    pretraining = folder
    if kind == "convert":
        signature = str(_dict(_read(folder / CONFIG).get("inputs")).get("checkpoint"))
        made = root.glob(f"pretrain/*-{signature}") if signature.isalnum() else iter(())
        pretraining = next(made, folder)
    is_pretraining = kind is None or pretraining is not folder or kind == "pretrain"
    facts = _pretraining(pretraining) if is_pretraining else RunFacts()
    _, _, name = str(_read(folder / JOB).get("name", "")).rpartition("/")
    proof = _conversion(folder, str(kind), root)
    facts = replace(facts, name=name, of_run=True, in_detectron2=proof)
    companion = _read(folder / "backbone.json") if kind == "convert" and not facts.recipe else {}
    if companion:
        origin = (f"{key} {companion.get(key)}" for key in ("source", "sha256", "family"))
        facts = replace(facts, origin=", ".join(origin))
    return _with_results(facts, str(kind), folder / MANIFEST, root) if manifest else facts


def _conversion(folder: Path, kind: str, root: Path) -> tuple[str, ...]:
    """Return the proof of the conversion that a folder holds, or that was made of its backbone."""
    signature = folder.absolute().name.rpartition("-")[2]
    for place in [folder] if kind == "convert" else sorted(root.glob("convert/*")):
        source = _dict(_read(place / CONFIG).get("inputs")).get("checkpoint")
        if place == folder or (kind == "pretrain" and source == signature):
            return detectron2_proof(_dict(_read(place / "backbone.json").get("verification")))
    return ()


def detectron2_proof(verification: dict[str, Any]) -> tuple[str, ...]:
    """Return sentences of what a conversion verified, as its companion holds it."""
    difference, loaded = verification.get("largest_feature_difference"), []
    if not isinstance(difference, float):
        return ()
    for kind, count in _dict(verification.get("entries_loaded")).items():
        loaded.append(f"{count} entries of the {str(kind).upper()} model")
    return (
        f"Converted to detectron2, its own loader fills {' and '.join(loaded)}; its features of "
        f"four stages against torchvision's: largest relative difference {difference:.1e}.",
        *map(str, _list(verification.get("not_checked"))),
    )


def _pretraining(folder: Path) -> RunFacts:
    """Return recipe, data and provenance of a pretraining, of a pipeline or by hand."""
    recipe = dict(_dict(_read(folder / CONFIG).get("config")))
    content, processes = recipe.pop("data_content", None), recipe.pop("world_size", None)
    if not recipe:
        recipe, content, processes = _last_state(folder / LAST)
    settings = _dict(_dict(_read(folder / JOB).get("settings")).get("data"))
    name = _dict(recipe.get("data")).get("name", settings.get("name"))
    if recipe and name is not None:
        recipe["data"] = {"name": name, **_dict(recipe.get("data"))}
    return RunFacts(
        recipe=recipe,
        data=(*([] if name is None else [str(name)]), *_files(content)),
        num_processes=processes if isinstance(processes, int) else None,
        provenance=_dict(_read(folder / MANIFEST).get("provenance")),
        probes=_probe_on_the_way(folder),
        no_numbers="a pretraining alone has none; a pipeline measures them",
    )


def _last_state(path: Path) -> tuple[dict[str, Any], Any, Any]:
    """Return recipe, data and number of processes that the last state of a pretraining holds."""
    with suppress(ValueError, OSError, TypeError, RecursionError):
        state = _dict(read_content(path).value)
        if {"config", "num_images", "ranks"} <= state.keys():
            recipe = _dict(json.loads(json.dumps(state["config"])))  # plain values alone
            return recipe, {"num_files": state["num_images"]}, len(_list(state["ranks"]))
    return {}, None, None


def _files(content: Any, name: str = "", depth: int = 0) -> list[str]:
    """Return the parts of an identity of data: `images: 6000 files, digest 40ed7fe603cf7493`."""
    if not isinstance(content, dict) or depth > MAX_DEPTH:
        return []
    if isinstance(number := content.get("num_files"), int):
        digest = f", digest {str(content['digest'])[:16]}" if "digest" in content else ""
        return [f"{name or 'images'}: {number} files{digest}"]
    parts = (_files(part, str(key), depth + 1) for key, part in content.items())
    return [line for lines in parts for line in lines]


def _probe_on_the_way(folder: Path) -> tuple[dict[str, Any], ...]:
    """Return the last k-NN accuracy that a pretraining logged, as a row of probes."""
    with suppress(OSError, ValueError, RecursionError):
        for line in reversed((folder / METRICS).read_text(encoding="utf-8").splitlines()):
            metrics = {k: v for k, v in _dict(json.loads(line)).items() if "knn/" in k}
            if metrics:
                return ({"probe": "during the pretraining", "metrics": metrics},)
    return ()


def _with_results(facts: RunFacts, kind: str, manifest: Path, root: Path) -> RunFacts:
    """Return the facts with the numbers of the report that was made from this very run."""
    digest, made_from = sha256_of(manifest), _read(root / MADE_FROM, list)
    names = [
        entry[0].removeprefix(f"{kind}/")
        for entry in made_from
        if isinstance(entry, list) and len(entry) == 4 and entry[3] == digest
        if isinstance(entry[0], str)
    ]
    results = _read(root / RESULTS)
    if not names or not results:
        why = f"no report in {root.name} is made from this run; run_pipeline.py report writes it"
        return replace(facts, no_numbers=why)
    name = facts.name if facts.name in names else names[0]
    rows = {key: _rows(results, key, name) for key in ("summary", "probes", "rows")}
    tasks = [one for one in map(_dict, _list(results.get("tasks")))]
    seeds: dict[str, list[int]] = {}
    for row in rows["rows"]:
        if isinstance(row.get("seed"), int):
            seeds.setdefault(str(row.get("task")), []).append(row["seed"])
    return replace(
        facts,
        name=name,
        pipeline=str(results.get("pipeline", "")),
        command=str(results.get("command") or ""),
        baseline=str(results.get("baseline") or ""),
        summary=tuple(rows["summary"]),
        probes=(*facts.probes, *rows["probes"]),
        tasks={str(one.get("name")): str(one.get("title")) for one in tasks},
        seeds=seeds,
        remarks=tuple(str(remark) for remark in _list(results.get("remarks"))),
        no_numbers="the pipeline measured none",
    )


def _rows(results: dict[str, Any], key: str, backbone: str) -> list[dict[str, Any]]:
    rows = map(_dict, _list(results.get(key)))
    return [row for row in rows if row.get("backbone") == backbone]


def _read(path: Path, kind: type[Any] = dict) -> Any:
    """Return what a JSON file holds, empty where it is not there or holds something else."""
    content = None
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= MAX_JSON:
            content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, kind) else kind()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
