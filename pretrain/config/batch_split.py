"""How a global batch is cut over processes and accumulated parts. Imports no torch."""

from __future__ import annotations

import math

from pretrain.config.loss import LossConfig


def split_faults(
    batch_size: int, loss: LossConfig, num_ranks: int = 1, accumulate: int = 1
) -> list[str]:
    """Return why a global batch cannot be cut into `num_ranks` x `accumulate` parts, or [].

    Gradients of parts add up to the gradient of the whole only for a loss that treats parts of the
    batch apart. Channel whitening does (its sub-batches stay within a part); what mixes images of
    the whole batch does so over processes, by gathering, but not over parts that are gone.
    """
    if accumulate > 1 and (reason := _reason_against_accumulation(loss)):
        return [f"compute.accumulate {accumulate}: {reason}; set it to 1 and use more processes"]
    parts = num_ranks * accumulate
    among = f"{num_ranks} processes" + (f" x {accumulate} parts" if accumulate > 1 else "")
    unit = math.lcm(loss.sub_batch or 1, loss.covariance_batch or 1)
    step = parts * unit if loss.over == "channels" else parts
    fitting = max(2 * parts, -(-batch_size // step) * step)
    nearest = f"choose a multiple of {step}, such as {fitting}"
    if batch_size % parts:
        return [f"batch_size {batch_size} is not divisible by {among}; {nearest}"]
    size = batch_size // parts
    if loss.over == "channels" and size % unit:
        wanted = f"sub_batch {loss.sub_batch}"
        if loss.covariance_batch:
            wanted += f" and covariance_batch {loss.covariance_batch}"
        return [
            f"batch_size {batch_size} over {among} is {size} images each, not divisible by "
            f"{wanted}; {nearest}"
        ]
    if size < 2:
        return [f"batch_size {batch_size} over {among} leaves one image for BatchNorm; {nearest}"]
    return []


def _reason_against_accumulation(loss: LossConfig) -> str | None:
    if loss.over == "batch":
        return (
            "batch whitening takes its covariance from images of the whole batch, "
            "which accumulation never holds at once"
        )
    if loss.name == "batch-norm":
        return "the loss standardises over the whole batch, which accumulation never holds at once"
    if loss.covariance_weight and not loss.covariance_batch:
        return "covariance_weight compares all pairs of images of the batch"
    return None
