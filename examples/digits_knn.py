"""k-NN accuracy of pretraining methods over seeds, beside raw pixels and random features."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig
from pretrain.models import BACKBONE, InputConvention, read_backbone_file
from pretrain.probes.features import FrozenEncoder
from pretrain.probes.probe import RESULT, device, random_backbone, run_probe
from pretrain.runtime.files import write_json
from pretrain.train import pretrain

PIXELS, RANDOM = "raw pixels", "random features"
logger = logging.getLogger(__name__)
Backbone = Callable[[], FrozenEncoder]
Results = dict[str, dict[int, dict[str, float]]]  # by row and seed


def raw_pixels() -> FrozenEncoder:
    """Return what hands the pixels on as features, in [0, 1]."""
    convention = InputConvention("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    return FrozenEncoder(nn.Flatten(), convention, device())


def run_study(
    recipes: Mapping[str, dict[str, Any]],
    probe: ProbeConfig,
    seeds: Iterable[int],
    output_dir: Path,
) -> Results:
    """Pretrain each recipe with each seed, and probe it; return the metrics, in percent.

    A folder each below `output_dir`; what is there is taken up where it stopped, or kept. Random
    features are those that the pretraining of the same seed starts from.

    Raises:
        ValueError: a recipe or the data are at fault, or a folder holds the run of another recipe.
    """
    seeds = list(seeds)
    if probe.random_arch is None:
        raise ValueError("the probe config gives no random_arch, the network of random features")
    arch = probe.random_arch
    configs = {
        (name, seed): PretrainConfig.model_validate(content | {"seed": seed})
        for seed in seeds
        for name, content in recipes.items()
    }

    def measured(name: str, config: dict[str, Any], backbone: Backbone) -> dict[str, float]:
        identity = {"config": config, "probe": probe.model_dump(mode="json")}
        path = output_dir / name / RESULT
        if path.exists():
            stored = json.loads(path.read_text("utf-8"))
            if {key: stored.get(key) for key in identity} == identity:
                return dict(stored["metrics"])
        metrics = run_probe(backbone(), probe)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json({"metrics": metrics, **identity}, path)
        return metrics

    results: Results = {PIXELS: {0: measured("pixels", {}, raw_pixels)}, RANDOM: {}}
    for seed in seeds:
        draw = partial(random_backbone, arch, seed)
        results[RANDOM][seed] = measured(f"random-seed{seed}", {"arch": arch}, draw)
    for (name, seed), config in configs.items():
        folder = f"{name}-seed{seed}"
        train = partial(_pretrained, config, output_dir / folder)
        metrics = measured(folder, config.model_dump(mode="json"), train)
        results.setdefault(name, {})[seed] = metrics
        logger.info("%s, seed %d: %s", name, seed, metrics)
    return results


def _pretrained(config: PretrainConfig, folder: Path) -> FrozenEncoder:
    pretrain(config, folder)
    return FrozenEncoder(*read_backbone_file(folder / BACKBONE), device())


def study_table(results: Results) -> Table:
    """Return mean and sample standard deviation over seeds of every metric, and the seeds."""
    metrics = list(dict.fromkeys(m for row in results.values() for e in row.values() for m in e))
    table = Table("features", "seeds", *metrics)
    for name, by_seed in results.items():
        cells = []
        for metric in metrics:
            values = [entry[metric] for entry in by_seed.values()]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        table.add_row(name, str(len(by_seed)), *cells)
    return table
