"""The identity of a task: detectron2's keys as they are resolved, without those that are unread."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from transfer.config import finetune
from transfer.config.finetune import (
    LEFT_OUT,
    FinetuneConfig,
    flat,
    named_optimizer,
    signed_keys,
    why_left_out,
)
from transfer.detection.cfg import build_cfg
from transfer.detection.loader import ImageMapper
from transfer.detection.trainer import TRAINERS

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))
# A shipped task, its optimizer, and keys of it changed.
TASKS: list[tuple[str, str, dict[str, Any]]] = [
    ("voc_faster_rcnn_r50_c4_24k", "sgd", {"TEST.PRECISE_BN.ENABLED": False}),
    ("coco_mask_rcnn_r50_c4_1x", "sgd", {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}),
    (
        "voc_faster_rcnn_r18_fpn_24k",
        "adamw",
        {"MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou"},
    ),
    (
        "coco_mask_rcnn_r50_fpn_1x",
        "sgd",
        {
            "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, True],
            "MODEL.ANCHOR_GENERATOR.NAME": "RotatedAnchorGenerator",
            "INPUT.CROP.ENABLED": True,
            "SOLVER.AMP.ENABLED": True,
            "SOLVER.CLIP_GRADIENTS.ENABLED": True,
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
        },
    ),
]
# Left out, and yet looked up when a detector is built: what nothing is made of with this config.
LOOKED_UP = (
    "VIS_PERIOD",
    "INPUT.MASK_FORMAT",
    "MODEL.RESNETS.DEFORM_MODULATED",
    "MODEL.RESNETS.DEFORM_NUM_GROUPS",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "MODEL.RPN.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
)


def signed(optimizer: str = "sgd", **content: Any) -> dict[str, Any]:
    return signed_keys(content, optimizer)


def test_defaults_are_those_of_the_installed_detectron2() -> None:
    theirs = flat(get_cfg())
    own = {"SOLVER.AMP.PRECISION": "fp16", "SOLVER.OPTIMIZER": "sgd"}
    own["MODEL.PRECISION"] = "float32"
    assert flat(finetune.defaults()) == theirs | own
    assert len(theirs) == 183


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_config_is_resolved_as_detectron2_resolves_it(path: Path) -> None:
    content = CfgNode.load_yaml_with_base(str(path))
    cfg = get_cfg()
    theirs_alone = CfgNode(content)
    assert theirs_alone.SOLVER.pop("OPTIMIZER", "sgd") == named_optimizer(content)
    cfg.merge_from_other_cfg(theirs_alone)
    theirs = flat(cfg)
    ours = signed_keys(dict(content), "sgd")
    assert len(ours) > 80
    for key, value in ours.items():
        assert value == (list(theirs[key]) if isinstance(theirs[key], tuple) else theirs[key])


def test_defaults_written_out_and_other_ways_to_write_a_value_change_nothing() -> None:
    written: dict[str, Any] = {}
    for key, value in flat(finetune.defaults()).items():
        node = written
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    assert signed_keys(written, "sgd") == signed()
    one = signed(SOLVER={"BASE_LR": "1e-3", "STEPS": "(4, 5)"}, MODEL={"PIXEL_MEAN": [1, 2, 3]})
    assert one == signed(
        SOLVER={"BASE_LR": 0.001, "STEPS": [4, 5]}, MODEL={"PIXEL_MEAN": (1.0, 2.0, 3.0)}
    )
    assert one["SOLVER.STEPS"] == [4, 5] and one["SOLVER.BASE_LR"] == 0.001


@pytest.mark.parametrize(
    "content",
    [
        {"DATALOADER": {"NUM_WORKERS": 9}},
        {"SOLVER": {"CHECKPOINT_PERIOD": 1}, "TEST": {"EVAL_PERIOD": 5}, "VIS_PERIOD": 1},
        {"MODEL": {"DEVICE": "cpu"}, "OUTPUT_DIR": "elsewhere", "VERSION": 1},
        {"MODEL": {"RETINANET": {"NUM_CLASSES": 3}, "SEM_SEG_HEAD": {"NORM": ""}}},
        {"MODEL": {"FPN": {"OUT_CHANNELS": 7}, "ROI_MASK_HEAD": {"NUM_CONV": 9}}},
        {"MODEL": {"ROI_BOX_HEAD": {"FC_DIM": 7}}},
        {"SOLVER": {"AMP": {"PRECISION": "bf16"}, "CLIP_GRADIENTS": {"CLIP_VALUE": 9.0}}},
        {"INPUT": {"CROP": {"SIZE": [0.5, 0.5]}, "MASK_FORMAT": "bitmask"}},
    ],
)
def test_what_nothing_reads_changes_nothing(content: dict[str, Any]) -> None:
    assert signed_keys(content, "sgd") == signed()


@pytest.mark.parametrize(
    "content",
    [
        {"SOLVER": {"BASE_LR": 0.002}},
        {"MODEL": {"BACKBONE": {"NAME": "build_resnet_fpn_backbone"}, "FPN": {"OUT_CHANNELS": 7}}},
        {"MODEL": {"MASK_ON": True, "ROI_MASK_HEAD": {"NUM_CONV": 9}}},
        {"MODEL": {"ROI_HEADS": {"NAME": "StandardROIHeads"}, "ROI_BOX_HEAD": {"FC_DIM": 7}}},
        {"SOLVER": {"AMP": {"ENABLED": True, "PRECISION": "bf16"}}},
        {"SOLVER": {"CLIP_GRADIENTS": {"ENABLED": True, "CLIP_VALUE": 9.0}}},
        {"MODEL": {"RESNETS": {"NORM": "BN"}}},
    ],
)
def test_what_is_read_is_part_of_it(content: dict[str, Any]) -> None:
    (*_, (_, values)) = content.items()
    without = {section: dict(list(part.items())[:-1]) for section, part in content.items()}
    assert signed_keys(content, "sgd") != signed_keys(without, "sgd"), values


def test_another_optimizer_reads_other_keys() -> None:
    assert signed("adamw", SOLVER={"MOMENTUM": 0.5}) == signed("adamw")
    assert signed("sgd", SOLVER={"MOMENTUM": 0.5}) != signed("sgd")


def test_another_detectron2s_default_is_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signed()
    cfg = finetune.defaults().clone()
    cfg.MODEL.RPN.NMS_THRESH = 0.6
    monkeypatch.setattr(finetune, "defaults", lambda: cfg)
    assert {key for key, value in signed().items() if before[key] != value} == {
        "MODEL.RPN.NMS_THRESH"
    }


def test_every_row_names_keys_that_there_are_and_says_why() -> None:
    keys = flat(finetune.defaults())
    for row in LEFT_OUT:
        assert row.why and row.keys
        for name in row.keys:
            assert name in keys or any(key.startswith(name) for key in keys if name[-1] == "."), (
                name
            )
    assert why_left_out(keys, "sgd")["MODEL.RETINANET.NORM"] == "of RetinaNet alone"


def test_a_config_that_detectron2_refuses_is_told() -> None:
    for content in ({"SOLVER": {"BASE_RL": 1.0}}, {"SOLVER": {"BASE_LR": "fast"}}, {"SOLVER": 3}):
        with pytest.raises(ValueError, match="detectron2 refuses the config"):
            signed_keys(content, "sgd")


def content_of(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = CfgNode.load_yaml_with_base(str(CONFIGS / f"{name}.yaml"))
    for key, value in changes.items():
        content = with_value(content, key, value)
    return content


def resolved(content: dict[str, Any]) -> CfgNode:
    return build_cfg(FinetuneConfig(detectron2=content, datasets={}), None, Path())


def with_value(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    whole = node = copy.deepcopy(content)
    *sections, last = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = value
    return whole


def another(value: Any) -> Any:
    """Another value that detectron2 takes for it, by its type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 4 + 0.1
    if isinstance(value, list | tuple):
        return [*value, *(value[-1:] or ["more"])]
    return 0.5 if value is None else f"{value}other"


