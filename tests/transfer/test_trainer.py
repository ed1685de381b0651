"""The model that a trainer builds: every parameter it trains gets a gradient."""

from pathlib import Path

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from transfer.command import read_config
from transfer.trainer import Trainer

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "transfer"


def frozen(name: str, *changes: str) -> list[str]:
    cfg = read_config(str(FOLDER / name), ["MODEL.DEVICE", "meta", *changes])
    with torch.device("meta"):
        model = Trainer.build_model(cfg)
    return [key for key, value in model.named_parameters() if not value.requires_grad]


def test_only_outputs_that_nothing_reads_are_frozen() -> None:
    unread = [f"backbone.fpn_output5.{key}" for key in ("weight", "norm.weight", "norm.bias")]
    assert frozen("digits_mask_rcnn_coco.yaml") == unread
    assert frozen("coco_mask_rcnn_r50_fpn_1x.yaml") == []  # RPN reads p6, which p5 makes
    assert frozen("voc_faster_rcnn_r50_c4_24k.yaml") == []


def test_every_trained_parameter_gets_a_gradient() -> None:
    cfg = read_config(str(FOLDER / "digits_faster_rcnn_voc.yaml"), ["MODEL.DEVICE", "cpu"])
    model = Trainer.build_model(cfg).train()
    truth = Instances((64, 64))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    truth.gt_classes = torch.tensor([3])
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with EventStorage():
        losses = model([{"image": image, "instances": truth, "height": 64, "width": 64}] * 2)
    torch.stack(list(losses.values())).sum().backward()
    without = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and value.grad is None
    ]
    assert without == []
