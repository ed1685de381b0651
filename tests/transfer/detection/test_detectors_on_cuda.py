"""Detectors trained, saved, resumed and evaluated on CUDA tensors without data: all on one device.

It is the product's own `train` and `evaluate`, whole: weights into the model, the loader's images
and boxes to the GPU, their normalisation, losses, gradients, optimiser, precise BatchNorm,
checkpoints, detections and masks back to the host and to AP. What cannot be carried is replaced:

- What depends on values takes all there is (see `FakeCuda`): a mask selects every entry, NMS keeps
  every box. So shapes are too large and values ones, but each tensor is where it would be.
- `convert_boxes_to_pooler_format`, detectron2's: its `repeat_interleave` has a length that only the
  values on the GPU say. The replacement takes the same boxes and joins them on their device.
- `torch.save` gets copies on the CPU, as it makes them itself of a GPU's tensors.
- `GradScaler` reads whether a gradient is infinite, and every value read is a one: it is told no.
- `collect_env_info`, detectron2's, asks the driver.

Not here: several GPUs, float16, the stop at a loss that is not finite (every loss reads as one),
and whether a GPU has a kernel for what torch has a fake of.
"""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import poolers
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import pad
from torch.utils._pytree import tree_map_only

from tests.fake_cuda import CUDA, FakeCuda, fake_cuda
from transfer.config.data import CocoData, VocData
from transfer.detection.cfg import for_this_machine
from transfer.detection.cli import read_config
from transfer.detection.loader import register
from transfer.detection.run import Run, evaluate, train
from transfer.detection.trainer import TRAINERS, Trainer
from transfer.resnet import Architecture, ordered_names, to_detectron2

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"
C4, FPN = "voc_faster_rcnn_r50_c4_24k.yaml", "digits_mask_rcnn_coco.yaml"
BACKBONES = {C4: Architecture("resnet50", 8, 8, 32), FPN: Architecture("resnet18", res2=64)}
CHANGES: dict[str, Any] = {
    "DATASETS.TRAIN": ("tiny",), "DATASETS.TEST": ("tiny",), "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MIN_SIZE_TEST": 64, "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2, "SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.STEPS": (),
    "SOLVER.MAX_ITER": 1, "TEST.PRECISE_BN.NUM_ITER": 1,
}  # fmt: skip
BF16 = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": "bf16"}
pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.backends.mkldnn, "matmul"),
        reason="torch before 2.9 crashes where a node of its graph is called from Python",
    ),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
    pytest.mark.filterwarnings("ignore:.torch.cuda.amp.*is deprecated"),  # detectron2's AMP
]


def pooler_format(box_lists: list[Boxes]) -> Tensor:
    """Return the boxes of all images, each after its image's number."""
    return torch.cat([pad(x.tensor, (1, 0), value=i) for i, x in enumerate(box_lists)])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    save = torch.save
    monkeypatch.setattr(
        torch, "save", lambda content, file: save(tree_map_only(Tensor, Tensor.cpu, content), file)
    )
    monkeypatch.setattr(poolers, "convert_boxes_to_pooler_format", pooler_format)
    monkeypatch.setattr(GradScaler, "_maybe_opt_step", lambda _, optimizer, *__: optimizer.step())
    monkeypatch.setattr(defaults, "collect_env_info", str)
    with fake_cuda() as gpu:
        yield gpu


@pytest.fixture
def data(coco: CocoData, voc: VocData) -> dict[str, CocoData | VocData]:
    """Return the tiny sets' first image, with a second class, and a second object for its mask.

    Whatever number is read from the GPU is a one: of classes and objects, the second.
    """
    content = json.loads(coco.annotations.read_text(encoding="utf-8"))
    content["categories"].append({"id": 8, "name": "two"})
    content["images"], (entry, *_) = content["images"][:1], content["annotations"]
    content["annotations"] = [entry, entry | {"id": 2, "category_id": 8}]
    coco.annotations.write_text(json.dumps(content), encoding="utf-8")
    names = voc.root / "ImageSets" / "Main" / f"{voc.split}.txt"
    names.write_text("000\n", encoding="utf-8")
    return {C4: voc.model_copy(update={"class_names": ("one", "two")}), FPN: coco}


