"""k-NN by hand and against scikit-learn's: neighbours, ties, votes, chunks."""

import doctest
import math
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.probes import knn
from pretrain.probes.knn import Neighbours, accuracy, votes


def search(queries: Tensor, bank: Tensor, labels: Tensor, k: int, **options) -> tuple:
    """Return what is found when the bank comes in chunks of 100."""
    found = Neighbours(queries, k, **options)
    for features, numbers in zip(bank.split(100), labels.split(100), strict=True):
        found.add(features, numbers)
    return found.nearest()


@pytest.fixture(scope="module")
def digits() -> dict[str, Tensor]:
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    return {"bank": x[:1200], "labels": y[:1200], "queries": x[1200:], "targets": y[1200:]}


def test_neighbours_by_hand() -> None:
    bank = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    found = Neighbours(torch.tensor([[0.0, 0.0], [3.0, 3.0]]), 3)
    found.add(bank[:3], torch.tensor([7, 5, 6]))
    found.add(bank[3:], torch.tensor([4]))
    distances, labels = found.nearest()
    assert labels.tolist() == [[7, 6, 4], [5, 4, 6]]
    assert torch.allclose(distances, torch.tensor([[0.0, 1.0, 4.0], [1.0, 10.0, 13.0]]), atol=1e-5)


def test_at_equal_distance_the_first_of_the_bank_comes_first() -> None:
    bank = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    found = Neighbours(torch.tensor([[0.0]]), 2, chunk_bytes=12)
    found.add(bank, torch.tensor([3, 2, 1, 0]))
    assert found.nearest()[1].tolist() == [[3, 2]]


def test_predictions_are_scikit_learns_where_the_vote_is_clear(digits: dict[str, Tensor]) -> None:
    queries, bank = digits["queries"], digits["bank"]
    distances, labels = search(queries, bank, digits["labels"], 5)
    scores = votes(distances, labels, 10)
    ours = scores.numpy().argmax(1)
    theirs = KNeighborsClassifier(5, algorithm="brute").fit(bank.numpy(), digits["labels"].numpy())
    # scikit-learn takes the lower label at equal votes too, so only ties in distance may differ
    exact = torch.cdist(queries.double(), bank.double()).sort(1).values
    clear = (exact[:, 5] - exact[:, 4]).numpy() > 1e-4
    assert clear.mean() > 0.95
    assert (ours == theirs.predict(queries.numpy()))[clear].all()
    top1 = accuracy(scores, digits["targets"])["top1"]
    assert top1 == pytest.approx(100 * (ours == digits["targets"].numpy()).mean())
    wanted = np.sqrt(theirs.kneighbors(queries.numpy())[0] ** 2)
    assert np.allclose(distances.sqrt().numpy(), wanted, rtol=1e-4, atol=1e-3)


def test_cosine_neighbours_are_scikit_learns(digits: dict[str, Tensor]) -> None:
    queries, bank = digits["queries"], digits["bank"]
    distances, _ = search(queries, bank, digits["labels"], 20, cosine=True)
    theirs = KNeighborsClassifier(20, metric="cosine").fit(bank.numpy(), digits["labels"].numpy())
    wanted = theirs.kneighbors(queries.double().numpy())[0]
    assert np.allclose(0.5 * distances.numpy(), wanted, atol=1e-5)


def test_a_rotation_and_a_shift_of_the_features_change_nothing(digits: dict[str, Tensor]) -> None:
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    distances, labels = search(digits["queries"], digits["bank"], digits["labels"], 5)
    shift = 100.0  # far from the origin: without centring, float32 would lose the distances
    again, turned = search(
        digits["queries"] @ turn + shift, digits["bank"] @ turn + shift, digits["labels"], 5
    )
    assert torch.allclose(distances, again, rtol=1e-3, atol=0.1)
    assert (votes(distances, labels, 10).argmax(1) == votes(again, turned, 10).argmax(1)).all()


def test_cosine_does_not_see_the_length_of_a_feature(digits: dict[str, Tensor]) -> None:
    lengths = torch.logspace(-2, 2, len(digits["bank"]))[:, None]
    plain = search(digits["queries"], digits["bank"], digits["labels"], 20, cosine=True)
    scaled = search(
        7 * digits["queries"], lengths * digits["bank"], digits["labels"], 20, cosine=True
    )
    assert torch.allclose(plain[0], scaled[0], atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [12, 12 * 50, 12 * 8192 * 3, 2**29])
def test_the_size_of_chunks_changes_nothing(digits: dict[str, Tensor], chunk_bytes: int) -> None:
    queries = digits["queries"][:7]
    wanted = search(queries, digits["bank"], digits["labels"], 5)
    got = search(queries, digits["bank"], digits["labels"], 5, chunk_bytes=chunk_bytes)
    assert torch.allclose(wanted[0], got[0], rtol=1e-4, atol=1e-2)
    assert torch.equal(wanted[1], got[1])


