"""The detectron2 that is installed does what this project asks of it, whichever build it is."""

import importlib.metadata
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transfer.detectron2_wheel.wheel import VERSION

pytest.importorskip("detectron2", reason="no detectron2 in this interpreter")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    MapDataset,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import (
    COCOEvaluator,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)
from detectron2.layers import ROIAlignRotated, nms_rotated
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks

SIZE = 64
ARCHITECTURES = [(net, mask) for net in ("C4", "FPN") for mask in (False, True)]
# linear warm-up from 0.5 over 2 of 4 steps, then x 0.1 from step 3 on
LEARNING_RATES = [0.5e-4, 0.75e-4, 1e-4, 1e-5]
BOXES = {1: [8.0, 8.0, 20.0, 28.0], 2: [24.0, 16.0, 32.0, 24.0]}  # image id: x, y, w, h


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keeps these tiny models from waiting for threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def only_the_pure_build() -> None:
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        version = "without metadata"
    if version != VERSION:
        pytest.skip(f"detectron2 {version} is not the pure-Python build")


def tiny_config(net: str, mask: bool, output_dir: Path) -> CfgNode:
    """Returns a Faster/Mask R-CNN of a few channels: bottlenecks for C4, R18 for FPN."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.VIS_PERIOD = str(output_dir), 1, 0
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = SIZE
    model = cfg.MODEL
    model.DEVICE, model.WEIGHTS, model.MASK_ON = "cpu", "", mask
    model.BACKBONE.FREEZE_AT = 0
    model.RESNETS.NORM, model.RESNETS.STRIDE_IN_1X1 = "BN", False
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.PRE_NMS_TOPK_TEST = 50
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 8
    model.RPN.BATCH_SIZE_PER_IMAGE = 16
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    model.ROI_HEADS.NUM_CLASSES = 2
    model.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model.ROI_MASK_HEAD.CONV_DIM = 8
    if net == "C4":
        model.RESNETS.DEPTH = 50
        model.RESNETS.STEM_OUT_CHANNELS = model.RESNETS.WIDTH_PER_GROUP = 8
        model.RESNETS.RES2_OUT_CHANNELS = 16
    else:
        levels = ["p2", "p3", "p4", "p5"]
        model.BACKBONE.NAME = "build_resnet_fpn_backbone"
        model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS = 18, 64
        model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        model.FPN.OUT_CHANNELS = 16
        model.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
        model.RPN.IN_FEATURES = [*levels, "p6"]
        model.ROI_HEADS.NAME, model.ROI_HEADS.IN_FEATURES = "StandardROIHeads", levels
        model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.POOLER_RESOLUTION = "FastRCNNConvFCHead", 7
        model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.FC_DIM = 1, 16
        model.ROI_MASK_HEAD.NUM_CONV = 1
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH, solver.MAX_ITER, solver.CHECKPOINT_PERIOD = 2, 4, 100
    solver.BASE_LR, solver.STEPS, solver.GAMMA = 1e-4, (3,), 0.1
    solver.WARMUP_ITERS, solver.WARMUP_FACTOR = 2, 0.5
    return cfg


def training_examples() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    examples = []
    for image_id, (x, y, w, h) in BOXES.items():
        instances = Instances((SIZE, SIZE))
        instances.gt_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]]))
        instances.gt_classes = torch.tensor([image_id - 1])
        corners = np.array([x, y, x + w, y, x + w, y + h, x, y + h])
        instances.gt_masks = PolygonMasks([[corners]])
        image = torch.rand(3, SIZE, SIZE, generator=generator) * 255
        examples.append({"image": image, "instances": instances, "height": SIZE, "width": SIZE})
    return examples


class Rates(HookBase):
    """Notes the learning rate that each step is taken with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_step(self) -> None:
        self.seen.append(self.trainer.optimizer.param_groups[0]["lr"])


def momentum(trainer: DefaultTrainer) -> list[torch.Tensor]:
    states = trainer.optimizer.state_dict()["state"].values()
    return [state["momentum_buffer"] for state in states]


