"""Fine-tuning and evaluating detectors: MoCo's `train_net.py` beside ours, each in its own process.

Both start from their own config file and their own converted weights, with the same changes that
make the work small, and see the same pictures in the same order.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, HookBase, default_setup
from detectron2.evaluation import coco_evaluation
from detectron2.modeling import ROI_HEADS_REGISTRY
from torch import Tensor

from benchmarks.parity.comparison import Row, compare_tensors, numbers
from benchmarks.parity.configs import our_config, their_config
from benchmarks.parity.conversion import converted
from benchmarks.parity.draws import HEIGHT, WIDTH, draw_pictures, drawn_detections
from benchmarks.parity.peers import call
from transfer.config.data import CocoData, VocData
from transfer.detection.cli import read_config
from transfer.detection.loader import SeededLoader, build_loader, derived_seed, register
from transfer.detection.trainer import Trainer

STEPS = 10
CASES = {
    "Faster R-CNN, VOC": ("pascal_voc_R_50_C4_24k_moco", "voc_faster_rcnn_r50_c4_24k"),
    "Mask R-CNN, COCO": ("coco_R_50_C4_2x_moco", "coco_mask_rcnn_r50_c4_2x"),
}
SMALL: dict[str, Any] = {
    "MODEL.DEVICE": "cpu", "SEED": 7,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 32,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 16, "INPUT.MIN_SIZE_TRAIN": (64, 80),
    "INPUT.MIN_SIZE_TEST": 64, "DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.MAX_ITER": STEPS, "SOLVER.STEPS": (7,),
    "SOLVER.WARMUP_ITERS": 4, "SOLVER.CHECKPOINT_PERIOD": 1000, "TEST.PRECISE_BN.NUM_ITER": 3,
}  # fmt: skip
AP_TOLERANCE = 1e-12  # COCO's means: pycocotools and faster-coco-eval add in another order
PER_CLASS = "the AP of each class, which detectron2's VOC evaluator does not give"
Answer = dict[str, dict[str, Any]]


def compare(paths: dict[str, Path], scratch: Path) -> list[Row]:
    """Return rows of the training and of the evaluators, for both detectors."""
    moco = (paths["moco"] / "detection").resolve()
    their_weights, our_weights = converted(paths["moco"], scratch)
    coco, voc = draw_pictures(scratch)
    pictures = {"coco": coco.model_dump(mode="json"), "voc": voc.model_dump(mode="json")}
    rows = []
    for case, (their_name, our_name) in CASES.items():
        inputs: dict[str, Any] = {
            "pictures": pictures,
            "name": f"parity_{case[-4:].strip().lower()}",
        }
        sides = []
        for function, config, weights in (
            ("train_theirs", their_config(paths["moco"].resolve(), their_name), their_weights),
            ("train_ours", our_config(our_name), our_weights),
        ):
            changes = [str(item) for pair in SMALL.items() for item in pair]
            changes += ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(scratch / function / case)]
            for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
                changes += [key, f"('{inputs['name']}',)"]
            given = inputs | {"config": str(config), "changes": changes}
            sides.append(call(moco, f"benchmarks.parity.detection:{function}", given))
        rows += case_rows(case, *sides)
    return rows


def case_rows(case: str, theirs: Answer, ours: Answer) -> list[Row]:
    """Return the rows of one detector."""
    titles = {
        "steps": f"{STEPS} SGD steps: every loss, and the learning rate",
        "state": "final state, after precise BatchNorm",
        "momentum": "final momentum of SGD",
        "trained_ap": "AP of the trained detector",
        "drawn_ap": "AP of the evaluators on drawn detections",
    }
    known = {key: PER_CLASS for key in ours["drawn_ap"] if case.endswith("VOC") and "-" in key}
    rows = []
    for part, title in titles.items():
        first, second = theirs[part], ours[part]
        if part not in ("state", "momentum"):
            first, second = numbers(first), numbers(second)
        label = ("detection", f"{case}: {title}")
        tolerance = AP_TOLERANCE if part.endswith("_ap") else 0.0
        rows.append(compare_tensors(label, first, second, known=known, tolerance=tolerance))
    return rows


def train_theirs(inputs: dict[str, Any]) -> Answer:
    """In a child: train and evaluate with MoCo's script; the order of the images is ours."""
    register_pictures(inputs)
    # the script registers a head under the name of ours, and its COCO evaluator asks for C++ code
    # that not every build has: pycocotools, whose numbers that code gives faster, stands in for it
    vars(ROI_HEADS_REGISTRY)["_obj_map"].pop("Res5ROIHeadsExtraNorm", None)
    coco_evaluation.COCOeval_opt = coco_evaluation.COCOeval
    train_net: Any = importlib.import_module("train_net")
    arguments = argparse.Namespace(config_file=inputs["config"], opts=inputs["changes"])
    cfg = train_net.setup(arguments)
    loaders: list[SeededLoader] = []

    def build_train_loader(_: object, cfg: CfgNode) -> SeededLoader:
        """Return the images of the steps first, then those of precise BatchNorm."""
        loader = build_loader(cfg)
        if loaders:
            seed = derived_seed("precise-bn", loader.seed)
            loader = dataclasses.replace(loader, seed=seed, num_workers=0)
        loaders.append(loader)
        return loader

    members: dict[str, Any] = {"build_train_loader": classmethod(build_train_loader)}
    trainer = type("TheirTrainer", (train_net.Trainer,), members)(cfg)
    return trained(trainer, cfg, train_net.Trainer.build_evaluator)


