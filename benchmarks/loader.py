"""Views of the loader a second, and a second of CPU, against a plain PIL pipeline of the recipe.

V views, N images, S side. The images are drawn noise of the size and weight of real ones.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.device import best_device, device_name, wait_for
from benchmarks.rows import Table, print_rows
from pretrain.config.data import AugmentConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import ImageArrays, ImageFiles, Images, open_images
from pretrain.views import ViewLoader

BATCH = 16
BATCHES_PER_WORKER = 4  # in a pass, which begins and ends with nothing loaded
JITTER = (0.4, 0.4, 0.4, 0.1)
SMALL = {"jitter": JITTER, "grayscale": 0.1, "colours_before_crop": True}


@dataclass(frozen=True)
class LoaderCase:
    """A recipe's views of images of one size; `jpeg` or in an array as CIFAR's and STL-10's."""

    title: str
    image_size: tuple[int, int]  # width, height
    jpeg: bool
    num_images: int
    num_views: int
    augment: dict[str, Any]


MOCO = {"size": 224, "jitter": JITTER, "grayscale": 0.2, "blur_probability": 0.5}
LOADER_CASES = (
    LoaderCase(
        "ImageNet, MoCo v2's views, 500x375 JPEG -> 4 x 224",
        image_size=(500, 375),
        jpeg=True,
        num_images=64,
        num_views=4,
        augment=MOCO,
    ),
    LoaderCase(
        "photos, the same views, 1600x1200 JPEG -> 4 x 224",
        image_size=(1600, 1200),
        jpeg=True,
        num_images=16,
        num_views=4,
        augment=MOCO,
    ),
    LoaderCase(
        "as above without blur, 2 x 224",
        image_size=(500, 375),
        jpeg=True,
        num_images=64,
        num_views=2,
        augment={"size": 224, "jitter": JITTER, "grayscale": 0.1},
    ),
    LoaderCase(
        "ImageNet-100, W-MSE 2, 500x375 JPEG -> 2 x 224",
        image_size=(500, 375),
        jpeg=True,
        num_images=64,
        num_views=2,
        augment={
            **SMALL,
            "size": 224,
            "crop_scale": (0.08, 1.0),
            "jitter": (0.8, 0.8, 0.8, 0.2),
            "grayscale": 0.2,
            "blur_probability": 0.5,
        },
    ),
    LoaderCase(
        "Tiny ImageNet, W-MSE 4, 64 px JPEG -> 4 x 64",
        image_size=(64, 64),
        jpeg=True,
        num_images=320,
        num_views=4,
        augment={"size": 64, **SMALL},
    ),
    LoaderCase(
        "STL-10, W-MSE 2, 96 px array -> 2 x 64",
        image_size=(96, 96),
        jpeg=False,
        num_images=320,
        num_views=2,
        augment={"size": 64, **SMALL},
    ),
    LoaderCase(
        "CIFAR-10, W-MSE 4, 32 px array -> 4 x 32",
        image_size=(32, 32),
        jpeg=False,
        num_images=320,
        num_views=4,
        augment={"size": 32, **SMALL},
    ),
)


def benchmark_loader(*, rounds: int = 3, workers: int = 2) -> list[Table]:
    """Print views per second of every case: PIL, this package's ways, and the ratio to PIL.

    `on_device` changes the colours on the GPU, or without one in the main process; `reduced` is
    `in_loader` with reduced decoding, for JPEGs. A second table counts the user and system seconds
    of all processes, which others on the machine change less than the clock.
    """
    ways = ("by_view", "in_loader", "on_device", "reduced")
    cpu_rows: list[list[Any]] = []

    def rows() -> Iterator[list[Any]]:
        for case in LOADER_CASES:
            usable = ways if case.jpeg else ways[:-1]
            clock, cpu = loader_rates(case, usable, rounds, workers)
            cpu_rows.append(_cells(case.title, cpu, ways))
            yield _cells(case.title, clock, ways)

    names = ("PIL", *ways)
    columns = ("case", *(f"{name}:,.0f" for name in names), *(f"{way}/PIL:.2f" for way in ways[1:]))
    name = device_name(best_device())
    about = {"device": name, "cores": len(os.sched_getaffinity(0))}
    clock_table = print_rows(
        f"Loader, views/s, {name}, {workers} workers, {about['cores']} cores, "
        f"load {os.getloadavg()[0]:.1f}, median of {rounds}",
        columns,
        rows(),
        **about,
    )
    return [clock_table, print_rows("views a second of CPU", columns, cpu_rows, **about)]


def _cells(title: str, rates: dict[str, float], ways: tuple[str, ...]) -> list[Any]:
    """Return a row: each rate, and those of all but the first way over PIL's."""
    ratios = [rates[way] / rates["PIL"] if way in rates else None for way in ways[1:]]
    return [title, *(rates.get(name) for name in ("PIL", *ways)), *ratios]


