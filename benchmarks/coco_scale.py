"""A detection set of COCO's size, drawn; seconds and memory of its check, its plan and a start."""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.rows import Table, print_rows
from pipeline.plan.build import load_plan
from pipeline.stages.content_index import SETTLED_S
from pipeline.stages.run_folder import prepare
from pipeline.worker import run

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "configs" / "transfer" / "digits_mask_rcnn_coco.yaml"
NUM_CLASSES, SIDE = 80, 420  # objects lie in the upper left square, which every image has
SIZES = ((640, 480), (640, 427), (480, 640), (500, 500))
NUM_CORNERS, NUM_SHAPES = 24, 4096


def benchmark_scale(*, images: int = 118_287, objects: int = 860_001) -> list[Table]:
    """Print what it takes to check a set of that size, to plan with it, and to start on it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_set(root, "train", images, objects)
        write_set(root, "test", 50, 400)
        size = (root / "train.json").stat().st_size / 1e6
        title = f"{images:,} images, {objects:,} polygons, {size:.0f} MB of JSON"
        columns = ("what", "seconds:.1f", "CPU s:.1f", "MB at most:.0f")
        return [print_rows(title, columns, _rows(root))]


def _rows(root: Path) -> Iterator[tuple[Any, ...]]:
    content = {
        "name": "scale",
        "output_dir": str(root / "runs"),
        "backbones": [{"name": "random", "random": True}],
        "datasets": {name: {"format": "coco", "annotations": str(root / f"{name}.json"),
                            "images": str(root / name)} for name in ("train", "test")},
        "tasks": [{"name": "task", "config": str(TASK), "overrides": [
            "DATASETS.TRAIN=[train]", "DATASETS.TEST=[test]",
            f"MODEL.ROI_HEADS.NUM_CLASSES={NUM_CLASSES}"]}],
        "seeds": [0],
    }  # fmt: skip
    config = str(root / "scale.yaml")
    Path(config).write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    check = str(ROOT / "tools" / "check_data.py"), "train", "--config-file", config
    time.sleep(SETTLED_S)  # what was written just now is read again
    here = "-m", "benchmarks.coco_scale"
    for what, words in (
        ("check_data, every image opened", check),
        ("plan, its files read first", (*here, "plan", config)),
        ("plan, its files known", (*here, "plan", config)),
        ("a job, to the end of its first iteration", (*here, "start", config)),
    ):
        yield what, *measured(root, words)


def measured(root: Path, words: Sequence[str]) -> tuple[float, float, float]:
    """Return the seconds, the CPU seconds and the MB at most of a Python process in `root`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(root / "cache")}
    started = time.perf_counter()
    with (root / "said.txt").open("w+", encoding="utf-8") as said:
        child = subprocess.Popen(
            [sys.executable, *words], cwd=root, env=environment, stdout=said, stderr=said
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(words)}: {said.read()[-2000:]}")
    seconds = time.perf_counter() - started
    cpu = used.ru_utime + used.ru_stime
    return seconds, cpu, used.ru_maxrss / 1024


def start(run_dir: Path) -> None:
    """Run a stage's worker in this process, and leave it after the first iteration."""
    trainers: Any = importlib.import_module("transfer.detection.trainer")
    for trainer in trainers.TRAINERS.values():
        step = trainer.run_step

        def leave(self: Any, step: Any = step) -> None:
            step(self)
            os._exit(0)

        trainer.run_step = leave
    run(run_dir)
    sys.exit("the worker ended before its first iteration")


def main(command: str, config: str) -> None:
    """Plan what `config` says, and with `start` begin its only stage."""
    (stage,) = load_plan(Path(config), []).stages
    if command == "start":
        prepare(stage)
        start(stage.run_dir)


def write_set(root: Path, name: str, num_images: int, num_objects: int) -> None:
    """Write `name.json` in COCO's layout and a folder `name` of small JPEG files, no two alike."""
    draw = random.Random(name)
    folder = root / name
    folder.mkdir(parents=True)
    pictures = [_picture(size) for size in SIZES]
    images = []
    for number in range(1, num_images + 1):
        kind = draw.randrange(len(SIZES))
        rest = number.to_bytes(4, "big") * draw.randrange(1, 900)  # files of COCO differ in size
        (folder / f"{number:012d}.jpg").write_bytes(pictures[kind] + rest)
        width, height = SIZES[kind]
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": width,
                       "height": height})  # fmt: skip
    shapes = [_shape(draw) for _ in range(NUM_SHAPES)]
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, NUM_CLASSES + 1)]
    with (root / f"{name}.json").open("w", encoding="utf-8") as file:
        head = json.dumps({"images": images, "categories": categories})
        file.write(f'{head[:-1]}, "annotations": [')
        for number in range(1, num_objects + 1):
            ids = f'"id": {number}, "image_id": {draw.randint(1, num_images)}'
            of_class = f'"category_id": {(number - 1) % NUM_CLASSES + 1}'
            comma = "" if number == 1 else ", "
            file.write(f"{comma}{{{ids}, {of_class}, {shapes[draw.randrange(NUM_SHAPES)]}}}")
        file.write("]}")


def _picture(size: tuple[int, int]) -> bytes:
    """Return a JPEG file of few bytes."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(stream, "JPEG", quality=5)
    return stream.getvalue()


def _shape(draw: random.Random) -> str:
    """Return the keys of an annotation that say where it lies: a polygon, its box and area."""
    x, y = draw.uniform(0, SIDE - 40), draw.uniform(0, SIDE - 40)
    width, height = draw.uniform(20, SIDE - x), draw.uniform(20, SIDE - y)
    spans = ((x, width), (y, height)) * NUM_CORNERS
    corners = [round(start + draw.random() * length, 2) for start, length in spans]
    left, top = min(corners[::2]), min(corners[1::2])
    box = [left, top, round(max(corners[::2]) - left, 2), round(max(corners[1::2]) - top, 2)]
    content = {"segmentation": [corners], "bbox": box, "area": round(box[2] * box[3] / 2, 2),
               "iscrowd": 0}  # fmt: skip
    return json.dumps(content)[1:-1]


if __name__ == "__main__":
    main(*sys.argv[1:])
