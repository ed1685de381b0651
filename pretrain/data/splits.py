"""The files of each data format's splits, for loader and identity alike. Imports no torch.

Splits: `pretrain` is what a pretraining sees (for STL-10 its labelled training images and the
unlabelled ones, as published; elsewhere the training images), `train` and `test` are the labelled
images of a probe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pretrain.runtime.files import near_folder

if TYPE_CHECKING:
    from pretrain.config.data import DataConfig
    from pretrain.config.pretrain import PretrainConfig

Split = Literal["pretrain", "train", "test"]
TEST_FOLDERS = ("val", "test")  # Tiny ImageNet has both, and labels only in val
FOLDER_FORMATS = ("folder", "imagefolder")
SUFFIXES = frozenset({"jpg", "jpeg", "png", "bmp", "webp"})
VAL_ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet as it is distributed

SOURCES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "stl10": "https://cs.stanford.edu/~acoates/stl10",
    "imagefolder": (
        "ImageNet: https://image-net.org, Tiny ImageNet: python tools/get_data.py tiny-imagenet, "
        "ImageNet-100: the classes listed in the code of arXiv 1906.05849"
    ),
}
_CIFAR10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_BINARIES: dict[str, dict[str, dict[Split, tuple[str, ...]]]] = {
    "cifar10": {
        "cifar-10-batches-py": {"train": _CIFAR10_TRAIN, "test": ("test_batch",)},
        "cifar-10-batches-bin": {
            "train": tuple(f"{name}.bin" for name in _CIFAR10_TRAIN),
            "test": ("test_batch.bin",),
        },
    },
    "cifar100": {
        "cifar-100-python": {"train": ("train",), "test": ("test",)},
        "cifar-100-binary": {"train": ("train.bin",), "test": ("test.bin",)},
    },
    "stl10": {
        "stl10_binary": {
            "pretrain": ("train_X.bin", "unlabeled_X.bin"),
            "train": ("train_X.bin", "train_y.bin"),
            "test": ("test_X.bin", "test_y.bin"),
        },
    },
}


def split_files(data: DataConfig, split: Split) -> list[Path]:
    """Return the files of a split of `cifar10`, `cifar100` or `stl10`, in order.

    `root` is the folder that holds torchvision's folder, or that folder itself.

    Raises:
        ValueError: no layout of the format is there, or a file of it is missing.
    """
    layouts = _BINARIES[data.format]
    for name, splits in layouts.items():
        folder = data.root if data.root.name == name else data.root / name
        if not folder.is_dir():
            continue
        files = [folder / file for file in splits.get(split, splits["train"])]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{folder}: {', '.join(missing)} missing; {_where(data)} has these files"
            )
        return files
    raise ValueError(
        f"{data.root}: no folder {' or '.join(layouts)} there; get {_where(data)} "
        f"and unpack it there, or: python tools/get_data.py {data.format} --to {data.root}"
    )


def split_folder(data: DataConfig, split: Split) -> Path:
    """Return the folder of a split of `folder` or `imagefolder`.

    An `imagefolder` has its classes in `root/train` and `root/val` (or `root/test`), or, without
    a test split, in `root` itself.

    Raises:
        ValueError: the folder is missing, or the format has no such split.
    """
    if not data.root.is_dir():
        hint = near_folder(data.root)
        if data.format == "folder":
            raise ValueError(f"{data.root}: no such folder; wanted a folder of images{hint}")
        raise ValueError(
            f"{data.root}: no such folder; wanted one folder per class in train and val; "
            f"get {_where(data)}{hint}"
        )
    if data.format == "folder":
        if split == "pretrain":
            return data.root
        raise ValueError(
            f"{data.root}: format 'folder' has no labels and no split {split!r}; use format "
            "imagefolder: one folder per class in train and val, or in the folder itself where a "
            "probe tests a part of it (probe.test_fraction)"
        )
    if split == "test":
        for name in TEST_FOLDERS:
            if (data.root / name).is_dir():
                return data.root / name
        raise ValueError(
            f"{data.root}: no folder {' or '.join(TEST_FOLDERS)}; wanted the test images there (a "
            "probe during training can test a part of train instead: probe.test_fraction)"
        )
    if (data.root / "train").is_dir():
        return data.root / "train"
    if any((data.root / name).is_dir() for name in TEST_FOLDERS):
        raise ValueError(f"{data.root}: has test images but no folder train; wanted images there")
    return data.root


def check_splits(data: DataConfig, splits: Iterable[Split]) -> None:
    """Raise ValueError where the folder or a file of a split is missing; no image is looked for."""
    for split in splits:
        if data.format in FOLDER_FORMATS:
            split_folder(data, split)
        else:
            split_files(data, split)


def check_start(config: PretrainConfig, num_processes: int) -> None:
    """Raise ValueError where a batch cannot be cut, or a split of training or probe is missing."""
    if faults := config.faults_on(num_processes):
        raise ValueError("; ".join(faults))
    check_splits(config.data, ("pretrain",))
    if config.probe is not None:
        check_splits(config.probe.data or config.data, config.probe.splits)


def label_file(data: DataConfig, split: Split) -> Path | None:
    """Return Tiny ImageNet's list of the classes of its test images, where there is one."""
    if data.format != "imagefolder" or split != "test":
        return None
    path = split_folder(data, split) / VAL_ANNOTATIONS
    return path if path.is_file() else None


def is_image_name(name: str) -> bool:
    """Return whether a file of this relative name is data: not hidden, nor in a hidden folder."""
    bare, _, suffix = name.rpartition(".")
    return bool(bare) and suffix.lower() in SUFFIXES and "/." not in f"/{name}"


def image_names(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of all image files below `root`, and of the files that are passed over.

    They are relative to it, the images sorted as paths are. Links are followed.

    Raises:
        ValueError: the folder is missing, cannot be listed or holds no image.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder{near_folder(root)}")
    try:
        files = _names_below(str(root), "")
    except OSError as error:
        raise ValueError(f"{root}: cannot be listed ({error})") from None
    names = [name for name in files if is_image_name(name)]
    if not names:
        raise ValueError(
            f"{root}: no image found among {len(files)} files; wanted names that do not begin with "
            f"a dot and end in {', '.join(sorted(SUFFIXES))}"
        )
    others = [name for name in files if not is_image_name(name)] if len(names) < len(files) else []
    return sorted(names, key=lambda name: name.split("/")), sorted(others)


def _names_below(folder: str, prefix: str) -> list[str]:
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                names += _names_below(entry.path, f"{prefix}{entry.name}/")
            else:
                names.append(prefix + entry.name)
    return names


def _where(data: DataConfig) -> str:
    return f"{data.name} from its home ({SOURCES[data.format]})"
