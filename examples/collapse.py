"""Dimensional collapse under the same short training, per whitening method, in seconds.

Reproduces on 8 x 8 digits what "An Investigation into Whitening Loss" (arXiv 2210.03586, section
3) shows: PCA whitening lets the embedding lose dimensions where ZCA and Cholesky keep them.
Legend: N images, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pretrain.config.loss import LossConfig
from pretrain.indicators import centred_indicators
from pretrain.losses import build_loss
from pretrain.whitening import whiten

Curve = list[dict[str, float]]


def _views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return two views [2, N, 64]: a fifth of the pixels dropped, noise added."""
    shape = (2, *images.shape)
    kept = torch.rand(shape, generator=generator) > 0.2
    return images * kept + 0.3 * torch.randn(shape, generator=generator)


def follow_training(
    method: str,
    *,
    seed: int = 0,
    num_steps: int = 200,
    period: int = 20,
    dim: int = 32,
    batch: int = 128,
) -> Curve:
    """Return the indicators of a small network trained on batch whitening by `method`.

    One entry per `period` steps, with keys `step`, `loss` and, for encoding, embedding and
    whitened output of all images, `<what>/<indicator>` of the centred features. The seed fixes
    initial weights, batches and views, which are the same for every method.
    """
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64)
        )
        projector = nn.Sequential(nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, dim))
    model = nn.Sequential(encoder, projector)
    loss = build_loss(
        LossConfig.model_validate(
            {"name": "whitening", "over": "batch", "method": method, "sub_batch": batch}
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    curve: Curve = []
    for step in range(num_steps + 1):
        rows = torch.randint(len(images), (batch,), generator=generator)
        views = _views(images[rows], generator)
        value = loss(model(views.flatten(0, 1)).view(2, batch, dim), generator=generator)
        if step % period == 0:
            curve.append(
                {"step": step, "loss": float(value.detach()), **_state(model, images, method)}
            )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return curve


@torch.no_grad()
def _state(model: nn.Sequential, images: Tensor, method: str) -> dict[str, float]:
    model.eval()
    encoding = model[0](images)
    embedding = model[1](encoding)
    model.train()
    return centred_indicators(
        {
            "encoding": encoding,
            "embedding": embedding,
            "whitened": whiten(embedding, over="batch", method=method),
        }
    )


def plot_collapse(curves: dict[str, Sequence[Curve]], path: Path) -> None:
    """Write to `path` the embedding's effective and stable rank, a line per method and seed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, key in zip(panels, ("effective_rank", "stable_rank"), strict=True):
        for number, (method, runs) in enumerate(curves.items()):
            for seed, run in enumerate(runs):
                panel.plot(
                    [point["step"] for point in run],
                    [point[f"embedding/{key}"] for point in run],
                    color=f"C{number}",
                    label=method if seed == 0 else None,
                )
        panel.set(xlabel="step", ylabel=f"{key.replace('_', ' ')} of the embedding", ylim=(0, None))
    panels[0].legend()
    figure.savefig(path)
