"""Speed of a plan's identities of data: COCO's and VOC's files are read first, then known."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from benchmarks.rows import Table, print_rows
from pipeline.config.yaml_files import load_yaml
from pipeline.plan.build import load_plan
from pipeline.stages.content_index import BLOCK, SETTLED_S, Level, file_digests

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "pipeline" / "full_comparison.yaml"
IMAGE_BYTES = 110_000  # of an image of ImageNet on average
XML = "<annotation><object><name>cat</name></object></annotation>"


def benchmark_plan(
    *, images: int = 120_000, voc_images: int = 5_000, rounds: int = 1
) -> list[Table]:
    """Print seconds to plan the full comparison on small generated files, and rates of reading."""
    with tempfile.TemporaryDirectory() as folder, generated(Path(folder), images, voc_images):
        time.sleep(SETTLED_S)  # what was written just now is read again
        title = f"plan {CONFIG.name}: {images:,} images of COCO, {voc_images:,} of VOC"
        plans = print_rows(title, ("index", "seconds:.2f"), _plan_rows(rounds))
        title = f"digests of 2,000 files of {IMAGE_BYTES // 1000} kB"
        columns = ("level", "files/s:,.0f", "MB/s:,.0f", "known files/s:,.0f")
        return [plans, print_rows(title, columns, _rate_rows(Path(folder)))]


@contextlib.contextmanager
def generated(root: Path, images: int, voc_images: int) -> Iterator[None]:
    """Work in `root`, where all that the full comparison reads lies in small."""
    names = [f"{number:012d}.jpg" for number in range(images)]
    num_val = min(5_000, images // 2)
    for split, part in (("train2017", names[num_val:]), ("val2017", names[:num_val])):
        entries = [{"id": int(name[:-4]), "file_name": name} for name in part]
        content = json.dumps({"images": entries, "annotations": [], "categories": []})
        path = root / "coco" / "annotations" / f"instances_{split}.json"
        _write(path, content.encode())
        for name in part:
            _write(root / "coco" / split / name, name.encode())
    for year, splits in (("2007", ("trainval", "test")), ("2012", ("trainval",))):
        for split in splits:
            part = [f"{split}_{number:06d}" for number in range(voc_images // 3)]
            voc = root / f"VOC{year}"
            _write(voc / "ImageSets" / "Main" / f"{split}.txt", "\n".join(part).encode())
            for name in part:
                _write(voc / "Annotations" / f"{name}.xml", XML.encode())
                _write(voc / "JPEGImages" / f"{name}.jpg", name.encode())
    _write(root / "datasets" / "imagenet" / "train" / "one" / "1.JPEG", b"1")
    for backbone in load_yaml(CONFIG)["backbones"]:
        if "checkpoint" in backbone:
            _write(root / backbone["checkpoint"], backbone["name"].encode())
    places = {"DETECTRON2_DATASETS": str(root), "XDG_CACHE_HOME": str(root / "cache")}
    with mock.patch.dict(os.environ, places), contextlib.chdir(root):
        yield


def _plan_rows(rounds: int) -> Iterator[tuple[str, float]]:
    for name in ("empty", *["warm"] * rounds):
        started = time.perf_counter()
        load_plan(CONFIG, [])
        yield name, time.perf_counter() - started


def _rate_rows(root: Path) -> Iterator[tuple[str, float, float, float]]:
    names = [f"{number}.jpg" for number in range(2_000)]
    for name in names:
        _write(root / "large" / name, name.encode() + os.urandom(IMAGE_BYTES))
    time.sleep(SETTLED_S)
    levels: tuple[Level, ...] = ("content", "blocks")
    for level in levels:
        rates = []
        for _ in ("read", "known"):
            started = time.perf_counter()
            file_digests(root / "large", names, level)
            rates.append(len(names) / (time.perf_counter() - started))
        num_bytes = IMAGE_BYTES if level == "content" else 2 * BLOCK
        yield level, rates[0], num_bytes * rates[0] / 1e6, rates[1]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
