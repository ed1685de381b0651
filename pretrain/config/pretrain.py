"""Settings of a pretraining run. Imports no torch, so that a plan can be checked anywhere."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from pretrain.config.base import (
    IDENTITY_IF_GIVEN,
    Architecture,
    Float32,
    Fraction,
    NonNegative,
    Section,
    Side,
    identity,
    left_out,
)
from pretrain.config.data import MOST_VIEWS, AugmentConfig, DataConfig
from pretrain.config.loss import LossConfig, split_faults
from pretrain.config.methods import AnyLossConfig

LastBatchNorm = Literal["none", "plain", "affine"]
SAVED = left_out("when states are saved; what resumes from one ends the same")
ROUNDING = left_out("speed and rounding alone")


class ModelConfig(Section):
    """torchvision's ResNet and the projector behind it.

    `stem`: `small` begins with a 3x3 stride-1 convolution (STL-10, Tiny ImageNet), `small-no-pool`
    also leaves out the max-pool (CIFAR). `encoder_batchnorm`: whether the encoder is called once
    per view, as W-MSE's and CW-RGP's code does, or once over all views (over those of one size that
    follow each other, where `augment.views` has several sizes); the projector always sees all
    views together.
    """

    arch: Architecture = "resnet18"
    """the encoder, torchvision's"""
    stem: Literal["imagenet", "small", "small-no-pool"] = "imagenet"
    """first layers: `small` is a 3x3 convolution of stride 1 (STL-10, Tiny ImageNet),
    `small-no-pool` also has no max-pool (CIFAR); detection needs `imagenet`"""
    encoder_batchnorm: Literal["per-view", "all-views"] = "per-view"
    """whether the encoder is called once per view, with statistics of its own, or once over all
    views"""
    zero_init_residual: bool = False
    """the last BatchNorm of every block starts at 0"""
    projector_layers: int = Field(default=2, ge=1, le=64)
    """linear layers between encoding and embedding"""
    projector_hidden: int = Field(default=1024, ge=1, le=2**20)
    """width of the projector's hidden layers, channels"""
    embedding_dim: int = Field(default=64, ge=1, le=2**20)
    """D, dimensions of the embedding that the loss sees"""
    hidden_batchnorm: bool = Field(default=True, json_schema_extra=IDENTITY_IF_GIVEN)
    """BatchNorm behind the projector's hidden layers; MoCo v2 has none"""
    last_batchnorm: LastBatchNorm = Field(default="none", json_schema_extra=IDENTITY_IF_GIVEN)
    """BatchNorm behind the projector's last layer, which then has no bias: `plain` without scale
    and offset, as SimSiam's, or `affine`"""