def loader_rates(
    case: LoaderCase, ways: tuple[str, ...], rounds: int, workers: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median views of PIL and of each way, timed in turns: a second, and one of CPU."""
    with tempfile.TemporaryDirectory() as folder:
        images = drawn_images(case, Path(folder))
        configs = {way: loader_config(case, way, workers, Path(folder)) for way in ways}
        passes = {"PIL": plain_pass(images, configs[ways[0]])}
        for way, config in configs.items():
            passes[way] = own_pass(images, config)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
        for round_ in range(rounds + 1):  # the first starts the workers
            for name, run in passes.items():
                begin, begin_cpu = time.perf_counter(), cpu_seconds()
                num_views = sum(run(round_))
                if round_:
                    cpu = cpu_seconds() - begin_cpu
                    seconds[name].append(
                        ((time.perf_counter() - begin) / num_views, cpu / num_views)
                    )
        del passes, run  # ends the workers
    clock, cpu_rates = (
        {name: 1 / statistics.median(pair[kind] for pair in seconds[name]) for name in seconds}
        for kind in (0, 1)
    )
    return clock, cpu_rates


def cpu_seconds() -> float:
    """Return user and system seconds of this process and of its workers, which live on."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2]
        user, system = fields.split()[11:13]
        seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds


def loader_config(
    case: LoaderCase, way: str, workers: int, root: Path, **changes: Any
) -> PretrainConfig:
    """Return a config whose data and augmentation are the case's, with `changes`."""
    colours = {"colours": way}
    if way == "reduced":
        colours = {"colours": "in_loader", "decoding": "reduced"}
    return PretrainConfig.model_validate(
        {
            "method": "none",
            "data": {"name": "drawn", "root": root, "num_workers": workers},
            "augment": {**case.augment, **colours},
            "loss": {"name": "none"},
            "optimizer": {"lr": 0.1},
            "num_views": case.num_views,
            "batch_size": BATCH,
            "max_steps": 1,
            **changes,
        }
    )


def drawn_images(case: LoaderCase, folder: Path) -> Images:
    """Return smooth noise with some grain: JPEGs of about 80 kB at 500x375, or an array."""
    width, height = case.image_size
    chance = np.random.default_rng(0)
    arrays = []
    for index in range(case.num_images):
        coarse = chance.integers(0, 256, (height // 25 + 2, width // 25 + 2, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grain = chance.normal(0, 12, (height, width, 3))
        pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
        if case.jpeg:
            Image.fromarray(pixels).save(folder / f"{index:05d}.jpg", quality=90)
        else:
            arrays.append(pixels.transpose(2, 0, 1))
    if case.jpeg:
        return open_images(loader_config(case, "by_view", 0, folder).data)
    return ImageArrays((np.stack(arrays),))


class PlainViews(Dataset[Tensor]):
    """What a training script does: PIL images through torchvision's transforms, decoded once."""

    def __init__(self, images: Images, view: Callable[[Image.Image], Tensor], num: int) -> None:
        self.images = images
        self.view = view
        self.num = num

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if isinstance(self.images, ImageFiles):
            with Image.open(self.images.path(index)) as file:
                image = file.convert("RGB")
        else:
            image = Image.fromarray(self.images.read(index).permute(1, 2, 0).numpy())
        return torch.stack([self.view(image) for _ in range(self.num)])


def plain_view(config: AugmentConfig) -> Callable[[Image.Image], Tensor]:
    """Return the recipe's view as the published scripts build it, from PIL to a tensor."""
    crop: list[Any] = [
        transforms.RandomResizedCrop(
            config.size,
            scale=config.crop_scale,
            ratio=config.crop_ratio,
            interpolation=transforms.InterpolationMode(config.interpolation),
        ),
    ]
    colours: list[Any] = [
        transforms.RandomApply([transforms.ColorJitter(*config.jitter)], config.jitter_probability),
        transforms.RandomGrayscale(config.grayscale),
    ]
    steps = colours + crop if config.colours_before_crop else crop + colours
    if config.blur_probability:
        steps.append(transforms.RandomApply([_PilBlur(config)], config.blur_probability))
    steps += [transforms.RandomHorizontalFlip(config.flip), transforms.ToTensor()]
    view: Callable[[Image.Image], Tensor] = transforms.Compose(
        [*steps, transforms.Normalize(config.mean, config.std)]
    )
    return view


class _PilBlur:
    """PIL's own blur with a random radius, as the published scripts have it."""

    def __init__(self, config: AugmentConfig) -> None:
        self.sigma = config.blur_sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        low, high = self.sigma
        radius = low + (high - low) * float(torch.rand(()))
        return image.filter(ImageFilter.GaussianBlur(radius))


def pass_batches(num_images: int, workers: int) -> list[list[int]]:
    """Return the images of each batch of a pass: all of them, around again for many workers."""
    indices = itertools.cycle(range(num_images))
    number = max(math.ceil(num_images / BATCH), BATCHES_PER_WORKER * workers)
    return [list(itertools.islice(indices, BATCH)) for _ in range(number)]


def plain_pass(images: Images, config: PretrainConfig) -> Callable[[int], Iterator[int]]:
    """Return a function that loads a pass through PIL and yields the views of each batch."""
    workers = config.data.num_workers
    loader = DataLoader(
        PlainViews(images, plain_view(config.augment), config.num_views),
        batch_sampler=pass_batches(len(images), workers),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )

    def run(_: int) -> Iterator[int]:
        for batch in loader:
            yield batch.shape[0] * batch.shape[1]

    return run


def own_pass(images: Images, config: PretrainConfig) -> Callable[[int], Iterator[int]]:
    """Return what `plain_pass` returns, through this package."""
    device = best_device()
    loader = ViewLoader(config, images, device)
    batches = pass_batches(len(images), config.data.num_workers)

    def run(epoch: int) -> Iterator[int]:
        for views in loader.batches(epoch, batches):
            yield sum(map(len, views))
        wait_for(device)

    return run
