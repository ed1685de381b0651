"""Colours before the crop: views of photographs as the published code draws them."""

from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from pipeline.config.yaml_files import load_yaml
from pretrain.config.data import AugmentConfig
from pretrain.config.pretrain import PretrainConfig
from pretrain.data.images import ImageArrays
from pretrain.runtime.rng import derived_seed
from pretrain.views.batched import CPU_VALUES, cut_views, finish_batch, in_groups
from pretrain.views.parameters import GRAYSCALE, ORDER, draw_view
from pretrain.views.per_image import build_view

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "pretrain"
DRAWS = 1000


class FromMemory:
    """Images of any sizes that stand for a data set."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def read(self, index: int) -> Tensor:
        return self.images[index]


def photograph(name: str, side: int) -> Image.Image:
    """Return the middle of one of scikit-learn's two photographs, `side` pixels wide and high."""
    image = Image.fromarray(load_sample_image(f"{name}.jpg"))
    left = (image.width - image.height) // 2
    square = image.crop((left, 0, left + image.height, image.height))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def recipe(name: str) -> AugmentConfig:
    return PretrainConfig.model_validate(load_yaml(FOLDER / f"{name}.yaml")).augment


def published(image: Image.Image, config: AugmentConfig) -> Tensor:
    """Return views drawn by the list of transforms of the published scripts, on PIL's images."""
    bicubic = transforms.InterpolationMode.BICUBIC
    view = transforms.Compose(
        [
            transforms.RandomApply([transforms.ColorJitter(*config.jitter)], p=0.8),
            transforms.RandomGrayscale(p=config.grayscale),
            transforms.RandomResizedCrop(
                config.size, config.crop_scale, (3 / 4, 4 / 3), interpolation=bicubic
            ),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ToTensor(),
            transforms.Normalize(config.mean, config.std),
        ]
    )
    torch.manual_seed(0)
    return torch.stack([view(image) for _ in range(DRAWS)])


def in_batches(image: Image.Image, config: AugmentConfig) -> Tensor:
    images = ImageArrays((pil_to_tensor(image).numpy()[None],))
    raw = cut_views(images, [(epoch, 0) for epoch in range(DRAWS)], 1, 0, config)
    return finish_batch(raw, config)[0]


def one_by_one(image: Image.Image, config: AugmentConfig) -> Tensor:
    view, pixels = build_view(config), pil_to_tensor(image)
    torch.manual_seed(1)
    return torch.stack([view(pixels) for _ in range(DRAWS)])


def deviations(ours: Tensor, theirs: Tensor, config: AugmentConfig) -> Tensor:
    """Return how many standard errors lie between the measures' means, and between their squares.

    Measured of each view: mean and contrast (standard deviation over the pixels) of every channel
    and of the gray, and saturation (mean distance of the extreme channels).
    """

    def measures(views: Tensor) -> Tensor:
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (config.mean, config.std))
        pixels = views * std + mean
        gray = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        channels = torch.cat([pixels, gray], 1)
        saturation = (pixels.amax(1) - pixels.amin(1)).mean((1, 2))
        return torch.cat([channels.mean((2, 3)), channels.std((2, 3)), saturation[:, None]], 1)

    a, b = measures(ours).double(), measures(theirs).double()
    both = [(a, b), ((a - b.mean(0)).square(), (b - b.mean(0)).square())]
    return torch.stack(
        [(x.mean(0) - y.mean(0)).abs() / ((x.var(0) + y.var(0)) / DRAWS).sqrt() for x, y in both]
    )


@pytest.mark.parametrize(
    ("name", "photo", "side"),
    [
        ("w_mse_4_cifar100", "china", 32),
        ("cw_rgp_2_tiny_imagenet", "flower", 64),
        ("cw_rgp_4_stl10", "china", 96),
    ],
)
def test_contrast_and_saturation_of_recipes_are_distributed_as_published(
    name: str, photo: str, side: int
) -> None:
    config, image = recipe(name), photograph(photo, side)
    theirs = published(image, config)
    for draw in (in_batches, one_by_one):
        assert float(deviations(draw(image, config), theirs, config).max()) < 4


