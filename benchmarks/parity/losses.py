"""The published loss classes beside ours: value and gradient of the same embeddings and draws.

Legend: V views, N batch, D embedding dimension, n sub-batch, S = N / n sub-batches, T iterations.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parity.child import recorded_permutations
from benchmarks.parity.comparison import Row, compare_tensors
from benchmarks.parity.peers import call
from pretrain.losses import CWRGPLoss, WMSELoss

TOLERANCE = 1e-12  # of float64: the published code multiplies in another order
UNUSED = {
    "arch": "resnet18", "dataset": "cifar10", "knn": 5, "eval_head": False, "add_head": True,
    "rand_group": True, "axis": 0, "minus": 1, "cov_stop": 10**9, "distributed": False,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One setting of one published loss."""

    name: str
    peer: str
    folder: str
    module: str
    kind: str
    shape: tuple[int, int, int]  # V, N, D
    sub_batch: int
    groups: int = 1
    iterations: int = 1
    eps: float = 0.0
    normalize: bool = True
    covariance_weight: float = 0.0
    seed: int = field(default=0, kw_only=True)

    @property
    def label(self) -> str:
        """Return the settings in words."""
        V, N, D = self.shape
        words = [f"{V} views [{N}, {D}]", f"sub-batch {self.sub_batch}"]
        words += [f"{self.groups} groups"] if self.groups > 1 else []
        words += [f"{self.iterations} iterations"] if self.iterations > 1 else []
        words += [f"eps {self.eps:g}"] if self.eps else []
        words += [] if self.normalize else ["Euclidean"]
        words += [f"covariance {self.covariance_weight:g}"] if self.covariance_weight else []
        return f"{self.name}, {', '.join(words)}"


W_MSE = ("W-MSE", "w-mse", ".", "methods.w_mse", "WMSE")
CW_RGP = ("CW-RGP", "cw-rgp", "base", "methods.cwrgp", "CW_RGP")
IMAGENET = ("CW-RGP (ImageNet)", "cw-rgp", "ImageNet", "methods.cwrgp", "CW_RGP")
CASES = (
    Case(*W_MSE, (2, 128, 16), 64),
    Case(*W_MSE, (4, 128, 16), 32, iterations=2),
    Case(*W_MSE, (2, 128, 16), 64, eps=0.1, normalize=False),
    Case(*CW_RGP, (2, 64, 64), 16, groups=2),
    Case(*CW_RGP, (4, 64, 128), 16, groups=4, iterations=2),
    Case(*CW_RGP, (2, 64, 64), 16, groups=2, eps=0.1, normalize=False),
    Case(*IMAGENET, (4, 32, 64), 16, groups=2, covariance_weight=0.005),
)


def compare(paths: dict[str, Path], scratch: Path) -> list[Row]:
    """Return a row for each case of the losses whose code is there."""
    return [compare_case(case, paths[case.peer]) for case in CASES if case.peer in paths]


def compare_case(case: Case, checkout: Path) -> Row:
    """Return the row of one case."""
    embeddings = drawn_embeddings(case)
    inputs = {
        "module": case.module, "class": case.kind, "seed": case.seed, "embeddings": embeddings,
        "cfg": published_settings(case),
    }  # fmt: skip
    answer = call(checkout / case.folder, "benchmarks.parity.losses:theirs", inputs)
    value, gradient = our_loss(case, embeddings, answer["draws"])
    theirs = {"value": answer["value"], "gradient": answer["gradient"]}
    ours = {"value": value, "gradient": gradient}
    return compare_tensors(("losses", case.label), theirs, ours, tolerance=TOLERANCE)


def drawn_embeddings(case: Case) -> Tensor:
    """Return random correlated embeddings [V, N, D] in float64."""
    generator = torch.Generator().manual_seed(case.seed)
    D = case.shape[-1]
    mixing = torch.eye(D, dtype=torch.float64)
    mixing += 0.3 * torch.randn(D, D, generator=generator, dtype=torch.float64) / D**0.5
    common = torch.randn(case.shape[1:], generator=generator, dtype=torch.float64)
    single = torch.randn(case.shape, generator=generator, dtype=torch.float64)
    return (common + single) @ mixing + 0.5


def published_settings(case: Case) -> dict[str, Any]:
    """Return the case under the names of the published command lines."""
    V, N, D = case.shape
    return UNUSED | {
        "num_samples": V, "bs": N, "emb": D, "w_size": case.sub_batch, "group": case.groups,
        "w_iter": case.iterations, "w_eps": case.eps, "norm": case.normalize,
        "cov_w": case.covariance_weight,
    }  # fmt: skip


def theirs(inputs: dict[str, Any]) -> dict[str, Any]:
    """In a child: value, gradient and draws of a published loss; its networks pass through."""
    networks: Any = importlib.import_module("model")
    networks.get_model = lambda *_: (nn.Identity(), 1)
    networks.get_head = lambda *_: nn.Identity()
    kind = getattr(importlib.import_module(inputs["module"]), inputs["class"])
    loss = kind(Namespace(**inputs["cfg"])).train()
    embeddings = inputs["embeddings"].requires_grad_()
    torch.manual_seed(inputs["seed"])
    with recorded_permutations() as draws:
        value = loss(list(embeddings))
    (gradient,) = torch.autograd.grad(value, embeddings)
    return {"value": value.detach(), "gradient": gradient, "draws": draws}


def our_loss(case: Case, embeddings: Tensor, draws: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return value and gradient of our loss with the published code's draws."""
    loss: nn.Module
    common = {"iterations": case.iterations, "normalize": case.normalize, "eps": case.eps}
    if case.name == "W-MSE":
        loss = WMSELoss(case.sub_batch, **common)  # type: ignore[arg-type]
    else:
        weight = case.covariance_weight
        loss = CWRGPLoss(case.sub_batch, case.groups, covariance_weight=weight, **common)  # type: ignore[arg-type]
    permutation, partition = split_draws(draws, case.shape, case.sub_batch, case.iterations)
    embeddings = embeddings.clone().requires_grad_()
    value = loss(embeddings, batch_permutation=permutation, channel_partition=partition)
    (gradient,) = torch.autograd.grad(value, embeddings)
    return value.detach(), gradient


def split_draws(
    draws: list[Tensor], shape: tuple[int, int, int], sub_batch: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the batch permutation [T, N] and the channel partition [T, S, V, D] (empty: none).

    The published loops draw, for each iteration, an order of the batch and then, sub-batch after
    sub-batch, an order of the channels for each view.
    """
    V, N, D = shape
    num_sub_batches = N // sub_batch
    per_iteration = len(draws) // iterations
    rounds = [draws[t * per_iteration : (t + 1) * per_iteration] for t in range(iterations)]
    permutation = torch.stack([first for first, *_ in rounds])
    orders = [order for _, *others in rounds for order in others]
    if not orders:
        return permutation, torch.empty(0, dtype=torch.long)
    return permutation, torch.stack(orders).view(iterations, num_sub_batches, V, D)
