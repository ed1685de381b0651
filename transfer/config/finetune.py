"""Settings of the stage `finetune`, and detectron2's keys as one resolved config.

Of the keys those that cannot change a result are left out of what a fine-tuning is known by.
Neither torch nor detectron2 is imported: the defaults are read from the installed detectron2's own
file, and merged by yacs, whose rules detectron2's are.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator
from yacs.config import CfgNode

from transfer.config.data import DetectionData, Section, left_out

Optimizer = Literal["sgd", "adamw"]
RATE = "SOLVER.BASE_LR"
Keys = dict[str, Any]  # values by `SECTION.KEY`
WORKERS = ("DATALOADER.NUM_WORKERS",)
PERIODS = ("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD", "VIS_PERIOD")
C4_HEADS = ("Res5ROIHeads", "Res5ROIHeadsExtraNorm")
PRECISION = "SOLVER.AMP.PRECISION"
FLOAT32 = "MODEL.PRECISION"
OPTIMIZER = "optimizer"  # stands beside the keys of a task, not among them
# this project's, with their defaults
OWN_KEYS = {PRECISION: "fp16", FLOAT32: "float32", "SOLVER.OPTIMIZER": "sgd"}


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


class LeftOut(NamedTuple):
    """Keys, or sections of them (ending in a dot), that nothing reads `unless` something holds."""

    keys: tuple[str, ...]
    why: str
    unless: Callable[[Keys], bool] = lambda _: False


def _in(key: str, *values: object) -> Callable[[Keys], bool]:
    return lambda keys: keys[key] in values


# What is not here is part of a fine-tuning's identity, read or not.
LEFT_OUT = (
    LeftOut(
        ("OUTPUT_DIR", "SEED", "MODEL.WEIGHTS"),
        "the pipeline sets it; seed and weights are part of the identity by themselves",
    ),
    LeftOut(("SOLVER.OPTIMIZER",), "the task's optimizer is part of the identity by itself"),
    LeftOut(
        ("DATASETS.TRAIN", "DATASETS.TEST"),
        "names are labels; the sets are part of it by content, in this order",
    ),
    LeftOut(
        PERIODS,
        "when something is saved, evaluated or drawn on the way: the last AP is the same "
        "(`best/...` is the best of the evaluations that were made)",
    ),
    LeftOut(WORKERS, "what an image becomes follows from the seed and its position"),
    LeftOut(
        ("MODEL.DEVICE", "CUDNN_BENCHMARK"), "where and by which kernels it is computed: rounding"
    ),
    LeftOut(("VERSION",), "the form of the file"),
    LeftOut(("GLOBAL.HACK", "TEST.AUG."), "nothing here reads it"),
    LeftOut(("TEST.EXPECTED_RESULTS",), "results are compared with it; it changes none"),
    LeftOut(
        ("MODEL.RETINANET.",),
        "of RetinaNet alone",
        _in("MODEL.META_ARCHITECTURE", "RetinaNet"),
    ),
    LeftOut(
        ("MODEL.SEM_SEG_HEAD.",),
        "of semantic segmentation alone",
        _in("MODEL.META_ARCHITECTURE", "PanopticFPN", "SemanticSegmentor"),
    ),
    LeftOut(
        ("MODEL.PANOPTIC_FPN.",),
        "of Panoptic FPN alone",
        _in("MODEL.META_ARCHITECTURE", "PanopticFPN"),
    ),
    LeftOut(
        ("MODEL.ROI_KEYPOINT_HEAD.", "TEST.KEYPOINT_OKS_SIGMAS"),
        "of keypoints, without MODEL.KEYPOINT_ON",
        _in("MODEL.KEYPOINT_ON", True),
    ),
    LeftOut(
        ("MODEL.ROI_MASK_HEAD.", "INPUT.MASK_FORMAT"),
        "of masks, without MODEL.MASK_ON",
        _in("MODEL.MASK_ON", True),
    ),
    LeftOut(
        ("MODEL.FPN.",),
        "of a feature pyramid, and the backbone has none",
        lambda keys: "fpn" in str(keys["MODEL.BACKBONE.NAME"]),
    ),
    LeftOut(
        ("MODEL.ROI_BOX_CASCADE_HEAD.",),
        "of Cascade R-CNN alone",
        _in("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
    ),
    LeftOut(
        tuple(
            f"MODEL.ROI_BOX_HEAD.{key}"
            for key in ("NAME", "NUM_FC", "FC_DIM", "NUM_CONV", "CONV_DIM", "NORM")
        ),
        "of a box head of its own; C4's is the backbone's last stage",
        lambda keys: keys["MODEL.ROI_HEADS.NAME"] not in C4_HEADS,
    ),
    LeftOut(
        ("MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.RESNETS.WIDTH_PER_GROUP"),
        "of bottlenecks, which ResNet-18 and 34 do not have",
        lambda keys: (
            keys["MODEL.RESNETS.DEPTH"] not in (18, 34) or keys["MODEL.ROI_HEADS.NAME"] in C4_HEADS
        ),
    ),
    LeftOut(
        ("MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS"),
        "of deformable convolutions, and no stage has them",
        lambda keys: any(keys["MODEL.RESNETS.DEFORM_ON_PER_STAGE"]),
    ),
    LeftOut(
        ("MODEL.ANCHOR_GENERATOR.ANGLES",),
        "of rotated anchors alone",
        _in("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
    ),
    LeftOut(
        ("MODEL.RPN.SMOOTH_L1_BETA",),
        "of the smooth L1 loss, and the boxes have another",
        _in("MODEL.RPN.BBOX_REG_LOSS_TYPE", "smooth_l1"),
    ),
    LeftOut(
        ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",),
        "of the smooth L1 loss, and the boxes have another",
        _in("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "smooth_l1"),
    ),
    LeftOut(
        tuple(
            f"DATASETS.{key}_{split}"
            for key in ("PROPOSAL_FILES", "PRECOMPUTED_PROPOSAL_TOPK")
            for split in ("TRAIN", "TEST")
        ),
        "of proposals from files, without MODEL.LOAD_PROPOSALS",
        _in("MODEL.LOAD_PROPOSALS", True),
    ),
    LeftOut(
        ("DATALOADER.REPEAT_THRESHOLD",),
        "of the repeat-factor sampler alone",
        _in("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    ),
    LeftOut(
        ("INPUT.CROP.TYPE", "INPUT.CROP.SIZE"),
        "of crops, without INPUT.CROP.ENABLED",
        _in("INPUT.CROP.ENABLED", True),
    ),
    LeftOut(
        tuple(f"SOLVER.CLIP_GRADIENTS.{key}" for key in ("CLIP_TYPE", "CLIP_VALUE")),
        "of clipping, without SOLVER.CLIP_GRADIENTS.ENABLED",
        _in("SOLVER.CLIP_GRADIENTS.ENABLED", True),
    ),
    LeftOut(
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",),
        "of clipping by norm alone",
        lambda keys: (
            keys["SOLVER.CLIP_GRADIENTS.ENABLED"]
            and keys["SOLVER.CLIP_GRADIENTS.CLIP_TYPE"] == "norm"
        ),
    ),
    LeftOut(
        (PRECISION,),
        "of mixed precision, without SOLVER.AMP.ENABLED",
        _in("SOLVER.AMP.ENABLED", True),
    ),
    LeftOut(
        (FLOAT32,),
        "float32, as every result without this key",
        lambda keys: keys[FLOAT32] != "float32",
    ),
    LeftOut(
        ("SOLVER.STEPS", "SOLVER.GAMMA"),
        "of a schedule in steps, and the task has a cosine",
        lambda keys: keys["SOLVER.LR_SCHEDULER_NAME"] != "WarmupCosineLR",
    ),
    LeftOut(
        ("SOLVER.MOMENTUM", "SOLVER.NESTEROV"),
        "of SGD, and the task's optimizer is another",
        _in(OPTIMIZER, "sgd"),
    ),
    LeftOut(
        ("TEST.PRECISE_BN.NUM_ITER",),
        "of precise BatchNorm, without TEST.PRECISE_BN.ENABLED",
        _in("TEST.PRECISE_BN.ENABLED", True),
    ),
)


def signed_keys(content: dict[str, Any], optimizer: str) -> Keys:
    """Return the keys of a task that are part of its identity, resolved with detectron2's defaults.

    Args:
        content: the detectron2 config as it is written.
        optimizer: the task's optimiser.

    Raises:
        ValueError: detectron2 refuses the config.
        FileNotFoundError: detectron2 is not installed.
    """
    cfg: CfgNode = defaults().clone()
    plain = flat(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise ValueError(f"detectron2 refuses the config: {error}") from None
    keys = {key: _like(plain.get(key), value) for key, value in flat(cfg).items()}
    unread = why_left_out(keys, optimizer)
    return {key: value for key, value in keys.items() if key not in unread}


def why_left_out(keys: Keys, optimizer: str) -> dict[str, str]:
    """Return the keys of a resolved config that are no part of its identity, and why not."""
    known = keys | {OPTIMIZER: optimizer}
    unread = [
        (row.keys, tuple(each for each in row.keys if each.endswith(".")), row.why)
        for row in LEFT_OUT
        if not row.unless(known)
    ]
    return {
        key: why
        for key in keys
        for names, sections, why in unread
        if key in names or key.startswith(sections)
    }


def with_own_keys(cfg: Any) -> Any:
    """Return detectron2's config with this project's keys in it."""
    for key, value in OWN_KEYS.items():
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        node[name] = value
    return cfg


def flat(content: dict[str, Any], prefix: str = "") -> Keys:
    """Return a config's values by `SECTION.KEY`."""
    values: Keys = {}
    for key, value in content.items():
        values |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return values


@cache
def defaults() -> CfgNode:
    """Return what detectron2's file of defaults makes; its only import is that of the config.

    It is the same node each time, so what changes it copies it first.

    Raises:
        FileNotFoundError: detectron2 is not installed.
    """
    spec = find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("detectron2 is not installed")
    path = Path(spec.submodule_search_locations[0], "config", "defaults.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.ImportFrom)]
    names: dict[str, Any] = {"CN": CfgNode}
    exec(compile(tree, str(path), "exec"), names)
    cfg: CfgNode = with_own_keys(names["_C"])
    return cfg


def _like(default: Any, value: Any) -> Any:
    """Return a value as JSON has it, whole numbers among fractions as the default's fractions."""
    if isinstance(value, list | tuple):
        like = leaves(default)
        fractions = bool(like) and all(isinstance(leaf, float) for leaf in like)
        return [_like(1.0 if fractions else None, entry) for entry in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and isinstance(default, float) else value


def leaves(value: Any) -> list[Any]:
    """Return what a list, and lists in it, hold besides lists and None; a value by itself."""
    if isinstance(value, list | tuple):
        return [leaf for entry in value for leaf in leaves(entry)]
    return [] if value is None else [value]
