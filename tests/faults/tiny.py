"""A tiny pipeline of real stages: pretraining, conversion, fine-tuning with evaluation, report.

`python tests/faults/tiny.py FOLDER` writes it, to be run by hand from that folder.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
PRETRAIN = {
    "method": "w-mse",
    "data": {"name": "tiny", "root": "data/crops"},
    "augment": {"size": 32},
    "model": {"projector_hidden": 16, "embedding_dim": 4},
    "loss": {"name": "w-mse", "sub_batch": 8},
    "optimizer": {"lr": 0.001, "warmup_steps": 0},
    "batch_size": 8,
    "max_steps": 4,
    "log_every": 1,
    "checkpoint_every": 1,
}
TASK = {
    "_BASE_": str(ROOT / "configs" / "transfer" / "digits_base.yaml"),
    "DATASETS": {"TRAIN": ["tiny_train"], "TEST": ["tiny_val"]},
    "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 2}},
    "INPUT": {
        "MIN_SIZE_TRAIN": [SIZE], "MAX_SIZE_TRAIN": SIZE, "MIN_SIZE_TEST": SIZE,
        "MAX_SIZE_TEST": SIZE,
    },
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 4, "CHECKPOINT_PERIOD": 2, "WARMUP_ITERS": 0,
               "STEPS": []},
}  # fmt: skip
PIPELINE: dict[str, Any] = {
    "name": "tiny",
    "backbones": [{"name": "random", "random": True}, {"name": "ours", "pretrain": "ours.yaml"}],
    "tasks": [{"name": "boxes", "config": "boxes.yaml"}],
    "seeds": [0],
    "num_pictures": 2,
    "datasets": {
        name: {"format": "coco", "annotations": f"data/{name}.json", "images": f"data/{name}"}
        for name in ("tiny_train", "tiny_val")
    },
}


def write_project(folder: Path) -> Path:
    """Write data and configs; return the pipeline config."""
    draw_scenes(folder / "data", "tiny_train", 6)
    draw_scenes(folder / "data", "tiny_val", 4)
    draw_crops(folder / "data" / "crops", 16)
    configs = {"ours.yaml": PRETRAIN, "boxes.yaml": TASK, "tiny.yaml": PIPELINE}
    for name, content in configs.items():
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "tiny.yaml"


def draw_crops(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        dice = random.Random(seed + index)
        noise = bytes(dice.randrange(256) for _ in range(3 * 32 * 32))
        Image.frombytes("RGB", (32, 32), noise).save(folder / f"{index:03d}.png")


def draw_scenes(folder: Path, name: str, count: int) -> None:
    """Draw a rectangle or an ellipse a picture, with its box in COCO's layout."""
    (folder / name).mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        dice = random.Random(f"{name}{index}")
        picture = Image.new("RGB", (SIZE, SIZE), (20, 20, 20))
        x, y, w, h = (dice.randrange(*span) for span in ((2, 24), (2, 24), (16, 36), (16, 36)))
        category = index % 2
        draw = ImageDraw.Draw(picture)
        shape = draw.rectangle if category == 0 else draw.ellipse
        shape((x, y, x + w - 1, y + h - 1), fill=(230, 180, 90))
        picture.save(folder / name / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": SIZE, "height": SIZE})
        annotations.append(
            {"id": index + 1, "image_id": index, "category_id": category + 1, "iscrowd": 0,
             "bbox": [x, y, w, h], "area": w * h}
        )  # fmt: skip
    categories = [{"id": 1, "name": "rectangle"}, {"id": 2, "name": "ellipse"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    print(write_project(Path(sys.argv[1])))
