"""Settings of the stage `finetune`. Torch-free.

Tested in tests/transfer/test_finetune.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from transfer.config.data import DetectionData, Section, left_out

Optimizer = Literal["sgd", "adamw"]
RATE = "SOLVER.BASE_LR"


class FinetuneConfig(Section):
    """One fine-tuning run: a resolved detectron2 config, the sets it names, and a seed.

    `optimizer` is that of the config's SOLVER section, where its learning rate, weight decay and
    clipping stand: this project's key SOLVER.OPTIMIZER, and detectron2's SGD where it is left out.

    `num_gpus` on each of `num_nodes` machines; 1 and 1 is one process, on a CPU where there is no
    GPU. They belong to the identity: they decide the batch that a synchronised norm sees and, with
    SOLVER.REFERENCE_WORLD_SIZE, batch size, learning rate and number of iterations.
    """

    detectron2: dict[str, Any]
    """the task's config, all bases and overrides resolved"""
    datasets: dict[str, DetectionData]
    """the sets that it names"""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """of the new layers and of the order of the images"""
    optimizer: Optimizer = "sgd"
    """detectron2's SGD, or AdamW; the config's `SOLVER.OPTIMIZER` unless given"""
    num_gpus: int = Field(default=1, ge=1)
    """GPUs on each machine"""
    num_nodes: int = Field(default=1, ge=1)
    """machines"""
    num_pictures: int = Field(default=6, ge=1, json_schema_extra=left_out("drawn of the result"))
    """pictures of detections that are drawn"""

    @model_validator(mode="before")
    @classmethod
    def _optimizer_of_the_config(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.get("optimizer") is not None:
            return content
        return content | {"optimizer": named_optimizer(content.get("detectron2"))}


def named_optimizer(config: Any) -> Any:
    """Return the value of a detectron2 config's SOLVER.OPTIMIZER, in small letters."""
    solver = config.get("SOLVER") if isinstance(config, dict) else None
    name = solver.get("OPTIMIZER") if isinstance(solver, dict) else None
    return "sgd" if name is None else name.lower() if isinstance(name, str) else name


def optimizer_fault(
    recipe: dict[str, Any], changed: dict[str, Any], optimizer: str | None, overrides: Sequence[str]
) -> str | None:
    """Return why a recipe's learning rate would go to an optimiser that it is not meant for.

    `recipe` is the config as its file has it, `changed` the same with `KEY=VALUE` overrides.
    """
    before, after = named_optimizer(recipe), named_optimizer(changed)
    name = optimizer or after
    if optimizer is not None and before != after != optimizer:
        return f"optimizer is {optimizer}, but SOLVER.OPTIMIZER={after} is an override; give one"
    if name == before or any(text.startswith((f"{RATE}=", "SOLVER=")) for text in overrides):
        return None
    return (
        f"{RATE} is {before}'s and the optimizer {name}; give {name}'s rate with it (overrides: "
        f"[{RATE}=..]), or, if it is {name}'s already, write SOLVER.OPTIMIZER: {name} beside it in "
        "the config"
    )
