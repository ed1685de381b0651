"""Tiny data in the real on-disk formats: four training and two test images each."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretrain.config.data import DataConfig

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def some_pixels(count: int, side: int, seed: int = 0) -> Pixels:
    shape = (count, 3, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def python2_pickle(pixels: Pixels, label_key: bytes, labels: list[int]) -> bytes:
    """Return what Python 2 with numpy wrote, as CIFAR's python version is distributed."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR("
    dtype += number(3) + text(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t"
    array += text(b"b") + b"tR(" + number(1)
    array += b"(" + b"".join(number(size) for size in pixels.shape) + b"t"
    array += dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    rows = b"](" + b"".join(number(label) for label in labels) + b"e"
    entries = [(b"batch_label", text(b"training batch")), (label_key, rows), (b"data", array)]
    body = b"".join(text(key) + value for key, value in entries)
    return b"\x80\x02}(" + body + b"u."


def write_cifar_python(root: Path, classes: int, train: Pixels, test: Pixels) -> None:
    if classes == 10:
        folder = root / "cifar-10-batches-py"
        parts = [(f"data_batch_{i + 1}", train[i : i + 1], [i]) for i in range(5)]
        parts.append(("test_batch", test, [9, 0]))
    else:
        folder = root / "cifar-100-python"
        parts = [("train", train, [0, 25, 50, 75, 99]), ("test", test, [7, 8])]
    folder.mkdir(parents=True)
    key = b"labels" if classes == 10 else b"fine_labels"
    for name, pixels, labels in parts:
        content = python2_pickle(pixels.reshape(len(pixels), -1), key, labels)
        (folder / name).write_bytes(content)


def write_cifar_binary(root: Path, classes: int, train: Pixels, test: Pixels) -> None:
    if classes == 10:
        folder = root / "cifar-10-batches-bin"
        parts = [(f"data_batch_{i + 1}.bin", train[i : i + 1], [[i]]) for i in range(5)]
        parts.append(("test_batch.bin", test, [[9], [0]]))
    else:
        folder = root / "cifar-100-binary"
        parts = [
            ("train.bin", train, [[1, fine] for fine in (0, 25, 50, 75, 99)]),
            ("test.bin", test, [[3, 7], [3, 8]]),
        ]
    folder.mkdir(parents=True)
    for name, pixels, labels in parts:
        records = [bytes(row) + x.tobytes() for row, x in zip(labels, pixels, strict=True)]
        (folder / name).write_bytes(b"".join(records))


def write_stl10(root: Path, train: Pixels, unlabeled: Pixels, test: Pixels) -> None:
    """STL-10 stores each channel column by column, and counts classes from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for name, pixels in (("train", train), ("unlabeled", unlabeled), ("test", test)):
        (folder / f"{name}_X.bin").write_bytes(pixels.swapaxes(2, 3).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1 + i % 10 for i in range(len(train))]))
    (folder / "test_y.bin").write_bytes(bytes([10, 3][: len(test)]))
    (folder / "class_names.txt").write_text("airplane\n", encoding="utf-8")


def save_png(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


def pickled_attack(marker: Path) -> bytes:
    """A pickle that makes a file when it is loaded without care."""

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    return pickle.dumps({b"data": Attack(), b"labels": [0]})


def data(root: Path, data_format: str) -> DataConfig:
    return DataConfig.model_validate({"name": "tiny", "root": root, "format": data_format})
