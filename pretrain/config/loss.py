"""Settings of the whitening losses and their controls, and what a plan asks of any loss's.

Importable without torch, so that plans can be validated. `pretrain.config.methods` has the others.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pretrain.config.base import IDENTITY_IF_GIVEN

LossName = Literal["w-mse", "cw-rgp", "whitening", "batch-norm", "none"]
Axis = Literal["batch", "channels"]
Method = Literal["cholesky", "zca", "pca", "newton"]

_WHITENING_FIELDS = {"sub_batch", "iterations", "over", "method", "groups", "random_partition"}
_COVARIANCE_FIELDS = {"covariance_weight", "covariance_batch"}
_REFUSED: dict[str, set[str]] = {
    "w-mse": set(),
    "cw-rgp": set(),
    "whitening": set(),
    "batch-norm": _WHITENING_FIELDS | _COVARIANCE_FIELDS | {"newton_iterations"},
    "none": _WHITENING_FIELDS | _COVARIANCE_FIELDS | {"newton_iterations", "eps"},
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "w-mse": {"over": "batch", "method": "cholesky"},
    "cw-rgp": {"over": "channels", "method": "zca"},
    "whitening": {},
    "batch-norm": {"eps": 1e-5},
    "none": {},
}
_NEEDED: dict[str, tuple[str, ...]] = {
    "w-mse": ("sub_batch",),
    "cw-rgp": ("sub_batch", "groups"),
    "whitening": ("sub_batch", "over", "method"),
    "batch-norm": (),
    "none": (),
}


class LossSettings(BaseModel):
    """The settings of a loss, and of what its method adds to encoder and projector.

    `gathers`: what the loss takes over the batch it takes over that of all processes.
    `takes_parts`: the losses of parts of a batch add up to that of the whole. A loss that says
    neither is for one process and whole batches. `most_views` are as many as it is defined for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    gathers: ClassVar[bool] = False
    takes_parts: ClassVar[bool] = False
    most_views: ClassVar[int] = 1024

    name: str
    """which loss"""

    def check(self, batch_size: int, embedding_dim: int, num_ranks: int = 1) -> list[str]:
        """Return every reason why N `batch_size` (global) and D `embedding_dim` cannot work.

        One line each with the numbers and the remedy; an empty list if all is well.
        """
        del embedding_dim, num_ranks
        return [] if batch_size > 1 else [f"batch of {batch_size} images; use at least 2"]

    def passes(self, num_views: int) -> list[int]:
        """Return what each view costs, in forward passes; a backward pass costs two."""
        return [3] * num_views

    def reason_against_parts(self) -> str | None:
        """Return why the losses of parts of a batch do not add up to that of the whole."""
        if self.takes_parts:
            return None
        if self.gathers:
            return (
                f"loss {self.name!r} takes the whole batch together, "
                "which accumulation never holds at once"
            )
        return f"nothing says that loss {self.name!r} of parts adds up to that of the whole batch"