def test_the_comparison_tells_the_two_orders_apart() -> None:
    # contrast about the mean of the image, not of a small crop, spreads the views' means
    strong = {"jitter": (0, 1.0, 0, 0), "crop_scale": (0.05, 0.1), "grayscale": 0.0}
    config = recipe("w_mse_4_cifar10").model_copy(update=strong)
    after = config.model_copy(update={"colours_before_crop": False})
    image = photograph("flower", 32)
    theirs = published(image, config)
    for draw in (in_batches, one_by_one):
        assert float(deviations(draw(image, config), theirs, config).max()) < 4
        assert float(deviations(draw(image, after), theirs, config).max()) > 8


@pytest.mark.parametrize("colours", ["in_loader", "on_device"])
def test_a_view_is_cut_from_the_whole_image_changed_by_torchvisions_functions(
    colours: str,
) -> None:
    sizes = [(40, 30), (40, 30), (24, 36)]
    pictures = [photograph("flower", 64).resize(size) for size in sizes]
    pixels = [pil_to_tensor(picture) for picture in pictures]
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "colours": colours, "size": 20}
    config = recipe("cw_rgp_4_imagenet100").model_copy(update=plain | {"blur_probability": 0.0})
    raw = cut_views(FromMemory(pixels), [(3, n) for n in range(3)], 8, 0, config)
    views = finish_batch(raw, config)
    for n, image in enumerate(pixels):
        chance = Random(derived_seed(0, 3, n, 3))
        for v in range(8):
            params = draw_view(chance, *image.shape[1:], config)
            whole = changed_alone(image / 255, params.colour).mul(255).round().byte()
            box = (params.top, params.left, params.height, params.width)
            bicubic = transforms.InterpolationMode.BICUBIC
            want = functional.resized_crop(whole, *box, [20, 20], bicubic, antialias=True)
            want = want.flip(-1) if params.flip else want
            assert float((views[v, n] - want / 255).abs().max()) < 1.5 / 255


def changed_alone(image: Tensor, row: tuple[float, ...]) -> Tensor:
    """Return a float image after the jitter and grayscale of a row, by torchvision's functions."""
    adjust = (
        functional.adjust_brightness, functional.adjust_contrast,
        functional.adjust_saturation, functional.adjust_hue,
    )  # fmt: skip
    for op in row[ORDER]:
        image = adjust[int(op)](image, row[int(op)]) if op >= 0 else image
    return functional.rgb_to_grayscale(image, 3) if row[GRAYSCALE] else image


def test_a_view_does_not_depend_on_the_other_images_of_its_batch() -> None:
    config = recipe("w_mse_4_cifar10").model_copy(update={"colours": "in_loader"})
    images = FromMemory([pil_to_tensor(photograph("china", 32)) + 3 * n for n in range(90)])
    chosen = [(1, n) for n in range(90)]
    together = finish_batch(cut_views(images, chosen, 2, 0, config), config)
    alone = [finish_batch(cut_views(images, [place], 2, 0, config), config) for place in chosen]
    assert torch.equal(together, torch.cat(alone, dim=1))


def test_groups_are_of_one_size_and_fit_the_caches() -> None:
    small, large = torch.zeros(3, 32, 32), torch.zeros(3, 300, 300)
    count = CPU_VALUES // small.numel()
    groups = list(in_groups([small] * (count + 2) + [large] * 2 + [small]))
    assert [tuple(group.shape) for group in groups] == [
        (count, 3, 32, 32), (2, 3, 32, 32), (1, 3, 300, 300), (1, 3, 300, 300), (1, 3, 32, 32),
    ]  # fmt: skip
