"""Find the encoders in a file's tensors, and choose the one that its project evaluates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transfer.checkpoints.copies import is_copy
from transfer.checkpoints.families import FAMILIES, SIDE_NAMES, Family
from transfer.checkpoints.key_patterns import LAYOUTS, TRANSPARENT, role, split, without_wrappers
from transfer.checkpoints.state_dicts import Group
from transfer.resnet.architecture import foreign
from transfer.resnet.names import BLOCKS, COUNTER, NORM_ENTRIES, ordered_names

BODY = re.compile(r"layer\d+\.\d+\.(conv\d|norm\d|relu\d|bn\d|bn_last|shortcut)\b")
SIDE = re.compile(SIDE_NAMES)
SECOND = re.compile(
    r"momentum|momentum_.*|.*_momentum|target.*|encoder_k|key_.*|model_t|ema|ema_.*|.*_ema|student.*|moco_encoder"
)
KINDS_OF_COPY = (
    (r"(^|\.)student", "the student network"),
    (r"(^|\.|_)ema(_|\.|$)", "the averaged (EMA) weights"),
    (r"(^|\.|_)target", "the target network"),
    (r"", "the momentum encoder"),
)
UNLISTED = Family("unlisted", note="of no listed family: ImageNet's mean and std are assumed")


@dataclass(frozen=True, eq=False)
class Candidate:
    """An encoder: which dict it is in, what stands before its names, its tensors by our names."""

    layout: str
    group: str
    prefix: str
    tensors: Group
    sources: dict[str, str]
    label: str = ""

    @property
    def role(self) -> str:
        """What it is called, wrappers left out."""
        return role(self.prefix)


@dataclass(frozen=True)
class Beside:
    """What else stands under an encoder's prefix: heads, and what does not belong there."""

    heads: tuple[str, ...]
    extra: tuple[str, ...]


def find_candidates(groups: Mapping[str, Group]) -> list[Candidate]:
    """Return every encoder in a file, whatever its spelling."""
    found = []
    for path, group in groups.items():
        here = []
        for layout in LAYOUTS:
            by_prefix: dict[str, dict[str, str]] = {}
            for key in group:
                parts = split(layout, key)
                if parts is not None:
                    by_prefix.setdefault(parts[0], {})[parts[1]] = key
            for prefix, names in _joined(by_prefix).items():
                if any(BODY.match(name) for name in names):
                    here.append(_candidate(layout, path, prefix, names, group))
        here = _without_shadows(here)
        if not here and path.split(".")[-1] in ("online_backbone", "target_backbone"):
            here = _by_order(path, group)
        found += here
    several = len({candidate.group for candidate in found}) > 1
    return [
        replace(
            candidate,
            label=".".join(part for part in (candidate.group, candidate.prefix) if part)
            if several
            else candidate.prefix,
        )
        for candidate in found
    ]


