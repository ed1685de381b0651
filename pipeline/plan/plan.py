"""A plan: the stages that a pipeline config asks for, each computed once, and a part of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipeline.config.yaml_files import load_yaml
from pipeline.stages.files import MAX_LISTED, read_json, unknown, write_json
from pipeline.stages.run_folder import MANIFEST, TRACKED, identity_fault
from pipeline.stages.stage import SIGNATURE_DIGITS, STAGE_KINDS, Stage

if TYPE_CHECKING:
    from pipeline.config.schema import PipelineConfig

Place: TypeAlias = Literal["here", "gone", "unreadable", "elsewhere"]
Entries: TypeAlias = dict[Path, dict[str, str] | None]

CONFIGS = "configs.json"  # below a plan's folder: the config files that were used with it
STAGES = "stages.json"  # beside it: the folder of every stage of the plan that was last run
PARTS = re.compile("/|--")  # between the parts of a stage's name


@dataclass(frozen=True)
class Plan:
    """All stages, inputs before what needs them, and the config they come from.

    Stages of one signature, such as those of two backbones with one recipe, share a folder.
    `notes` say what could not be read for it.
    """

    config: PipelineConfig
    config_file: Path
    overrides: tuple[str, ...]
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @property
    def distinct(self) -> tuple[Stage, ...]:
        """Return the stages without those that share the folder of one before them."""
        return tuple({stage.run_dir: stage for stage in reversed(self.stages)}.values())[::-1]


def share_folders(stages: Iterable[Stage], root: Path) -> list[Stage]:
    """Return the stages, each with the folder that its signature has already, under whatever name.

    That is the folder of the first stage with this signature, or one that lies below `root` since
    the plan had another name for it, rather a finished one; else the stage's own. What needs a
    stage then needs the first one of its signature.
    """
    folders: dict[tuple[str, str], list[str]] = {}
    for kind in STAGE_KINDS:
        names = sorted(path.name for path in (root / kind).glob("*-*"))
        for slug, _, signature in (name.rpartition("-") for name in names):
            if len(signature) == SIGNATURE_DIGITS:
                folders.setdefault((kind, signature), []).append(slug)
    first: dict[str, Stage] = {}
    by_name: dict[str, Stage] = {}
    for stage in stages:
        inputs = {role: first[by_name[each.name].signature] for role, each in stage.inputs.items()}
        if any(each is not stage.inputs[role] for role, each in inputs.items()):
            stage = replace(stage, inputs=inputs)  # noqa: PLW2901
        others = folders.get((stage.kind, stage.signature), [])
        if stage.signature in first:
            slug = first[stage.signature].folder_of or first[stage.signature].slug
        elif others == [stage.slug] or not others:
            slug = stage.slug
        else:
            slug = _best_folder(stage, others)
        folder_of = "" if slug == stage.slug else slug
        if folder_of != stage.folder_of:  # a copy would work its signature out anew
            stage = replace(stage, folder_of=folder_of)  # noqa: PLW2901
        by_name[stage.name] = stage
        first.setdefault(stage.signature, by_name[stage.name])
    return list(by_name.values())


def _best_folder(stage: Stage, slugs: list[str]) -> str:
    """Return the slug of a finished folder of this signature, or of one begun; its own comes first.

    A folder of another name that is not of this signature is nobody's.
    """
    parent = stage.run_dir.parent
    own_first = sorted(slugs, key=lambda slug: slug != stage.slug)
    folders = {slug: parent / f"{slug}-{stage.signature}" for slug in own_first}
    sound = [slug for slug in own_first if not identity_fault(folders[slug], stage.signature)]
    finished = [slug for slug in sound if (folders[slug] / MANIFEST).is_file()]
    return [*finished, *sound, stage.slug][0]


def select(plan: Plan, names: list[str]) -> Plan:
    """Return the plan of the named stages and what they need, in the plan's order.

    Raises:
        ValueError: a name is of no stage of the plan, or of several.
    """
    needed, faults = set(), []
    for name in names:
        try:
            needed.add(stage_named(plan, name).name)
        except ValueError as fault:
            faults.append(f"--only: {fault}")
    if faults:
        raise ValueError("\n".join(faults))
    for stage in reversed(plan.stages):  # inputs stand before what needs them
        if stage.name in needed:
            needed |= {source.name for source in stage.inputs.values()}
    return replace(plan, stages=tuple(stage for stage in plan.stages if stage.name in needed))


def stage_named(plan: Plan, name: str) -> Stage:
    """Return the stage `kind/slug`, or the only one that has all parts of a shorter name.

    `status` leaves the backbone out of names, which stands beside them.

    Raises:
        ValueError: no stage fits, or several do.
    """
    by_name = {stage.name: stage for stage in plan.stages}
    if name in by_name:
        return by_name[name]
    parts = {*PARTS.split(name)}
    fitting = {
        stage.run_dir: stage.name
        for stage in reversed(plan.stages)
        if parts <= {*PARTS.split(stage.name)}
    }
    if not fitting:
        raise ValueError(unknown("stage", name, by_name))
    *others, first = fitting.values()
    if others:
        names = [first, *reversed(others)]
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        listed = ", ".join(names[:MAX_LISTED])
        raise ValueError(f"{name!r} is of several stages; did you mean one of {listed}{more}?")
    return by_name[first]


def other_configs(plan: Plan) -> list[str]:
    """Return a line for every other config file that leads to the plan's folder; note the plan's.

    Their stages are told apart by signatures; their reports are one file. Where nothing can be
    written nothing is kept.
    """
    path, this = plan.config.root / CONFIGS, plan.config_file.resolve()
    known: Entries = {}
    with contextlib.suppress(OSError, ValueError):
        known = _entries(path)
    lines = [
        f"{plan.config_file}: {other} has the same name, {plan.config.name!r}: they share "
        f"{plan.config.root}, and each replaces the other's report; give one another `name`"
        for other, entry in known.items()
        if other != this and _place(other, entry, plan.config.root) == "here"
    ]
    with contextlib.suppress(OSError, ValueError):
        entry = {"folder": str(plan.config.root.absolute()), **_names(this)}
        if known.get(this) != entry:
            plan.config.root.mkdir(parents=True, exist_ok=True)
            entries = {str(other): before for other, before in known.items()}
            write_json(path, entries | {str(this): entry})
    return lines


def used_configs(root: Path) -> dict[Path, Place]:
    """Return the config files that were used with a plan's folder, and where each leads now.

    Raises:
        ValueError: what is noted of them cannot be read.
    """
    path = root / CONFIGS
    known = _entries(path) if path.is_file() else {}
    return {config: _place(config, entry, root) for config, entry in known.items()}


def _entries(path: Path) -> Entries:
    """Return what is noted of config files; a list of them alone is of older versions.

    Raises:
        ValueError: it is not what is written there.
    """
    content = read_json(path)
    if not isinstance(content, dict | list):
        raise ValueError(f"{path}: holds no config files; remove it to have it made again")
    by_name = content if isinstance(content, dict) else dict.fromkeys(map(str, content))
    return {
        Path(name): entry if isinstance(entry, dict) and "folder" in entry else None
        for name, entry in by_name.items()
    }


def _names(config_file: Path) -> dict[str, str]:
    """Return the `name` and `output_dir` that a config file says by itself."""
    from pipeline.config.schema import PipelineConfig  # noqa: PLC0415  (`runs` needs none)

    content, default = load_yaml(config_file), PipelineConfig.model_fields["output_dir"].default
    output_dir = Path(str(content.get("output_dir", default)))
    return {"name": str(content.get("name")), "output_dir": str(output_dir)}


def _place(config_file: Path, entry: dict[str, str] | None, root: Path) -> Place:
    """Return where a config file leads now that was used with this folder, or one it is a copy of.

    A relative `output_dir` leads where it led, as long as the file says the same. Of older entries
    that is not known: it counts from any folder above the file.
    """
    here = root.resolve()
    of_here = entry is None or Path(str(entry["folder"])).resolve() == here
    if not config_file.is_file():
        return "gone" if of_here else "elsewhere"
    try:
        names = _names(config_file)
    except (OSError, ValueError):
        return "unreadable" if of_here else "elsewhere"
    folder = Path(names["output_dir"], names["name"])
    above = [] if entry is not None and not folder.is_absolute() else config_file.parents
    is_same = entry is not None and of_here and entry.items() >= names.items()
    leads_here = is_same or any((parent / folder).resolve() == here for parent in above)
    return "here" if leads_here else "elsewhere"


def record_stages(plan: Plan) -> None:
    """Keep which folders a plan's stages have, for who reads them without its config and data."""
    root = plan.config.root
    folders = {stage.name: stage.run_dir.relative_to(root).as_posix() for stage in plan.stages}
    write_json(root / STAGES, folders)


def results_of_another(plan: Plan) -> list[str]:
    """Return the finished stages of the plan that was last run in its folder that it has not.

    Those that measure something, by name; the same name may be of other settings here.
    """
    root = plan.config.root
    try:
        recorded = {str(name): root / str(path) for name, path in read_json(root / STAGES).items()}
    except (OSError, ValueError, AttributeError):
        return []
    folders = {stage.run_dir for stage in plan.stages}
    return [
        name
        for name, path in recorded.items()
        if name.partition("/")[0] in TRACKED and path not in folders and (path / MANIFEST).is_file()
    ]
