"""The estimate of a pretraining's memory, against what a backward pass really keeps."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pretrain.config.pretrain import PretrainConfig
from pretrain.methods import build_model
from pretrain.training.memory import memory_estimate, output_bytes

Make = Callable[..., PretrainConfig]


@pytest.mark.parametrize(
    ("arch", "loss"),
    [("resnet18", None), ("resnet50", None), ("resnet18", "byol"), ("resnet18", "moco-v2")],
)
def test_what_is_counted_is_what_a_backward_pass_keeps(
    tiny: Make, arch: str, loss: str | None
) -> None:
    """A momentum branch keeps nothing, and MoCo's encoder sees one of two views."""
    changes = {} if loss is None else {"loss": {"name": loss}}
    config = tiny(model={"arch": arch, "projector_hidden": 16, "embedding_dim": 4}, **changes)
    model = build_model(config).train()
    weights = {part.untyped_storage().data_ptr() for part in model.state_dict().values()}
    views = torch.randn(2, 8, 3, 64, 64)
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights | {views.untyped_storage().data_ptr()}:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = model(views)
    assert output[1].requires_grad
    with torch.device("meta"):
        ghost = build_model(config)
    assert output_bytes(ghost, views.to("meta")) == pytest.approx(sum(kept.values()), rel=0.1)


def test_views_count_with_their_own_sizes(tiny: Make) -> None:
    settings = {"size": 224, "views": [{}, {"size": 96}, {"size": 96}]}
    line = memory_estimate(tiny(augment=settings, batch_size=256), 1)
    assert "for 3 views of 256 images of 224 x 224, 96 x 96 in encoder" in line
    _, _, views, activations = numbers(line)
    share = (1 + 2 * (96 / 224) ** 2) / 2
    of_two = numbers(memory_estimate(tiny(augment={"size": 224}, batch_size=256), 1))
    assert views == pytest.approx(share * of_two[2], abs=0.06)
    assert activations == pytest.approx(share * of_two[3], rel=0.05)


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"(\d+\.\d) (?:GB|for)", line)]


def test_the_line_says_what_takes_how_much(tiny: Make) -> None:
    """ResNet-50 and two views of 224 px of 256 images: 23.5 M parameters, 22 MB an image and view
    as 32-bit numbers at least.
    """
    settings = {
        "model": {"arch": "resnet50"}, "augment": {"size": 224}, "batch_size": 256,
        "loss": {"name": "w-mse", "sub_batch": 128},
    }  # fmt: skip
    state = torch.get_rng_state()
    line = memory_estimate(tiny(**settings), 1)
    assert torch.equal(torch.get_rng_state(), state) and "\n" not in line
    total, weights, views, activations = numbers(line)
    assert weights == pytest.approx(0.4, abs=0.05)  # Adam: four numbers a parameter
    assert views == pytest.approx(3 * 2 * 256 * 3 * 224**2 * 4 / 1e9, abs=0.06)
    assert total == pytest.approx(weights + views + activations, abs=0.15)
    assert "2 views of 256 images of 224 x 224" in line and "and adam" in line
    half = numbers(memory_estimate(tiny(**settings, compute={"precision": "bf16"}), 1))
    assert half[3] == pytest.approx(activations / 2, abs=0.06)
    tf32 = numbers(memory_estimate(tiny(**settings, compute={"precision": "tf32"}), 1))
    assert tf32 == [total, weights, views, activations]
    quarter = numbers(memory_estimate(tiny(**settings), 4))
    assert quarter[3] == pytest.approx(activations / 4, abs=0.06) and quarter[1] == weights


def test_weights_of_a_momentum_branch_and_a_queue_are_there_once(tiny: Make) -> None:
    """Adam has four numbers a trained parameter; the queue's 2**20 x 256 numbers are 1.1 GB."""
    model = {"arch": "resnet101", "projector_hidden": 16, "embedding_dim": 256}
    plain, byol, moco = (
        numbers(memory_estimate(tiny(model=model, loss=loss), 1))[1]
        for loss in (
            {"name": "none"}, {"name": "byol"}, {"name": "moco-v2", "queue": 2**20},
        )
    )  # fmt: skip
    assert plain == pytest.approx(0.7, abs=0.05)
    assert byol == pytest.approx(plain * 5 / 4, abs=0.1)
    assert moco == pytest.approx(byol + 1.1, abs=0.15)
