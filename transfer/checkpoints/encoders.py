"""The encoders among a file's tensors, and the one that its project evaluates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transfer.checkpoints.families import FAMILIES, SIDE_NAMES, UNLISTED, Family, is_copy
from transfer.checkpoints.key_patterns import SPELLINGS, TRANSPARENT, role, split, without_wrappers
from transfer.checkpoints.state_dicts import Instance, StateDict
from transfer.checkpoints.statements import is_normalisation
from transfer.resnet import (
    BLOCKS,
    COUNTER,
    NORM_ENTRIES,
    SPELT_OTHERWISE,
    foreign,
    is_complete,
    ordered_names,
    other_norms,
)

BODY = re.compile(r"layer\d+\.\d+\.(conv\d|norm\d|relu\d|bn\d|bn_last|shortcut)\b")
MAX_ENCODERS = 64
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
SPELLINGS_OF_A_FAMILY = ("caffe2", "hugging-face", "simclr-v2", "classy", "detectron2")
NO_FAMILY = Family(UNLISTED, note="of no listed family")
NO_NETWORK = re.compile(
    r"fisher\w*|exp_avg\w*|moments?|\w+_moments?|\w*momentum_buffers?|grads?|gradients?|grad_\w+|"
    r"importance\w*|omegas?|hessian\w*|square_avg|ewc\w*|variances?"
)
ASIDE = ("callbacks", "current_model_state")  # Lightning's averages; it evaluates state_dict
DETECTRON2_JUNK = "stem.fc."


@dataclass(frozen=True, eq=False)
class Candidate:
    """An encoder: its tensors under torchvision's names, and where the file has them.

    `path` is that of the dict in the file, `prefix` what stands before the names in it, `sources`
    the whole names there by torchvision's; `spelling` is one of `key_patterns`.
    """

    spelling: str
    path: str
    prefix: str
    tensors: StateDict
    sources: dict[str, str]
    label: str = ""

    @property
    def role(self) -> str:
        """What it is called, wrappers left out."""
        return role(self.prefix)

    @property
    def aside(self) -> bool:
        """Whether it is taken only by hand: a copy that its framework does not evaluate."""
        return any(part in ASIDE for part in self.path.split("."))


def find_candidates(state_dicts: Mapping[str, StateDict]) -> list[Candidate]:
    """Return every encoder in a file, whatever its spelling.

    Raises:
        ValueError: there are more than any project has.
    """
    candidates: list[Candidate] = []
    for path, tensors in state_dicts.items():
        here = []
        for spelling in SPELLINGS:
            by_prefix: dict[str, dict[str, str]] = {}
            for key in tensors:
                parts = split(spelling, key)
                if parts is not None:
                    by_prefix.setdefault(parts[0], {})[parts[1]] = key
            if spelling == "detectron2" and "roi_heads." in by_prefix:  # a C4 detector's res5
                by_prefix.setdefault("backbone.", {}).update(by_prefix.pop("roi_heads."))
            here += [
                _candidate(spelling, path, prefix, names, tensors)
                for prefix, names in _joined(by_prefix).items()
            ]
        here = _without_shadows(here)
        if not here and path.split(".")[-1] in ("online_backbone", "target_backbone"):
            here = _by_order(path, tensors)
        candidates += here
        if len(candidates) > MAX_ENCODERS:
            raise ValueError(f"more than {MAX_ENCODERS} encoders in it, no project has so many")
    candidates = _networks(candidates)
    if len({one.path for one in candidates}) < 2:
        return [replace(one, label=one.prefix) for one in candidates]
    return [
        replace(one, label=".".join(part for part in (one.path, one.prefix) if part))
        for one in candidates
    ]


def _networks(candidates: list[Candidate]) -> list[Candidate]:
    """Drop what has a network's names and is none: moments, Fisher information, gradients.

    They are told by their path, and by running statistics that only the others have.
    """
    named = [
        one
        for one in candidates
        if not any(map(NO_NETWORK.fullmatch, (*one.path.split("."), *one.prefix.split("."))))
    ]
    counted = [one for one in named if any(name.endswith("running_mean") for name in one.tensors)]
    return counted or named


def _joined(by_prefix: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return the names of every encoder by its prefix.

    The parts of one of which only some names carry a wrapper such as `module.` are joined.
    """
    by_bare: dict[str, list[str]] = {}
    for prefix in sorted(by_prefix, key=len):
        by_bare.setdefault(without_wrappers(prefix), []).append(prefix)
    encoders: dict[str, dict[str, str]] = {}
    for prefixes in by_bare.values():
        if not any(BODY.match(name) for prefix in prefixes for name in by_prefix[prefix]):
            continue
        if len(prefixes) + len(encoders) > MAX_ENCODERS:
            raise ValueError(f"more than {MAX_ENCODERS} encoders in it, no project has so many")
        joined: dict[str, dict[str, str]] = {}
        for prefix in prefixes:
            names = by_prefix[prefix]
            fitting = (one for one, others in joined.items() if not names.keys() & others.keys())
            joined.setdefault(next(fitting, prefix), {}).update(names)
        encoders |= {
            prefix: names for prefix, names in joined.items() if any(map(BODY.match, names))
        }
    return encoders


