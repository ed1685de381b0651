"""Ten steps of the published training loops, replayed by our config, model, loss and optimiser.

The recordings hold the published code's start, views and draws, and what came of them, in float64;
their settings name the code (W-MSE: htdt/self-supervised d9662c8, CW-RGP: winci-ai/CW-RGP 5bbf6ed).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import WhiteningLoss, build_loss
from pretrain.models import encoder
from pretrain.training.optimizers import build_optimizer
from pretrain.training.schedule import Length, covariance_weight, lr_factor

FOLDER = Path(__file__).parents[2] / "data" / "golden" / "trajectories"
# their output is centred next, so that their gradient is rounding, which Adam makes a step of
CENTRED_NEXT = ("projector.0.bias", "projector.3.bias", "projector.1.running_mean")


def replayed_config(settings: dict[str, Any]) -> PretrainConfig:
    loss = {"name": settings["loss"], "sub_batch": settings["sub_batch"]}
    loss |= {"iterations": settings["iterations"], "eps": settings["eps"]}
    if settings["loss"] == "cw-rgp":
        loss |= {"groups": settings["groups"]}
    content = {
        "method": settings["loss"],
        "data": {"name": "recorded", "root": "."},
        "augment": {"size": 8},
        "model": {
            "arch": "resnet18",
            "projector_layers": settings["projector_layers"],
            "projector_hidden": settings["projector_hidden"],
            "embedding_dim": settings["embedding_dim"],
        },
        "loss": loss,
        "optimizer": {
            "name": settings["optimizer"],
            "lr": settings["lr"],
            "weight_decay": settings["weight_decay"],
            "warmup_steps": settings["warmup_steps"],
            "schedule": settings["schedule"],
            "drop_epochs_before_end": settings["drop_epochs_before_end"],
            "drop_factor": settings["drop_factor"],
        },
        "num_views": settings["views"],
        "batch_size": settings["batch"],
        "epochs": settings["epochs"],
    }
    return PretrainConfig.model_validate(content)


def small_encoder(width: int) -> nn.Module:
    def block(channels: int, width: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(*block(3, 8), *block(8, width), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("name", ["wmse_2views_a", "cwrgp_2views_a"])
def test_ten_steps_are_those_of_the_published_loop(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = {k: v for k, v in np.load(FOLDER / f"{name}.npz").items()}
    settings = json.loads(str(recorded["settings"]))
    config = replayed_config(settings)
    width = settings["encoder_width"]
    monkeypatch.setattr(encoder, "build_encoder", lambda _: (small_encoder(width), width))
    model = encoder.SelfSupervisedModel(config.model).double()
    model.load_state_dict(
        {key.removeprefix("initial/"): torch.from_numpy(value)
         for key, value in recorded.items() if key.startswith("initial/")}
    )  # fmt: skip
    loss, optimizer = build_loss(config.loss), build_optimizer(model, config.optimizer)
    assert isinstance(loss, WhiteningLoss)
    length = Length.of(config, settings["steps_per_epoch"] * settings["batch"])
    mean, std = (torch.from_numpy(recorded[key])[:, None, None] for key in ("mean", "std"))
    seen: dict[str, list[float]] = {key: [] for key in ("loss", "lr", "gradient_norm")}
    for step in range(length.total_steps):
        rate = lr_factor(step, length, config.optimizer) * config.optimizer.base_lr(32)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss.covariance_weight = covariance_weight(step, length, config)
        assert loss.covariance_weight == recorded["covariance_weight"][step]
        views = (torch.from_numpy(recorded["views"][step]).double() / 255 - mean) / std
        permutation, partition = (
            torch.from_numpy(recorded[key][step]).long()
            for key in ("batch_permutation", "channel_partition")
        )
        optimizer.zero_grad()
        value = loss(model(views)[1], batch_permutation=permutation, channel_partition=partition)
        value.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizer.step()
        seen["loss"].append(float(value.detach()))
        seen["lr"].append(rate)
        seen["gradient_norm"].append(float(norm))
    for key, values in seen.items():
        np.testing.assert_allclose(values, recorded[key], rtol=1e-9, err_msg=key)
    for key, tensor in model.state_dict().items():
        compare(key, tensor, recorded[f"final/{key}"])
    for key, parameter in model.named_parameters():
        for part, tensor in optimizer.state[parameter].items():
            if part != "step":
                compare(key, tensor, recorded[f"optimizer/{key}/{part}"])


def compare(key: str, tensor: torch.Tensor, wanted: np.ndarray) -> None:
    tolerance = (1e-6 if key in CENTRED_NEXT else 1e-9) * max(1e-30, float(np.abs(wanted).max()))
    np.testing.assert_allclose(tensor.numpy(), wanted, rtol=0, atol=tolerance, err_msg=key)
