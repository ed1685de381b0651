"""A loss or gradient that is not finite ends the run, and its step is kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.models import BACKBONE, SelfSupervisedModel
from pretrain.runtime.checkpoint import LAST
from pretrain.runtime.faults import DivergedError
from pretrain.train import pretrain
from pretrain.training.divergence import DIVERGENCE
from pretrain.training.trainer import Output, Trainer

Make = Callable[..., PretrainConfig]
pytestmark = pytest.mark.usefixtures("small_net")


def poison(
    monkeypatch: pytest.MonkeyPatch, step: int, change: Callable[[Trainer, Output], Output]
) -> None:
    """Change what step number `step` (from 1) gives."""
    original, count = Trainer.gradients, [0]

    def gradients(self: Trainer, parallel: nn.Module, views: Tensor) -> Output:
        count[0] += 1
        output = original(self, parallel, views)
        return change(self, output) if count[0] == step else output

    monkeypatch.setattr(Trainer, "gradients", gradients)


def nan_loss(trainer: Trainer, output: Output) -> Output:
    return output._replace(loss=output.loss * float("nan"))


def infinite_grad(trainer: Trainer, output: Output) -> Output:
    grad = next(trainer.model.parameters()).grad
    assert grad is not None
    grad.view(-1)[0] = float("inf")
    return output


@pytest.mark.parametrize(
    ("change", "words"),
    [(nan_loss, "loss became nan"), (infinite_grad, "norm of the gradient became (inf|nan)")],
)
def test_what_is_not_finite_stops_the_run_and_is_kept(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Trainer, Output], Output], words: str,
) -> None:  # fmt: skip
    config = tiny(optimizer={"lr": 0.001, "warmup_steps": 10})
    poison(monkeypatch, 4, change)
    pattern = rf"{words} at step 3 of 5 with learning rate 0\.0004; last good state is .*{LAST}; "
    with pytest.raises(DivergedError, match=pattern):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run" / BACKBONE).exists()
    good = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert good["step"] == 2
    kept = torch.load(tmp_path / "run" / DIVERGENCE, weights_only=True)
    assert kept["step"] == 3 and kept["lr"] == pytest.approx(0.0004)
    assert kept["views"].shape == (2, 8, 3, 32, 32) and kept["embedding"].shape == (2, 8, 4)
    assert kept["config"] == config.identity()
    # the weights are those that gave the loss, not yet spoilt by an update
    model = SelfSupervisedModel(config.model)
    model.load_state_dict(kept["model"])
    encoding, embedding, _ = model.train()(kept["views"])
    assert torch.allclose(embedding, kept["embedding"], atol=1e-4)
    assert torch.allclose(encoding, kept["encoding"], atol=1e-4)


def test_views_of_differing_sizes_are_kept_too(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(augment={"size": 32, "views": [{"count": 2}, {"size": 28}]})
    poison(monkeypatch, 1, nan_loss)
    with pytest.raises(DivergedError, match="loss became nan at step 0"):
        pretrain(config, tmp_path)
    kept = torch.load(tmp_path / DIVERGENCE, weights_only=True)
    assert [view.shape[2] for view in kept["views"]] == [32, 32, 28]
    model = SelfSupervisedModel(config.model)
    model.load_state_dict(kept["model"])
    assert torch.allclose(model.train()(kept["views"]).embedding, kept["embedding"], atol=1e-4)
