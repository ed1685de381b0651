"""The model on its device: precision, memory format, compilation, several processes."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.config.loss import split_faults
from pretrain.config.pretrain import ComputeConfig, PretrainConfig
from pretrain.models import SelfSupervisedModel
from pretrain.runtime.distributed import Processes
from pretrain.runtime.tf32 import set_tf32, tf32_faults

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_SCALE = 2.0**-14  # of fp16's loss: 30 steps in a row have overflowed
logger = logging.getLogger(__name__)


def machine_faults(config: PretrainConfig, num_processes: int, device: torch.device) -> list[str]:
    """Return why so many processes on such devices cannot run the config, one line each."""
    compute = config.compute
    faults = split_faults(config.batch_size, config.loss, num_processes, compute.accumulate)
    faults += tf32_faults("compute.precision", compute.precision, device)
    if config.probe is not None:
        faults += tf32_faults("probe.precision", config.probe.precision, device)
    on_cpu = device.type == "cpu"
    if compute.precision == "fp16" and on_cpu:
        faults.append("compute.precision fp16 needs a GPU; use float32 here")
    if compute.sync_batchnorm and on_cpu and num_processes > 1:
        faults.append(
            f"compute.sync_batchnorm needs GPUs (torch's SyncBatchNorm has no CPU version), got "
            f"{num_processes} CPU processes; start a single process, which normalises over the "
            "whole batch, or set it to false"
        )
    return faults


def warn_of_slowness(compute: ComputeConfig, device: torch.device) -> None:
    """Warn where bf16 is emulated: about 50 times slower than float32."""
    if compute.precision == "bf16" and device.type == "cpu" and not has_fast_bf16():
        logger.warning(
            "compute.precision bf16: this CPU has no bf16 instructions, which makes steps about "
            "50 times slower; use float32"
        )


def has_fast_bf16() -> bool:
    """Return whether this CPU computes bf16 products itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepare(model: SelfSupervisedModel, config: PretrainConfig, processes: Processes) -> None:
    """Move `model` to the device and change it in place as the config's `compute` says.

    Float32 of this process is IEEE's from here on, or TF32 where that is asked for.
    """
    compute = config.compute
    set_tf32(compute.precision == "tf32")
    model.to(processes.device)
    if compute.channels_last:
        model.to(memory_format=torch.channels_last)
    if compute.sync_batchnorm and processes.size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if compute.compile:
        # one graph for all views of a size; the model's would unroll them
        one_size: dict[str, Any] = {"dynamic": False} if len(set(config.view_sizes)) > 1 else {}
        for encoder in model.encoders():
            encoder.compile(**one_size)
    if processes.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all steps have the same shapes


def parallel(model: nn.Module, processes: Processes) -> nn.Module:
    """Return `model` with its gradients averaged over the processes, or as it is for one."""
    if processes.size == 1:
        return model
    ids = [processes.device.index] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)


def without_averaging(model: nn.Module) -> AbstractContextManager[Any]:
    """Return the context for all but the last part of an accumulated batch."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def autocast(compute: ComputeConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of the forward pass."""
    if compute.precision not in DTYPES:
        return nullcontext()
    return torch.autocast(device.type, DTYPES[compute.precision])


def grad_scaler(compute: ComputeConfig, device: torch.device) -> torch.amp.GradScaler:
    """Return fp16's loss scaling, which does nothing at another precision."""
    return torch.amp.GradScaler(device.type, enabled=compute.precision == "fp16")
