"""Losses, colours, probes, encoder and RoIAlign on CUDA against the CPU.

V views, N batch, D embedding dimension.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.timing import DEVICE, Settings
from pretrain.config.data import AugmentConfig
from pretrain.config.loss import loss_config
from pretrain.config.pretrain import ModelConfig
from pretrain.config.probe import KnnConfig, LinearConfig, WeightedKnnConfig
from pretrain.losses import build_loss
from pretrain.models import SelfSupervisedModel
from pretrain.probes.knn import Neighbours, accuracy
from pretrain.probes.linear import fit_linear
from pretrain.probes.probe import measure_knn
from pretrain.runtime.tf32 import set_tf32
from pretrain.views.batched import RawViews, finish_views
from pretrain.views.parameters import draw_view

CPU = torch.device("cpu")
METHODS = ("cholesky", "zca", "pca", "newton")
CW_RGP: Settings = {"name": "cw-rgp", "sub_batch": 64, "groups": 2}
W_MSE: Settings = {"name": "w-mse", "sub_batch": 64}
LOSSES: dict[str, tuple[Settings, tuple[int, int, int]]] = {
    **{f"w-mse {method}": (W_MSE | {"method": method}, (4, 128, 32)) for method in METHODS},
    **{f"cw-rgp {method}": (CW_RGP | {"method": method}, (4, 64, 512)) for method in METHODS},
    "cw-rgp imagenet": (
        CW_RGP | {"sub_batch": 128, "covariance_weight": 0.005, "covariance_batch": 128},
        (4, 128, 1024),
    ),
    "w-mse 2 iterations, 2 groups": (W_MSE | {"iterations": 2, "groups": 2}, (2, 128, 64)),
    "batch-norm": ({"name": "batch-norm"}, (4, 128, 32)),
    "none": ({"name": "none"}, (4, 128, 32)),
}
AUGMENTATIONS: dict[str, Settings] = {
    "jitter, gray, blur": {"size": 96, "blur_probability": 0.5},
    "blur of all": {"size": 96, "blur_probability": 1, "jitter_probability": 0, "grayscale": 0},
    "solarised": {"size": 32, "jitter_probability": 0, "grayscale": 0, "solarize": 0.5},
    "noise": {"size": 32, "noise_std": 0.05, "jitter_probability": 0, "grayscale": 0},
}


def seeded(seed: int) -> torch.Generator:
    """Return a generator with a seed."""
    return torch.Generator().manual_seed(seed)


def relative(value: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference by the reference's norm."""
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    return float((value - reference).norm() / reference.norm().clamp(min=1e-300))


def losses() -> dict[str, Any]:
    """Value and gradient of every loss and method in float64 and float32."""
    rows: dict[str, Any] = {}
    bad = []
    for title, (settings, (V, N, D)) in LOSSES.items():
        generator = seeded(0)
        x = torch.randn(N, D, generator=generator) + 0.5 * torch.randn(V, N, D, generator=generator)
        x = (x @ (torch.randn(D, D, generator=generator) / D**0.5 + torch.eye(D))).double()
        exact, exact_grad, exact_count = value_and_grad(settings, x)
        rows[title] = row = {}
        for name, device, dtype in (
            ("cuda64", DEVICE, torch.float64),
            ("cuda32", DEVICE, torch.float32),
            ("cpu32", CPU, torch.float32),
        ):
            value, grad, count = value_and_grad(settings, x.to(device, dtype))
            row[name], row[f"{name} grad"] = relative(value, exact), relative(grad, exact_grad)
            if count != exact_count:
                bad.append(f"{title} {name}: {count} ridges, {exact_count} on the CPU")
        largest = max(2e-3, 20 * row["cpu32 grad"])
        close = row["cuda64 grad"] < 1e-6 and row["cuda32 grad"] < largest
        if not close and "pca" not in title:  # its components have signs, each device's own
            bad.append(f"{title}: {row}")
    assert not bad, bad
    return rows


