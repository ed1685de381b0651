"""Files and folders of the splits: what is missing is named, with its home."""

from pathlib import Path

import pytest
import torch

from pretrain.data.images import Images, open_images
from pretrain.data.splits import image_names, label_file, split_files, split_folder
from tests.pretrain import image_sets
from tests.pretrain.image_sets import data


def labels(images: Images) -> list[int]:
    assert images.labels is not None and images.labels.dtype == torch.int64
    found: list[int] = images.labels.tolist()
    return found


def test_the_files_of_a_split_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name in ("train_X.bin", "train_y.bin", "unlabeled_X.bin"):
        (folder / name).touch()
    for root in (tmp_path, folder):
        files = split_files(data(root, "stl10"), "pretrain")
        assert files == [folder / "train_X.bin", folder / "unlabeled_X.bin"]
    with pytest.raises(ValueError, match=r"stl10_binary: test_X.bin, test_y.bin missing"):
        split_files(data(tmp_path, "stl10"), "test")


def test_the_folder_of_a_split(tmp_path: Path) -> None:
    config = data(tmp_path, "imagefolder")
    assert split_folder(config, "train") == tmp_path
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    assert split_folder(config, "train") == tmp_path / "train"
    assert split_folder(config, "test") == tmp_path / "test"


def test_what_is_missing_is_named_with_its_home(tmp_path: Path) -> None:
    for data_format, words in (
        ("cifar10", r"cs.toronto.edu.*tools/get_data.py cifar10 --to \S+nowhere$"),
        ("stl10", r"cs.stanford.edu.*tools/get_data.py stl10 --to \S+nowhere$"),
        ("imagefolder", r"image-net.*tools/get_data.py tiny-imagenet"),
    ):
        with pytest.raises(ValueError, match=f"(?s)nowhere.*{words}"):
            open_images(data(tmp_path / "nowhere", data_format))
    with pytest.raises(ValueError, match="no such folder; wanted a folder of images"):
        open_images(data(tmp_path / "nowhere", "folder"))


def test_folders_without_labels_and_mixed_layouts(tmp_path: Path) -> None:
    image_sets.save_png(tmp_path / "a" / "1.png", image_sets.some_pixels(1, 8)[0])
    image_sets.save_png(tmp_path / "0.png", image_sets.some_pixels(1, 8)[0])
    images = open_images(data(tmp_path, "folder"))
    assert (len(images), images.labels) == (2, None)
    with pytest.raises(ValueError, match="format 'folder' has no labels"):
        open_images(data(tmp_path, "folder"), "test")
    with pytest.raises(ValueError, match=r"1 images are in no class folder, such as 0.png"):
        open_images(data(tmp_path, "imagefolder"))
    (tmp_path / "0.png").unlink()
    assert labels(open_images(data(tmp_path, "imagefolder"))) == [0]
    with pytest.raises(ValueError, match="no folder val or test"):
        open_images(data(tmp_path, "imagefolder"), "test")
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="has test images but no folder train"):
        open_images(data(tmp_path, "imagefolder"))


def test_names_of_images_are_sorted_as_paths_and_links_are_followed(tmp_path: Path) -> None:
    for name in (
        "b/2.png",
        "b/10.JPEG",
        "b-c/1.png",
        "a.png",
        ".hidden/1.png",
        "README",
        "b/._2.png",
    ):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    (tmp_path / "set" / "link").symlink_to("b")
    names, others = image_names(tmp_path / "set")
    assert names == [
        "a.png", "b/10.JPEG", "b/2.png", "b-c/1.png", "link/10.JPEG", "link/2.png",
    ]  # fmt: skip
    assert others == [".hidden/1.png", "README", "b/._2.png", "link/._2.png"]


def test_folders_without_images_and_those_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: no such folder"):
        image_names(tmp_path / "gone")
    (tmp_path / "README").touch()
    with pytest.raises(ValueError, match="no image found among 1 files; wanted names that do not"):
        image_names(tmp_path)
    (tmp_path / "round").symlink_to(".")
    with pytest.raises(ValueError, match=r"cannot be listed \(.*Too many levels"):
        image_names(tmp_path)


def test_only_tiny_imagenets_test_images_have_a_file_of_labels(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    config = data(tmp_path, "imagefolder")
    assert label_file(config, "test") is None
    path = tmp_path / "val" / "val_annotations.txt"
    path.touch()
    assert [label_file(config, split) for split in ("pretrain", "train", "test")] == [
        None, None, path,
    ]  # fmt: skip
    assert label_file(data(tmp_path, "folder"), "pretrain") is None
