"""The linear probe against logistic regression, its schedule and its seed."""

import doctest

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pretrain.config.probe import LinearConfig
from pretrain.probes import linear
from pretrain.probes.linear import fit_linear


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    return x[:1000], y[:1000], x[1000:], y[1000:]


def objective(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, decay: float) -> float:
    squares = weight.square().sum() + bias.square().sum()
    return float(F.cross_entropy(x @ weight.mT + bias, y) + 0.5 * decay * squares)


def test_the_optimum_is_that_of_logistic_regression(digits: tuple[Tensor, ...]) -> None:
    x, y, test_x, test_y = digits
    decay = 1e-2
    config = LinearConfig(epochs=500, batch_size=1000, lr=0.2, weight_decay=decay)
    ours = fit_linear(x, y, 10, config, seed=0)
    # a column of ones in place of the intercept, which scikit-learn would not shrink
    ones = np.hstack([x.numpy(), np.ones((len(x), 1))])
    theirs = LogisticRegression(C=1 / (len(x) * decay), fit_intercept=False, max_iter=2000)
    theirs.fit(ones, y.numpy())
    found = torch.tensor(theirs.coef_, dtype=torch.float32)
    best = objective(found[:, :-1], found[:, -1], x, y, decay)
    weight, bias = ours.weight.detach(), ours.bias.detach()
    assert objective(weight, bias, x, y, decay) == pytest.approx(best, abs=1e-4)
    with torch.no_grad():
        predicted = ours(test_x).argmax(1)
    same = predicted.numpy() == theirs.predict(np.hstack([test_x.numpy(), np.ones((797, 1))]))
    assert same.mean() > 0.995
    assert (predicted == test_y).float().mean() > 0.85


def test_the_published_settings_fit_the_digits_as_well_as_scikit_learn(
    digits: tuple[Tensor, ...],
) -> None:
    x, y, test_x, test_y = digits
    ours = fit_linear(x, y, 10, LinearConfig(batch_size=100), seed=0)(test_x).argmax(1)
    theirs = LogisticRegression(C=1.0, max_iter=500).fit(x.numpy(), y.numpy())
    right = float((ours == test_y).float().mean())
    assert abs(right - theirs.score(test_x.numpy(), test_y.numpy())) < 0.02


def test_the_learning_rate_falls_by_an_equal_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.Adam.step

    def watch(self: torch.optim.Adam, *args: object) -> object:
        seen.append(self.param_groups[0]["lr"])
        assert self.param_groups[0]["weight_decay"] == 5e-6
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    x, y = torch.randn(10, 4), torch.tensor([0, 1] * 5)
    fit_linear(x, y, 2, LinearConfig(epochs=4, batch_size=6), seed=0)
    assert len(seen) == 4 * 2  # the last batch of an epoch is smaller
    assert seen[::2] == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5])


def test_a_seed_fixes_the_classifier_and_leaves_the_process_alone(
    digits: tuple[Tensor, ...],
) -> None:
    x, y, *_ = digits
    config = LinearConfig(epochs=2)
    before = torch.get_rng_state()
    first = fit_linear(x, y, 10, config, seed=1).weight
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, fit_linear(x, y, 10, config, seed=1).weight)
    assert not torch.equal(first, fit_linear(x, y, 10, config, seed=2).weight)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "labels of 2 classes go from 0 to 1, got 0 to 2"),
        ([0, 1], "3 rows of features want as many labels, got 2"),
        ([0, 1, 1, 0], "3 rows of features want as many labels, got 4"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_linear(torch.zeros(3, 2), torch.tensor(labels), 2, LinearConfig(epochs=1), seed=0)


def test_the_examples_of_the_docstrings() -> None:
    result = doctest.testmod(linear)
    assert result.attempted and not result.failed
