"""Pixels and labels from the files of CIFAR and STL-10, without executing anything in them.

Arrays are [n, 3, H, W] uint8 views; what lies in a binary file is mapped, not read.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = tuple[NDArray[np.uint8], ...]
Labels = NDArray[np.int64]
LABEL_KEYS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
LABEL_BYTES = {"cifar10": 1, "cifar100": 2}  # CIFAR-100: coarse label, then fine label
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
CIFAR_BYTES = 3 * 32 * 32
STL_BYTES = 3 * 96 * 96


def read_cifar(files: list[Path], data_format: str) -> tuple[Pixels, Labels | None]:
    """Return pixels [n, 3, 32, 32] per file and all labels.

    Raises:
        ValueError: a file is damaged or is no CIFAR file.
    """
    read = _cifar_binary if files[0].suffix == ".bin" else _cifar_pickle
    parts = [read(path, data_format) for path in files]
    labels = np.concatenate([labels for _, labels in parts])
    limit = NUM_CLASSES[data_format]
    if labels.min() < 0 or labels.max() >= limit:
        raise ValueError(
            f"{files[0].parent}: labels from {labels.min()} to {labels.max()}, wanted 0 to "
            f"{limit - 1}; the files are damaged or belong to another data set"
        )
    return tuple(pixels.reshape(-1, 3, 32, 32) for pixels, _ in parts), labels


def read_stl10(files: list[Path]) -> tuple[Pixels, Labels | None]:
    """Return pixels [n, 3, 96, 96] of each `_X` file, and the labels if a `_y` file is given.

    Raises:
        ValueError: a file is damaged, or labels do not fit the images.
    """
    images = [path for path in files if path.stem.endswith("_X")]
    parts = tuple(
        _mapped(path, STL_BYTES).reshape(-1, 3, 96, 96).swapaxes(2, 3)  # columns come first
        for path in images
    )
    label_files = [path for path in files if path.stem.endswith("_y")]
    if not label_files:
        return parts, None
    labels = _mapped(label_files[0], 1).reshape(-1).astype(np.int64) - 1
    if len(labels) != sum(map(len, parts)) or labels.min() < 0 or labels.max() > 9:
        raise ValueError(
            f"{label_files[0]}: {len(labels)} labels from {labels.min() + 1} to "
            f"{labels.max() + 1}, wanted {sum(map(len, parts))} labels from 1 to 10"
        )
    return parts, labels


def _mapped(path: Path, record_bytes: int) -> NDArray[np.uint8]:
    """Return the file as [n, record_bytes], mapped read-only."""
    size = path.stat().st_size
    if size == 0 or size % record_bytes:
        raise ValueError(
            f"{path}: {size} bytes is not a whole number of records of {record_bytes} bytes; "
            "the file is cut off or is another one"
        )
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, record_bytes)


def _cifar_binary(path: Path, data_format: str) -> tuple[NDArray[np.uint8], Labels]:
    before = LABEL_BYTES[data_format]
    records = _mapped(path, before + CIFAR_BYTES)
    return records[:, before:], records[:, before - 1].astype(np.int64)


def _cifar_pickle(path: Path, data_format: str) -> tuple[NDArray[np.uint8], Labels]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels = content[b"data"].array if b"data" in content else content["data"].array
        key = LABEL_KEYS[data_format]
        labels = content[key] if key in content else content[key.decode()]
        numbers = np.array(labels, dtype=np.int64)
    except Exception as error:  # noqa: BLE001  (a damaged pickle raises many types)
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path}: not a batch of {data_format} in the python version ({reason})"
        ) from None
    if pixels.shape != (len(numbers), CIFAR_BYTES):
        raise ValueError(
            f"{path}: pixels {list(pixels.shape)} for {len(numbers)} labels, wanted "
            f"[{len(numbers)}, {CIFAR_BYTES}]"
        )
    return pixels, numbers


class _ByteArray:
    """Stands for a pickled numpy array of bytes; anything else in its place is refused."""

    array: NDArray[np.uint8]

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _ByteType) or len(content) != math.prod(shape):
            raise pickle.UnpicklingError("an array that is not of unsigned bytes")
        flat = np.frombuffer(content, dtype=np.uint8)
        self.array = flat.reshape(shape, order="F" if column_major else "C")


class _ByteType:
    """Stands for numpy's description of unsigned bytes."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {name!r}")

    def __setstate__(self, state: object) -> None:
        del state


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ByteArray,
    ("numpy", "dtype"): _ByteType,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _ByteArray(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _ByteArray(),
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    """Reads containers, text, numbers and arrays of bytes; every name is one of our stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for a name in the file."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return _STAND_INS[module, name]