class OptimizerConfig(Section):
    """Optimiser and learning-rate schedule; give `lr`, or `lr_per_256` to scale with the batch.

    `lr_update: epoch` holds the rate within an epoch, warm-up aside. `drop_at` are fractions of the
    run, `drop_epochs_before_end` whole epochs. `decay_norm_and_bias` off leaves weight decay to
    matrices and kernels; it is off for LARS unless given.
    """

    name: Literal["adam", "sgd", "lars"] = "adam"
    """the optimiser"""
    lr: PositiveFloat | None = None
    """peak learning rate, whatever the batch; give this or `lr_per_256`"""
    lr_per_256: PositiveFloat | None = None
    """peak learning rate for 256 images a step; it grows with `batch_size`"""
    weight_decay: NonNegative = 1e-6
    """L2 decay, a step"""
    decay_norm_and_bias: bool = True
    """whether weight decay also takes BatchNorm and biases; off for LARS unless given"""
    norm_and_bias_rate: PositiveFloat = Field(default=1.0, json_schema_extra=IDENTITY_IF_GIVEN)
    """learning rate of BatchNorm and biases over that of the others"""
    momentum: Fraction = 0.9
    """of SGD and LARS"""
    trust_coefficient: PositiveFloat = 0.001
    """of LARS: step length over the weights' norm"""
    warmup_steps: int = Field(default=500, ge=0)
    """steps in which the rate rises from 0"""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """how the rate falls after the warm-up"""
    final_rate: Fraction = Field(default=0.0, json_schema_extra=IDENTITY_IF_GIVEN)
    """of schedule `cosine`: the rate that it ends at, over its peak"""
    lr_update: Literal["step", "epoch"] = "step"
    """whether the rate changes every step, or once an epoch"""
    drop_at: tuple[Fraction, ...] = ()
    """of schedule `step`: parts of the run at which the rate drops, 0 to 1"""
    drop_epochs_before_end: tuple[PositiveInt, ...] = ()
    """of schedule `step`: drops so many epochs before the end"""
    drop_factor: PositiveFloat = 0.2
    """of schedule `step`: what the rate is multiplied by at a drop"""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name") == "lars":
            return {"decay_norm_and_bias": False, **values}
        return values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        drops = bool(self.drop_at or self.drop_epochs_before_end)
        if drops != (self.schedule == "step"):
            raise ValueError(
                "drop_at or drop_epochs_before_end go with schedule 'step', and it needs one of "
                f"them; got schedule {self.schedule!r} and {'drops' if drops else 'no drops'}"
            )
        if self.final_rate and self.schedule != "cosine":
            raise ValueError(
                f"final_rate {self.final_rate:g} has no effect with schedule {self.schedule!r}; "
                "remove it or use 'cosine'"
            )
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
    """The k-NN accuracy of the encoder every `every_epochs` and at the end, which leaves no trace.

    `data` (where left out, that of the training) has labels and the splits `train` and `test`, or
    `train` alone, of whose images `test_fraction` are tested; at most `max_images` of `train`,
    evenly spread, are their neighbours. Images are shown as a probe config's `image` says, by
    default in the size of the views.
    """

    every_epochs: PositiveInt
    """epochs between two measurements; the finished encoder is always measured"""
    data: DataConfig | None = None
    """labelled images with the splits `train` and `test`; those of the training unless given"""
    test_fraction: float | None = Field(
        default=None, gt=0, lt=1, json_schema_extra=IDENTITY_IF_GIVEN
    )
    """part of the images of each class of `train` that are tested on the others, above 0 and below
    1; the split `test` unless given"""
    size: Side | None = None
    """side of the shown image, pixels; that of the views unless given"""
    resize: Side | None = None
    """short side before the middle is cut out, pixels; `size` unless given"""
    k: PositiveInt = 5
    """neighbours that vote"""
    max_images: PositiveInt = 50_000
    """images of `train` that are neighbours, evenly spread"""
    precision: Float32 = Field(default="float32", json_schema_extra=IDENTITY_IF_GIVEN)
    """of the encoder as it is measured; on a GPU `tf32` is faster and rounds"""

    @property
    def splits(self) -> tuple[Literal["train", "test"], ...]:
        """Return the splits of the data that are read."""
        return ("train", "test") if self.test_fraction is None else ("train",)

    def measured_by(self) -> dict[str, Any]:
        """Return by what two scores have to be measured for one curve: all but how often."""
        return {key: value for key, value in identity(self).items() if key != "every_epochs"}


class ComputeConfig(Section):
    """How the steps are computed, on whatever machine.

    `sync_batchnorm` takes BatchNorm's statistics over all processes. `accumulate` cuts each
    process's batch into parts that are in memory one after the other; BatchNorm then sees one
    part at a time. `channels_last` and `compile` change speed and rounding only.
    """

    precision: Literal["float32", "tf32", "bf16", "fp16"] = "float32"
    """of encoder and projector; the loss is in float32. On a GPU `float32` is what a CPU or a V100
    computes; `tf32` is faster and rounds the factors of a product to 10 bits"""
    sync_batchnorm: bool = False
    """BatchNorm's statistics over all processes; needs GPUs"""
    accumulate: PositiveInt = 1
    """parts into which each process's batch is cut, one in memory at a time; for losses that
    treat parts of the batch apart"""
    channels_last: bool = Field(default=False, json_schema_extra=ROUNDING)
    """memory layout; changes speed and rounding only"""
    compile: bool = Field(default=False, json_schema_extra=ROUNDING)
    """torch.compile; changes speed and rounding only"""


