"""Settings of images on disk, and of the views that are drawn of them. Imports no torch."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pretrain.config.base import (
    IDENTITY_IF_GIVEN,
    Fraction,
    NonNegative,
    Range,
    Section,
    Side,
    left_out,
    range_faults,
)

Jitter = tuple[NonNegative, NonNegative, NonNegative, NonNegative]
Interpolation = Literal["bicubic", "bilinear"]
MOST_VIEWS = 1024
AS_SHARED: Any = Field(default=None, json_schema_extra=IDENTITY_IF_GIVEN)


class DataConfig(Section):
    """Images on disk; their content identifies them, `name` is a label.

    `folder` is any folder of images without labels; `imagefolder` has one folder per class in
    `train` and `val`, or in `root` itself; the others are the layouts that torchvision knows by
    these names. With `identity: blocks` image files are known by size, first and last 16 KiB; the
    identity of the data says so.
    """

    name: str = Field(json_schema_extra=left_out("a label"))
    """what the images are called, in reports and beside published rows"""
    root: Path = Field(json_schema_extra=left_out("a path; the files enter by content"))
    """the folder, relative to the working directory"""
    format: Literal["folder", "imagefolder", "cifar10", "cifar100", "stl10"] = "folder"
    """`folder`: any images, without labels; `imagefolder`: one folder per class in `train` and
    `val`, or in `root` itself; the others as torchvision lays them out"""
    identity: Literal["content", "blocks"] = Field(
        default="content", json_schema_extra=left_out("the identity of the data says it")
    )
    """how image files are known: by every byte, or (`blocks`) by size, first and last 16 KiB"""
    num_workers: int = Field(
        default=0,
        ge=0,
        json_schema_extra=left_out("what an image becomes follows from the seed and its place"),
    )
    """processes that read images, of each training process; 0 reads in the training process"""
    prefetch: int = Field(
        default=2, ge=1, json_schema_extra=left_out("when images are read, not what they become")
    )
    """batches that each of them holds ready, in shared memory (/dev/shm)"""

    @property
    def prefetch_factor(self) -> int | None:
        """Return what torch's loader takes: nothing without workers."""
        return self.prefetch if self.num_workers else None


class ViewConfig(Section):
    """What a view, or `count` views in a row, have otherwise than the other keys of `augment` say.

    A key that is not given here is as it is there.
    """

    count: PositiveInt = Field(default=1, json_schema_extra=IDENTITY_IF_GIVEN)
    """views that are drawn so"""
    size: Side | None = AS_SHARED
    """side of the view, pixels"""
    crop_scale: Range | None = AS_SHARED
    """share of the image's area that a crop takes, lowest and highest"""
    crop_ratio: Range | None = AS_SHARED
    """width of a crop over its height, lowest and highest"""
    interpolation: Interpolation | None = AS_SHARED
    """how a crop is made `size` pixels wide and high"""
    flip: Fraction | None = AS_SHARED
    """probability that the view is mirrored"""
    rotation_degrees: NonNegative | None = AS_SHARED
    """the view is turned by up to so many degrees, either way"""
    jitter: Jitter | None = AS_SHARED
    """largest change of brightness, contrast, saturation and hue"""
    jitter_probability: Fraction | None = AS_SHARED
    """probability that the view's colours are changed"""
    grayscale: Fraction | None = AS_SHARED
    """probability that the view is gray"""
    blur_probability: Fraction | None = AS_SHARED
    """probability that the view is blurred"""
    blur_sigma: Range | None = AS_SHARED
    """standard deviation of the blur, pixels, lowest and highest"""
    solarize: Fraction | None = AS_SHARED
    """probability that the view is solarised"""
    solarize_threshold: Fraction | None = AS_SHARED
    """least value that is then inverted, of pixels from 0 to 1"""
    noise_std: NonNegative | None = AS_SHARED
    """standard deviation of noise, of pixels from 0 to 1"""


