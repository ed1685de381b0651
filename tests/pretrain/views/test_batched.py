"""Views with colours changed in batches: the same wherever and by however many workers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pretrain.config.data import AugmentConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import ImageArrays, open_images
from pretrain.data.shared_memory import Block, Blocks
from pretrain.views import ViewLoader, batched
from pretrain.views.batched import RawViews, cut_view, cut_views, finish_batch, finish_views
from pretrain.views.parameters import ViewParams
from pretrain.views.per_image import build_view
from tests.fake_cuda import CUDA, fake_cuda

Make = Callable[..., PretrainConfig]
FULL = {
    "size": 24, "blur_probability": 0.5, "grayscale": 0.3, "noise_std": 0.1, "solarize": 0.3,
}  # fmt: skip


def with_colours(make: Make, colours: str, workers: int = 0, **augment: Any) -> PretrainConfig:
    config = make(augment={**FULL, **augment, "colours": colours}, num_views=3)
    data = config.data.model_copy(update={"num_workers": workers})
    return config.model_copy(update={"data": data})


def test_a_draw_cuts_turns_and_mirrors() -> None:
    image = torch.arange(3 * 6 * 8, dtype=torch.uint8).view(3, 6, 8)
    config = AugmentConfig(size=4)
    draw = ViewParams(0.0, top=1, left=3, height=4, width=4, flip=False, colour=())
    assert torch.equal(cut_view(image, draw, config), image[:, 1:5, 3:7])
    mirrored = ViewParams(0.0, top=1, left=3, height=4, width=4, flip=True, colour=())
    assert torch.equal(cut_view(image, mirrored, config), image[:, 1:5, 3:7].flip(-1))
    turned = ViewParams(180.0, top=0, left=0, height=4, width=4, flip=False, colour=())
    assert torch.equal(cut_view(image, turned, config), image.flip(-1, -2)[:, :4, :4])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [7, 32, 100])
def test_pixels_beside_each_other_in_memory_give_the_same_bytes(
    interpolation: str, size: int
) -> None:
    chance = torch.Generator().manual_seed(size)
    planes = torch.randint(0, 256, (3, 61, 83), dtype=torch.uint8, generator=chance)
    pixels = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    config = AugmentConfig.model_validate({"size": size, "interpolation": interpolation})
    for box in ((0, 0, 61, 83), (3, 10, 40, 33), (60, 82, 1, 1), (0, 5, 2, 70)):
        top, left, height, width = box
        part = planes[None, :, top : top + height, left : left + width].contiguous()
        want = F.interpolate(part, (size, size), mode=interpolation, antialias=True)[0]
        for image in (planes, pixels):
            assert torch.equal(cut_view(image, ViewParams(0.0, *box, False, ()), config), want)


@pytest.mark.parametrize("before_crop", [False, True])
def test_a_worker_fills_the_memory_that_it_sends(tiny: Make, before_crop: bool) -> None:
    config = with_colours(tiny, "in_loader", colours_before_crop=before_crop)
    (raw,) = cut_views(open_images(config.data), [(0, 5)], 2, 0, config.augment)
    alone = finish_views(raw, config.augment)
    blocks = Blocks(1, 10**6)
    block = Block(blocks, 0)
    (there,) = cut_views(open_images(config.data), [(0, 5)], 2, 0, config.augment, block.empty)
    shared = finish_batch([there], config.augment, block.empty)
    assert isinstance(shared, torch.Tensor) and torch.equal(shared, alone)
    parts = [part for part in (*there, shared) if part is not None]
    assert {part.untyped_storage().data_ptr() for part in parts} == {block.memory.data_ptr()}
    assert there.views.permute(0, 1, 3, 4, 2).is_contiguous()  # as they are cut out
    for part, other in zip(there, raw, strict=True):
        assert (part is None) == (other is None)
        assert part is None or other is None or torch.equal(part, other)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_without_chance_the_views_are_torchvisions(tiny: Make, interpolation: str) -> None:
    still = {
        "size": 24, "crop_scale": (1, 1), "crop_ratio": (0.9, 0.9), "flip": 1.0, "noise_std": 0,
        "jitter_probability": 0, "grayscale": 1.0, "blur_probability": 1.0, "blur_sigma": (1, 1),
        "interpolation": interpolation, "solarize": 0.0,
    }  # fmt: skip
    config = with_colours(tiny, "in_loader", **still)
    images = open_images(config.data)
    got = finish_batch(cut_views(images, [(0, 5)], 1, 0, config.augment), config.augment)[0, 0]
    want = build_view(config.augment)(images.read(5))
    # torchvision rounds to bytes after every op: up to one step each, over a std of 0.224
    assert float((got - want).abs().max()) < 2.5 / 255 / 0.224


@pytest.mark.parametrize("colours", ["in_loader", "by_view"])
def test_a_view_is_blurred_and_then_solarised(tiny: Make, colours: str) -> None:
    augment = {
        "size": 36, "crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "jitter_probability": 0,
        "grayscale": 0, "blur_probability": 1.0, "blur_sigma": (1.5, 1.5), "solarize": 1.0,
        "mean": (0, 0, 0), "std": (1, 1, 1), "colours": colours,
    }  # fmt: skip
    config = tiny(augment=augment)
    images = open_images(config.data)
    got = next(ViewLoader(config, images, torch.device("cpu")).batches(0, [[4, 7]]))
    image = images.read(4)[:, 2:38] / 255  # the largest square in the middle
    blurred = tv.gaussian_blur(image, [config.augment.blur_kernel] * 2, [1.5, 1.5])
    assert (got[0][0] - tv.solarize(blurred, 128 / 255)).abs().max() < 0.01
    other = tv.gaussian_blur(tv.solarize(image, 128 / 255), [5, 5], [1.5, 1.5])
    assert (got[0][0] - other).abs().max() > 0.1


@pytest.mark.parametrize("threshold", [0.2, 128 / 255, 1.0])
def test_solarised_views_are_torchvisions_to_the_byte(tiny: Make, threshold: float) -> None:
    still = PLAIN | {
        "size": 36, "crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "solarize": 1.0,
        "solarize_threshold": threshold, "mean": (0, 0, 0), "std": (1, 1, 1),
    }  # fmt: skip
    config = with_colours(tiny, "in_loader", **still)
    image = torch.arange(256, dtype=torch.uint8).repeat(16)[: 36 * 36].view(1, 36, 36)
    image = image.expand(3, 36, 36)
    images = ImageArrays((image.numpy()[None],))
    got = finish_batch(cut_views(images, [(0, 0)], 1, 0, config.augment), config.augment)[0][0]
    assert torch.equal((255 * got).round().byte(), tv.solarize(image, round(255 * threshold)))
    torch.testing.assert_close(got, build_view(config.augment)(image), rtol=0, atol=1e-6)


def test_statistics_over_many_views_are_torchvisions(tiny: Make) -> None:
    config = with_colours(tiny, "in_loader", noise_std=0.05, jitter=(0.4, 0.4, 0.4, 0.1))
    images = open_images(config.data)
    count = 300
    (raw,) = cut_views(images, [(epoch, 5) for epoch in range(count)], 1, 0, config.augment)
    ours = finish_views(raw, config.augment)[0]
    view = build_view(config.augment)
    torch.manual_seed(0)
    theirs = torch.stack([view(images.read(5)) for _ in range(count)])

    def statistics(views: Tensor) -> Tensor:
        sharpness = (views[..., 1:] - views[..., :-1]).square().mean((1, 2, 3))
        spread = views.std(1).mean((1, 2))
        return torch.stack([views.mean((1, 2, 3)), views.std((2, 3)).mean(1), sharpness, spread], 1)

    a, b = statistics(ours), statistics(theirs)
    error = (a.var(0) / count + b.var(0) / count).sqrt()
    assert bool(((a.mean(0) - b.mean(0)).abs() < 4 * error).all())
    assert torch.allclose(a.std(0), b.std(0), rtol=0.25)


def test_a_gpu_takes_the_noise_that_the_loader_drew_in_one_launch(tiny: Make) -> None:
    config = with_colours(tiny, "on_device")
    images = open_images(config.data)
    (raw,) = cut_views(images, [(0, n) for n in range(8)], 3, 0, config.augment)
    assert raw.noise is not None and raw.noise.shape == raw.views.shape
    assert abs(float(raw.noise.std()) - 1) < 0.01 and len(raw.noise[:, 0].unique()) > 5000
    alone = cut_views(images, [(0, 5)], 3, 0, config.augment)[0].noise
    assert alone is not None and torch.equal(raw.noise[:, 5:6], alone)
    calls = []
    for noise in (None, raw.noise):
        with fake_cuda() as gpu:
            there = RawViews(
                raw.views.pin_memory().to(CUDA, non_blocking=True),
                raw.rows,
                None if noise is None else noise.pin_memory().to(CUDA, non_blocking=True),
            )
            gpu.calls.clear()
            assert finish_views(there, config.augment).device == CUDA
            assert not gpu.waits
            calls.append(gpu.calls)
    assert calls[1] == [*calls[0], "aten::mul.Tensor", "aten::addcmul_"]


PLAIN = {
    "jitter_probability": 0.0, "grayscale": 0.0, "noise_std": 0.0, "blur_probability": 0.0,
    "solarize": 0.0,
}  # fmt: skip


@pytest.fixture
def photographs(tiny: Make) -> Make:
    """Return `tiny` with two photographs of 640x427, and one of them as PNG."""

    def make(**augment: Any) -> PretrainConfig:
        config = with_colours(tiny, "in_loader", **PLAIN, **augment)
        for path in config.data.root.iterdir():
            path.unlink()
        for name in ("china", "flower"):
            image = Image.fromarray(load_sample_image(f"{name}.jpg"))
            image.save(config.data.root / f"{name}.jpg", quality=92)
        image.save(config.data.root / "z.png")
        return config

    return make


@pytest.mark.parametrize(("size", "factor"), [(224, 1), (96, 2), (48, 4), (24, 8)])
@pytest.mark.parametrize("before_crop", [False, True])
def test_reduced_views_show_what_the_full_ones_do(
    photographs: Make, size: int, factor: int, before_crop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = photographs(size=size, crop_scale=(0.25, 1.0), colours_before_crop=before_crop)
    images, shapes = open_images(config.data), set()
    chosen = [(epoch, n) for epoch in range(10) for n in range(3)]
    (drawn,) = cut_views(images, chosen, 3, 0, config.augment)
    whole_images = [images.read(n) for n in range(3)]
    # the order in which all is cut
    decoded = [whole_images[n] for _, n in chosen for _ in range(3)]
    want: list[Tensor] = []

    def beside(image: Tensor, params: ViewParams, augment: AugmentConfig) -> Tensor:
        whole, smaller = decoded[len(want)], image.shape[1] < 427
        shapes.add(image.shape[1:])
        assert not smaller or min(params.height, params.width) >= size
        times = factor if smaller else 1
        names = ("top", "left", "height", "width")
        same = replace(params, **{name: getattr(params, name) * times for name in names})
        want.append(cut_view(whole, same, augment))
        return cut_view(image, params, augment)

    monkeypatch.setattr(batched, "cut_view", beside)
    monkeypatch.setattr(batched, "CPU_VALUES", 1)  # one image after the other
    augment = config.augment.model_copy(update={"decoding": "reduced"})
    (reduced,) = cut_views(images, chosen, 3, 0, augment)
    assert shapes == {(427, 640), (-(-427 // factor), -(-640 // factor))}
    assert torch.equal(drawn.rows, reduced.rows)
    assert torch.equal(drawn.views[:, 2::3], reduced.views[:, 2::3])  # a PNG
    there = reduced.views.transpose(0, 1).flatten(0, 1).double()
    far = (there - torch.stack(want)).abs().mean((1, 2, 3)).view(-1, 3, 3)
    assert float(far[:, 2].max()) == 0.0 and float(far.max()) < 4
    assert float(far[:, :2].mean()) < 1.5 and (factor == 1) == (float(far.max()) == 0)


def test_reduced_views_are_the_same_in_workers_and_on_the_device(photographs: Make) -> None:
    config = photographs(size=32, decoding="reduced")
    images = open_images(config.data)
    batches = []
    for colours, workers in (("in_loader", 0), ("on_device", 0), ("in_loader", 2)):
        augment = config.augment.model_copy(update={"colours": colours})
        data = config.data.model_copy(update={"num_workers": workers})
        changed = config.model_copy(update={"augment": augment, "data": data})
        loader = ViewLoader(changed, images, torch.device("cpu"))
        batches.append(torch.cat(list(loader.batches(4, [[2, 0], [1]])), dim=1))
    full = config.augment.model_copy(update={"decoding": "full"})
    other = finish_batch(cut_views(images, [(4, 2), (4, 0), (4, 1)], 3, config.seed, full), full)
    assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])
    assert torch.equal(batches[0][:, 0], other[:, 0])
    assert not torch.equal(batches[0][:, 1], other[:, 1])
