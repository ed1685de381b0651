"""Stage `probe`: the accuracy of classifiers on the features that a frozen encoder gives.

The features are the encoder's, after average pooling and in evaluation mode, never the projector's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pretrain.config.data import DataConfig
from pretrain.config.pretrain import ModelConfig
from pretrain.config.probe import MEASURES, KnnConfig, ProbeConfig, WeightedKnnConfig, named_random
from pretrain.data.images import unreadable
from pretrain.data.shared_memory import num_batches, shared_memory_faults
from pretrain.models.backbone_file import (
    BACKBONE,
    InputConvention,
    build_from,
    convention_of,
    is_backbone_file,
    read_backbone_file,
)
from pretrain.models.encoder import build_encoder
from pretrain.probes.features import FrozenEncoder, Labelled, feature_chunks, open_labelled
from pretrain.probes.knn import Neighbours, accuracy, votes
from pretrain.probes.linear import AugmentedTraining, fit_linear
from pretrain.runtime.files import check_folder_of, write_json
from pretrain.runtime.rng import derived_seed
from pretrain.runtime.tf32 import tf32_faults

RESULT = "probes.json"
STATE = "augmented_linear.pth"
Chunks = Iterable[tuple[Tensor, Tensor]]


def device() -> torch.device:
    """Return where probes compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_sets(data: DataConfig) -> tuple[Labelled, Labelled, int]:
    """Return training images, test images and the number of classes.

    Raises:
        ValueError: a set cannot be opened or has no labels.
    """
    train, test = open_labelled(data, "train"), open_labelled(data, "test")
    return train, test, int(torch.cat([train.labels, test.labels]).max()) + 1


def measure_knn(
    bank: Chunks,
    test: tuple[Tensor, Tensor],
    num_classes: int,
    measures: dict[str, KnnConfig | WeightedKnnConfig],
) -> dict[str, float]:
    """Return `<name>/top1` (and top5) of every measure; the bank is read once for all of them."""
    features, targets = test
    searches = {
        name: Neighbours(
            features,
            config.k,
            cosine=isinstance(config, WeightedKnnConfig) or config.distance == "cosine",
        )
        for name, config in measures.items()
    }
    for chunk in bank:
        for search in searches.values():
            search.add(*chunk)
    metrics: dict[str, float] = {}
    for name, config in measures.items():
        temperature = config.temperature if isinstance(config, WeightedKnnConfig) else None
        scores = votes(*searches[name].nearest(), num_classes, temperature)
        metrics |= _named(name, accuracy(scores, targets))
    return metrics


def run_probe(
    backbone: FrozenEncoder, config: ProbeConfig, state_path: Path | None = None
) -> dict[str, float]:
    """Return accuracies in percent: `knn/top1`, `linear/top1`, ..., and top5 of over 5 classes.

    k-NN alone keeps the test features and no others; `linear` keeps those of all training images.
    `state_path` keeps the training on augmented images from epoch to epoch.
    """
    if faults := loader_faults(config):
        raise ValueError(*faults)
    backbone.compute_in(config.precision)
    train, test, num_classes = open_sets(config.data)
    if faults := too_few_neighbours(config, len(train)):
        raise ValueError("; ".join(faults))
    queries = joined(feature_chunks(backbone, test, config))
    bank: Chunks = feature_chunks(backbone, train, config)
    metrics: dict[str, float] = {}
    if config.linear is not None:
        features, labels = joined(bank)
        bank = [(features, labels)]
        classifier = fit_linear(features, labels, num_classes, config.linear, config.seed)
        with torch.no_grad():
            metrics |= _named("linear", accuracy(classifier(queries[0]), queries[1]))
    measures = {"knn": config.knn, "weighted_knn": config.weighted_knn}
    given = {name: entry for name, entry in measures.items() if entry is not None}
    if given:
        metrics = measure_knn(bank, queries, num_classes, given) | metrics
    if config.augmented_linear is not None:
        classifier = AugmentedTraining(backbone, train, num_classes, config).run(state_path)
        with torch.no_grad():
            scores = accuracy(classifier(queries[0]), queries[1])
        metrics |= _named("augmented_linear", scores)
    return metrics


def too_few_neighbours(config: ProbeConfig, num_images: int) -> list[str]:
    """Return which measure wants more neighbours than there are training images."""
    return [
        f"{config.data.root}: {num_images} images are fewer than {name}.k = {entry.k}"
        for name, entry in (("knn", config.knn), ("weighted_knn", config.weighted_knn))
        if entry is not None and entry.k > num_images
    ]


