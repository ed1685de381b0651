"""What a pretraining run is made of. Imports no torch, so that a plan can be checked anywhere.

Fields marked with `NOT_IDENTITY` cannot change the result and stay out of a run's signature.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pretrain.config.loss import IDENTITY_IF_GIVEN, LossConfig, split_faults

NOT_IDENTITY: dict[str, Any] = {"identity": False}
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Range = tuple[NonNegative, NonNegative]
Side = Annotated[int, Field(ge=1, le=8192)]


class Section(BaseModel):
    """A frozen part of a config that refuses unknown keys, and yes and no where a number goes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("wanted no true or false here")
        return value


def range_faults(name: str, limits: Range, highest: float = math.inf) -> list[str]:
    """Return what is wrong with a range to draw from, which has to lie above 0."""
    low, high = limits
    if 0 < low <= high <= highest:
        return []
    return [f"{name}: {low:g} to {high:g}, wanted two numbers above 0 in rising order"]


class DataConfig(Section):
    """Images on disk; `name` and the content identify them.

    `folder` is any folder of images without labels; `imagefolder` has one folder per class below
    `train` and `val`; the others are the layouts that torchvision knows by these names.
    """

    name: str
    root: Path = Field(json_schema_extra=NOT_IDENTITY)
    format: Literal["folder", "imagefolder", "cifar10", "cifar100", "stl10"] = "folder"
    num_workers: int = Field(default=0, ge=0, json_schema_extra=NOT_IDENTITY)


