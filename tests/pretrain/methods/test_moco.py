"""MoCo's model: which view goes where, and the queue by hand, around its end too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.pretrain import PretrainConfig
from pretrain.losses import build_loss
from pretrain.losses.base import normalized
from pretrain.methods import build_model
from pretrain.methods.moco import MoCoModel
from pretrain.runtime.distributed import Processes
from pretrain.training import Trainer

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")


def moco(tiny: Make, queue: int = 11, **changes: Any) -> PretrainConfig:
    model = {"projector_hidden": 16, "embedding_dim": 4, "hidden_batchnorm": False}
    return tiny(**{"loss": {"name": "moco-v2", "queue": queue}, "model": model, **changes})


def built(config: PretrainConfig) -> MoCoModel:
    torch.manual_seed(0)
    model = build_model(config).train()
    assert isinstance(model, MoCoModel)
    return model


def views(seed: int, N: int = 4) -> Tensor:
    return torch.randn(2, N, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_queries_are_of_the_first_view_and_keys_of_the_second(tiny: Make) -> None:
    config = moco(tiny)
    model, batch = built(config), views(0)
    seen: dict[str, Tensor] = {}
    for name in ("encoder", "momentum_encoder"):
        part = getattr(model, name)
        part.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    encoding, embedding, beside = model(batch)
    assert torch.equal(seen["encoder"], batch[0])
    assert torch.equal(seen["momentum_encoder"], batch[1])
    assert (encoding.shape, embedding.shape) == ((1, 4, 16), (1, 4, 4))
    want = normalized(model.embed_by_branch(batch[1:])[0])
    torch.testing.assert_close(beside["keys"], want)
    assert not beside["keys"].requires_grad and beside["queue"] is model.queue
    build_loss(config.loss)(embedding, **beside).backward()
    for name, parameter in model.named_parameters():
        trained = not name.startswith("momentum_") and name != "queue"
        assert (parameter.grad is not None) == trained  # nothing else is unused


def test_the_queue_begins_as_random_unit_vectors_of_the_seed(tiny: Make, tmp_path: Path) -> None:
    queues = [
        Trainer(moco(tiny, queue=4096, seed=seed), tmp_path, Processes(torch.device("cpu")))
        .model.get_parameter("queue")
        .detach()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(queues[0], queues[1]) and not torch.equal(queues[0], queues[2])
    torch.testing.assert_close(queues[0].norm(dim=1), torch.ones(4096))
    assert queues[0].mean(0).abs().max() < 0.05  # of every direction
    assert (queues[0].square().mean(0) - 0.25).abs().max() < 0.02


def test_the_queue_by_hand(tiny: Make) -> None:
    """11 places, 4 keys a step: the third step fills 8 to 10 and 0, the fourth 1 to 4."""
    model = built(moco(tiny, queue=11))
    content: list[Tensor] = list(model.queue.detach().clone())
    places = [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 0), (1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 0, 1)]
    for step, at in enumerate(places):
        beside = model(views(step)).beside
        assert torch.equal(beside["queue"], torch.stack(content))  # not yet this step's keys
        for place, key in zip(at, beside["keys"], strict=True):
            content[place] = key
        model.after_step()
        assert torch.equal(model.queue, torch.stack(content))
        assert model.queue_pointer == (at[-1] + 1) % 11
    state = model.state_dict()
    assert torch.equal(state["queue"], model.queue) and state["queue_pointer"] == 2


def test_a_queue_of_one_batch_holds_the_last(tiny: Make) -> None:
    model = built(moco(tiny, queue=8))
    for step in range(3):
        keys = model(views(step, N=8)).beside["keys"]
        model.after_step()
        assert torch.equal(model.queue, keys)


def test_keys_of_parts_enter_once_a_step_as_those_of_the_whole(tiny: Make, tmp_path: Path) -> None:
    queues = {}
    for parts in (1, 4):
        config = moco(tiny, queue=16, compute={"accumulate": parts})
        trainer = Trainer(config, tmp_path / str(parts), Processes(torch.device("cpu")))
        assert isinstance(trainer.model, MoCoModel)
        for number in (1, 4):
            del trainer.model.encoder[number], trainer.model.momentum_encoder[number]
            trainer.model.encoder.insert(number, torch.nn.Identity())
            trainer.model.momentum_encoder.insert(number, torch.nn.Identity())
        before = trainer.model.queue.detach().clone()
        for step in range(2):
            trainer._set_rates()
            trainer.gradients(trainer.model, views(step, N=8))
            assert torch.equal(trainer.model.queue[8 * step :], before[8 * step :])
            trainer.update()
            trainer.model.after_step()
        queues[parts] = trainer.model.queue.detach()
        assert trainer.model.queue_pointer == 0 and not trainer.model.new_keys
    torch.testing.assert_close(queues[4], queues[1], rtol=0, atol=1e-4)


def test_evaluation_keeps_no_keys(tiny: Make) -> None:
    model = built(moco(tiny)).eval()
    model(views(0))
    assert not model.new_keys


def test_a_queue_smaller_than_the_batch_is_refused_before_the_start(tiny: Make) -> None:
    message = "queue of 7 keys cannot take those of a batch of 8 images; use at least 8"
    with pytest.raises(ValueError, match=message):
        moco(tiny, queue=7)
    assert moco(tiny, queue=8).loss.check(8, 4) == []