def value_and_grad(settings: Settings, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the loss of x [V, N, D], its gradient, and how many matrices got a ridge."""
    loss_fn = build_loss(loss_config(**settings)).to(x.device)
    x = x.detach().clone().requires_grad_()
    loss: Tensor = loss_fn(x, generator=seeded(1))
    torch.autograd.backward(loss)
    assert x.grad is not None and loss.device.type == x.device.type
    return loss.detach(), x.grad, int(getattr(loss_fn, "regularized_count", 0))


def degenerate() -> dict[str, Any]:
    """Singular covariances get a ridge on CUDA too; NaN gives NaN and no exception."""
    rows: dict[str, Any] = {}
    singular = torch.randn(2, 128, 32, generator=seeded(0))
    singular[..., 16:] = singular[..., :16]  # rank 16
    for method in ("cholesky", "zca", "pca"):
        settings = W_MSE | {"method": method}
        for device in (CPU, DEVICE):
            loss, grad, count = value_and_grad(settings, singular.to(device))
            assert bool(loss.isfinite()) and bool(grad.isfinite().all()), (method, device)
            rows[f"{method} {device.type}"] = f"{float(loss):.5f}, ridges {count}"
        broken = torch.full((2, 128, 32), float("nan"), device=DEVICE)
        assert bool(build_loss(loss_config(**settings)).to(DEVICE)(broken).isnan())
    return rows


def precision_switches() -> dict[str, Any]:
    """TF32 asked for elsewhere does not reach the loss; autocast neither."""
    loss_fn = build_loss(loss_config(**CW_RGP)).to(DEVICE)
    x = torch.randn(2, 64, 256, generator=seeded(0)).to(DEVICE)

    def value(y: Tensor) -> float:
        return float(loss_fn(y, generator=seeded(1)))

    plain = value(x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        under_tf32 = value(x)
        kept = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        under_autocast = value(x)
        half = value(x.bfloat16())
    assert plain == under_tf32 == under_autocast, (plain, under_tf32, under_autocast)
    assert kept == "high", kept
    return {
        "value": plain,
        "of bf16 embeddings": half,
        "cudnn allow_tf32": str(torch.backends.cudnn.allow_tf32),
    }


def colours() -> dict[str, Any]:
    """The same raw views finished on the CPU and on the device."""
    rows: dict[str, Any] = {}
    for title, settings in AUGMENTATIONS.items():
        config = AugmentConfig.model_validate(settings)
        chance = Random(0)
        draws = [[draw_view(chance, 300, 400, config).colour for _ in range(32)] for _ in range(2)]
        shape = (2, 32, 3, config.size, config.size)
        views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(0))
        noise = torch.randn(shape, generator=seeded(1)) if config.noise_std else None
        sides = [
            finish_views(
                RawViews(
                    views.to(device),
                    torch.tensor(draws),
                    None if noise is None else noise.to(device),
                ),
                config,
            )
            for device in (CPU, DEVICE, DEVICE)
        ]
        assert sides[1].device.type == DEVICE.type and bool(sides[1].isfinite().all())
        difference = (sides[1].cpu() - sides[0]).abs()
        rows[title] = {
            "largest difference": float(difference.max()),
            "repeats itself": torch.equal(sides[1], sides[2]),
        }
        # hue jumps at ties between channels: count the pixels, not the largest difference
        share = float((difference > 5e-3).float().mean())
        rows[title]["share above 0.005"] = share
        assert share < 1e-3, rows
    return rows


def encoder() -> dict[str, Any]:
    """A ResNet-18 in float32: how far TF32 moves features and gradients from the CPU's."""
    x = torch.randn(2, 16, 3, 64, 64, generator=seeded(0))
    expected = encoder_outputs(x)
    names = ("encoding", "embedding", "gradient")
    rows: dict[str, dict[str, float]] = {}
    for title, allowed in {"cuda tf32": True, "cuda ieee": False}.items():
        set_tf32(allowed)
        outputs = encoder_outputs(x.to(DEVICE))
        rows[title] = {
            name: relative(*pair) for name, *pair in zip(names, outputs, expected, strict=True)
        }
    assert rows["cuda ieee"]["embedding"] < 1e-3, rows
    return rows


def encoder_outputs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return encoding and embedding of x [V, N, 3, S, S], and the gradient of their square."""
    torch.manual_seed(0)
    model = SelfSupervisedModel(ModelConfig(arch="resnet18", embedding_dim=32)).to(x.device)
    encoding, embedding, _ = model(x)
    torch.autograd.backward(embedding.square().mean())
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return encoding, embedding, torch.cat(grads)


def nearest_neighbours() -> dict[str, Any]:
    """k-NN, its votes and the linear classifier."""
    generator = seeded(0)
    centres = 3 * torch.randn(10, 64, generator=generator)
    labels = torch.randint(10, (4000,), generator=generator)
    targets = torch.randint(10, (500,), generator=generator)
    bank = centres[labels] + 4 * torch.randn(4000, 64, generator=generator)
    test = centres[targets] + 4 * torch.randn(500, 64, generator=generator)
    metrics: dict[str, dict[str, float]] = {}
    distances: dict[str, Tensor] = {}
    for name, device in (("cpu", CPU), ("device", DEVICE)):
        data, classes = bank.to(device), labels.to(device)
        parts = torch.arange(4000, device=device).split(900)  # type: ignore[no-untyped-call]
        chunks = [(data[part], classes[part]) for part in parts]
        queries = (test.to(device), targets.to(device))
        ways: dict[str, KnnConfig | WeightedKnnConfig] = {
            "knn": KnnConfig(),
            "weighted_knn": WeightedKnnConfig(),
        }
        search = Neighbours(queries[0], 5)
        for chunk in chunks:
            search.add(*chunk)
        distances[name] = search.nearest()[0]
        classifier = fit_linear(data, classes, 10, LinearConfig(epochs=20), 0)
        linear = accuracy(classifier(queries[0]).detach(), queries[1])
        metrics[name] = measure_knn(chunks, queries, 10, ways) | {"linear": linear["top1"]}
    for way, value in metrics["cpu"].items():
        assert abs(metrics["device"][way] - value) <= 1.0, (way, metrics)
    return {**metrics, "distances differ by": relative(distances["device"], distances["cpu"])}


def roi_align_types() -> dict[str, Any]:
    """RoIAlign of half precision's features is float32's but for rounding; rounded boxes are not.

    The detector's pooling, on the device.
    """
    from detectron2.modeling.poolers import ROIPooler  # noqa: PLC0415  (slow to load)
    from detectron2.structures import Boxes  # noqa: PLC0415

    from transfer.detection.trainer import pool_from_exact_boxes  # noqa: PLC0415

    generator = seeded(0)
    noise = torch.randn(1, 32, 204, 337, generator=generator)
    features = torch.nn.functional.avg_pool2d(noise, 5, 1).to(DEVICE)
    corner = torch.rand(200, 2, generator=generator) * torch.tensor([1300.0, 760.0])
    boxes = torch.cat([corner, corner + 24], 1).to(DEVICE)
    pool: Any = ROIPooler(7, [0.25], 0, "ROIAlignV2")
    pool_from_exact_boxes(pool)
    rows: dict[str, Any] = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        half = features.to(dtype)
        expected = pool([half.float()], [Boxes(boxes)])
        with torch.autocast(DEVICE.type, dtype):
            off = relative(pool([half], [Boxes(boxes)]), expected)
        rows[f"{name}: pooled features of 24 px boxes off by"] = off
        rounded = pool([half.float()], [Boxes(boxes.to(dtype).float())])
        rows[f"{name}: from rounded boxes they would be off by"] = relative(rounded, expected)
        assert off <= torch.finfo(dtype).eps, rows
    return rows