class PretrainConfig(Section):
    """One pretraining run: images in, `backbone.pth` out; `method` is a label.

    `batch_size` is that of all processes together. `covariance_epochs` ends the loss's covariance
    term after so many epochs and `covariance_extra_steps` of the next: 1 unless given, as CW-RGP's
    code does. `checkpoint_every` steps the last state is replaced; every `keep_every_epochs` epochs
    one is kept.
    """

    method: str = Field(json_schema_extra=left_out("a label"))
    """a label for reports"""
    data: DataConfig
    """the images"""
    augment: AugmentConfig = AugmentConfig()
    """how views are drawn of them"""
    model: ModelConfig = ModelConfig()
    """encoder and projector"""
    loss: AnyLossConfig
    """the loss by its `name`, its settings and those of what its method adds"""
    optimizer: OptimizerConfig
    """the optimiser and its schedule"""
    compute: ComputeConfig = ComputeConfig()
    """how steps are computed"""
    num_views: int = Field(default=2, ge=2, le=MOST_VIEWS)
    """V, views of an image in a step; as many as `augment.views` describes where that is given"""
    batch_size: int = Field(default=256, ge=2, le=2**24)
    """N, images a step, of all processes together"""
    epochs: PositiveInt | None = None
    """length of the run in passes over the images; give this or `max_steps`"""
    max_steps: PositiveInt | None = None
    """length of the run in steps"""
    covariance_epochs: PositiveInt | None = None
    """epochs after which the loss's covariance term ends; never unless given"""
    covariance_extra_steps: int | None = Field(
        default=None, ge=0, json_schema_extra=IDENTITY_IF_GIVEN
    )
    """steps of the next epoch that still have it; 1 where `covariance_epochs` is given"""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """fixes the first weights, the order of the images and all views"""
    probe: TrainingProbeConfig | None = Field(
        default=None, json_schema_extra=left_out("it measures and leaves no trace in the training")
    )
    """k-NN accuracy on the way; not measured unless given"""
    log_every: PositiveInt = Field(default=10, json_schema_extra=left_out("when steps are logged"))
    """steps between two lines of `metrics.jsonl`"""
    indicators_every: PositiveInt | None = Field(
        default=None, json_schema_extra=left_out("when indicators are logged")
    )
    """steps between two measurements of the ranks of the features, also made at the last step;
    with every line of the log unless given"""
    checkpoint_every: PositiveInt = Field(default=50, json_schema_extra=SAVED)
    """steps between two states in `last.pth`: what a kill can cost"""
    keep_every_epochs: PositiveInt | None = Field(default=None, json_schema_extra=SAVED)
    """epochs between two states that are kept; none unless given"""

    @property
    def view_sizes(self) -> list[int]:
        """Return the side of each view."""
        return [view.size for view in self.augment.of_views(self.num_views)]

    def logs(self, step: int) -> bool:
        """Return whether a line of the log is written after `step`, the last step aside."""
        return step % self.log_every == 0 or self.measures(step)

    def measures(self, step: int) -> bool:
        """Return whether that line has the indicators."""
        return step % (self.indicators_every or self.log_every) == 0

    def faults_on(self, num_processes: int) -> list[str]:
        """Return why the batch cannot be cut over so many processes, or []."""
        return split_faults(self.batch_size, self.loss, num_processes, self.compute.accumulate)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if "augment" in values and "num_views" not in values:
            with suppress(ValidationError):  # told with all other faults
                number = AugmentConfig.model_validate(values["augment"]).num_described
                values = {**values, "num_views": number} if number else values
        extra = "covariance_extra_steps"
        if values.get("covariance_epochs") is not None:
            return values if values.get(extra) is not None else {**values, extra: 1}
        return values

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        faults = [
            f"loss: {fault}" for fault in self.loss.check(self.batch_size, self.model.embedding_dim)
        ]
        if self.compute.accumulate > 1:
            faults += self.faults_on(1)
        number = self.augment.num_described
        if number not in (0, self.num_views):
            faults.append(
                f"augment.views describes {number} views, got num_views {self.num_views}; leave "
                f"num_views out or set it to {number}"
            )
        if (self.epochs is None) == (self.max_steps is None):
            faults.append("give exactly one of epochs and max_steps")
        drops = self.optimizer.drop_epochs_before_end
        if drops and (self.epochs is None or max(drops) >= self.epochs):
            faults.append(
                f"optimizer.drop_epochs_before_end {list(drops)} count back from the last of "
                f"`epochs`, got epochs {self.epochs}; give more epochs than that"
            )
        if self.num_views > self.loss.most_views:
            faults.append(
                f"num_views {self.num_views}: {self.loss.name} is defined for at most "
                f"{self.loss.most_views} views; set num_views to {self.loss.most_views}"
            )
        loss = self.loss
        has_term = isinstance(loss, LossConfig) and loss.covariance_weight > 0
        if self.covariance_epochs is not None and not has_term:
            faults.append(
                f"covariance_epochs {self.covariance_epochs} has no effect with "
                "loss.covariance_weight 0; remove it or give the weight"
            )
        if self.covariance_extra_steps is not None and self.covariance_epochs is None:
            faults.append(
                f"covariance_extra_steps {self.covariance_extra_steps} has no effect without "
                "covariance_epochs; remove it or give the epochs"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def identity(self) -> dict[str, Any]:
        """Return the config without what cannot change a result, as JSON."""
        return identity(self)
