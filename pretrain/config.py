"""What a pretraining run is made of. Imports no torch, so that a plan can be checked anywhere.

Fields marked with `NOT_IDENTITY` cannot change the result and stay out of a run's signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from pretrain.loss_config import LossConfig

NOT_IDENTITY: dict[str, Any] = {"identity": False}
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Range = tuple[NonNegative, NonNegative]


class Section(BaseModel):
    """A frozen part of a config that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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

    `colours` says where colour jitter, grayscale, blur and noise are done: `by_view` with
    torchvision's transforms, one view after the other; `in_loader` for many views at once in the
    loader's workers; `on_device` for the whole batch on the training device. The last two draw the
    same views; all three draw from the same distributions.
    """

    colours: Literal["by_view", "in_loader", "on_device"] = "by_view"
    size: PositiveInt = 224
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

    @property
    def blur_kernel(self) -> int:
        """Return the odd side of the blur's kernel: a tenth of the view, as SimCLR."""
        return 2 * max(1, round(0.05 * self.size)) + 1


class ModelConfig(Section):
    """torchvision's ResNet and the projector behind it."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet18"
    zero_init_residual: bool = False
    projector_layers: PositiveInt = 2
    projector_hidden: PositiveInt = 1024
    embedding_dim: PositiveInt = 64


class OptimizerConfig(Section):
    """Optimiser and learning-rate schedule; give `lr`, or `lr_per_256` to scale with the batch."""

    name: Literal["adam", "sgd"] = "adam"
    lr: PositiveFloat | None = None
    lr_per_256: PositiveFloat | None = None
    weight_decay: NonNegative = 1e-6
    momentum: Fraction = 0.9
    warmup_steps: int = Field(default=500, ge=0)
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    drop_at: tuple[Fraction, ...] = ()
    drop_factor: PositiveFloat = 0.2

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
    size: PositiveInt | None = None
    resize: PositiveInt | None = None
    k: PositiveInt = 5
    max_images: PositiveInt = 50_000


class PretrainConfig(Section):
    """One pretraining run: images in, `backbone.pth` out."""

    method: str
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig
    optimizer: OptimizerConfig
    num_views: int = Field(default=2, ge=2)
    batch_size: int = Field(default=256, ge=2)
    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    seed: int = Field(default=0, ge=0)
    probe: TrainingProbeConfig | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    log_every: PositiveInt = Field(default=10, json_schema_extra=NOT_IDENTITY)
    checkpoint_every: PositiveInt = Field(default=50, json_schema_extra=NOT_IDENTITY)

    @model_validator(mode="after")
    def _length_and_loss(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of epochs and max_steps")
        faults = self.loss.check(self.batch_size, self.model.embedding_dim)
        if faults:
            raise ValueError("; ".join(f"loss: {fault}" for fault in faults))
        return self
