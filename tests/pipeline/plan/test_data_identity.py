"""The identity of images by content, and what is kept between commands to find it quickly."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.plan.data_identity import files_read, image_identity
from pretrain.config.data import DataConfig
from pretrain.data.file_index import folder_names
from tests.files import age, write


def data(root: Path, data_format: str) -> DataConfig:
    return DataConfig.model_validate({"name": "set", "root": root, "format": data_format})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.png", "b/10.png", "b-c/1.png", "a.png"):
        write(tmp_path / "images" / name, name.encode())
    age(tmp_path / "images")
    return tmp_path / "images"


def test_a_folder_is_known_by_sorted_names_and_sizes(folder: Path) -> None:
    assert folder_names(folder) == ["a.png", "b/10.png", "b/2.png", "b-c/1.png"]
    files = [["a.png", 5], ["b-c/1.png", 9], ["b/10.png", 8], ["b/2.png", 7]]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    assert image_identity(data(folder, "folder")) == {
        "name": "set", "num_files": 4, "digest": digest,
    }  # fmt: skip


def test_binary_sets_are_known_by_content_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("one", "two/deep"):
        for name, content in (("train", b"abc"), ("test", b"xyz"), ("unlabeled", b"rest")):
            write(tmp_path / place / "stl10_binary" / f"{name}_X.bin", content)
            write(tmp_path / place / "stl10_binary" / f"{name}_y.bin", b"1")
    one, two = (data(tmp_path / place, "stl10") for place in ("one", "two/deep"))
    first = image_identity(one)
    assert first == image_identity(two)
    assert first["num_files"] == 2
    write(tmp_path / "two/deep/stl10_binary/test_X.bin", b"zyx")
    assert image_identity(two) == first  # a pretraining does not read it
    assert image_identity(one, ("train", "test")) != image_identity(two, ("train", "test"))
    write(tmp_path / "two/deep/stl10_binary/unlabeled_X.bin", b"tser")
    assert image_identity(two) != first


def test_train_and_test_folders_count_both(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.png")
    write(tmp_path / "val" / "a" / "1.png")
    config = data(tmp_path, "imagefolder")
    both = image_identity(config, ("pretrain", "train", "test"))
    assert [part["num_files"] for part in both["folders"]] == [1, 1]
    write(tmp_path / "val" / "a" / "1.png", b"longer")
    assert image_identity(config, ("pretrain", "train", "test")) != both
    with pytest.raises(ValueError, match="no such folder"):
        image_identity(data(tmp_path / "nowhere", "imagefolder"))


def test_the_files_that_a_stages_check_reads(tmp_path: Path) -> None:
    for name in ("images/train/a/1.png", "images/val/a/2.png", "cifar-10-batches-bin/x"):
        write(tmp_path / name)
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    for name in [*names, "test_batch.bin"]:
        write(tmp_path / "cifar-10-batches-bin" / name)
    images = data(tmp_path / "images", "imagefolder").model_dump(mode="json")
    cifar = data(tmp_path, "cifar10").model_dump(mode="json")
    folders = [tmp_path / "images" / "train", tmp_path / "images" / "val"]
    assert files_read({"data": images, "probe": {"data": None}}) == folders
    assert files_read({"data": images, "probe": {"data": images}}) == folders
    binaries = files_read({"data": cifar, "probe": None})
    assert [path.name for path in binaries] == [*names, "test_batch.bin"]
    coco = {"format": "coco", "annotations": "/a.json", "images": "/i"}
    voc = {"format": "voc", "root": "/v", "split": "all"}
    assert files_read({"datasets": {"c": coco, "v": voc}}) == [
        Path("/a.json"),
        Path("/i"),
        Path("/v"),
    ]
    assert files_read({"checkpoint": "/w.pth"}) == [Path("/w.pth")]
    absent = data(tmp_path / "absent", "imagefolder").model_dump(mode="json")
    assert files_read({"data": absent}) == []