def joined(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Return all features [N, F] and labels [N] in memory."""
    features, labels = zip(*chunks, strict=True)
    return torch.cat(features), torch.cat(labels)


def _named(name: str, accuracies: dict[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in accuracies.items()}


def open_backbone(
    name: str, config: ProbeConfig, read_foreign: Callable[[Path], Any]
) -> FrozenEncoder:
    """Return the encoder in a file, by `read_foreign` where it is none of ours, or `random:ARCH`.

    What `read_foreign` returns has the tensors under torchvision's names as `state_dict`, the
    convention as `input`, and says by `architecture.stride_in_1x1` where a stage halves its map.

    Raises:
        ValueError: there is no such file or architecture, or no backbone in the file.
    """
    if (arch := named_random(name)) is not None:
        return random_backbone(arch, config.seed)
    path = Path(name)
    if path.is_file() and is_backbone_file(path):
        encoder, convention = read_backbone_file(path)
    else:
        foreign = read_foreign(path)
        convention = convention_of(foreign.input)
        caffe2 = bool(foreign.architecture.stride_in_1x1)
        encoder = build_from(foreign.state_dict, stride_in_1x1=caffe2)
    return FrozenEncoder(encoder, convention, device())


def random_backbone(arch: str, seed: int) -> FrozenEncoder:
    """Return the network as pretraining with the same seed starts from it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed))
        encoder, _ = build_encoder(ModelConfig.model_validate({"arch": arch}))
    return FrozenEncoder(encoder, InputConvention(), device())


def probe_and_write(backbone: FrozenEncoder, config: ProbeConfig, output: Path | None) -> None:
    """Probe, print a table, and write JSON to `output`, beside which unfinished training is kept.

    Raises:
        ValueError: the probe cannot be done.
        OSError: `output` cannot be written.
    """
    check_folder_of(output)
    state = None if output is None else output.with_name(f"{output.name}.state.pth")
    metrics = run_probe(backbone, config, state)
    table = Table("measure", "top1", "top5")
    for name in MEASURES:
        cells = [metrics.get(f"{name}/{key}") for key in ("top1", "top5")]
        if cells[0] is not None:
            table.add_row(name, *("" if cell is None else f"{cell:.2f}" for cell in cells))
    Console().print(table)
    if output is not None and state is not None:
        write_json({"metrics": metrics, "config": config.model_dump(mode="json")}, output)
        state.unlink(missing_ok=True)


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: probe `inputs["backbone"]`, or a random network without it.

    The stage before wrote `backbone.pth`, if need be beside the result that it is known by.
    """
    settings = ProbeConfig.model_validate(config)
    if "backbone" in inputs:
        encoder, convention = read_backbone_file(inputs["backbone"].with_name(BACKBONE))
        backbone = FrozenEncoder(encoder, convention, device())
    else:
        assert settings.random_arch is not None, "the plan has checked it"
        backbone = random_backbone(settings.random_arch, settings.seed)
    metrics = run_probe(backbone, settings, output_dir / STATE)
    write_json({"metrics": metrics, "config": config}, output_dir / RESULT)
    return metrics


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the probe: sets that are missing, do not match or cannot be read.

    Every image file of a set of up to 20,000 is decoded; a larger one is only listed.
    """
    settings = ProbeConfig.model_validate(config)
    try:
        train, test, _ = open_sets(settings.data)
    except ValueError as error:
        return [str(error)]
    faults = too_few_neighbours(settings, len(train))
    return faults + unreadable(train.images) + unreadable(test.images)


def check_machine(config: dict[str, Any], num_processes: int = 1) -> list[str]:
    """Return what this machine lacks: a precision that is asked for, shared memory for workers.

    A probe is one process.
    """
    del num_processes
    settings = ProbeConfig.model_validate(config)
    return tf32_faults("precision", settings.precision, device()) + loader_faults(settings)


def loader_faults(config: ProbeConfig) -> list[str]:
    """Return why the workers lack memory for the batches that they hold ready, or []."""
    augmented = config.augmented_linear
    num_images = max(config.batch_size, augmented.batch_size if augmented else 0)
    images = num_images * 3 * config.image.size**2
    return shared_memory_faults(num_batches(config.data) * images, config.data)


def stage_precision(config: dict[str, Any]) -> str:
    """Return in which type the encoder is computed, for the provenance."""
    return ProbeConfig.model_validate(config).precision
