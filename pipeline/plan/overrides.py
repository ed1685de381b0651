"""Faults told by the override that they are of, where one is to blame, else by the config file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.config.schema import BackboneConfig, PipelineConfig, ProbeEntry, TaskConfig
from pipeline.stages.stage import Stage

KEY = re.compile(r"\b[A-Z]\w*(\.[A-Z][A-Z0-9_]*)+\b")  # of detectron2
OVERRIDE = "override "  # what a fault of an override that is none begins with


def blamed(
    faults: Iterable[str],
    where: str,
    place: str,
    overrides: Sequence[str],
    faults_with: Callable[[tuple[str, ...]], list[str]],
) -> list[str]:
    """Return the faults, each by who has it: a fault that is gone without an override is its own.

    Args:
        faults: lines; those that begin with `where`, a config file, are looked at.
        where: the file.
        place: what has the overrides, such as `quick.yaml: task voc`.
        overrides: all of them.
        faults_with: the faults with some of them.
    """
    lines = []
    for line in faults:
        to_blame: list[str] = []
        if overrides and line.startswith(f"{where}: "):
            without = [tuple(x for x in overrides if x != each) for each in overrides]
            pairs = zip(overrides, without, strict=True)
            to_blame = [each for each, others in pairs if line not in faults_with(others)]
            if not to_blame and line not in faults_with(()):
                to_blame = list(overrides)
        lines.append(_told(line.removeprefix(f"{where}: "), place, to_blame) if to_blame else line)
    return lines


def mentioned(fault: str, where: str, place: str, overrides: Iterable[str]) -> str:
    """Return a fault by the overrides whose key or name it mentions, else by the file.

    Where it mentions no key at all, with all overrides.
    """
    overrides = tuple(overrides)

    def is_mentioned(override: str) -> bool:
        key, _, value = override.partition("=")
        words = [key] + [value] * (re.fullmatch(r"[A-Za-z_]\w+", value) is not None)
        return any(re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", fault) for word in words)

    to_blame = [override for override in overrides if is_mentioned(override)]
    if to_blame:
        return _told(fault, place, to_blame)
    if not overrides or KEY.search(fault):
        return f"{where}: {fault}"
    return f"{where} (with {OVERRIDE}{', '.join(overrides)}): {fault}"


def _told(fault: str, place: str, overrides: Sequence[str]) -> str:
    fault = fault.removeprefix(f"{place.rpartition(': ')[2]}: ")
    if fault.startswith(OVERRIDE):
        return f"{place}: {fault}"
    return f"{place}: {OVERRIDE}{', '.join(overrides)}: {fault}"


def overrides_of(config: PipelineConfig, stage: Stage) -> tuple[str, tuple[str, ...]]:
    """Return the entry of the config that a stage's own config is named in, and its overrides."""
    entries: Sequence[TaskConfig | ProbeEntry | BackboneConfig] = config.backbones
    name, what = stage.backbone, "backbone"
    if stage.task is not None:
        entries, name, what = config.tasks, stage.task, "task"
    elif stage.probe is not None:
        entries, name, what = config.probes, stage.probe, "probe"
    overrides = [entry.overrides for entry in entries if entry.name == name]
    return f"{what} {name}", overrides[0] if overrides else ()


def told_by_config(config_file: Path, config: PipelineConfig, stage: Stage, fault: str) -> str:
    """Return a fault of a stage's config; one that begins with a file (absolute) stays as it is."""
    if not stage.source or Path(fault.partition(": ")[0]).is_absolute():
        return fault
    what, overrides = overrides_of(config, stage)
    return mentioned(fault, stage.source, f"{config_file}: {what}", overrides)