class AugmentConfig(Section):
    """How a view is drawn from an image (strengths as in torchvision's transforms).

    `colours` says where colour jitter, grayscale, blur and noise are done: `in_loader` for many
    views at once in the loader's workers; `on_device` for the whole batch on the training device,
    the fastest on a GPU and slow on a CPU; `by_view` with torchvision's transforms, one view after
    the other, slow everywhere. The first two draw the same views; all three draw from the same
    distributions.
    """

    colours: Literal["by_view", "in_loader", "on_device"] = "in_loader"
    size: Side = 224
    crop_scale: Range = (0.2, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: Fraction = 0.5
    rotation_degrees: NonNegative = 0.0
    jitter: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: Fraction = 0.8
    grayscale: Fraction = 0.2
    blur_probability: Fraction = 0.0
    blur_sigma: Range = (0.1, 2.0)
    noise_std: NonNegative = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        faults = [*range_faults("crop_scale", self.crop_scale, 1.0)]
        faults += range_faults("crop_ratio", self.crop_ratio)
        if self.blur_probability:
            faults += range_faults("blur_sigma", self.blur_sigma)
        if self.jitter[3] > 0.5:
            faults.append(f"jitter: hue {self.jitter[3]:g}, wanted 0 to 0.5")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def blur_kernel(self) -> int:
        """Return the odd side of the blur's kernel: a tenth of the view, as SimCLR."""
        return 2 * max(1, round(0.05 * self.size)) + 1


class ModelConfig(Section):
    """torchvision's ResNet and the projector behind it.

    `stem`: `small` begins with a 3x3 stride-1 convolution (STL-10, Tiny ImageNet), `small-no-pool`
    also leaves out the max-pool (CIFAR). `encoder_batchnorm`: whether the encoder is called once
    per view, as W-MSE's and CW-RGP's code does, or once over all views; the projector always sees
    all views together.
    """

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet18"
    stem: Literal["imagenet", "small", "small-no-pool"] = "imagenet"
    encoder_batchnorm: Literal["per-view", "all-views"] = "per-view"
    zero_init_residual: bool = False
    projector_layers: int = Field(default=2, ge=1, le=64)
    projector_hidden: int = Field(default=1024, ge=1, le=2**20)
    embedding_dim: int = Field(default=64, ge=1, le=2**20)


class OptimizerConfig(Section):
    """Optimiser and learning-rate schedule; give `lr`, or `lr_per_256` to scale with the batch.

    `lr_update: epoch` holds the rate within an epoch, warm-up aside. `drop_at` are fractions of the
    run, `drop_epochs_before_end` whole epochs. `decay_norm_and_bias` off leaves weight decay to
    matrices and kernels; it is off for LARS unless given.
    """

    name: Literal["adam", "sgd", "lars"] = "adam"
    lr: PositiveFloat | None = None
    lr_per_256: PositiveFloat | None = None
    weight_decay: NonNegative = 1e-6
    decay_norm_and_bias: bool = True
    momentum: Fraction = 0.9
    trust_coefficient: PositiveFloat = 0.001
    warmup_steps: int = Field(default=500, ge=0)
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    lr_update: Literal["step", "epoch"] = "step"
    drop_at: tuple[Fraction, ...] = ()
    drop_epochs_before_end: tuple[PositiveInt, ...] = ()
    drop_factor: PositiveFloat = 0.2

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name") == "lars":
            return {"decay_norm_and_bias": False, **values}
        return values

    @model_validator(mode="after")
    def _drops_and_schedule(self) -> Self:
        drops = bool(self.drop_at or self.drop_epochs_before_end)
        if drops != (self.schedule == "step"):
            raise ValueError(
                "drop_at or drop_epochs_before_end go with schedule 'step', and it needs one of "
                f"them; got schedule {self.schedule!r} and {'drops' if drops else 'no drops'}"
            )
        return self

    @model_validator(mode="after")
    def _one_learning_rate(self) -> Self:
        if (self.lr is None) == (self.lr_per_256 is None):
            raise ValueError("give exactly one of lr and lr_per_256")
        return self

    def base_lr(self, batch_size: int) -> float:
        """Return the peak learning rate for a global batch."""
        if self.lr is not None:
            return self.lr
        assert self.lr_per_256 is not None
        return self.lr_per_256 * batch_size / 256


class TrainingProbeConfig(Section):
    """The k-NN accuracy of the encoder every `every_epochs`, which leaves no trace in the training.

    `data` (where left out, that of the training) has labels and the splits `train` and `test`; at
    most `max_images` of `train`, evenly spread, are the neighbours of all of `test`. Images are
    shown as a probe config's `image` says, by default in the size of the views.
    """

    every_epochs: PositiveInt
    data: DataConfig | None = None
    size: Side | None = None
    resize: Side | None = None
    k: PositiveInt = 5
    max_images: PositiveInt = 50_000


class ComputeConfig(Section):
    """How the steps are computed, on whatever machine.

    `sync_batchnorm` takes BatchNorm's statistics over all processes. `accumulate` cuts each
    process's batch into parts that are held in memory one after the other; BatchNorm then sees one
    part at a time. `channels_last` and `compile` change speed and rounding only.
    """

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    sync_batchnorm: bool = False
    accumulate: PositiveInt = 1
    channels_last: bool = Field(default=False, json_schema_extra=NOT_IDENTITY)
    compile: bool = Field(default=False, json_schema_extra=NOT_IDENTITY)


class PretrainConfig(Section):
    """One pretraining run: images in, `backbone.pth` out.

    `batch_size` is that of all processes together. `covariance_epochs` ends the loss's covariance
    term after so many epochs. `checkpoint_every` steps the last state is replaced; every
    `keep_every_epochs` epochs one is kept.
    """

    method: str
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig
    optimizer: OptimizerConfig
    compute: ComputeConfig = ComputeConfig()
    num_views: int = Field(default=2, ge=2, le=1024)
    batch_size: int = Field(default=256, ge=2, le=2**24)
    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    covariance_epochs: PositiveInt | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    probe: TrainingProbeConfig | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    log_every: PositiveInt = Field(default=10, json_schema_extra=NOT_IDENTITY)
    checkpoint_every: PositiveInt = Field(default=50, json_schema_extra=NOT_IDENTITY)
    keep_every_epochs: PositiveInt | None = Field(default=None, json_schema_extra=NOT_IDENTITY)

    def faults_on(self, num_processes: int) -> list[str]:
        """Return why the batch cannot be cut over so many processes, or []."""
        return split_faults(self.batch_size, self.loss, num_processes, self.compute.accumulate)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        faults = [
            f"loss: {fault}" for fault in self.loss.check(self.batch_size, self.model.embedding_dim)
        ]
        if self.compute.accumulate > 1:
            faults += self.faults_on(1)
        if (self.epochs is None) == (self.max_steps is None):
            faults.append("give exactly one of epochs and max_steps")
        drops = self.optimizer.drop_epochs_before_end
        if drops and (self.epochs is None or max(drops) >= self.epochs):
            faults.append(
                f"optimizer.drop_epochs_before_end {list(drops)} count back from the last of "
                f"`epochs`, got epochs {self.epochs}; give more epochs than that"
            )
        if self.covariance_epochs is not None and not self.loss.covariance_weight:
            faults.append(
                f"covariance_epochs {self.covariance_epochs} has no effect with "
                "loss.covariance_weight 0; remove it or give the weight"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def identity(self) -> dict[str, Any]:
        """Return the config without what cannot change a result, as JSON."""
        return _identity(self)


def _identity(section: BaseModel) -> dict[str, Any]:
    whole = section.model_dump(mode="json")
    content: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        unset = field.json_schema_extra == IDENTITY_IF_GIVEN and value is None
        if field.json_schema_extra != NOT_IDENTITY and not unset:
            content[name] = _identity(value) if isinstance(value, BaseModel) else whole[name]
    return content