class AugmentConfig(Section):
    """How a view is drawn from an image (strengths as in torchvision's transforms).

    `colours` says where colour jitter, grayscale, blur, solarisation and noise are done:
    `in_loader` for many views at once in the loader's workers; `on_device` for the whole batch on
    the training device, the fastest on a GPU and slow on a CPU; `by_view` with torchvision's
    transforms, one view after the other, slow everywhere. The first two draw the same views; all
    three draw from the same distributions. Noise is always drawn in the workers: a batch of
    `on_device` then takes five bytes a value instead of one.

    With `colours_before_crop` jitter and grayscale come first and see the whole image, as in the
    code of W-MSE and CW-RGP for small images, in the loader's workers wherever the rest is done;
    else they follow crop and flip. Blur, solarisation and noise come last in both, in this order.

    `decoding: reduced` decodes a JPEG at a half, a quarter or an eighth of its sides where every
    crop that is drawn of it stays at least as wide and high as its view; a crop then takes whole
    pixels of the reduced image, rounded down. Other images are decoded in full.

    With `views` views differ, in sizes too: asymmetric augmentations (BYOL, Barlow Twins, VICReg)
    and multi-crop. It describes all views of an image, in their order.
    """

    colours: Literal["by_view", "in_loader", "on_device"] = "in_loader"
    """where jitter, grayscale, blur, solarisation and noise are done: the loader's workers, the
    training device, or one view after the other (slow)"""
    colours_before_crop: bool = Field(default=False, json_schema_extra=IDENTITY_IF_GIVEN)
    """jitter and grayscale see the whole image"""
    decoding: Literal["full", "reduced"] = Field(
        default="full", json_schema_extra=IDENTITY_IF_GIVEN
    )
    """`reduced`: large JPEGs are decoded at a part of their size, which is faster and leaves out
    details that the views do not show; not with colours `by_view`"""
    size: Side = 224
    """side of a view, pixels"""
    crop_scale: Range = (0.2, 1.0)
    """share of the image's area that a crop takes, lowest and highest"""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """width of a crop over its height, lowest and highest"""
    interpolation: Interpolation = "bicubic"
    """how a crop is made `size` pixels wide and high"""
    flip: Fraction = 0.5
    """probability that a view is mirrored"""
    rotation_degrees: NonNegative = 0.0
    """a view is turned by up to so many degrees, either way"""
    jitter: Jitter = (0.4, 0.4, 0.4, 0.1)
    """largest change of brightness, contrast, saturation (as factors) and hue (of the colour
    circle, at most 0.5)"""
    jitter_probability: Fraction = 0.8
    """probability that a view's colours are changed"""
    grayscale: Fraction = 0.2
    """probability that a view is gray"""
    blur_probability: Fraction = 0.0
    """probability that a view is blurred"""
    blur_sigma: Range = (0.1, 2.0)
    """standard deviation of the blur, pixels, lowest and highest"""
    solarize: Fraction = Field(default=0.0, json_schema_extra=IDENTITY_IF_GIVEN)
    """probability that a view is solarised: bright values are inverted, after the blur"""
    solarize_threshold: Fraction = Field(default=128 / 255, json_schema_extra=IDENTITY_IF_GIVEN)
    """least value that is then inverted, of pixels from 0 to 1; PIL's 128 of 255"""
    noise_std: NonNegative = 0.0
    """standard deviation of noise, of pixels from 0 to 1"""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """subtracted from red, green and blue, of pixels from 0 to 1"""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """what they are then divided by"""
    views: tuple[ViewConfig, ...] = Field(default=(), json_schema_extra=IDENTITY_IF_GIVEN)
    """what single views have otherwise, one entry for each view or for `count` of them; all views
    are drawn alike unless given"""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        faults = self._draw_faults()
        if self.decoding == "reduced" and self.colours == "by_view":
            faults.append(
                "decoding: reduced has no effect with colours by_view, which draws after it has "
                "decoded; take colours in_loader or on_device"
            )
        number = self.num_described
        if self.views and not 2 <= number <= MOST_VIEWS:
            faults.append(f"views: {number} described, wanted 2 to {MOST_VIEWS}")
        for place, view in enumerate(self.views):
            of_view = self._with(view)._draw_faults()
            faults += [f"views.{place}: {fault}" for fault in of_view if fault not in faults]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _draw_faults(self) -> list[str]:
        faults = range_faults("crop_scale", self.crop_scale, 1.0)
        faults += range_faults("crop_ratio", self.crop_ratio)
        if self.blur_probability:
            faults += range_faults("blur_sigma", self.blur_sigma)
        if self.blur_probability and self.size == 1:
            faults.append("blur_probability: a view of size 1 cannot be blurred, wanted 2 or more")
        if self.jitter[3] > 0.5:
            faults.append(f"jitter: hue {self.jitter[3]:g}, wanted 0 to 0.5")
        return faults

    def _with(self, view: ViewConfig) -> Self:
        given = view.model_dump(exclude={"count"}, exclude_none=True)
        return self.model_copy(update={**given, "views": ()})

    @property
    def num_described(self) -> int:
        """Return how many views `views` describes."""
        return sum(view.count for view in self.views)

    @property
    def largest_size(self) -> int:
        """Return the side of the largest view."""
        return max([view.size or self.size for view in self.views], default=self.size)

    @property
    def blur_kernel(self) -> int:
        """Return the odd side of the blur's kernel: a tenth of the view, as SimCLR."""
        return 2 * max(1, round(0.05 * self.size)) + 1

    def of_views(self, num_views: int) -> list[Self]:
        """Return the settings of each view, in which no single view differs any more."""
        if not self.views:
            return [self] * num_views
        return [each for view in self.views for each in [self._with(view)] * view.count]

    def runs(self, num_views: int) -> list[tuple[Self, int]]:
        """Return the settings that views which follow each other share, and how many these are."""
        return [(same, len(list(run))) for same, run in groupby(self.of_views(num_views))]
