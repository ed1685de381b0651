"""Every data format as it lies on disk: pixels, labels, splits, and what is refused."""

import importlib.util
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from pretrain.config.data import DataConfig
from pretrain.data.images import Images, open_images, read_image

_SPEC = importlib.util.spec_from_file_location(
    "image_sets", Path(__file__).parents[1] / "image_sets.py"
)
assert _SPEC is not None and _SPEC.loader is not None
sets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sets)


def data(root: Path, data_format: str) -> DataConfig:
    return DataConfig.model_validate({"name": "tiny", "root": root, "format": data_format})


def all_pixels(images: Images) -> Any:
    return np.stack([images.read(index).numpy() for index in range(len(images))])


def labels(images: Images) -> list[int]:
    assert images.labels is not None and images.labels.dtype == torch.int64
    found: list[int] = images.labels.tolist()
    return found


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar(tmp_path: Path, version: str, classes: int, inside: bool) -> None:
    train, test = sets.some_pixels(5, 32), sets.some_pixels(2, 32, seed=1)
    getattr(sets, f"write_cifar_{version}")(tmp_path, classes, train, test)
    root = next(tmp_path.iterdir()) if inside else tmp_path
    config = data(root, f"cifar{classes}")
    for split in ("train", "pretrain"):
        images = open_images(config, split)
        assert np.array_equal(all_pixels(images), train)
        assert labels(images) == ([0, 1, 2, 3, 4] if classes == 10 else [0, 25, 50, 75, 99])
    images = open_images(config, "test")
    assert np.array_equal(all_pixels(images), test)
    assert labels(images) == ([9, 0] if classes == 10 else [7, 8])
    with pytest.raises(IndexError):
        images.read(2)


def test_our_cifar_files_are_read_alike_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = sets.some_pixels(5, 32), sets.some_pixels(2, 32, seed=1)
    sets.write_cifar_python(tmp_path, 10, train, test)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(b"\x80\x02}U\x0blabel_names]s.")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    theirs = datasets.CIFAR10(str(tmp_path), train=True)
    assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), train)
    assert theirs.targets == labels(open_images(data(tmp_path, "cifar10"), "train"))


def test_a_pickle_that_would_execute_is_refused(tmp_path: Path) -> None:
    sets.write_cifar_python(tmp_path, 10, sets.some_pixels(5, 32), sets.some_pixels(2, 32))
    marker = tmp_path / "executed"
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(sets.pickled_attack(marker))
    with pytest.raises(ValueError, match=r"test_batch: not a batch of cifar10 .*which is refused"):
        open_images(data(tmp_path, "cifar10"), "test")
    assert not marker.exists()


def test_damaged_and_foreign_cifar_files_are_refused(tmp_path: Path) -> None:
    sets.write_cifar_binary(tmp_path, 100, sets.some_pixels(5, 32), sets.some_pixels(2, 32))
    path = tmp_path / "cifar-100-binary" / "test.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test.bin: 6147 bytes is not a whole number of records"):
        open_images(data(tmp_path, "cifar100"), "test")
    path.unlink()
    with pytest.raises(ValueError, match=r"cifar-100-binary: test.bin missing"):
        open_images(data(tmp_path, "cifar100"), "test")
    sets.write_cifar_python(tmp_path, 10, sets.some_pixels(5, 32), sets.some_pixels(2, 32))
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(sets.python2_pickle(np.zeros((2, 3072), np.uint8), b"labels", [3, 10]))
    with pytest.raises(ValueError, match="labels from 3 to 10, wanted 0 to 9"):
        open_images(data(tmp_path, "cifar10"), "test")
    batch.write_bytes(sets.python2_pickle(np.zeros((2, 3071), np.uint8), b"labels", [3, 1]))
    with pytest.raises(ValueError, match=r"pixels \[2, 3071\] for 2 labels"):
        open_images(data(tmp_path, "cifar10"), "test")
    batch.write_bytes(batch.read_bytes()[:-100])
    with pytest.raises(ValueError, match="test_batch: not a batch of cifar10"):
        open_images(data(tmp_path, "cifar10"), "test")


