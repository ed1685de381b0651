"""Stage `probe`: how well classes can be told apart by what a frozen encoder makes of images.

The features are the encoder's, after average pooling and in evaluation mode, never the projector's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.backbones import InputConvention, read_own
from pretrain.config import ModelConfig
from pretrain.data import derived_seed, read_image
from pretrain.features import (
    FrozenEncoder,
    LabelledImages,
    feature_chunks,
    frozen,
    open_labelled,
)
from pretrain.knn import Neighbours, accuracy, votes
from pretrain.linear import AugmentedTraining, fit_linear
from pretrain.models import build_encoder
from pretrain.probe_config import KnnConfig, ProbeConfig, WeightedKnnConfig

RESULT = "probes.json"
STATE = "augmented_linear.pth"
FULL_CHECK_LIMIT = 20_000
Chunks = Iterable[tuple[Tensor, Tensor]]


def device() -> torch.device:
    """Return where probes compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_sets(config: ProbeConfig) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and test images, the latter with the labels of the former.

    Raises:
        ValueError: a set cannot be opened, or the test set has a class that training has not.
    """
    train, test = open_labelled(config.train), open_labelled(config.test)
    strangers = sorted(set(test.classes) - set(train.classes))
    if strangers:
        raise ValueError(
            f"{config.test.root}: {len(strangers)} classes that {config.train.root} has not, "
            f"first {strangers[0]}"
        )
    place = [train.classes.index(name) for name in test.classes]
    return train, LabelledImages(test.paths, [place[n] for n in test.labels], train.classes)


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
        scores = votes(*searches[name].found(), num_classes, temperature)
        metrics |= _named(name, accuracy(scores, targets))
    return metrics


def run_probe(
    backbone: FrozenEncoder, config: ProbeConfig, state_path: Path | None = None
) -> dict[str, float]:
    """Return accuracies in percent: `knn/top1`, `linear/top1`, ..., and top5 of over 5 classes.

    k-NN alone keeps the test features and no others; `linear` keeps those of all training images.
    `state_path` keeps the training on augmented images from epoch to epoch.
    """
    train, test = open_sets(config)
    num_classes = len(train.classes)
    queries = joined(chunks_of(backbone, test, config, config.test.num_workers))
    bank: Chunks = chunks_of(backbone, train, config, config.train.num_workers)
    metrics: dict[str, float] = {}
    if config.linear is not None:
        features, labels = joined(bank)
        bank = [(features, labels)]
        classifier = fit_linear(features, labels, num_classes, config.linear, config.seed)
        with torch.no_grad():
            metrics |= _named("linear", accuracy(classifier(queries[0]), queries[1]))
    measures = {"knn": config.knn, "weighted_knn": config.weighted_knn}
    wanted = {name: entry for name, entry in measures.items() if entry is not None}
    if wanted:
        metrics = measure_knn(bank, queries, num_classes, wanted) | metrics
    if config.augmented_linear is not None:
        training = AugmentedTraining(
            backbone, train, config.image.size, config.augmented_linear, config.seed
        )
        classifier = training.run(config.train.num_workers, state_path)
        with torch.no_grad():
            scores = accuracy(classifier(queries[0]), queries[1])
        metrics |= _named("augmented_linear", scores)
    return metrics


def chunks_of(
    backbone: FrozenEncoder, images: LabelledImages, config: ProbeConfig, num_workers: int
) -> Chunks:
    """Return features and labels of the images, a batch at a time."""
    return feature_chunks(backbone, images, config.image, config.batch_size, num_workers)


def joined(chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Return all features [N, F] and labels [N] in memory."""
    features, labels = zip(*chunks, strict=True)
    return torch.cat(features), torch.cat(labels)


def _named(name: str, found: dict[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in found.items()}


def random_backbone(config: ProbeConfig) -> FrozenEncoder:
    """Return the network as pretraining with the same seed starts from it."""
    assert config.random_arch is not None, "the plan asks for it"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(config.seed))
        encoder, _ = build_encoder(ModelConfig(arch=config.random_arch))
    return frozen(encoder, InputConvention(), device())


def write_result(metrics: dict[str, float], config: ProbeConfig, path: Path) -> None:
    """Write metrics and settings as JSON, whole or not at all."""
    content = {"metrics": metrics, "config": config.model_dump(mode="json")}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def run_stage(
    config: dict[str, Any], inputs: dict[str, Path], output_dir: Path
) -> dict[str, float]:
    """Entry point for the pipeline: probe `inputs["backbone"]`, or a random network without it.

    The stage before wrote `backbone.pth`, if need be beside the result that it is known by.
    """
    settings = ProbeConfig.model_validate(config)
    if "backbone" in inputs:
        encoder, convention = read_own(inputs["backbone"].with_name("backbone.pth"))
        backbone = frozen(encoder, convention, device())
    else:
        backbone = random_backbone(settings)
    metrics = run_probe(backbone, settings, output_dir / STATE)
    write_result(metrics, settings, output_dir / RESULT)
    return metrics


def check_stage(config: dict[str, Any]) -> list[str]:
    """Return what would stop the probe: sets that are missing, do not match or cannot be read.

    Every image of a set of up to 20,000 is decoded; a larger one is only listed.
    """
    settings = ProbeConfig.model_validate(config)
    try:
        train, test = open_sets(settings)
    except ValueError as error:
        return [str(error)]
    faults = [
        f"{settings.train.root}: {len(train.paths)} images are fewer than {name}.k = {entry.k}"
        for name, entry in (("knn", settings.knn), ("weighted_knn", settings.weighted_knn))
        if entry is not None and entry.k > len(train.paths)
    ]
    for images in (train, test):
        for path in images.paths if len(images.paths) <= FULL_CHECK_LIMIT else []:
            try:
                read_image(path)
            except ValueError as error:
                faults.append(str(error))
    return faults
