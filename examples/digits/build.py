"""Build the embedded data set: digits in scenes (COCO and VOC layouts) and as crops.

The folder is built beside its place and renamed when it is whole; `index.json` tells what it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.digits import draw, write

NAME = "digits"
VERSION = 1  # raise it with every change of a pixel, a label or a file name
INDEX = "index.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """Numbers of scenes and crops to draw."""

    train_scenes: int = 80
    val_scenes: int = 150
    unlabeled: int = 6000
    train_crops: int = 1500
    val_crops: int = 800


def build_digits(
    output_dir: str | Path, *, force: bool = False, sizes: Sizes | None = None
) -> dict[str, Any]:
    """Build the data set in `output_dir` unless it is there; returns the content of its index.

    With `force` an existing data set is built anew. An interrupted build leaves `output_dir` as
    it was.

    Raises:
        ValueError: `output_dir` holds something else, or another version or size and no `force`.
    """
    target, sizes = Path(output_dir).absolute(), sizes or Sizes()
    existing = _existing_index(target)
    if existing is not None and not force:
        _check_same(target, existing, sizes)
        logger.info("%s: already built, nothing to do", target)
        return existing
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as workspace:
        fresh = Path(workspace) / "new"
        fresh.mkdir()
        counts = _write_everything(fresh, sizes)
        index = {"name": NAME, "version": VERSION, "counts": counts, "sha256": digest(fresh)}
        (fresh / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if existing is not None:
            target.rename(Path(workspace) / "old")
        try:
            fresh.rename(target)
        except OSError:
            quicker = _existing_index(target)  # another build may have finished meanwhile
            if quicker is None:
                raise
            _check_same(target, quicker, sizes)
            return quicker
    logger.info("%s: built, sha256 %s", target, index["sha256"])
    return index


def digest(folder: Path) -> str:
    """sha256 over the relative names and the contents of all files but the index."""
    total = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name in sorted(files):
        if files[name].is_file() and name != INDEX:
            content = hashlib.sha256(files[name].read_bytes()).hexdigest()
            total.update(f"{name}\n{content}\n".encode())
    return total.hexdigest()


def _existing_index(target: Path) -> dict[str, Any] | None:
    """The index of a data set that is there, None where nothing is."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    try:
        index = json.loads((target / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        index = None
    if not isinstance(index, dict) or index.get("name") != NAME:
        raise ValueError(
            f"{target}: exists but holds no {INDEX} that names the data set {NAME!r}; "
            "left as it is: give another --output-dir or move it away"
        )
    return index


def _check_same(target: Path, index: dict[str, Any], sizes: Sizes) -> None:
    """Raises ValueError where the data set that is there is not the wanted one."""
    if index.get("version") != VERSION:
        raise ValueError(
            f"{target / INDEX}: version {index.get('version')}, wanted {VERSION}; "
            "build it anew with --force"
        )
    counts = index.get("counts")
    got = {key: counts.get(key) for key in asdict(sizes)} if isinstance(counts, dict) else counts
    if got != asdict(sizes):
        raise ValueError(
            f"{target / INDEX}: counts {got}, wanted {asdict(sizes)}; build it anew with --force"
        )


def _write_everything(root: Path, sizes: Sizes) -> dict[str, int]:
    """Write all files but the index; returns the counts."""
    digits = draw.load_source_digits()
    pools = draw.split_digits(digits.labels)
    logger.info("drawing %d scenes", sizes.train_scenes + sizes.val_scenes)
    train = list(_scenes(digits, pools["train"], "scenes/train", sizes.train_scenes))
    val = list(_scenes(digits, pools["val"], "scenes/val", sizes.val_scenes))
    train_ids = write.write_scenes(root, "train", train, first_id=1)
    val_ids = write.write_scenes(root, "val", val, first_id=sizes.train_scenes + 1)
    cut = len(train_ids) * 4 // 5
    sets = {"trainval": train_ids, "train": train_ids[:cut], "val": train_ids[cut:]}
    write.write_image_sets(root, sets | {"test": val_ids})
    logger.info("drawing %d crops", sizes.unlabeled + sizes.train_crops + sizes.val_crops)
    write.write_crops(
        root / "unlabeled", _crops(digits, pools["train"], "unlabeled", sizes.unlabeled)
    )
    for split, number in (("train", sizes.train_crops), ("val", sizes.val_crops)):
        crops = _crops(digits, pools[split], f"crops/{split}", number)
        write.write_crops(root / "crops" / split, crops)
    counts = asdict(sizes) | {
        "train_objects": sum(len(scene.digits) for scene in train),
        "val_objects": sum(len(scene.digits) for scene in val),
        "train_digits": len(pools["train"]),
        "val_digits": len(pools["val"]),
    }
    (root / "README.txt").write_text(data_card(counts), encoding="utf-8")
    return counts


def _scenes(
    digits: draw.Digits, pool: NDArray[np.int64], split: str, number: int
) -> Iterator[draw.Scene]:
    return (draw.draw_scene(digits, pool, split, index) for index in range(number))


def _crops(
    digits: draw.Digits, pool: NDArray[np.int64], split: str, number: int
) -> Iterator[tuple[str, draw.Picture]]:
    """File name and picture of each crop; labelled crops lie in a folder of their label."""
    for index in range(number):
        digit_index = int(pool[index % len(pool)])
        folder = "" if split == "unlabeled" else f"{digits.labels[digit_index]}/"
        picture = draw.draw_crop(digits, digit_index, split, index)
        yield f"{folder}{index:06d}.png", picture


def data_card(counts: dict[str, int]) -> str:
    """The text of README.txt."""
    low, high = draw.SCENE_DIGIT_SIDES
    return f"""Embedded digits, version {VERSION}

Source: the 1,797 digits (8x8 pixels) of scikit-learn's load_digits, which are the test part of
"Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository).
Cite: E. Alpaydin and C. Kaynak (1998). Optical Recognition of Handwritten Digits [Dataset].
UCI Machine Learning Repository. https://doi.org/10.24432/C50P49
Licence: CC BY 4.0, https://creativecommons.org/licenses/by/4.0/ - these files are adapted from
that source (scaled, rotated, tinted, pasted into drawn pictures) and come under the same licence.

Sizes
  coco/       {counts["train_scenes"]} training and {counts["val_scenes"]} validation scenes, \
{draw.SCENE_SIZE}x{draw.SCENE_SIZE}, {counts["train_objects"]} and {counts["val_objects"]} \
digits with boxes and masks
  VOC2007/    the same scenes and boxes: trainval = training (train and val: 4/5 and 1/5 of it),
              test = validation
  unlabeled/  {counts["unlabeled"]} crops, {draw.CROP_SIZE}x{draw.CROP_SIZE}, \
of training digits
  crops/      {counts["train_crops"]} training and {counts["val_crops"]} validation crops \
in folders by label
No digit is in both parts: {counts["train_digits"]} source digits are for training, \
{counts["val_digits"]} for validation.

How drawn (seed {draw.SEED}; every item from its own generator)
  Dark background that varies smoothly, up to {draw.MAX_ELLIPSES} ellipses, then 1 to \
{draw.MAX_DIGITS} bright tinted digits,
  {low:g} to {high:g} pixels, rotated by up to {draw.MAX_ANGLE_DEGREES:g} degrees, \
all of each digit inside the picture.
  A pixel belongs to a mask where at least {draw.INK_THRESHOLD:g} of full ink falls on it \
(there a digit
  is half opaque); boxes are tight around the mask. Masks share no pixel; boxes overlap by at
  most {draw.MAX_BOX_OVERLAP:.0%} of the smaller one.
  A digit that finds no room in {draw.PLACING_TRIES} tries is left out.
  Masks are stored as polygons along pixel borders; a hole is joined to the outline by a bridge.
"""