def train_ours(inputs: dict[str, Any]) -> Answer:
    """In a child: train and evaluate with this project's trainer."""
    register_pictures(inputs)
    cfg = read_config(inputs["config"], inputs["changes"])
    default_setup(cfg, argparse.Namespace())
    return trained(Trainer(cfg), cfg, Trainer.build_evaluator)


def register_pictures(inputs: dict[str, Any]) -> None:
    """Give detectron2 the pictures, in the layout that the set's name says."""
    name = inputs["name"]
    data: CocoData | VocData = (
        CocoData.model_validate(inputs["pictures"]["coco"])
        if "coco" in name
        else VocData.model_validate(inputs["pictures"]["voc"])
    )
    register({name: data})


class Recorder(HookBase):  # type: ignore[misc]
    """Keeps every loss and the learning rate of every step."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}

    def after_step(self) -> None:
        """Keep what this step has logged."""
        storage = self.trainer.storage
        for name, (value, iteration) in storage.latest().items():
            if iteration == storage.iter and ("loss" in name or name == "lr"):
                self.steps[f"{iteration} {name}"] = float(value)


def trained(
    trainer: DefaultTrainer, cfg: CfgNode, build_evaluator: Callable[[CfgNode, str], Any]
) -> Answer:
    """Train from the config's weights, evaluate, and return all that is compared."""
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.resume_or_load(resume=False)
    trainer.train()
    model = trainer.model
    momentum = {
        name: trainer.optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if "momentum_buffer" in trainer.optimizer.state[parameter]
    }
    assert cfg.DATASETS.TEST
    name = cfg.DATASETS.TEST[0]
    return {
        "steps": recorder.steps,
        "state": copied(model.state_dict()),
        "momentum": copied(momentum),
        "trained_ap": flat_ap(trainer.test(cfg, model)),
        "drawn_ap": flat_ap(evaluated(build_evaluator(cfg, name), name, cfg.MODEL.MASK_ON)),
    }


def evaluated(evaluator: Any, name: str, masks: bool) -> dict[str, dict[str, float]]:
    """Return what an evaluator says of the drawn detections."""
    evaluator.reset()
    for record, detections in zip(DatasetCatalog.get(name), drawn_detections(), strict=True):
        if not masks:
            detections.remove("pred_masks")
        given = {"image_id": record["image_id"], "height": HEIGHT, "width": WIDTH}
        evaluator.process([given], [{"instances": detections}])
    results: dict[str, dict[str, float]] = evaluator.evaluate()
    return results


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return plain copies of tensors."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def flat_ap(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return `{"bbox/AP": ..}`."""
    return {
        f"{task}/{key}": float(value)
        for task, part in results.items()
        for key, value in part.items()
    }