@pytest.mark.parametrize(("name", "optimizer", "changes"), TASKS)
def test_each_of_the_keys_is_part_of_the_identity_or_in_the_table(
    name: str, optimizer: str, changes: dict[str, Any]
) -> None:
    content = content_of(name, changes)
    before = signed_keys(content, optimizer)
    keys = flat(resolved(content))
    left_out = why_left_out(keys, optimizer)
    assert len(keys) == 186 and before.keys() == keys.keys() - left_out.keys()
    assert keys.pop("MODEL.PRECISION") == "float32" and "MODEL.PRECISION" in left_out  # if given
    for key, value in (keys | {"MODEL.DEVICE": "cuda"}).items():
        after = signed_keys(with_value(content, key, another(value)), optimizer)
        assert (after == before) == (key in left_out), key


@pytest.mark.parametrize(("name", "optimizer", "changes"), TASKS)
def test_detectron2_builds_the_same_without_the_keys_that_are_left_out(
    name: str, optimizer: str, changes: dict[str, Any]
) -> None:
    def built(cfg: CfgNode) -> tuple[Any, ...]:
        with torch.device("meta"):
            model = build_model(cfg)
        solver = TRAINERS[optimizer].build_optimizer(cfg, model)
        TRAINERS[optimizer].build_lr_scheduler(cfg, solver)
        ImageMapper(cfg, True), ImageMapper(cfg, False)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        return repr(model), repr(solver), shapes

    cfg = resolved(content_of(name, changes))
    cfg.MODEL.DEVICE = "meta"
    before = built(cfg)
    for key in why_left_out(flat(cfg), optimizer).keys() - {"MODEL.DEVICE"}:
        *sections, last = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        if key in LOOKED_UP:
            node[last] = another(node[last])
        else:
            del node[last]
    assert built(cfg) == before
