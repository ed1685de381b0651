"""Pretraining steps on views that are there already: precisions, layouts, losses, compilation.

V views, N batch, D embedding dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu_check.commands import command
from benchmarks.gpu_check.results import TINY, Results, seconds_left
from benchmarks.gpu_check.timing import (
    DEVICE,
    Settings,
    TimedViews,
    free_memory,
    milliseconds,
    peak_gb,
    profiled,
    recipe,
    trainer_of,
)
from pretrain.training import Trainer

ROUNDS, WARM_UP = (2, 1) if TINY else (10, 3)
BF16: Settings = {"precision": "bf16", "channels_last": True}
FP16: Settings = {"precision": "fp16", "channels_last": True}
ALL_VIEWS: Settings = {"model": {"encoder_batchnorm": "all-views"}}


@dataclass(frozen=True)
class Case:
    """A recipe with changes; `prepare` changes the trainer before its first step."""

    title: str
    recipe: str
    changes: Settings = field(default_factory=dict)
    prepare: Callable[[Trainer], None] | None = None
    profile: bool = False


def compile_model(trainer: Trainer) -> None:
    """Compile the whole model, views unrolled; `compute.compile` takes the encoder alone."""
    trainer.model.compile()


def choose_without_trials(_: Trainer) -> None:
    """Let cuDNN choose its kernels by rules."""
    torch.backends.cudnn.benchmark = False


CASES = (
    Case("bf16 channels_last", "imagenet", {"compute": BF16}, profile=True),
    Case("float32 channels_last, as the recipe", "imagenet",
         {"compute": {"channels_last": True}}),
    Case("tf32 channels_last", "imagenet",
         {"compute": {"precision": "tf32", "channels_last": True}}),
    Case("bf16 channels_last, without cudnn.benchmark", "imagenet", {"compute": BF16},
         choose_without_trials),
    Case("bf16 channels_last, all views at once", "imagenet", {"compute": BF16} | ALL_VIEWS),
    Case("fp16 channels_last", "imagenet", {"compute": FP16}),
    Case("Tiny ImageNet R18 bf16 channels_last", "tiny-imagenet", {"compute": BF16}, profile=True),
    Case("Tiny ImageNet R18 float32", "tiny-imagenet"),
    Case("CIFAR R18 bf16 channels_last", "cifar", {"compute": BF16}),
    Case("bf16 without channels_last", "imagenet", {"compute": {"precision": "bf16"}}),
    Case("float32 without channels_last", "imagenet"),
    Case("bf16 channels_last, LARS", "imagenet",
         {"compute": BF16, "optimizer": {"name": "lars", "lr": 0.01}}),
    Case("bf16 channels_last, BatchNorm control loss", "imagenet",
         {"compute": BF16, "loss": {"name": "batch-norm"}}),
)  # fmt: skip
COMPILED = BF16 | {"compile": True}
COMPILED_CASES = (
    Case("bf16, encoder compiled", "imagenet", {"compute": COMPILED}),
    Case("Tiny ImageNet R18 bf16, encoder compiled", "tiny-imagenet", {"compute": COMPILED}),
    Case("bf16, all views, encoder compiled", "imagenet", {"compute": COMPILED} | ALL_VIEWS),
    Case("CIFAR R18 bf16, encoder compiled", "cifar", {"compute": COMPILED}),
    Case("bf16, model compiled (all views unrolled)", "imagenet", {"compute": BF16}, compile_model),
)  # fmt: skip
TINY_CASES = (
    Case("float32", "imagenet", profile=True),
    Case("float32, all views at once", "tiny-imagenet", ALL_VIEWS, choose_without_trials),
    Case("BatchNorm control loss", "cifar", {"loss": {"name": "batch-norm"}}),
)
TINY_COMPILED_CASES = (
    Case("float32, encoder compiled", "imagenet", {"compute": {"compile": True}}),
)


def steps(results: Results) -> None:
    """Time the training loop's steps in every case."""
    for case in TINY_CASES if TINY else CASES:
        results.measure(case.title, lambda case=case: step_row(case), 12)  # type: ignore[misc]
    if seconds_left() > 40 and not TINY:
        words = ("tools/benchmark.py", "step", "--workers", "8", "--precision", "bf16",
                 "--channels-last")  # fmt: skip
        done = command(*words, limit=seconds_left() - 4)
        results["tools/benchmark.py step"] = done.row(out=1200)


def compiled_steps(results: Results) -> None:
    """Time steps with the encoder compiled, as `compute.compile` does, and with the model."""
    for case in TINY_COMPILED_CASES if TINY else COMPILED_CASES:
        results.measure(case.title, lambda case=case: step_row(case), 20)  # type: ignore[misc]
        torch.compiler.reset()


def step_row(case: Case) -> dict[str, Any]:
    """Return ms, images/s and memory of the training loop's step, and the ms of its parts."""
    free_memory()
    config = recipe(case.recipe, case.changes, max_steps=WARM_UP + ROUNDS + 1)
    V, N, size = config.num_views, config.batch_size, config.augment.size
    views = torch.randn(V, N, 3, size, size, device=DEVICE)
    timed = TimedViews(itertools.repeat(views))
    with trainer_of(config, timed) as trainer:
        if case.prepare is not None:
            case.prepare(trainer)
        trainer.train()
        ms = timed.step_ms(WARM_UP)
        row: dict[str, Any] = {"ms": ms, "images/s": N * 1e3 / ms, "views/s": V * N * 1e3 / ms}
        row |= peak_gb() | {"first steps s": timed.asked[WARM_UP] - timed.asked[0]}
        output = trainer.gradients(trainer.model, views)
        row["gradients ms"] = milliseconds(
            lambda: trainer.gradients(trainer.model, views), max(2, ROUNDS // 3), 1
        )
        row["update ms"] = milliseconds(trainer.update, max(2, ROUNDS // 3), 1)
        x = torch.randn(V, N, config.model.embedding_dim, device=DEVICE, requires_grad=True)
        row["loss alone ms"] = milliseconds(
            lambda: torch.autograd.backward(trainer.loss(x, generator=trainer.generator)),
            max(2, ROUNDS // 2),
            2,
        )
        row["loss share"] = f"{row['loss alone ms'] / ms:.1%}"
        row["indicators of a logged step ms"] = milliseconds(
            lambda: trainer.metrics(output, 0.0), 2, 1
        )
        if case.profile:
            row["profile"] = profiled(lambda: gradients_and_update(trainer, views))
    return row


def gradients_and_update(trainer: Trainer, views: torch.Tensor) -> None:
    """Take a step without its check for divergence and its log."""
    trainer.gradients(trainer.model, views)
    trainer.update()