class LossConfig(LossSettings):
    """A whitening loss or a control by name; defaults that depend on the name are filled in.

    `w-mse` is batch whitening by Cholesky, `cw-rgp` channel whitening by ZCA with a random
    partition into groups, `whitening` any combination of `over` and `method`; `batch-norm` only
    standardises each channel and `none` compares the embeddings as they are: the controls.
    """

    gathers = True
    takes_parts = True

    name: LossName
    """which loss"""
    sub_batch: int | None = Field(default=None, ge=2, description="images whitened together")
    iterations: int = Field(default=1, ge=1, description="shuffles of the batch per step")
    normalize: bool = Field(default=True, description="L2-normalise before the distance")
    over: Axis | None = Field(default=None, description="what is whitened")
    method: Method | None = Field(default=None, description="inverse square root")
    groups: int = Field(default=1, ge=1, description="groups of channels, whitened apart")
    random_partition: bool = Field(
        default=False, description="deal channels to groups anew per sub-batch and view"
    )
    eps: float = Field(default=0.0, ge=0.0, le=1.0, description="shrinkage towards I")
    newton_iterations: int | None = Field(
        default=None, ge=1, description="steps of method newton (IterNorm); 5 unless given"
    )
    covariance_weight: float = Field(
        default=0.0, ge=0.0, description="weight of the off-diagonal sample covariance"
    )
    covariance_batch: int | None = Field(
        default=None,
        ge=2,
        description="images it takes together; the global batch unless given",
        json_schema_extra=IDENTITY_IF_GIVEN,
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("name") not in _DEFAULTS:
            return values
        name = values["name"]
        filled = {**_DEFAULTS[name], **{k: v for k, v in values.items() if v is not None}}
        if name in ("w-mse", "cw-rgp", "whitening"):
            groups = filled.get("groups", 1)
            filled.setdefault("random_partition", isinstance(groups, int) and groups > 1)
        if filled.get("method") == "newton":
            filled.setdefault("newton_iterations", 5)
        faults = [f"{field} (needed)" for field in _NEEDED[name] if field not in filled]
        faults += [
            f"{field} (has no effect)"
            for field in sorted(_REFUSED[name])
            if values.get(field, _UNSET[field]) != _UNSET[field]
        ]
        if faults:
            raise ValueError(f"loss {name!r}: {', '.join(faults)}; add or remove these settings")
        return filled

    @model_validator(mode="after")
    def _agree(self) -> LossConfig:
        over = _DEFAULTS[self.name].get("over")
        if over is not None and self.over != over:
            raise ValueError(
                f"loss {self.name!r} whitens over {over!r}, got over {self.over!r}; "
                f"use name 'whitening' for other combinations"
            )
        if self.newton_iterations is not None and self.method != "newton":
            raise ValueError(
                f"newton_iterations {self.newton_iterations} has no effect with method "
                f"{self.method!r}; remove it or use method 'newton'"
            )
        if self.name == "batch-norm" and self.eps == 0:
            raise ValueError(
                "batch-norm with eps 0 divides by zero where a channel is constant; "
                "set eps > 0, such as 1e-5"
            )
        if self.random_partition and self.groups == 1:
            raise ValueError("random_partition has no effect with groups 1; remove it")
        if self.covariance_weight and self.over != "channels":
            raise ValueError(
                f"covariance_weight {self.covariance_weight} belongs to channel whitening, got "
                f"over {self.over!r}; set it to 0"
            )
        if self.covariance_batch is not None and not self.covariance_weight:
            raise ValueError(
                f"covariance_batch {self.covariance_batch} has no effect with covariance_weight 0; "
                f"remove it or give the weight"
            )
        return self

    def check(self, batch_size: int, embedding_dim: int, num_ranks: int = 1) -> list[str]:
        """As of every loss.

        Channel whitening takes its sub-batches within a rank, batch whitening from the global
        batch.
        """
        if self.sub_batch is None:
            return super().check(batch_size, embedding_dim, num_ranks)
        faults = sub_batch_faults(self.sub_batch, batch_size, self.over, num_ranks)
        faults += whitening_faults(
            str(self.over), self.sub_batch, embedding_dim, self.groups, self.eps
        )
        width, rest = divmod(embedding_dim, self.groups)
        observations = width - (self.groups == 1)
        exact = self.method != "newton" and not self.eps  # a few Newton steps need no inverse
        if self.over == "channels" and not rest and exact and observations < self.sub_batch:
            faults.append(
                f"channel whitening of {self.sub_batch} images over {width} channels "
                f"({embedding_dim} / {self.groups} groups) can never have full rank; "
                f"use sub_batch <= {observations}, fewer groups, or eps > 0"
            )
        return faults

    def reason_against_parts(self) -> str | None:
        """As of every loss; channel whitening treats parts apart, where no setting mixes them."""
        if self.over == "batch":
            return (
                "batch whitening takes its covariance from images of the whole batch, "
                "which accumulation never holds at once"
            )
        if self.name == "batch-norm":
            return (
                "the loss standardises over the whole batch, which accumulation never holds at once"
            )
        if self.covariance_weight and not self.covariance_batch:
            return "covariance_weight compares all pairs of images of the batch"
        return None


_UNSET = {name: field.default for name, field in LossConfig.model_fields.items()}


def loss_config(**settings: Any) -> LossConfig:
    """Return the config with these settings; all faults in one line.

    Raises:
        ValueError: naming each setting and what is wrong with it.
    """
    try:
        return LossConfig(**settings)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise ValueError("; ".join(faults)) from None


def sub_batch_faults(
    sub_batch: int, batch_size: int, over: str | None, num_ranks: int = 1
) -> list[str]:
    """Return why a batch of N `batch_size` (global) does not divide into sub-batches, or []."""
    if batch_size % num_ranks:
        return [
            f"batch of {batch_size} images is not divisible by {num_ranks} processes; choose a "
            f"multiple of {num_ranks}, such as {batch_size - batch_size % num_ranks + num_ranks}"
        ]
    where, size = "batch", batch_size
    if over == "channels" and num_ranks > 1:
        where, size = f"per-process batch ({batch_size} / {num_ranks})", batch_size // num_ranks
    if size % sub_batch:
        return [
            f"{where} of {size} images is not divisible by sub_batch {sub_batch}; "
            f"choose sub_batch among the divisors of {size}"
        ]
    return []


def whitening_faults(over: str, num_samples: int, dim: int, groups: int, eps: float) -> list[str]:
    """Return why [N `num_samples`, D `dim`] can never be whitened, one line each, or []."""
    if dim % groups:
        return [
            f"embedding dimension {dim} is not divisible by {groups} groups; "
            f"choose groups among the divisors of {dim}"
        ]
    width = dim // groups
    if over == "channels" and width < 2:
        return [f"{width} channel per group ({dim} / {groups}) has no covariance; use fewer groups"]
    if over == "batch" and num_samples < 2:
        return [f"{num_samples} sample has no covariance; use at least 2"]
    if over == "batch" and eps == 0 and num_samples <= width:
        return [
            f"batch whitening of {width} channels ({dim} / {groups} groups) needs more than "
            f"{width} samples, got {num_samples}; use a sub-batch of about {2 * width}, a smaller "
            f"embedding, more groups, or eps > 0"
        ]
    return []


def split_faults(
    batch_size: int, loss: LossSettings, num_ranks: int = 1, accumulate: int = 1
) -> list[str]:
    """Return why a global batch cannot be cut into `num_ranks` x `accumulate` parts, or [].

    Gradients of parts add up to the gradient of the whole only for a loss that treats parts of the
    batch apart. Channel whitening does (its sub-batches stay within a part); what mixes images of
    the whole batch does so over processes, by gathering, but not over parts that are gone.
    """
    if num_ranks > 1 and not (loss.gathers or loss.takes_parts):
        return [
            f"{num_ranks} processes: nothing says that loss {loss.name!r} gathers what it takes "
            f"over the whole batch; use 1, or, if it does, say `gathers` in {type(loss).__name__}"
        ]
    if accumulate > 1 and (reason := loss.reason_against_parts()):
        return [f"compute.accumulate {accumulate}: {reason}; set it to 1 and use more processes"]
    parts = num_ranks * accumulate
    among = f"{num_ranks} processes" + (f" x {accumulate} parts" if accumulate > 1 else "")
    unit, units = 1, ""
    if isinstance(loss, LossConfig) and loss.over == "channels":
        unit, units = loss.sub_batch or 1, f"sub_batch {loss.sub_batch}"
        if loss.covariance_batch:
            unit = math.lcm(unit, loss.covariance_batch)
            units += f" and covariance_batch {loss.covariance_batch}"
    step = parts * unit
    fitting = max(2 * parts, -(-batch_size // step) * step)
    nearest = f"choose a multiple of {step}, such as {fitting}"
    if batch_size % parts:
        return [f"batch_size {batch_size} is not divisible by {among}; {nearest}"]
    size = batch_size // parts
    if size % unit:
        return [
            f"batch_size {batch_size} over {among} is {size} images each, not divisible by "
            f"{units}; {nearest}"
        ]
    if size < 2:
        return [f"batch_size {batch_size} over {among} leaves one image for BatchNorm; {nearest}"]
    return []
