"""The model that a trainer builds, and what several processes agree on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from transfer.detection import trainer as trainer_module
from transfer.detection.cli import read_config
from transfer.detection.trainer import Trainer, share_buffers

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "transfer"


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


def losses_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    truth = Instances((64, 64))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    truth.gt_classes = torch.tensor([3])
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with EventStorage():
        found: dict[str, torch.Tensor] = model.train()(
            [{"image": image, "instances": truth, "height": 64, "width": 64}] * 2
        )
    return found


def test_every_trained_parameter_gets_a_gradient() -> None:
    cfg = read_config(str(FOLDER / "digits_faster_rcnn_voc.yaml"), ["MODEL.DEVICE", "cpu"])
    model = Trainer.build_model(cfg)
    torch.stack(list(losses_of(model).values())).sum().backward()
    without = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and value.grad is None
    ]
    assert without == []


@pytest.mark.parametrize(
    "precision, trained_in", [("bf16", torch.bfloat16), ("fp16", torch.float32)]
)  # float16 is detectron2's own, outside the model
def test_bfloat16_is_for_training_alone(precision: str, trained_in: torch.dtype) -> None:
    changes = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION"]
    cfg = read_config(str(FOLDER / "digits_faster_rcnn_voc.yaml"), [*changes, precision])
    model, seen = Trainer.build_model(cfg), []
    model.backbone.bottom_up.res2[0].conv1.register_forward_hook(
        lambda module, given, output: seen.append((module.training, output.dtype))
    )
    losses = losses_of(model)
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    assert all(value.isfinite() for value in losses.values())
    assert {value.grad.dtype for value in model.parameters() if value.grad is not None} == {
        torch.float32
    }
    with torch.no_grad():
        model.eval()([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    assert seen == [(True, trained_in), (False, torch.float32)]


POOLERS = ("ROIAlign", "ROIAlignV2", "ROIPool")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", POOLERS)
@pytest.mark.parametrize("file", ["digits_faster_rcnn_voc.yaml", "voc_faster_rcnn_r50_c4_24k.yaml"])
def test_half_precision_pools_where_float32_does(file: str, kind: str, dtype: torch.dtype) -> None:
    """The boxes stay as they are: above 512 px bfloat16 would place them on a grid of 4 px."""
    changes = ["MODEL.DEVICE", "meta", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", kind]
    with torch.device("meta"):
        model = Trainer.build_model(read_config(str(FOLDER / file), changes))
    heads = model.roi_heads
    pool = heads.pooler if hasattr(heads, "pooler") else heads.box_pooler
    generator = torch.Generator().manual_seed(0)
    corners = 600 + 400 * torch.rand(40, 2, generator=generator)
    boxes = [Boxes(torch.cat([corners, corners + 24], 1))]
    scales = [part.spatial_scale for part in pool.level_poolers]
    maps = [
        torch.randn(1, 8, *[round(1056 * scale)] * 2, generator=generator).to(dtype)
        for scale in scales
    ]
    for map_ in maps:
        map_.requires_grad_()
    with torch.autocast("cpu", dtype):
        pooled = pool(maps, boxes)
    assert pooled.dtype == dtype
    expected = pool([map_.float() for map_ in maps], boxes)
    assert expected.dtype == torch.float32 and torch.equal(pooled, expected.to(dtype))
    if kind != "ROIPool":  # which rounds the boxes itself
        rounded = [Boxes(boxes[0].tensor.to(dtype).float())]
        off = (pool([map_.float() for map_ in maps], rounded) - expected).norm() / expected.norm()
        assert off > (0.1 if dtype == torch.bfloat16 else 0.01)  # what it would cost
    pooled.float().sum().backward()
    assert any(map_.grad is not None and map_.grad.abs().sum() > 0 for map_ in maps)


def test_all_processes_take_the_first_ones_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = torch.nn.BatchNorm2d(3)
    sent = torch.tensor([1.0, 2.0, 3.0])

    def broadcast(tensor: torch.Tensor, source: int) -> None:
        assert source == 0
        tensor.copy_(sent if tensor.ndim else torch.tensor(7))

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    share_buffers(norm)  # one process: nothing to share
    assert torch.equal(norm.running_mean, torch.zeros(3))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    share_buffers(norm)
    assert torch.equal(norm.running_mean, sent) and torch.equal(norm.running_var, sent)
    assert norm.num_batches_tracked == 7
    assert torch.equal(norm.weight, torch.ones(3))


def test_statistics_are_shared_before_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(trainer_module, "share_buffers", lambda _: done.append("share"))
    monkeypatch.setattr(comm, "is_main_process", lambda: False)

    def test(cfg: object, model: object) -> dict[str, Any]:
        done.append("test")
        return {}

    trainer: Any = SimpleNamespace(is_complete=True, cfg=None, model=None, test=test)
    assert Trainer.evaluate(trainer) == {} and done == ["share", "test"]