class TinyTrainer(DefaultTrainer):
    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        if "state_dict" not in vars(DefaultTrainer):  # v0.6 leaves the optimizer out of its files
            self.checkpointer.add_checkpointable("optimizer", self.optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_detection_train_loader(
            training_examples(),
            mapper=lambda example: example,
            total_batch_size=2,
            num_workers=0,
            aspect_ratio_grouping=False,
        )


def train(cfg: CfgNode, *, until: int, resume: bool) -> tuple[TinyTrainer, list[float]]:
    trainer = TinyTrainer(cfg)
    rates = Rates()
    trainer.register_hooks([rates])
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = until
    trainer.train()
    return trainer, rates.seen


@pytest.mark.parametrize(("net", "mask"), ARCHITECTURES)
def test_train_save_resume_and_run(net, mask, tmp_path):
    cfg = tiny_config(net, mask, tmp_path)
    first, rates = train(cfg, until=2, resume=False)
    assert rates == pytest.approx(LEARNING_RATES[:2])
    losses = {name for name in first.storage.latest() if name.startswith("loss_")}
    assert losses == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | (
        {"loss_mask"} if mask else set()
    )
    assert all(np.isfinite(first.storage.latest()[name][0]) for name in losses)

    second = TinyTrainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 2
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    momentum = [
        state["momentum_buffer"] for state in first.optimizer.state_dict()["state"].values()
    ]
    resumed = [
        state["momentum_buffer"] for state in second.optimizer.state_dict()["state"].values()
    ]
    assert len(momentum) == len(resumed) > 10
    assert all(torch.equal(a, b) for a, b in zip(momentum, resumed, strict=True))

    third, rates = train(cfg, until=4, resume=True)
    assert rates == pytest.approx(LEARNING_RATES[2:])
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(tmp_path / "model_final.pth"))
    with torch.no_grad():
        (output,) = model([{"image": training_examples()[0]["image"], "height": 32, "width": 32}])
        (again,) = third.model.eval()(
            [{"image": training_examples()[0]["image"], "height": 32, "width": 32}]
        )
    found = output["instances"]
    assert len(found) > 0
    assert torch.equal(found.pred_boxes.tensor, again["instances"].pred_boxes.tensor)
    assert found.pred_boxes.tensor.max() <= 32
    assert found.has("pred_masks") is mask
    if mask:
        assert found.pred_masks.shape == (len(found), 32, 32)


def test_schedule_of_torch_is_saved_too():
    only_the_pure_build()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    state = hooks.LRScheduler(optimizer, schedule).state_dict()
    assert state["last_epoch"] == 3
    fresh = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([parameter], lr=1.0), 1, gamma=0.1)
    hook = hooks.LRScheduler(optimizer, fresh)
    hook.load_state_dict(state)
    assert fresh.get_last_lr() == pytest.approx([0.001])


@pytest.fixture
def coco(tmp_path) -> Iterator[str]:
    """Registers two images with one box and its polygon each; yields the data set's name."""
    images, annotations = [], []
    pixels = np.random.default_rng(0)
    for image_id, (x, y, w, h) in BOXES.items():
        file = f"{image_id}.png"
        Image.fromarray(pixels.integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(tmp_path / file)
        images.append({"id": image_id, "file_name": file, "height": SIZE, "width": SIZE})
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {"id": image_id, "image_id": image_id, "category_id": image_id, "iscrowd": 0}
            | {"bbox": [x, y, w, h], "area": w * h, "segmentation": [corners]}
        )
    categories = [{"id": number, "name": name} for number, name in ((1, "one"), (2, "two"))]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(table | {"info": {}}), encoding="utf-8")
    name = f"tiny_coco_{tmp_path.name}"
    register_coco_instances(name, {}, str(tmp_path / "coco.json"), str(tmp_path))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


