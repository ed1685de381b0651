"""A stage: one unit of work with a signature, a run folder, and the stages it needs.

A signature is the content address of what it computes, as 16 hex digits. It covers the version of
this rule, the stage's name and version, its whole resolved config and the signatures of its inputs.
Settings that cannot change a result stay out: they carry
`json_schema_extra={"identity": False, "why": ..}` in their config class. A setting that came later
carries `{"identity": "if given"}`: while it has its default, the signatures are those of before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

SIGNATURE_DIGITS = 16
DATA, CHECKPOINT, WORLD_SIZE = "data_content", "checkpoint_sha256", "world_size"  # of an identity
TABLES = "family_tables_sha256"  # in the identity of a conversion of a checkpoint
RANDOM_ARCH = "random_arch"  # in the identity of a probe of a random backbone
RULE = 2  # the version of the rule by which an identity is made; part of every signature


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def signature_of(identity: dict[str, Any]) -> str:
    """Return the first 16 hex digits of the sha256 over the canonical JSON of `identity`."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:SIGNATURE_DIGITS]


def identity_of(config: BaseModel) -> dict[str, Any]:
    """Return the resolved config without the fields that are marked as not changing a result."""
    content: dict[str, Any] = {}
    for name, setting in type(config).model_fields.items():
        extra, value = setting.json_schema_extra, getattr(config, name)
        mark = extra.get("identity") if isinstance(extra, dict) else None
        if mark is False or (mark == "if given" and value == setting.default):
            continue
        content[name] = _plain(value)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} ({type(value).__name__}) has no place in a signature")


def differences(
    a: Any, b: Any, path: str = "", names: tuple[str, str] = ("stored", "wanted")
) -> list[str]:
    """Return one line for every place where two JSON values differ; `names` is what they are.

    Values are written as in YAML, keys of a fine-tuning's settings as its config has them.
    """

    def written(value: Any) -> str:
        return repr(value) if isinstance(value, str) else json.dumps(value)

    if isinstance(a, dict) and isinstance(b, dict):
        lines = []
        for key in sorted(a.keys() | b.keys()):
            place = f"{path}.{key}" if path and path != "detectron2" else str(key)
            if key in a and key in b:
                lines += differences(a[key], b[key], place, names)
            else:
                in_a, in_b = (written(side[key]) if key in side else "nothing" for side in (a, b))
                lines.append(f"{place}: {names[0]} {in_a}, {names[1]} {in_b}")
        return lines
    return [] if a == b else [f"{path}: {names[0]} {written(a)}, {names[1]} {written(b)}"]


@dataclass(frozen=True)
class StageKind:
    """What all stages of one name share.

    `module` offers `run_stage(config, inputs, output_dir) -> metrics` and
    `check_stage(config) -> faults`; where it can refuse what it is given `check_inputs(config,
    roles of the inputs of each stage) -> faults`; where it needs more than any machine has
    `check_machine(config, number of processes) -> faults`; for what stops nothing
    `stage_notes(config, roles of the inputs of each stage) -> remarks`; where it computes in
    several precisions `stage_precision(config) -> words` for the provenance; and where its result
    is known beforehand to demand keys of a detectron2 config `demanded_keys(config) -> values by
    key`. `version` is raised by hand when a change of code changes results. `outputs` are patterns
    below the run folder; each must match, and `result` is the file that the next stage reads.
    `reads` are the outputs of its inputs that a stage of this kind reads, their `result` where it
    is empty. `state_in` is an output that also holds a state to go on from: `strip_state(path,
    target) -> bytes of the state` of `module` writes it without.
    """

    module: str
    version: int
    outputs: tuple[str, ...]
    result: str
    reads: tuple[str, ...] = ()
    state_in: str = ""


STAGE_KINDS: dict[str, StageKind] = {
    "pretrain": StageKind("pretrain.train", 1, ("backbone.pth",), "backbone.pth"),
    "convert": StageKind(
        "transfer.convert",
        3,
        ("backbone.pkl", "backbone.json", "backbone.pth"),
        "backbone.pkl",
        ("backbone.pth",),
    ),
    "probe": StageKind(
        "pretrain.probes.probe", 1, ("probes.json",), "probes.json", ("backbone.pth",)
    ),
    "finetune": StageKind(
        "transfer.finetune",
        2,
        ("model_final.pth", "predictions.json", "effective_config.yaml", "pictures/*.jpg"),
        "model_final.pth",
        ("backbone.pkl", "backbone.json"),
        "model_final.pth",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    `identity` is the part of the config that can change the result, `settings` is the whole config
    with paths and workers, `inputs` maps a role to the stage whose result it reads,
    `source` is the config file that faults are named by. `folder_of` is the slug under which a
    stage of the same signature has its folder, where that is not its own.
    """

    kind: str
    slug: str
    identity: dict[str, Any]
    settings: dict[str, Any]
    root: Path
    inputs: dict[str, Stage] = field(default_factory=dict)
    backbone: str = ""
    task: str | None = None
    probe: str | None = None
    seed: int | None = None
    source: str = ""
    folder_of: str = ""

    @property
    def name(self) -> str:
        """Return `kind/slug`, the name a person uses."""
        return f"{self.kind}/{self.slug}"

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return what `config.json` holds: everything that the signature covers."""
        return {
            "rule": RULE,
            "stage": self.kind,
            "version": STAGE_KINDS[self.kind].version,
            "config": self.identity,
            "inputs": {role: stage.signature for role, stage in sorted(self.inputs.items())},
        }

    @cached_property
    def signature(self) -> str:
        """Return the content address: equal signatures compute the same thing."""
        return signature_of(self.record)

    @cached_property
    def run_dir(self) -> Path:
        """Return the folder that this stage writes."""
        return self.root / self.kind / f"{self.folder_of or self.slug}-{self.signature}"

    @property
    def same_as(self) -> str | None:
        """Return the name of the stage of the same signature whose folder it uses, or None."""
        return f"{self.kind}/{self.folder_of}" if self.folder_of else None

    @property
    def result(self) -> Path:
        """Return the file that stages after this one read."""
        return self.run_dir / STAGE_KINDS[self.kind].result