def test_stl10_pretrains_on_labelled_and_unlabelled_images(tmp_path: Path) -> None:
    train, unlabeled, test = (sets.some_pixels(n, 96, seed=n) for n in (3, 4, 2))
    sets.write_stl10(tmp_path, train, unlabeled, test)
    config = data(tmp_path, "stl10")
    images = open_images(config)
    assert images.labels is None
    assert np.array_equal(all_pixels(images), np.concatenate([train, unlabeled]))
    assert labels(open_images(config, "train")) == [0, 1, 2]
    assert labels(open_images(config, "test")) == [9, 2]
    assert np.array_equal(all_pixels(open_images(config, "test")), test)
    theirs = datasets.STL10.__new__(datasets.STL10)
    folder = tmp_path / "stl10_binary"
    pixels, _ = theirs._STL10__loadfile.__func__(
        type("Stl", (), {"root": str(tmp_path), "base_folder": "stl10_binary"})(),
        "test_X.bin",
        None,
    )
    assert np.array_equal(pixels, test)
    (folder / "test_y.bin").write_bytes(bytes([0, 3]))
    with pytest.raises(ValueError, match="2 labels from 0 to 3, wanted 2 labels from 1 to 10"):
        open_images(config, "test")


@pytest.mark.parametrize("test_folder", ["val", "test"])
def test_class_folders_are_numbered_as_torchvisions(tmp_path: Path, test_folder: str) -> None:
    for name in ("train/b/x.png", "train/b/sub/a.png", "train/a-1/2.png", "train/a/9.png"):
        sets.save_png(tmp_path / name, sets.some_pixels(1, 8, seed=len(name))[0])
    (tmp_path / "train" / "a" / "readme.txt").write_text("no image", encoding="utf-8")
    sets.save_png(tmp_path / test_folder / "b" / "1.png", sets.some_pixels(1, 8)[0])
    config = data(tmp_path, "imagefolder")
    theirs = datasets.ImageFolder(str(tmp_path / "train"))
    images = open_images(config, "train")
    ours = [str(images.path(index)) for index in range(len(images))]  # type: ignore[attr-defined]
    assert dict(zip(ours, labels(images), strict=True)) == dict(theirs.samples)
    for index, path in enumerate(ours):
        assert np.array_equal(
            images.read(index).numpy(), np.asarray(theirs.loader(path)).transpose(2, 0, 1)
        )
    assert labels(open_images(config, "test")) == [2]  # class b, though alone there


def test_tiny_imagenets_own_layout_of_val(tmp_path: Path) -> None:
    for wnid in ("n01", "n02"):
        sets.save_png(tmp_path / "train" / wnid / "images" / "0.png", sets.some_pixels(1, 8)[0])
    for name in ("val_0.png", "val_1.png"):
        sets.save_png(tmp_path / "val" / "images" / name, sets.some_pixels(1, 8)[0])
    sets.save_png(tmp_path / "test" / "images" / "test_0.png", sets.some_pixels(1, 8)[0])
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text(
        "val_1.png\tn01\t0\t0\t7\t7\nval_0.png\tn02\t1\t1\t5\t5\n", encoding="utf-8"
    )
    config = data(tmp_path, "imagefolder")
    assert labels(open_images(config, "train")) == [0, 1]
    assert labels(open_images(config, "test")) == [1, 0]
    annotations.write_text("val_1.png\tn01\t0\t0\t7\t7\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 classes are not among the 2 .*images/val_0.png"):
        open_images(config, "test")
    annotations.write_text("val_1.png n01\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: wanted file name, tab, class"):
        open_images(config, "test")


def test_what_is_missing_is_named_with_its_home(tmp_path: Path) -> None:
    for data_format, words in (
        ("cifar10", "cs.toronto.edu"), ("stl10", "cs.stanford.edu"), ("imagefolder", "image-net"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"(?s)nowhere.*{words}.*nothing is downloaded"):
            open_images(data(tmp_path / "nowhere", data_format))
    with pytest.raises(ValueError, match="no such folder; wanted a folder of images"):
        open_images(data(tmp_path / "nowhere", "folder"))


def test_folders_without_labels_and_mixed_layouts(tmp_path: Path) -> None:
    sets.save_png(tmp_path / "a" / "1.png", sets.some_pixels(1, 8)[0])
    sets.save_png(tmp_path / "0.png", sets.some_pixels(1, 8)[0])
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


def png_with_text(text: bytes) -> bytes:
    """A whole 10x10 PNG with a compressed comment."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0))
    comment = chunk(b"zTXt", b"a\0\0" + zlib.compress(text))
    pixels = chunk(b"IDAT", zlib.compress(bytes(31 * 10)))
    return b"\x89PNG\r\n\x1a\n" + header + comment + pixels + chunk(b"IEND", b"")


def test_hostile_files_are_named_and_start_no_program(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_with_text(b"a comment"))
    assert read_image(path).shape == (3, 10, 10)
    path.write_bytes(png_with_text(bytes(5_000_000)))
    with pytest.raises(ValueError, match=r"a\.png: not a readable image \(Decompressed data too"):
        read_image(path)
    path = tmp_path / "b.jpg"  # Pillow would hand its content to Ghostscript
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(ValueError, match=r"b\.jpg: not a readable image \(cannot identify"):
        read_image(path)
