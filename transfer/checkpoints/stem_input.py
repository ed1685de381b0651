"""The inputs that fit a stem: what conv1 makes of photographs against bn1's running statistics.

The running mean and variance of bn1 are those of conv1's output in training. Photographs,
normalised as training normalised its images, give about the same; normalised otherwise, a variance
that is off by the square of the wrong factor: 19 for [0, 1] in place of ImageNet's std, 3000 for no
std at all. The order of the channels cannot be told so: kernels of both kinds answer alike.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.checkpoints.families import CAFFE2_INPUT, IMAGENET_INPUT, UNIT_INPUT

if TYPE_CHECKING:
    from torch import Tensor

INPUTS: dict[str, dict[str, Any]] = {
    "ImageNet's mean and std": IMAGENET_INPUT,
    "pixels in [0, 1]": UNIT_INPUT,
    "pixels in [-1, 1]": UNIT_INPUT | {"pixel_mean": [127.5] * 3, "pixel_std": [127.5] * 3},
    "pixels from 0 to 255 less the mean, blue first": CAFFE2_INPUT,
    "pixels from 0 to 255": UNIT_INPUT | {"pixel_std": [1.0] * 3},
}
WARNING = "WARNING: "  # what a note begins with that speaks against the input
PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # scikit-learn's
SIDE = 256  # of a photograph's shorter side, as ImageNet's are scaled
STRIDE = 6  # between patches
DEAD = 1e-8  # variance of a channel that says nothing
MEAN_WEIGHT = 0.3
FAR, CLOSER, NOWHERE = math.log(2.5), math.log(2.0), math.log(10.0)


@cache
def patches() -> tuple[Tensor, Tensor]:
    """Return mean `[3, 49]` and covariance `[3, 49, 3, 49]` of the 7x7 patches of two photographs.

    They are scikit-learn's, in RGB from 0 to 255.
    """
    import torch  # noqa: PLC0415  (what is refused before needs no torch)
    from PIL import Image  # noqa: PLC0415
    from torch.nn.functional import unfold  # noqa: PLC0415
    from torchvision.transforms.functional import pil_to_tensor  # noqa: PLC0415

    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None, "scikit-learn is a dependency"
    rows = []
    for name in PHOTOGRAPHS:
        with Image.open(Path(spec.origin).parent / "datasets" / "images" / name) as image:
            factor = SIDE / min(image.size)
            size = (round(image.width * factor), round(image.height * factor))
            pixels = pil_to_tensor(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
            rows.append(unfold(pixels[None].double(), 7, stride=STRIDE)[0])
    joined = torch.cat(rows, 1)
    return joined.mean(1).view(3, 49), torch.cov(joined).view(3, 49, 3, 49)


def distances(
    state: Mapping[str, Tensor], inputs: Mapping[str, dict[str, Any]]
) -> dict[str, float]:
    """Return how far conv1's output on photographs is from bn1's statistics, for every input.

    The unit is the logarithm of a factor in std, the median over channels; empty where nothing can
    be told, as a network's first statistics.
    """
    import torch  # noqa: PLC0415

    weight, mean, var = (
        state[name].double() for name in ("conv1.weight", "bn1.running_mean", "bn1.running_var")
    )
    alive = (var > DEAD) & (weight.flatten(1).abs().amax(1) > 0)
    untrained = bool((mean == 0).all() and (var == 1).all())
    if untrained or not bool(alive.any()):
        return {}
    weight, mean, var = weight[alive].flatten(2), mean[alive], var[alive]  # [C, 3, 49], [C], [C]
    centre, covariance = patches()
    far = {}
    for name, one in inputs.items():
        step = (0,) if one["format"] == "BGR" else ()
        turned = centre.flip(step), covariance.flip((*step, *(axis + 2 for axis in step)))
        scale = 1 / weight.new_tensor(one["pixel_std"])
        shift = turned[0] - weight.new_tensor(one["pixel_mean"])[:, None]
        scaled = weight * scale[:, None]
        response_mean = torch.einsum("ckp,kp->c", scaled, shift)
        response_var = torch.einsum("ckp,kplq,clq->c", scaled, turned[1], scaled)
        factor = (response_var.clamp_min(1e-300) / var).log().abs() / 2
        offset = ((response_mean - mean).abs() / var.sqrt()).clamp(max=10)
        far[name] = float((factor + MEAN_WEIGHT * offset.log1p()).median())
    return far


def mismatch(state: Mapping[str, Tensor], assumed: dict[str, Any]) -> str | None:
    """Return a note where bn1's statistics speak against the assumed input, and what fits them."""
    far = distances(state, {**INPUTS, "assumed": assumed})
    if not far:
        return None
    off = far.pop("assumed")
    best = min(far, key=lambda name: far[name])
    seen = f"mean {assumed['pixel_mean']}, std {assumed['pixel_std']}"
    if off > FAR and off - far[best] > CLOSER:
        fits = INPUTS[best]
        return (
            f"{WARNING}bn1's running statistics do not fit the input assumed ({seen}): conv1's "
            f"output on photographs is off by a factor of {math.exp(off):.2g}; {best} would fit "
            f"(--input-order {fits['format']} --pixel-mean {_numbers(fits['pixel_mean'])} "
            f"--pixel-std {_numbers(fits['pixel_std'])})"
        )
    if off > NOWHERE:
        return (
            f"{WARNING}bn1's running statistics fit no usual input: conv1's output on photographs "
            f"is off by a factor of {math.exp(off):.2g} under the one assumed ({seen})"
        )
    return None


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
