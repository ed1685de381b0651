"""The published k-NN and linear evaluation beside ours, on the same random features.

The linear classifiers start from the same weights and see the features in the same order: ours
draws both, the published function is given them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parity.child import recorded_permutations
from benchmarks.parity.comparison import Row, compare_tensors, numbers
from benchmarks.parity.peers import call
from pretrain.config.probe import LinearConfig
from pretrain.probes.knn import Neighbours, accuracy, votes
from pretrain.probes.linear import fit_linear

FOLDERS = {"w-mse": ".", "cw-rgp": "base"}
NUM_TRAIN, NUM_TEST, FEATURES, CLASSES = 2000, 500, 16, 10
NEIGHBOURS = (1, 5, 20)
EPOCHS, SEED = 50, 3
NAMES = {"w-mse": "W-MSE", "cw-rgp": "CW-RGP"}
Sets = dict[str, Tensor]


def compare(paths: dict[str, Path], scratch: Path) -> list[Row]:
    """Return the rows of both evaluations of each repository that is there."""
    sets = drawn_features()
    ours = our_evaluation(sets)
    rows, linear = [], f"linear classifier, {EPOCHS} epochs"
    for peer in [name for name in FOLDERS if name in paths]:
        inputs = {"sets": sets, "initial": ours["initial"], "orders": ours["orders"]}
        folder = paths[peer] / FOLDERS[peer]
        answer = call(folder, "benchmarks.parity.evaluation:theirs", inputs)
        title = f"{NAMES[peer]}: right of {NUM_TEST}, k = 1, 5, 20 nearest neighbours"
        rows += [
            compare_tensors(
                ("evaluation", title), right(answer["knn"]), right(ours["knn"])
            ),
            compare_tensors(
                ("evaluation", f"{NAMES[peer]}: {linear}: right of {NUM_TEST}, top 1 and 5"),
                right(answer["linear"]), right(ours["linear"]),
            ),
            compare_tensors(
                ("evaluation", f"{NAMES[peer]}: {linear}: weights"),
                answer["classifier"], ours["classifier"], tolerance=1e-9,
            ),
        ]  # fmt: skip
    return rows


def right(accuracies: dict[str, float]) -> dict[str, Tensor]:
    """Return accuracies, one of them a float32, as whole numbers of right answers."""
    return numbers({name: round(NUM_TEST * value, 2) for name, value in accuracies.items()})


def drawn_features() -> Sets:
    """Return features and labels of two sets; the classes overlap."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, FEATURES, generator=generator, dtype=torch.float64)
    sets = {}
    for name, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        labels = torch.randint(CLASSES, (count,), generator=generator)
        noise = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
        sets[f"x_{name}"], sets[f"y_{name}"] = centres[labels] + 1.2 * noise, labels
    return sets


@contextmanager
def double_layers() -> Iterator[None]:
    """Make new layers float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def our_evaluation(sets: Sets) -> dict[str, Any]:
    """Return accuracies as parts of 1, the classifier, and what its training drew."""
    knn = {}
    for k in NEIGHBOURS:
        neighbours = Neighbours(sets["x_test"], k)
        neighbours.add(sets["x_train"], sets["y_train"])
        distances, labels = neighbours.nearest()
        scores = votes(distances, labels, CLASSES)
        knn[f"k {k}"] = accuracy(scores, sets["y_test"])["top1"] / 100
    features, labels = sets["x_train"], sets["y_train"]
    # a step of 1e-300 leaves the weights as they were drawn
    still = LinearConfig(epochs=1, batch_size=NUM_TRAIN, lr=1e-300, final_lr=1e-300)
    with double_layers():
        initial = fit_linear(features, labels, CLASSES, still, SEED)
        with recorded_permutations() as orders:
            classifier = fit_linear(features, labels, CLASSES, LinearConfig(epochs=EPOCHS), SEED)
    with torch.no_grad():
        reached = accuracy(classifier(sets["x_test"]), sets["y_test"])
    return {
        "knn": knn,
        "linear": {"top 1": reached["top1"] / 100, "top 5": reached["top5"] / 100},
        "classifier": dict(classifier.state_dict()),
        "initial": dict(initial.state_dict()),
        "orders": orders,
    }


def theirs(inputs: dict[str, Any]) -> dict[str, Any]:
    """In a child: what the published functions say, from the given start and orders."""
    sets: Sets = inputs["sets"]
    names = ("x_train", "y_train", "x_test", "y_test")
    knn_module: Any = importlib.import_module("eval.knn")
    sgd_module: Any = importlib.import_module("eval.sgd")
    knn = {f"k {k}": knn_module.eval_knn(*(sets[name] for name in names), k) for k in NEIGHBOURS}
    layers: list[nn.Linear] = []
    orders = iter(inputs["orders"])
    layer_class = nn.Linear

    def layer(width: int, num_classes: int) -> nn.Linear:
        layers.append(layer_class(width, num_classes))
        layers[-1].load_state_dict(inputs["initial"])
        return layers[-1]

    sgd_module.nn.Linear = layer
    sgd_module.torch.randperm = lambda _: next(orders)
    with double_layers():
        reached = sgd_module.eval_sgd(*(sets[name] for name in names), epoch=EPOCHS)
    return {
        "knn": knn,
        "linear": {f"top {count}": value for count, value in reached.items()},
        "classifier": dict(layers[0].state_dict()),
    }
