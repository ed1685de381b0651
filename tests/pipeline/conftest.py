"""A small project folder: tiny data in every layout, recipes, tasks and a pipeline config."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

PRETRAIN = {
    "method": "w-mse",
    "data": {"name": "tiny", "root": "data/images"},
    "augment": {"size": 32},
    "model": {"projector_hidden": 16, "embedding_dim": 4},
    "loss": {"name": "w-mse", "sub_batch": 8},
    "optimizer": {"lr": 0.001, "warmup_steps": 0},
    "batch_size": 8,
    "max_steps": 2,
}
VOC_XML = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>one</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""


def write_yaml(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def write_images(folder: Path, count: int, suffix: str) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        colour = (40 * index % 256, 255 - 20 * index, 128)
        Image.new("RGB", (64, 48), colour).save(folder / f"{index:03d}{suffix}")


def write_coco(root: Path, count: int = 3) -> None:
    write_images(root / "val", count, ".jpg")
    content = {
        "images": [
            {"id": i, "file_name": f"{i:03d}.jpg", "width": 64, "height": 48} for i in range(count)
        ],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [4, 5, 25, 34], "iscrowd": 0}
            for i in range(count)
        ],
        "categories": [{"id": 1, "name": "one"}],
    }
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def write_voc(root: Path, count: int = 3) -> None:
    write_images(root / "JPEGImages", count, ".jpg")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    names = [f"{index:03d}" for index in range(count)]
    for name in names:
        (root / "Annotations" / f"{name}.xml").write_text(VOC_XML, encoding="utf-8")
    (root / "ImageSets" / "Main" / "all.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the project into an empty folder and make it the working directory."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data" / "images", 8, ".png")
    write_coco(tmp_path / "data" / "coco")
    write_voc(tmp_path / "data" / "voc")
    write_yaml(tmp_path / "configs" / "a.yaml", PRETRAIN)
    write_yaml(tmp_path / "configs" / "b.yaml", PRETRAIN | {"seed": 1})
    for name in ("coco", "voc"):
        task = {
            "DATASETS": {"TRAIN": [f"my_{name}"], "TEST": [f"my_{name}"]},
            "INPUT": {"FORMAT": "RGB"},
            "MODEL": {
                "PIXEL_MEAN": [123.675, 116.28, 103.53],
                "PIXEL_STD": "(58.395, 57.12, 57.375)",
                "RESNETS": {"DEPTH": 18},
            },
        }
        write_yaml(tmp_path / "configs" / f"{name}.yaml", task)
    pipeline = {
        "name": "tiny",
        "backbones": [
            {"name": "random", "random": True},
            {"name": "a", "pretrain": "a.yaml"},
            {"name": "b", "pretrain": "b.yaml"},
        ],
        "tasks": [{"name": name, "config": f"{name}.yaml"} for name in ("coco", "voc")],
        "seeds": [0, 1],
        "datasets": {
            "my_coco": {
                "format": "coco",
                "annotations": "data/coco/annotations.json",
                "images": "data/coco/val",
            },
            "my_voc": {
                "format": "voc",
                "root": "data/voc",
                "split": "all",
                "class_names": ["one"],
            },
        },
    }
    write_yaml(tmp_path / "configs" / "tiny.yaml", pipeline)
    return tmp_path