class LargestTensor(TorchDispatchMode):
    """Records the most bytes that one result of an operation takes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.numel() > 1:
                self.size = max(self.size, value.numel() * value.element_size())
        return result


def test_no_table_of_all_distances_is_made() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(500, 8, generator=generator)
    bank = torch.randn(20_000, 8, generator=generator)
    budget = 12 * 8192 * 4
    with LargestTensor() as largest:
        found = Neighbours(queries, 5, chunk_bytes=budget)
        found.add(bank, torch.zeros(len(bank), dtype=torch.int64))
    assert 100 * budget < 4 * 500 * 20_000  # the whole table is out of the budget by far
    assert 0 < largest.size <= max(budget, bank.numel() * 4)
    assert torch.equal(found.nearest()[0], search(queries, bank, found.labels[0], 5)[0])


def test_majority_vote_by_hand() -> None:
    labels = torch.tensor([[2, 0, 2, 1, 0], [3, 3, 3, 1, 1]])
    scores = votes(torch.zeros(2, 5), labels, 4)
    assert scores[0].tolist() == [2, 1, 2, -math.inf]
    assert scores[1].tolist() == [-math.inf, 2, -math.inf, 3]
    assert accuracy(scores, torch.tensor([0, 3])) == {"top1": 100.0}  # 2 : 2, the lower label
    assert accuracy(scores, torch.tensor([2, 1])) == {"top1": 0.0}


def test_weighted_vote_by_hand() -> None:
    # one query along (1, 0); cosines 0.8, 0.6, 0.6: one near neighbour against two farther ones
    bank = torch.tensor([[8.0, 6.0], [0.6, 0.8], [0.3, -0.4], [-1.0, 0.0]])
    found = Neighbours(torch.tensor([[2.0, 0.0]]), 3, cosine=True)
    found.add(bank, torch.tensor([0, 1, 1, 1]))
    distances, labels = found.nearest()
    assert torch.allclose(1 - 0.5 * distances, torch.tensor([[0.8, 0.6, 0.6]]))
    # exp(0.2 / t) against 2: the near one wins below t = 0.2 / ln 2 = 0.289
    for temperature, winner in ((0.07, 0), (0.28, 0), (0.30, 1), (10.0, 1)):
        assert int(votes(distances, labels, 2, temperature).argmax()) == winner
    ratio = votes(distances, labels, 2, 0.07)[0]
    assert float(ratio[0] / ratio[1]) == pytest.approx(math.exp(0.2 / 0.07) / 2, rel=1e-4)


def test_a_class_without_a_vote_is_never_right() -> None:
    labels = torch.tensor([[6, 6, 6, 6, 6]])
    scores = votes(torch.zeros(1, 5), labels, 8)
    assert accuracy(scores, torch.tensor([6])) == {"top1": 100.0, "top5": 100.0}
    assert accuracy(scores, torch.tensor([0])) == {"top1": 0.0, "top5": 0.0}


def test_accuracy_counts_as_sorting_does() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (300, 9), generator=generator).float()  # many ties
    targets = torch.randint(0, 9, (300,), generator=generator)
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")
    for n in (1, 5):
        hits = Counter(int(target) in row[:n] for target, row in zip(targets, order, strict=True))
        assert accuracy(scores, targets)[f"top{n}"] == pytest.approx(100 * hits[True] / 300)


def test_refusals() -> None:
    found = Neighbours(torch.zeros(2, 3), 5)
    found.add(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 images are fewer than the k = 5 that vote"):
        found.nearest()
    with pytest.raises(ValueError, match="scores are NaN"):
        accuracy(torch.tensor([[math.nan, 1.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Neighbours(torch.zeros(2, 3), 0)
    distances = torch.zeros(1, 2)
    for labels in ([[0, 3]], [[-1, 2]]):
        with pytest.raises(ValueError, match=r"labels of 3 classes go from 0 to 2, got"):
            votes(distances, torch.tensor(labels), 3)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be above 0, got"):
            votes(distances, torch.tensor([[0, 1]]), 3, temperature)


def test_an_image_is_its_own_nearest_at_no_negative_distance() -> None:
    features = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300)
    distances, found = search(features, features, labels, 2)
    assert torch.equal(found[:, 0], labels)
    assert float(distances.min()) >= 0 and float(distances[:, 0].max()) < 1e-4


def test_the_examples_of_the_docstrings() -> None:
    result = doctest.testmod(knn)
    assert result.attempted and not result.failed