def _joined(by_prefix: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Join the parts of an encoder of which only some names carry a wrapper such as `module.`."""
    joined: dict[str, dict[str, str]] = {}
    for prefix, names in sorted(by_prefix.items(), key=lambda item: len(item[0])):
        bare = without_wrappers(prefix)
        fitting = (
            known
            for known, others in joined.items()
            if without_wrappers(known) == bare and not names.keys() & others.keys()
        )
        joined.setdefault(next(fitting, prefix), {}).update(names)
    return joined


def _candidate(
    layout: str, path: str, prefix: str, names: dict[str, str], group: Group
) -> Candidate:
    if layout == "classy":
        last = 3 if any(".conv3." in name for name in names) else 2
        names = {name.replace("bn_last", f"bn{last}"): key for name, key in names.items()}
    tensors = {name: group[key] for name, key in names.items()}
    return Candidate(layout, path, prefix, tensors, names)


def _without_shadows(candidates: list[Candidate]) -> list[Candidate]:
    """Drop what a second layout made of the names of a better-fitting first one."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: -len(one.sources)):
        names = set(candidate.sources.values())
        if not any(len(names & set(other.sources.values())) > len(names) // 2 for other in kept):
            kept.append(candidate)
    order = {id(candidate): index for index, candidate in enumerate(candidates)}
    return sorted(kept, key=lambda one: order[id(one)])


def _by_order(path: str, group: Group) -> list[Candidate]:
    """Return an encoder whose names are unknown but whose entries come in torchvision's order."""
    for arch in BLOCKS:
        for names in (ordered_names(arch), [n for n in ordered_names(arch) if COUNTER not in n]):
            if len(names) == len(group):
                _check_order(path, names, group)
                sources = dict(zip(names, group, strict=True))
                return [_candidate("order", path, "", sources, group)]
    return []


def _check_order(path: str, names: Iterable[str], group: Group) -> None:
    """Raise ValueError where a name says that it is another entry than its place says."""
    for name, key in zip(names, group, strict=True):
        last = key.split(".")[-1]
        if last in NORM_ENTRIES and last != name.split(".")[-1]:
            raise ValueError(
                f"{path}: {key} stands where torchvision's order has {name}; names that are not "
                "known can only be taken in that order"
            )


def chosen_by_hand(
    text: str, candidates: list[Candidate], groups: Mapping[str, Group]
) -> tuple[list[Candidate], Candidate]:
    """Return all encoders and the one that the user named, by its prefix or its dict.

    Raises:
        ValueError: there is none of that name, or several.
    """
    wanted = text.rstrip(".")
    spellings = (
        lambda one: one.label,
        lambda one: one.prefix,
        lambda one: f"{one.group}.{one.prefix}",
        lambda one: one.role,
        lambda one: f"{one.group}.{one.role}",
        lambda one: one.group,
    )
    for spelling in spellings:
        fitting = [one for one in candidates if spelling(one).rstrip(".") == wanted]
        if len(fitting) == 1:
            return candidates, fitting[0]
        if fitting:
            raise ValueError(f"--encoder {text} fits several: {_list(fitting)}")
    for path, group in groups.items():
        cut = {key.removeprefix(text): view for key, view in group.items() if key.startswith(text)}
        fitting = find_candidates({path: cut}) if text else []
        for one in fitting:
            if one.prefix == "":
                own = {name: text + key for name, key in one.sources.items()}
                own_one = replace(one, prefix=text, sources=own, label=text)
                return [*candidates, own_one], own_one
    raise ValueError(f"no encoder under {text!r}; found: {_list(candidates) or 'none'}")


def matching_family(
    content: Mapping[Any, Any],
    groups: Mapping[str, Group],
    candidates: list[Candidate],
    format: str | None,
    by_hand: Candidate | None,
) -> tuple[Family, Candidate]:
    """Return the family of a file and its encoder.

    Raises:
        ValueError: the format does not fit, or the file holds several encoders of no known family.
    """
    for family in FAMILIES:
        if format not in (None, family.name):
            continue
        fitting = sorted((one for one in candidates if _fits(family, one)),
                         key=lambda one: _rank(family, one))  # fmt: skip
        if format is not None and by_hand is None:
            _refuse_several(fitting, family)
        for one in fitting:
            if format is None and not all(
                _marked(mark, content, groups[one.group], one) for mark in family.marks
            ):
                continue
            if format is None and not _explains(family, one, candidates):
                continue
            return family, by_hand or one
    if format is not None:
        return _forced(format, candidates, by_hand)
    if by_hand is not None:
        return UNLISTED, by_hand
    return UNLISTED, _only_one(candidates)


def _refuse_several(fitting: list[Candidate], family: Family) -> None:
    """Raise ValueError where several encoders fit a family that was given by hand equally well."""
    best = _distinct(one for one in fitting if _rank(family, one) == _rank(family, fitting[0]))
    if len(best) > 1:
        raise ValueError(
            f"{len(best)} encoders where --format {family.name} has one: say which with "
            f"--encoder: {_list(best)}"
        )


def _only_one(candidates: list[Candidate]) -> Candidate:
    """Return the one encoder in a file of no known family."""
    distinct = _distinct(candidates)
    reasons = [
        foreign({name: view.shape for name, view in one.tensors.items()}, ()) for one in distinct
    ]
    if len(distinct) > 1 and all(reasons):
        raise ValueError(f"{distinct[0].label}: {reasons[0]}")
    online = [one for one in distinct if _others_are_copies(one, distinct)]
    if len(online) == 1:
        return online[0]
    if len(distinct) > 1:
        raise ValueError(
            f"{len(distinct)} encoders and no known family: say which with --encoder: "
            f"{_list(distinct)}"
        )
    if _second(distinct[0]):
        one = distinct[0]
        in_names = any(SECOND.fullmatch(part) for part in one.prefix.split("."))
        name = one.label if in_names else f"{one.group}.{one.prefix}".rstrip(".")
        raise ValueError(
            f"only {_what_copy(one)} {name} is readable; say --encoder {name} to take it"
        )
    return distinct[0]


def _what_copy(one: Candidate) -> str:
    """Return what kind of second network an encoder's name says it is."""
    path = f"{one.group}.{one.prefix}"
    return next(what for pattern, what in KINDS_OF_COPY if re.search(pattern, path))


def _others_are_copies(one: Candidate, distinct: Iterable[Candidate]) -> bool:
    path = f"{one.group}.{one.role}"
    return not _second(one) and all(
        other is one or is_copy(f"{other.group}.{other.role}", path) for other in distinct
    )


def _second(one: Candidate, evaluated: Iterable[str] = ()) -> bool:
    """Return whether a name marks a momentum, target or student copy; `evaluated` ones do not."""
    parts = {*one.group.split("."), *one.prefix.split(".")}
    return any(SECOND.fullmatch(part) for part in parts - set(evaluated))


def _forced(
    format: str, candidates: list[Candidate], by_hand: Candidate | None
) -> tuple[Family, Candidate]:
    rows = [family for family in FAMILIES if family.name == format]
    if by_hand is not None:
        return rows[0], by_hand
    roles = sorted({one or "no prefix" for family in rows for one in family.roles})
    raise ValueError(
        f"no encoder where --format {format} has it ({', '.join(roles)}); encoders found: "
        f"{_list(candidates)}; leave --format out, or name one with --encoder"
    )


def _fits(family: Family, one: Candidate) -> bool:
    if family.layout is not None and one.layout != family.layout:
        return False
    if family.layout is None and one.layout in ("caffe2", "hugging-face", "simclr-v2", "classy"):
        return False
    in_group = family.groups is None or any(
        one.group == key or (key != "" and one.group.endswith("." + key)) for key in family.groups
    )
    evaluated = {*(family.groups or ()), *".".join(family.roles).split(".")}
    return in_group and one.role in family.roles and not _second(one, evaluated)


def _rank(family: Family, one: Candidate) -> int:
    return family.roles.index(one.role) if one.role in family.roles else len(family.roles)


def _marked(mark: str, content: Mapping[Any, Any], group: Group, one: Candidate) -> bool:
    if mark.startswith("!"):
        return not _marked(mark[1:], content, group, one)
    if mark in CONDITIONS:
        return CONDITIONS[mark](content, one)
    names = {role(key) for key in group}
    for choice in mark.split("|"):
        if choice.startswith("@") and choice[1:] in content:
            return True
        if any(name == choice or name.startswith(choice + ".") for name in names):
            return True
    return False


def no_batch_counted(one: Candidate) -> bool:
    """Return whether it has counters, all zero, as weights that came from another framework."""
    counters = [view for name, view in one.tensors.items() if name.endswith(COUNTER)]
    return bool(counters) and not any(
        bool(view.read().any()) for view in counters if view.shape in ((), (1,))
    )


CONDITIONS: dict[str, Callable[[Mapping[Any, Any], Candidate], bool]] = {
    "@own": lambda content, one: "arch" in content and isinstance(content.get("input"), dict),
    "@by-name": lambda content, one: False,
    "@untrained": lambda content, one: no_batch_counted(one),
    "@nothing-else": lambda content, one: len(content) == 1,
    "@bare": lambda content, one: one.prefix == "",
}


def _explains(family: Family, taken: Candidate, candidates: list[Candidate]) -> bool:
    """Return whether every other encoder is one that the family is known to have."""
    for other in candidates:
        if other is taken or same(other, taken):
            continue
        parts = other.group.split(".")
        if not any(known == other.role if known[0] != "@" else known[1:] in parts
                   for known in family.others):  # fmt: skip
            return False
    return True


def same(one: Candidate, other: Candidate) -> bool:
    """Return whether two encoders are two names of the same tensors."""
    return one.tensors.keys() == other.tensors.keys() and all(
        view.place == other.tensors[name].place for name, view in one.tensors.items()
    )


def _distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    kept: list[Candidate] = []
    for one in candidates:
        if not any(same(one, other) for other in kept):
            kept.append(one)
    return kept


def left_beside(taken: Candidate, candidates: Iterable[Candidate], group: Group) -> Beside:
    """Sort what else stands under an encoder's prefix into heads and what should not be there."""
    used = {key for one in candidates if one.group == taken.group for key in one.sources.values()}
    heads: list[str] = []
    extra: list[str] = []
    inner = [one.prefix for one in candidates if one.group == taken.group and one is not taken]
    for key in group:
        if not key.startswith(taken.prefix) or key in used:
            continue
        if any(prefix != taken.prefix and key.startswith(prefix) and prefix.startswith(taken.prefix)
               for prefix in inner):  # fmt: skip
            continue
        rest = key.removeprefix(taken.prefix)
        first = next((part for part in rest.split(".") if part not in TRANSPARENT), rest)
        (heads if SIDE.fullmatch(first) else extra).append(rest)
    return Beside(tuple(heads), tuple(extra))


def _list(candidates: Iterable[Candidate]) -> str:
    return ", ".join(
        f"{one.label or '(no prefix)'} ({len(one.tensors)} tensors)" for one in candidates
    )


def absent(groups: Mapping[str, Group]) -> str:
    """Return why a file without any encoder holds none."""
    names = [name for group in groups.values() for name in group]
    text = " ".join(names)
    if re.search(r"cls_token|patch_embed|pos_embed|\.attn\.|self_attention|attention\.", text):
        return "it is a vision transformer (ViT), not a ResNet"
    firsts = {next((p for p in name.split(".") if p not in TRANSPARENT), "") for name in names}
    listed = ", ".join(names[:4])
    if all(SIDE.fullmatch(first) for first in firsts):
        return f"only a head in it, no backbone ({len(names)} tensors: {listed})"
    return f"no ResNet among its {len(names)} tensors ({listed}, ...)"