def config(file: str, folder: Path, **changes: Any) -> CfgNode:
    """Return the config of a small detector, and weights for it: ones, as what is read back."""
    backbone, path = BACKBONES[file], folder / "ones.pkl"
    model = {
        to_detectron2(name): numpy.ones(backbone.shape(name), numpy.float32)
        for name in ordered_names(backbone.base)
    }
    path.write_bytes(pickle.dumps({"model": model, "__author__": "", "matching_heuristics": True}))
    where = {"MODEL.WEIGHTS": str(path), "OUTPUT_DIR": str(folder / "out")}
    keys = CHANGES | backbone.detectron2_keys() | where | changes
    cfg = read_config(str(CONFIGS / file), [part for pair in keys.items() for part in pair])
    return for_this_machine(cfg)


def trained(run: Run) -> tuple[Trainer, dict[str, float]]:
    """Train, and return the trainer, all of whose tensors are on the GPU, with the metrics."""
    trainers: list[Trainer] = []

    def build(cfg: CfgNode) -> Trainer:
        trainers.append(kind(cfg))
        return trainers[-1]

    with pytest.MonkeyPatch.context() as patch:
        kind = TRAINERS[run.optimizer]
        patch.setitem(TRAINERS, run.optimizer, build)
        metrics = train(run)
    (trainer,) = trainers
    parameters = [value for value in trainer.model.parameters() if value.requires_grad]
    state: Any = trainer.optimizer.state
    assert set(state) == set(parameters)
    kept = [value for entry in state.values() for name, value in entry.items() if name != "step"]
    grads = [value.grad for value in parameters]
    for tensor in (*trainer.model.state_dict().values(), *grads, *kept):
        assert tensor is not None and tensor.device == CUDA
    return trainer, metrics


def test_faster_rcnn_c4_is_trained_and_evaluated(gpu: FakeCuda, data: Any, tmp_path: Path) -> None:
    cfg, sets = config(C4, tmp_path), {"tiny": data[C4]}
    assert cfg.MODEL.DEVICE == "cuda" and cfg.TEST.PRECISE_BN.ENABLED
    _, metrics = trained(Run(cfg, sets))
    assert {"torchvision::_roi_align_backward", "torchvision::nms"} <= set(gpu.calls)
    alone = evaluate(Run(cfg, sets, eval_only=True))
    assert alone["bbox/AP-one"] == metrics["bbox/AP-one"] == 0


def test_mask_rcnn_fpn_in_bf16_is_trained_and_resumed(
    gpu: FakeCuda, data: Any, tmp_path: Path
) -> None:
    cfg, sets = config(FPN, tmp_path, **BF16), {"tiny": data[FPN]}
    for num_done in (0, 1):
        cfg.SOLVER.MAX_ITER = num_done + 1
        trainer, metrics = trained(Run(cfg, sets, "adamw"))
        assert trainer.start_iter == num_done
        assert metrics["bbox/AP-one"] == metrics["segm/AP-one"] == 0


def pool_times_one(model: nn.Module) -> None:
    (pool,) = (part for part in model.modules() if isinstance(part, ROIPooler))
    forward = pool.forward
    pool.forward = lambda maps, boxes: forward(maps, boxes) * torch.ones(1)


def normalise_on_the_cpu(cfg: CfgNode, model: Any) -> None:
    model.pixel_mean = model.pixel_mean.cpu()


def process_where_it_is(evaluator: Any, inputs: Any, outputs: Any) -> None:
    (source,), (output,) = inputs, outputs
    evaluator.detections += instances_to_coco_json(output["instances"], source["image_id"])


@pytest.mark.parametrize(
    ("place", "fault", "told"),
    [
        ("trainer.pool_from_exact_boxes", pool_times_one, "cuda:0"),
        ("trainer.freeze_unread_outputs", normalise_on_the_cpu, "cuda:0"),
        ("evaluation.Evaluator.process", process_where_it_is, "numpy"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_what_is_on_the_wrong_device_is_told(
    place: str, fault: Any, told: str, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults in this project's own code that no CPU shows."""
    monkeypatch.setattr(f"transfer.detection.{place}", fault)
    register({"tiny": data[C4]})
    cfg = config(C4, tmp_path)
    with pytest.raises(RuntimeError, match=told):
        Trainer.test(cfg, Trainer.build_model(cfg))
