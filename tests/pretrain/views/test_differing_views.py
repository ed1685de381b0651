"""Views that differ in their settings and sizes: the same in all three ways to change colours."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pretrain.config.data import AugmentConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import open_images
from pretrain.runtime.device import Views
from pretrain.views import ViewLoader, batched
from pretrain.views.batched import RawViews, cut_views, finish_batch
from pretrain.views.parameters import BLUR_SIGMA, SOLARIZE, ViewParams
from pretrain.views.per_image import build_view
from tests.fake_cuda import CUDA, fake_cuda

Make = Callable[..., PretrainConfig]
CPU = torch.device("cpu")
COLOURS = ("by_view", "in_loader", "on_device")
BYOL = [{"blur_probability": 1.0}, {"blur_probability": 0.1, "solarize": 0.2}]
CROPS = [  # INTL's, at a seventh of the sides
    {"size": 32, "crop_scale": (0.2, 1), "count": 2},
    {"size": 27, "crop_scale": (0.171, 0.857)},
    {"size": 23, "crop_scale": (0.143, 0.714), "noise_std": 0.1},
    {"size": 18, "crop_scale": (0.114, 0.571)},
    {"size": 14, "crop_scale": (0.086, 0.429), "rotation_degrees": 20.0},
]


def loaded(make: Make, colours: str, workers: int = 0, **augment: Any) -> list[Views]:
    """Return two batches of three and two images."""
    config = make(augment={"size": 32, "colours": colours, **augment})
    data = config.data.model_copy(update={"num_workers": workers})
    config = config.model_copy(update={"data": data})
    loader = ViewLoader(config, open_images(data), CPU)
    return list(loader.batches(3, [[4, 1, 5], [9, 1]]))


def same(a: list[Views], b: list[Views]) -> bool:
    pairs = [pair for batches in zip(a, b, strict=True) for pair in zip(*batches, strict=True)]
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("colours", COLOURS)
def test_views_of_differing_sizes_are_a_tensor_each(tiny: Make, colours: str) -> None:
    first, last = loaded(tiny, colours, views=CROPS)
    for batch, N in ((first, 3), (last, 2)):
        assert isinstance(batch, tuple)
        assert [view.shape for view in batch] == [
            (N, 3, side, side) for side in (32, 32, 27, 23, 18, 14)
        ]
        assert all(view.dtype == torch.float32 for view in batch)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, last, strict=True))  # of image 1
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("colours", COLOURS)
def test_views_of_one_size_are_one_tensor_whatever_else_differs(tiny: Make, colours: str) -> None:
    for batch in loaded(tiny, colours, views=BYOL):
        assert isinstance(batch, Tensor) and batch.shape[::2] == (2, 3, 32)


@pytest.mark.parametrize("before_crop", [False, True])
@pytest.mark.parametrize("views", [BYOL, CROPS])
def test_loader_and_device_draw_the_same_whatever_the_workers(
    tiny: Make, views: list[dict[str, Any]], before_crop: bool
) -> None:
    settings = {"views": views, "colours_before_crop": before_crop, "noise_std": 0.05}
    alone = loaded(tiny, "in_loader", **settings)
    for colours, workers in (("on_device", 0), ("in_loader", 2), ("on_device", 2)):
        assert same(alone, loaded(tiny, colours, workers, **settings)), (colours, workers)
    by_view = loaded(tiny, "by_view", **settings)
    assert same(by_view, loaded(tiny, "by_view", 2, **settings))


@pytest.mark.parametrize("colours", COLOURS)
@pytest.mark.parametrize("views", [[{}, {}], [{"count": 2}], [{}, {"size": 32, "flip": 0.5}]])
def test_entries_that_change_nothing_draw_the_views_of_none(
    tiny: Make, colours: str, views: list[dict[str, Any]]
) -> None:
    settings = {"blur_probability": 0.5, "solarize": 0.3, "noise_std": 0.1}
    plain = loaded(tiny, colours, **settings)
    assert same(plain, loaded(tiny, colours, **settings, views=views))


@pytest.mark.parametrize("colours", COLOURS)
def test_a_kernel_of_blur_is_a_tenth_of_its_own_view(tiny: Make, colours: str) -> None:
    still = {
        "crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "jitter_probability": 0,
        "grayscale": 0, "mean": (0, 0, 0), "std": (1, 1, 1), "blur_sigma": (1.5, 1.5),
        "views": [{"size": 60}, {"size": 16}],
    }  # fmt: skip
    sharp = loaded(tiny, colours, **still)[0]
    blurred = loaded(tiny, colours, **still, blur_probability=1.0)[0]
    for got, view, side in zip(blurred, sharp, (7, 3), strict=True):
        want = tv.gaussian_blur(view, [side, side], [1.5, 1.5])
        torch.testing.assert_close(got, want, rtol=0, atol=0.51 / 255)  # by_view rounds to bytes


def test_each_view_has_its_own_chances(tiny: Make) -> None:
    config = tiny(augment={"size": 8, "views": BYOL})
    chosen = [(epoch, n) for epoch in range(40) for n in range(20)]
    raws = cut_views(open_images(config.data), chosen, 2, 0, config.augment)
    rows = torch.cat([raw.rows for raw in raws])
    blurred, solarised = rows[..., BLUR_SIGMA] > 0, rows[..., SOLARIZE] >= 0
    assert bool(blurred[0].all()) and not bool(solarised[0].any())
    assert float(blurred[1].float().mean()) == pytest.approx(0.1, abs=0.03)
    assert float(solarised[1].float().mean()) == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("before_crop", [False, True])
def test_statistics_of_each_view_are_torchvisions(tiny: Make, before_crop: bool) -> None:
    views = [
        {"size": 24, "blur_probability": 1.0, "jitter_probability": 0.0, "noise_std": 0.1},
        {"size": 16, "solarize": 0.5, "crop_scale": (0.05, 0.2), "grayscale": 0.5},
    ]
    config = tiny(augment={"views": views, "colours_before_crop": before_crop})
    images, count = open_images(config.data), 300
    raws = cut_views(images, [(epoch, 5) for epoch in range(count)], 2, 0, config.augment)
    torch.manual_seed(0)

    def statistics(batch: Tensor) -> Tensor:
        sharpness = (batch[..., 1:] - batch[..., :-1]).square().mean((1, 2, 3))
        return torch.stack(
            [batch.mean((1, 2, 3)), batch.std((2, 3)).mean(1), sharpness, batch.amax((1, 2, 3))], 1
        )

    for ours, settings in zip(
        finish_batch(raws, config.augment), config.augment.of_views(2), strict=True
    ):
        transform = build_view(settings)
        theirs = torch.stack([transform(images.read(5)) for _ in range(count)])
        a, b = statistics(ours), statistics(theirs)
        error = (a.var(0) / count + b.var(0) / count).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 4 * error).all())


def test_an_image_is_reduced_as_far_as_its_largest_views_allow(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def factors(*sizes: int) -> set[int]:
        """The factors by which a photograph of 640 x 427 is reduced; whole images are cut."""
        views = [{"size": size} for size in sizes]
        whole = {"crop_scale": (1, 1), "crop_ratio": (1.5, 1.5), "decoding": "reduced"}
        config = tiny(augment={"views": views, **whole, "jitter_probability": 0})
        for path in config.data.root.iterdir():
            path.unlink()
        image = Image.fromarray(load_sample_image("china.jpg"))
        image.save(config.data.root / "china.jpg", quality=92)
        heights: set[int] = set()

        def noted(image: Tensor, params: ViewParams, settings: AugmentConfig) -> Tensor:
            heights.add(image.shape[1])
            assert min(params.height, params.width) >= settings.size or image.shape[1] == 427
            return original(image, params, settings)

        original = batched.cut_view
        with monkeypatch.context() as patch:
            patch.setattr(batched, "cut_view", noted)
            cut_views(open_images(config.data), [(0, 0)], len(sizes), 0, config.augment)
        return {round(427 / height) for height in heights}

    assert factors(50, 50) == {8}
    assert factors(50, 100) == factors(100, 50) == {4}
    assert factors(50, 400) == {1}


@pytest.mark.parametrize("views", [BYOL, CROPS])
def test_a_gpu_finishes_them_without_a_wait(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, views: list[dict[str, Any]]
) -> None:
    augment = {"size": 32, "colours": "on_device", "views": views, "noise_std": 0.1}
    config = tiny(augment=augment)
    raws = cut_views(
        open_images(config.data), [(0, 1), (0, 2)], config.num_views, 0, config.augment
    )
    with fake_cuda() as gpu:
        pinned = [
            RawViews(raw.views.pin_memory(), raw.rows, raw.noise.pin_memory()) for raw in raws
        ]
        loader = ViewLoader(config, open_images(config.data), CUDA)
        batch = loader._finished(pinned)
        assert {view.device for view in batch} == {CUDA} and not gpu.waits
        assert [view.shape[-1] for view in batch] == config.view_sizes
        assert isinstance(batch, Tensor) == (views is BYOL)
