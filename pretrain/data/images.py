"""Images of every data format behind one interface: `open_images(config, split)`.

H height, W width; pixels are uint8 RGB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from pretrain.config.data import DataConfig
from pretrain.data.binaries import read_cifar, read_stl10
from pretrain.data.splits import (
    FOLDER_FORMATS,
    SUFFIXES,
    Split,
    image_names,
    label_file,
    split_files,
    split_folder,
)
from pretrain.runtime.distributed import rank
from pretrain.runtime.files import one_line

try:
    from simplejpeg import decode_jpeg
except ImportError:  # Pillow gives the same bytes, but copies them on the way
    decode_jpeg = None

logger = logging.getLogger(__name__)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")  # whatever the suffix; EPS would start a program
FULL_CHECK_LIMIT = 20_000
Batch = TypeVar("Batch")
Reduction = Callable[[int, int], int]  # height and width of an image to a power of two


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files below a folder, decoded when asked for."""

    root: Path
    names: NDArray[np.bytes_]  # one block of memory, so that forked workers share it
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the file of image `index`."""
        name: bytes = self.names[index]
        return self.root / name.decode(errors="surrogateescape")

    def read(self, index: int) -> Tensor:
        """Return image `index` as `[3, H, W]` uint8.

        Raises:
            ValueError: it is not a whole image.
        """
        return read_image(self.path(index))

    def read_reduced(self, index: int, reduction: Reduction) -> tuple[Tensor, int]:
        """Return image `index` as `decode_image` does.

        Raises:
            ValueError: it is not a whole image.
        """
        return decode_image(self.path(index), reduction)


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Images of one size in arrays [n, 3, H, W], in memory or mapped from files."""

    parts: tuple[NDArray[np.uint8], ...]
    labels: Tensor | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def read(self, index: int) -> Tensor:
        """Return image `index` as `[3, H, W]` uint8."""
        for part in self.parts:
            if index < len(part):
                return torch.from_numpy(np.array(part[index], order="C"))
            index -= len(part)
        raise IndexError(index)


Images = ImageFiles | ImageArrays  # `labels` are int64 [len] and count from 0


def open_images(data: DataConfig, split: Split = "pretrain") -> Images:
    """Return the images of a split; labels of `train` and `test` count the same classes.

    Raises:
        ValueError: the data are missing, incomplete or in another layout.
    """
    if data.format in FOLDER_FORMATS:
        return _open_folder(data, split)
    files = split_files(data, split)
    parts, labels = read_stl10(files) if data.format == "stl10" else read_cifar(files, data.format)
    return ImageArrays(parts, None if labels is None else torch.from_numpy(labels))


def list_images(root: Path) -> list[str]:
    """Return the names of all image files below `root`, relative to it and sorted as paths are.

    What is passed over is said once.

    Raises:
        ValueError: the folder is missing or holds no image.
    """
    names, others = image_names(root)
    if others:
        used = {name.partition("/")[0] for name in names}
        plain = [name for name in others if "/" in name and "/." not in f"/{name}"]
        lost = ", ".join(sorted({name.partition("/")[0] for name in plain} - used))
        _tell_passed_over(root, len(others), len(names) + len(others), others[0], lost)
    return names


@cache
def _tell_passed_over(root: Path, count: int, total: int, example: str, lost: str) -> None:
    if rank() == 0:
        logger.warning(
            "%s: %d of %d files passed over, such as %s: hidden, or without the suffix of an image "
            "(%s)%s", root, count, total, example, ", ".join(sorted(SUFFIXES)),
            lost and f"; no file is an image in: {lost}: convert them, else it is no class",
        )  # fmt: skip


def read_image(path: Path) -> Tensor:
    """Return the image as `[3, H, W]` uint8 RGB.

    Raises:
        ValueError: the file is not a whole image.
    """
    return decode_image(path, lambda _height, _width: 1)[0]


def decode_image(path: Path, reduction: Reduction) -> tuple[Tensor, int]:
    """Return the image as uint8 RGB with each side divided by a factor, and the factor.

    That of a JPEG is `reduction(H, W)`, 1, 2, 4 or 8: its decoder leaves out the details, and what
    remains of the sides is rounded up. That of other files is 1.

    Raises:
        ValueError: the file is not a whole image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            factor = reduction(height, width)
            if factor == 1 and (image.format, image.mode) == ("JPEG", "RGB") and decode_jpeg:
                with suppress(ValueError):  # damage: Pillow says whether it is an image
                    array = decode_jpeg(path.read_bytes())
                    return torch.from_numpy(array).permute(2, 0, 1), factor
            if factor > 1:
                image.draft(None, (width // factor, height // factor))
                factor = factor if image.size != (width, height) else 1
            pixels: Tensor = pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
            return pixels, factor
    except Exception as error:  # noqa: BLE001  (decoders raise many types for damage)
        raise ValueError(f"{path}: not a readable image ({one_line(error)})") from None


def unreadable(images: Images) -> list[str]:
    """Return a line for every image file that cannot be decoded; over 20,000 are not tried."""
    faults: list[str] = []
    if isinstance(images, ImageFiles) and len(images) <= FULL_CHECK_LIMIT:
        for index in range(len(images)):
            try:
                images.read(index)
            except ValueError as error:
                faults.append(str(error))
    return faults


def from_workers(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield what a DataLoader yields.

    Raises:
        ValueError: a worker raised it; in the worker's own words, without its traceback.
    """
    try:
        yield from batches
    except ValueError as error:
        raise ValueError(str(error).rstrip().rpartition("\nValueError: ")[2]) from None


def _open_folder(data: DataConfig, split: Split) -> ImageFiles:
    folder = split_folder(data, split)
    names = list_images(folder)
    packed = np.array([name.encode(errors="surrogateescape") for name in names])
    if data.format == "folder":
        return ImageFiles(folder, packed)
    train = split_folder(data, "train")
    classes = _classes(train, names if train == folder else list_images(train))
    if annotations := label_file(data, split):
        class_of = _annotated_classes(annotations)
        image_classes = [class_of.get(Path(name).name, name) for name in names]
    else:
        image_classes = [name.partition("/")[0] for name in names]
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = sorted(set(image_classes) - numbers.keys())
    if unknown:
        raise ValueError(
            f"{folder}: {len(unknown)} classes are not among the {len(classes)} in {train}, "
            f"such as {unknown[0]!r}; wanted images in folders by class, the same in both"
        )
    return ImageFiles(folder, packed, torch.tensor([numbers[name] for name in image_classes]))


def _classes(folder: Path, names: list[str]) -> list[str]:
    """Return the sorted class folders, as torchvision's ImageFolder numbers them."""
    bare = [name for name in names if "/" not in name]
    if bare:
        raise ValueError(
            f"{folder}: {len(bare)} images are in no class folder, such as {bare[0]}; "
            "use format folder for images without labels"
        )
    return sorted({name.partition("/")[0] for name in names})


def _annotated_classes(path: Path) -> dict[str, str]:
    """Return class by file name from Tiny ImageNet's list: name, class, four numbers of a box."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file; wanted lines of file name and class") from None
    rows = [line.split("\t") for line in lines if line.strip()]
    short = [number for number, row in enumerate(rows, 1) if len(row) < 2]
    if short:
        raise ValueError(f"{path}: line {short[0]}: wanted file name, tab, class")
    return {row[0]: row[1] for row in rows}
