"""A stage: one unit of work with an identity, a run folder, and the stages it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.stages.signature import RULE, signature_of


@dataclass(frozen=True)
class StageKind:
    """What all stages of one name share.

    `module` offers `run_stage(config, inputs, output_dir) -> metrics` and
    `check_stage(config) -> faults`; where it needs more than any machine has
    `check_machine(config) -> faults`; for what stops nothing `stage_notes(config, roles of the
    inputs of each stage) -> remarks`; and where its result is known beforehand to demand keys of a
    detectron2 config `demanded_keys(config) -> values by key`. `version` is raised by hand when a
    change of code changes results. `outputs` are patterns below the run folder; each must match,
    and `result` is the file that the next stage reads. `reads` are the outputs of its inputs that a
    stage of this kind reads, their `result` where it is empty.
    """

    module: str
    version: int
    outputs: tuple[str, ...]
    result: str
    reads: tuple[str, ...] = ()


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
