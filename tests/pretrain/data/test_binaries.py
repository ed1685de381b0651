"""CIFAR's and STL-10's files: pixels and labels, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from pretrain.data.binaries import read_cifar, read_stl10
from pretrain.data.images import Images, open_images
from tests.pretrain import image_sets
from tests.pretrain.image_sets import data


def all_pixels(images: Images) -> Any:
    return np.stack([images.read(index).numpy() for index in range(len(images))])


def labels(images: Images) -> list[int]:
    assert images.labels is not None and images.labels.dtype == torch.int64
    found: list[int] = images.labels.tolist()
    return found


def test_arrays_of_the_files_as_they_lie(tmp_path: Path) -> None:
    train, test = image_sets.some_pixels(5, 32), image_sets.some_pixels(2, 32, seed=1)
    image_sets.write_cifar_binary(tmp_path, 100, train, test)
    parts, labels = read_cifar([tmp_path / "cifar-100-binary" / "test.bin"], "cifar100")
    assert [part.shape for part in parts] == [(2, 3, 32, 32)] and np.array_equal(parts[0], test)
    assert labels is not None and len(labels) == 2
    stl = [image_sets.some_pixels(n, 96, seed=n) for n in (3, 4, 2)]
    image_sets.write_stl10(tmp_path, *stl)
    parts, labels = read_stl10([tmp_path / "stl10_binary" / "unlabeled_X.bin"])
    assert np.array_equal(parts[0], stl[1]) and labels is None


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar(tmp_path: Path, version: str, classes: int, inside: bool) -> None:
    train, test = image_sets.some_pixels(5, 32), image_sets.some_pixels(2, 32, seed=1)
    getattr(image_sets, f"write_cifar_{version}")(tmp_path, classes, train, test)
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
    train, test = image_sets.some_pixels(5, 32), image_sets.some_pixels(2, 32, seed=1)
    image_sets.write_cifar_python(tmp_path, 10, train, test)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(b"\x80\x02}U\x0blabel_names]s.")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    theirs = datasets.CIFAR10(str(tmp_path), train=True)
    assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), train)
    assert theirs.targets == labels(open_images(data(tmp_path, "cifar10"), "train"))


def test_a_pickle_that_would_execute_is_refused(tmp_path: Path) -> None:
    image_sets.write_cifar_python(
        tmp_path, 10, image_sets.some_pixels(5, 32), image_sets.some_pixels(2, 32)
    )
    marker = tmp_path / "executed"
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(image_sets.pickled_attack(marker))
    with pytest.raises(ValueError, match=r"test_batch: not a batch of cifar10 .*which is refused"):
        open_images(data(tmp_path, "cifar10"), "test")
    assert not marker.exists()


def test_damaged_and_foreign_cifar_files_are_refused(tmp_path: Path) -> None:
    image_sets.write_cifar_binary(
        tmp_path, 100, image_sets.some_pixels(5, 32), image_sets.some_pixels(2, 32)
    )
    path = tmp_path / "cifar-100-binary" / "test.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test.bin: 6147 bytes is not a whole number of records"):
        open_images(data(tmp_path, "cifar100"), "test")
    path.unlink()
    with pytest.raises(ValueError, match=r"cifar-100-binary: test.bin missing"):
        open_images(data(tmp_path, "cifar100"), "test")
    image_sets.write_cifar_python(
        tmp_path, 10, image_sets.some_pixels(5, 32), image_sets.some_pixels(2, 32)
    )
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(image_sets.python2_pickle(np.zeros((2, 3072), np.uint8), b"labels", [3, 10]))
    with pytest.raises(ValueError, match="labels from 3 to 10, wanted 0 to 9"):
        open_images(data(tmp_path, "cifar10"), "test")
    batch.write_bytes(image_sets.python2_pickle(np.zeros((2, 3071), np.uint8), b"labels", [3, 1]))
    with pytest.raises(ValueError, match=r"pixels \[2, 3071\] for 2 labels"):
        open_images(data(tmp_path, "cifar10"), "test")
    batch.write_bytes(batch.read_bytes()[:-100])
    with pytest.raises(ValueError, match="test_batch: not a batch of cifar10"):
        open_images(data(tmp_path, "cifar10"), "test")


def test_stl10_pretrains_on_labelled_and_unlabelled_images(tmp_path: Path) -> None:
    train, unlabeled, test = (image_sets.some_pixels(n, 96, seed=n) for n in (3, 4, 2))
    image_sets.write_stl10(tmp_path, train, unlabeled, test)
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
