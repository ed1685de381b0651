"""Settings of a probe of a backbone. Imports no torch, so that a plan can be checked anywhere.

Every accuracy is in percent; a section that is left out (null) is not measured, `{}` measures it
with its defaults.
"""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pretrain.config.base import (
    IDENTITY_IF_GIVEN,
    Architecture,
    Float32,
    Fraction,
    NonNegative,
    Range,
    Section,
    Side,
    left_out,
    range_faults,
)
from pretrain.config.data import DataConfig

MEASURES = ("knn", "weighted_knn", "linear", "augmented_linear")


class ImageConfig(Section):
    """How an image is shown to the encoder: short side to `resize`, then the middle `size`.

    Without `resize` the short side is made `size`; an image that has this size is left as it is.
    """

    size: Side = 224
    """side of the middle that the encoder sees, pixels"""
    resize: Side | None = None
    """short side before it is cut out, pixels; `size` unless given"""

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} is below size {self.size}")
        return self


class KnnConfig(Section):
    """The majority among the k nearest, by Euclidean distance, as W-MSE and CW-RGP report it."""

    k: PositiveInt = 5
    """neighbours that vote"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """between features"""


class WeightedKnnConfig(Section):
    """The k most similar by cosine, each with weight exp(similarity / temperature).

    Wu et al. 2018 (arXiv 1805.01978), section 3.4, whose temperature DINO uses with k 20.
    """

    k: PositiveInt = 20
    """neighbours that vote"""
    temperature: PositiveFloat = 0.07
    """of the weights: lower lets the nearest count for more"""


class LinearConfig(Section):
    """A linear classifier on features computed once, trained by Adam, as published for W-MSE.

    The learning rate falls exponentially from `lr` to `final_lr`, an equal factor every epoch.
    """

    epochs: PositiveInt = 500
    """passes over the features"""
    batch_size: PositiveInt = 1000
    """features a step"""
    lr: PositiveFloat = 1e-2
    """learning rate of the first epoch"""
    final_lr: PositiveFloat = 1e-6
    """learning rate after the last"""
    weight_decay: NonNegative = 5e-6
    """L2 decay, added to the gradient"""


class AugmentedLinearConfig(Section):
    """A linear classifier behind the frozen encoder, on random crops: ImageNet's protocol.

    The learning rate is `lr_per_256` per 256 images of the batch and falls along half a cosine.
    """

    optimizer: Literal["lars", "sgd"] = "lars"
    """the optimiser"""
    epochs: PositiveInt = 100
    """passes over the images"""
    batch_size: PositiveInt = 1024
    """images a step"""
    lr_per_256: PositiveFloat = 0.1
    """learning rate at the start, for 256 images a step; it grows with `batch_size`"""
    momentum: Fraction = 0.9
    """of the optimiser"""
    weight_decay: NonNegative = 0.0
    """L2 decay, a step"""
    crop_scale: Range = (0.08, 1.0)
    """share of the image's area that a crop takes, lowest and highest"""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """width of a crop over its height, lowest and highest"""
    flip: Fraction = 0.5
    """probability that a crop is mirrored"""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        faults = range_faults("crop_scale", self.crop_scale, 1.0)
        faults += range_faults("crop_ratio", self.crop_ratio)
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def lr(self) -> float:
        """The learning rate at the start."""
        return self.lr_per_256 * self.batch_size / 256


class ProbeConfig(Section):
    """One probe: which labelled images, how they are shown, what is measured on the features.

    The classifiers learn from the data's `train` split and are measured on `test`. `random_arch` is
    the network probed where the plan says `random: true`; `seed` draws it, and the order and crops
    of the classifiers' training.
    """

    data: DataConfig
    """labelled images with the splits `train` and `test`"""
    image: ImageConfig = ImageConfig()
    """how an image is shown to the encoder"""
    knn: KnnConfig | None = None
    """majority of the nearest; not measured unless given"""
    weighted_knn: WeightedKnnConfig | None = None
    """weighted vote of the most similar; not measured unless given"""
    linear: LinearConfig | None = None
    """linear classifier on features computed once; not measured unless given"""
    augmented_linear: AugmentedLinearConfig | None = None
    """linear classifier behind the frozen encoder, on random crops; not measured unless given"""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """draws a random backbone, the classifiers' first weights, and the order and crops of their
    images"""
    random_arch: Architecture | None = Field(
        default=None, json_schema_extra=left_out("of a random backbone alone, where it enters")
    )
    """the network that is probed where the plan says `random: true`"""
    batch_size: PositiveInt = Field(
        default=256, json_schema_extra=left_out("features of an image do not depend on others")
    )
    """images whose features are computed at a time"""
    precision: Float32 = Field(default="float32", json_schema_extra=IDENTITY_IF_GIVEN)
    """of the encoder; classifiers and distances are in float32. On a GPU `tf32` is faster and
    rounds"""

    @model_validator(mode="after")
    def _measures_something(self) -> Self:
        if all(getattr(self, name) is None for name in MEASURES):
            raise ValueError(f"measures nothing; give at least one of {', '.join(MEASURES)}")
        return self


def named_random(name: str) -> Architecture | None:
    """Return the architecture of `random:ARCH`, None for any other name of a backbone.

    Raises:
        ValueError: there is no such architecture.
    """
    kind, _, arch = name.partition(":")
    if kind != "random" or not arch:
        return None
    known: tuple[Architecture, ...] = get_args(Architecture)
    if (named := next((each for each in known if each == arch), None)) is None:
        raise ValueError(f"unknown architecture {arch!r}; known: {', '.join(known)}")
    return named
