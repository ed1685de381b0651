"""Settings of the stage `finetune`. Torch-free.

Tested in tests/transfer/test_finetune.py.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from transfer.config.data import DetectionData, Section, left_out

Optimizer = Literal["sgd", "adamw"]


class FinetuneConfig(Section):
    """One fine-tuning run: a resolved detectron2 config, the sets it names, and a seed.

    `optimizer` stands here because detectron2's own configs know only SGD; both take their learning
    rate, weight decay and clipping from the config's SOLVER section.

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
    """detectron2's SGD, or AdamW"""
    num_gpus: int = Field(default=1, ge=1)
    """GPUs on each machine"""
    num_nodes: int = Field(default=1, ge=1)
    """machines"""
    num_pictures: int = Field(default=6, ge=1, json_schema_extra=left_out("drawn of the result"))
    """pictures of detections that are drawn"""