def _candidate(
    spelling: str, path: str, prefix: str, sources: dict[str, str], tensors: StateDict
) -> Candidate:
    if spelling == "classy":
        last = 3 if any(".conv3." in name for name in sources) else 2
        sources = {name.replace("bn_last", f"bn{last}"): key for name, key in sources.items()}
    named = {name: tensors[key] for name, key in sources.items()}
    return Candidate(spelling, path, prefix, named, sources)


def _without_shadows(candidates: list[Candidate]) -> list[Candidate]:
    """Drop what a second spelling made of the names of a better-fitting first one."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: -len(one.sources)):
        names = set(candidate.sources.values())
        if not any(len(names & set(other.sources.values())) > len(names) // 2 for other in kept):
            kept.append(candidate)
    return [one for one in candidates if one in kept]


def _by_order(path: str, tensors: StateDict) -> list[Candidate]:
    """Return an encoder whose names are unknown but whose entries come in torchvision's order.

    Raises:
        ValueError: a name says that it is another entry than its place says.
    """
    for arch in BLOCKS:
        for names in (ordered_names(arch), [n for n in ordered_names(arch) if COUNTER not in n]):
            if len(names) != len(tensors):
                continue
            for name, key in zip(names, tensors, strict=True):
                last = key.split(".")[-1]
                if last in NORM_ENTRIES and last != name.split(".")[-1]:
                    raise ValueError(
                        f"{path}: {key} stands where torchvision's order has {name}; names that "
                        "are not known can only be taken in that order"
                    )
            return [_candidate("order", path, "", dict(zip(names, tensors, strict=True)), tensors)]
    return []


def chosen_by_hand(
    text: str, candidates: list[Candidate], state_dicts: Mapping[str, StateDict]
) -> tuple[list[Candidate], Candidate]:
    """Return all encoders and the one that the user named, by its prefix or its dict.

    Raises:
        ValueError: there is none of that name, or several.
    """
    ways = ("{0.label}", "{0.prefix}", "{0.path}.{0.prefix}", "{0.role}", "{0.path}.{0.role}",
            "{0.path}")  # fmt: skip
    for way in ways:
        fitting = [one for one in candidates if way.format(one).rstrip(".") == text.rstrip(".")]
        if len(fitting) == 1:
            return candidates, fitting[0]
        if fitting:
            raise ValueError(f"--encoder {text} fits several: {_list(fitting)}")
    for path, tensors in state_dicts.items() if text else ():
        cut = {k.removeprefix(text): view for k, view in tensors.items() if k.startswith(text)}
        for one in find_candidates({path: cut}):
            if one.prefix == "":
                sources = {name: text + key for name, key in one.sources.items()}
                chosen = replace(one, prefix=text, sources=sources, label=text)
                return [*candidates, chosen], chosen
    raise ValueError(f"no encoder under {text!r}; found: {_list(candidates) or 'none'}")


def matching_family(
    content: Mapping[Any, Any],
    state_dicts: Mapping[str, StateDict],
    candidates: list[Candidate],
    format: str | None,
    by_hand: Candidate | None,
) -> tuple[Family, Candidate]:
    """Return the family of a file and its encoder.

    Raises:
        ValueError: the format does not fit, or the file holds several encoders of no known family.
    """
    candidates = [one for one in candidates if not one.aside or one is by_hand] or candidates
    rows = [family for family in FAMILIES if family.name == format]
    names = {path: {role(key) for key in tensors} for path, tensors in state_dicts.items()}
    for family in rows or FAMILIES:
        fitting = sorted((one for one in candidates if _fits(family, one)),
                         key=lambda one: family.roles.index(one.role))  # fmt: skip
        if format is not None and by_hand is None:
            _refuse_several(fitting, family)
        for one in fitting:
            if format is not None or (
                all(_marked(mark, content, names[one.path], one) for mark in family.marks)
                and _explains(family, one, candidates)
            ):
                return family, by_hand or one
    if by_hand is not None:
        return (*rows, NO_FAMILY)[0], by_hand
    if format is None:
        return NO_FAMILY, _only_one(candidates)
    roles = sorted({one or "no prefix" for family in rows for one in family.roles})
    raise ValueError(
        f"no encoder where --format {format} has it ({', '.join(roles)}); encoders found: "
        f"{_list(candidates)}; leave --format out, or name one with --encoder"
    )


def _refuse_several(fitting: list[Candidate], family: Family) -> None:
    """Raise ValueError where several encoders fit a family that was given by hand equally well."""
    best = _distinct(one for one in fitting if one.role == fitting[0].role)
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
    online = [
        one
        for one in distinct
        if not _is_second(one)
        and all(
            other is one or is_copy(f"{other.path}.{other.role}", f"{one.path}.{one.role}")
            for other in distinct
        )
    ]
    if len(online) == 1:
        return online[0]
    if len(distinct) > 1:
        if not any(is_complete(one.tensors) for one in distinct):
            raise ValueError(
                f"{len(distinct)} encoders of no known family, none of them a complete torchvision "
                f"ResNet ({SPELT_OTHERWISE}): {_list(distinct)}"
            )
        raise ValueError(
            f"{len(distinct)} encoders and no known family: say which with --encoder: "
            f"{_list(distinct)}"
        )
    one = distinct[0]
    if _is_second(one):
        place = f"{one.path}.{one.prefix}"
        kind = next(words for pattern, words in KINDS_OF_COPY if re.search(pattern, place))
        in_names = any(SECOND.fullmatch(part) for part in one.prefix.split("."))
        name = one.label if in_names else place.rstrip(".")
        raise ValueError(f"only {kind} {name} is readable; say --encoder {name} to take it")
    return one


def _is_second(one: Candidate, evaluated: Iterable[str] = ()) -> bool:
    """Return whether a name marks a momentum, target or student copy; `evaluated` ones do not."""
    parts = {*one.path.split("."), *one.prefix.split(".")}
    return any(SECOND.fullmatch(part) for part in parts - set(evaluated))


def _fits(family: Family, one: Candidate) -> bool:
    if family.spelling is not None and one.spelling != family.spelling:
        return False
    if family.spelling is None and one.spelling in SPELLINGS_OF_A_FAMILY:
        return False
    under_key = family.keys is None or any(
        one.path == key or (key != "" and one.path.endswith("." + key)) for key in family.keys
    )
    evaluated = {*(family.keys or ()), *".".join(family.roles).split(".")}
    return under_key and one.role in family.roles and not _is_second(one, evaluated)


def _marked(mark: str, content: Mapping[Any, Any], names: set[str], one: Candidate) -> bool:
    if mark.startswith("!"):
        return not _marked(mark[1:], content, names, one)
    if mark in CONDITIONS:
        return CONDITIONS[mark](content, one)
    for choice in mark.split("|"):
        if choice.startswith("@") and choice[1:] in content:
            return True
        if choice in names or any(name.startswith(f"{choice}.") for name in names):
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
    "@wrapped": lambda content, one: "module" in one.prefix.split("."),
    "@lars": lambda content, one: _has_lars(content),
    "@linear-evaluation": lambda content, one: isinstance(content.get("best_acc"), Instance),
    "@openselfsup": lambda content, one: content.get("author") == "OpenSelfSup",
    "@mmselfsup": lambda content, one: "mmselfsup_version" in _mapping(content.get("meta")),
}


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _has_lars(content: Mapping[Any, Any]) -> bool:
    """Return whether the optimiser is the LARS of Barlow Twins and VICReg."""
    groups = _mapping(content.get("optimizer")).get("param_groups")
    first = groups[0] if isinstance(groups, list) and groups else None
    return "lars_adaptation_filter" in _mapping(first)


def _explains(family: Family, taken: Candidate, candidates: list[Candidate]) -> bool:
    """Return whether every other encoder is one that the family is known to have."""
    for other in candidates:
        if other is taken or _same(other, taken):
            continue
        parts = other.path.split(".")
        if not any(known == other.role if known[0] != "@" else known[1:] in parts
                   for known in family.others):  # fmt: skip
            return False
    return True


def _same(one: Candidate, other: Candidate) -> bool:
    """Return whether two encoders are two names of the same tensors."""
    return one.tensors.keys() == other.tensors.keys() and all(
        view.place == other.tensors[name].place for name, view in one.tensors.items()
    )


def _distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    kept: list[Candidate] = []
    for one in candidates:
        if not any(_same(one, other) for other in kept):
            kept.append(one)
    return kept


def extra_names(
    taken: Candidate, candidates: Iterable[Candidate], tensors: StateDict
) -> tuple[str, ...]:
    """Return what stands under an encoder's prefix and is neither its own, a head nor another's."""
    beside = [one for one in candidates if one.path == taken.path]
    used = {key for one in beside for key in one.sources.values()}
    inner = tuple(
        one.prefix
        for one in beside
        if one.prefix != taken.prefix and one.prefix.startswith(taken.prefix)
    )
    extra = []
    for key in tensors:
        if key.startswith(taken.prefix) and key not in used and not key.startswith(inner):
            rest = key.removeprefix(taken.prefix)
            first = next((part for part in rest.split(".") if part not in TRANSPARENT), rest)
            side = SIDE.fullmatch(first) or is_normalisation(key, tensors[key])
            if not side and not rest.startswith(DETECTRON2_JUNK):
                extra.append(rest)
    return tuple(extra)


def _list(candidates: Iterable[Candidate]) -> str:
    return ", ".join(
        f"{one.label or '(no prefix)'} ({len(one.tensors)} tensors)" for one in candidates
    )


def absent(state_dicts: Mapping[str, StateDict]) -> str:
    """Return why a file without any encoder holds none."""
    names = [name for tensors in state_dicts.values() for name in tensors]
    text = " ".join(names)
    if re.search(r"cls_token|patch_embed|pos_embed|\.attn\.|self_attention|attention\.", text):
        return "it is a vision transformer (ViT), not a ResNet"
    other = other_norms(names)
    if other is not None:
        return f"no ResNet by torchvision's names in it: {other}"
    firsts = {next((p for p in name.split(".") if p not in TRANSPARENT), "") for name in names}
    listed = ", ".join(names[:4])
    if all(SIDE.fullmatch(first) for first in firsts):
        return f"only a head in it, no backbone ({len(names)} tensors: {listed})"
    return f"no ResNet among its {len(names)} tensors, or {SPELT_OTHERWISE} ({listed}, ...)"