class Oracle(torch.nn.Module):
    """Finds exactly the box of each image, moved by `shift` pixels."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, inputs: list[dict]) -> list[dict]:
        return [{"instances": self.find(int(item["image_id"]))} for item in inputs]

    def find(self, image_id: int) -> Instances:
        x, y, w, h = BOXES[image_id]
        x += self.shift
        found = Instances((SIZE, SIZE))
        found.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]]))
        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([image_id - 1])
        masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        masks[:, int(y) : int(y + h), int(x) : int(x + w)] = True
        found.pred_masks = masks
        return found


def evaluate_coco(model: torch.nn.Module, name: str, cfg: CfgNode) -> dict:
    loader = build_detection_test_loader(cfg, name)
    evaluator = COCOEvaluator(name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)
    return inference_on_dataset(model, loader, evaluator)


def test_coco_evaluation(coco, tmp_path):
    cfg = tiny_config("FPN", True, tmp_path)
    perfect = evaluate_coco(Oracle(), coco, cfg)
    assert perfect["bbox"]["AP"] == pytest.approx(100.0)
    assert perfect["segm"]["AP"] == pytest.approx(100.0)
    # image 1: 20 wide, 4 off: IoU 16/24 = 0.667, right at 0.50..0.65 (4 of 10 thresholds);
    # image 2: 32 wide, 4 off: IoU 28/36 = 0.778, right at 0.50..0.75 (6 of 10)
    moved = evaluate_coco(Oracle(shift=4.0), coco, cfg)
    assert moved["bbox"]["AP-one"] == pytest.approx(40.0)
    assert moved["bbox"]["AP-two"] == pytest.approx(60.0)
    assert moved["segm"]["AP"] == pytest.approx(50.0)


def test_training_reads_a_registered_data_set(coco, tmp_path):
    cfg = tiny_config("FPN", True, tmp_path)
    cfg.DATASETS.TRAIN, cfg.INPUT.MIN_SIZE_TRAIN = (coco,), (SIZE,)
    cfg.INPUT.RANDOM_FLIP = "none"
    batch = next(iter(build_detection_train_loader(cfg)))
    assert {item["image_id"] for item in batch} <= {1, 2}
    for item in batch:
        x, y, w, h = BOXES[item["image_id"]]
        assert item["image"].shape == (3, SIZE, SIZE)
        assert item["instances"].gt_boxes.tensor.tolist() == [[x, y, x + w, y + h]]
        assert item["instances"].gt_masks.area().tolist() == [w * h]


def test_a_model_is_evaluated_from_files(coco, tmp_path):
    cfg = tiny_config("FPN", True, tmp_path)
    torch.manual_seed(0)
    result = evaluate_coco(build_model(cfg), coco, cfg)
    assert set(result) == {"bbox", "segm"}
    predictions = json.loads((tmp_path / "coco_instances_results.json").read_text("utf-8"))
    assert {prediction["image_id"] for prediction in predictions} == {1, 2}


def test_voc_evaluation(tmp_path):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for image_id, (x, y, w, h) in BOXES.items():
        # VOC counts pixels from 1, detectron2 edges from 0
        box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        text = (
            f"<annotation><size><height>{SIZE}</height><width>{SIZE}</width></size>"
            f"<object><name>thing{image_id}</name><pose>x</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox>{box.replace('.0', '')}</bndbox>"
            "</object></annotation>"
        )
        (tmp_path / "Annotations" / f"{image_id}.xml").write_text(text, encoding="utf-8")
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "JPEGImages" / f"{image_id}.jpg")
    (tmp_path / "ImageSets/Main/test.txt").write_text("1\n2\n", encoding="utf-8")
    name = f"tiny_voc_{tmp_path.name}"
    register_pascal_voc(name, str(tmp_path), "test", 2007, ["thing1", "thing2"])
    try:
        assert [item["annotations"][0]["bbox"] for item in DatasetCatalog.get(name)] == [
            [8.0, 8.0, 28.0, 36.0],
            [24.0, 16.0, 56.0, 40.0],
        ]
        loader = build_detection_test_loader(tiny_config("FPN", False, tmp_path), name)
        results = inference_on_dataset(Oracle(), loader, PascalVOCDetectionEvaluator(name))
        assert results["bbox"] == pytest.approx({"AP": 100.0, "AP50": 100.0, "AP75": 100.0})
        moved = inference_on_dataset(Oracle(8.0), loader, PascalVOCDetectionEvaluator(name))
        # IoU 12/28 and 24/40: one of two classes is right at 0.50
        assert moved["bbox"]["AP50"] == pytest.approx(50.0)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_mapper_that_gives_up_is_retried_on_another_example():
    dataset = MapDataset([0, 1, 2], lambda x: x if x == 2 else None)
    random.seed(0)
    assert dataset[0] == 2


def test_what_needs_the_compiled_part_says_so_when_used():
    only_the_pure_build()
    rotated = torch.tensor([[4.0, 4.0, 2.0, 2.0, 10.0]])
    with pytest.raises(NotImplementedError, match="nms_rotated is in the C\\+\\+ part"):
        nms_rotated(rotated, torch.tensor([0.5]), 0.5)
    pool = ROIAlignRotated((2, 2), 1.0, 0)
    with pytest.raises(NotImplementedError, match="roi_align_rotated_forward is in the C"):
        pool(torch.zeros(1, 1, 8, 8), torch.cat([torch.zeros(1, 1), rotated], dim=1))


def test_the_fast_coco_evaluator_says_what_to_do_instead(coco, tmp_path):
    only_the_pure_build()
    cfg = tiny_config("FPN", True, tmp_path)
    loader = build_detection_test_loader(cfg, coco)
    evaluator = COCOEvaluator(coco, output_dir=str(tmp_path), use_fast_impl=True)
    with pytest.raises(NotImplementedError, match="use_fast_impl=False"):
        inference_on_dataset(Oracle(), loader, evaluator)


def test_model_zoo_finds_its_files():
    from detectron2 import model_zoo

    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")
    assert cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads"
