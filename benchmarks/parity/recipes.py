"""The published command lines, resolved by the published code, beside the recipes of this project.

A value is what the code would use: the command line with its defaults, and the augmentation and the
network that it builds from them.
"""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset

from benchmarks.parity.comparison import Row, compare_values
from benchmarks.parity.peers import ROOT, call
from pipeline.config.yaml_files import load_yaml
from pretrain.config.loss import LossConfig
from pretrain.config.pretrain import PretrainConfig

SETS = {"tiny_in": "tiny_imagenet"}
ORDER = "order of the augmentations"
FLIPPED_FIRST = "ours flips right after the crop; a flip commutes with what changes colours"
Facts = dict[str, Any]


def compare(paths: dict[str, Path], scratch: Path) -> list[Row]:
    """Return a row for each published command line of the code that is there."""
    rows = []
    if "w-mse" in paths:
        rows += small_rows(paths["w-mse"], w_mse_commands(paths["w-mse"]), "w_mse")
    if "cw-rgp" in paths:
        base = paths["cw-rgp"] / "base"
        rows += small_rows(base, cw_rgp_commands(paths["cw-rgp"]), "cw_rgp")
        rows += imagenet_rows(paths["cw-rgp"])
    return rows


def small_rows(folder: Path, commands: list[list[str]], prefix: str) -> list[Row]:
    """Return the rows of the small data sets."""
    published = call(folder, "benchmarks.parity.recipes:small_facts", commands)
    rows = []
    for facts in published:
        dataset = facts.pop("data set")
        dataset = "imagenet100" if dataset == "imagenet" else SETS.get(dataset, dataset)
        name = f"{prefix}_{facts['views']}_{dataset}"
        rows.append(compare_values(("recipes", f"{name}.yaml"), facts, our_facts(name), {}))
    return rows


def imagenet_rows(checkout: Path) -> list[Row]:
    """Return the rows of CW-RGP's two runs on ImageNet."""
    commands = imagenet_commands(checkout)
    inputs = {"script": str((checkout / "ImageNet" / "train.py").resolve()), "commands": commands}
    published = call(checkout / "ImageNet", "benchmarks.parity.recipes:imagenet_facts", inputs)
    rows = []
    for facts in published:
        name = "cw_rgp_4_imagenet" + ("" if facts["epochs"] == 100 else f"_{facts['epochs']}")
        known = {ORDER: FLIPPED_FIRST}
        rows.append(compare_values(("recipes", f"{name}.yaml"), facts, our_facts(name), known))
    return rows


def w_mse_commands(checkout: Path) -> list[list[str]]:
    """Return the arguments of the README's commands that train W-MSE."""
    text = (checkout / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(words) for words in re.findall(r"^python -m train (.*)$", text, re.M)]
    return [words for words in commands if "--method" not in words and "--help" not in words]


def cw_rgp_commands(checkout: Path) -> list[list[str]]:
    """Return the arguments of `scripts/base.sh`."""
    text = (checkout / "scripts" / "base.sh").read_text(encoding="utf-8")
    return [shlex.split(words) for words in re.findall(r"^python base/train.py (.*)$", text, re.M)]


def imagenet_commands(checkout: Path) -> list[list[str]]:
    """Return the arguments of `scripts/ImageNet.sh`, without the places that a user fills in."""
    text = (checkout / "scripts" / "ImageNet.sh").read_text(encoding="utf-8")
    text = re.sub(r"\[[^\]]*\]", ".", text)
    text = re.sub(r"\\[ \t]*(#.*)?\n", " ", text)
    return [
        [word for word in shlex.split(words) if word != "--md"]
        for words in re.findall(r"^python ImageNet/train.py (.*)$", text, re.M)
    ]


def our_facts(name: str) -> Facts:
    """Return what a recipe of this project says, under plain names."""
    path = ROOT / "configs" / "pretrain" / f"{name}.yaml"
    config = PretrainConfig.model_validate(load_yaml(path))
    model, loss, optimizer, augment = config.model, config.loss, config.optimizer, config.augment
    assert isinstance(loss, LossConfig)
    facts: Facts = {
        "views": config.num_views, "batch": config.batch_size, "epochs": config.epochs,
        "arch": model.arch, "stem": model.stem, "residual branches begin at zero":
        model.zero_init_residual, "projector layers": model.projector_layers,
        "projector width": model.projector_hidden, "embedding": model.embedding_dim,
        "sub-batch": loss.sub_batch, "iterations": loss.iterations, "eps": loss.eps,
        "normalize": loss.normalize, "optimizer": optimizer.name,
        "learning rate": optimizer.base_lr(config.batch_size),
        "weight decay": optimizer.weight_decay, "warm-up": optimizer.warmup_steps,
        "schedule": optimizer.schedule,
    }  # fmt: skip
    if optimizer.schedule == "step":
        facts |= {
            "drops before the end": optimizer.drop_epochs_before_end,
            "drop factor": optimizer.drop_factor,
        }
    else:
        facts |= {
            "momentum": optimizer.momentum, "covariance weight": loss.covariance_weight,
            "covariance epochs": config.covariance_epochs,
        }  # fmt: skip
    if loss.name == "cw-rgp":
        facts |= {"groups": loss.groups, "random groups": loss.random_partition}
    order, colours = ["crop", "flip"], ["jitter", "grayscale"]
    order = [*colours, *order] if augment.colours_before_crop else [*order, *colours]
    facts |= {
        "view": augment.size, "crop scale": augment.crop_scale, "crop ratio": augment.crop_ratio,
        "interpolation": augment.interpolation, "flip": augment.flip, "jitter": augment.jitter,
        "jitter probability": augment.jitter_probability, "grayscale": augment.grayscale,
        "mean": augment.mean, "std": augment.std,
    }  # fmt: skip
    if augment.blur_probability:
        order.append("blur")
        facts |= {"blur": augment.blur_probability, "blur sigma": augment.blur_sigma}
    return facts | {ORDER: order}


def small_facts(commands: list[list[str]]) -> list[Facts]:
    """In a child: what W-MSE's code, or CW-RGP's for small images, makes of command lines."""
    cfg_module: Any = importlib.import_module("cfg")
    sets: Any = importlib.import_module("datasets")
    networks: Any = importlib.import_module("model")
    without_files()
    answers = []
    for words in commands:
        sys.argv = ["train.py", *words]
        cfg = cfg_module.get_cfg()
        data = sets.get_ds(cfg.dataset)(cfg.bs, cfg, 0).ds_train()
        network = networks.get_model(cfg.arch, cfg.dataset)[0].module
        facts = command_facts(cfg) | network_facts(network)
        facts |= augmentation_facts(data.transform.transform.transforms)
        facts["drops before the end"], facts["drop factor"] = cfg.drop, cfg.drop_gamma
        facts |= {"data set": cfg.dataset, "optimizer": "adam", "learning rate": cfg.lr}
        answers.append(facts)
    return answers


class NoFiles:
    """What stands in for a data set: it keeps the transform and reads nothing."""

    def __init__(self, root: str, transform: Any = None, **_: object) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 1


def without_files() -> None:
    """Replace every data set class that the published `datasets` modules use."""
    for name, module in list(sys.modules.items()):
        if name.startswith("datasets."):
            for key, value in list(vars(module).items()):
                if inspect.isclass(value) and issubclass(value, Dataset):
                    setattr(module, key, NoFiles)


def imagenet_facts(inputs: dict[str, Any]) -> list[Facts]:
    """In a child: what CW-RGP's ImageNet script builds, up to its first epoch."""
    seen: dict[str, Any] = {}
    methods: Any = importlib.import_module("methods")
    kind_of = methods.get_method

    class ReachedLoop(Exception):  # noqa: N818
        """The script has built everything."""

    def keep_model(name: str) -> Any:
        def build(cfg: Any) -> nn.Module:
            seen["cfg"], seen["model"] = cfg, kind_of(name)(cfg)
            return seen["model"]  # type: ignore[no-any-return]

        return build

    def loader(data: NoFiles, **_: object) -> None:
        seen["transform"] = data.transform
        raise ReachedLoop

    def keep_optimizer(*arguments: Any, **named: Any) -> torch.optim.Optimizer:
        seen["optimizer"] = sgd(*arguments, **named)
        return seen["optimizer"]  # type: ignore[no-any-return]

    sgd: Any = torch.optim.SGD
    loaders: Any = torch.utils.data
    folders: Any = torchvision.datasets
    optimizers: Any = torch.optim
    methods.get_method, loaders.DataLoader, folders.ImageFolder = keep_model, loader, NoFiles
    optimizers.SGD = keep_optimizer
    answers = []
    for words in inputs["commands"]:
        sys.argv = [inputs["script"], *words]
        try:
            runpy.run_path(inputs["script"], run_name="__main__")
        except ReachedLoop:
            cfg, settings = seen["cfg"], seen["optimizer"].defaults
            facts = command_facts(cfg) | network_facts(seen["model"].model.module)
            facts |= augmentation_facts(seen["transform"].transform.transforms)
            facts |= {"optimizer": "sgd", "learning rate": settings["lr"], "schedule": "cosine"}
            facts |= {"momentum": settings["momentum"], "covariance weight": cfg.cov_w}
            answers.append(facts | {"covariance epochs": cfg.cov_stop})
    return answers


def command_facts(cfg: Any) -> Facts:
    """Return what all published command lines have."""
    facts: Facts = {
        "views": cfg.num_samples, "batch": cfg.bs, "arch": cfg.arch,
        "epochs": cfg.epochs if hasattr(cfg, "epochs") else cfg.epoch,
        "projector layers": cfg.head_layers, "projector width": cfg.head_size,
        "embedding": cfg.emb, "sub-batch": cfg.w_size, "iterations": cfg.w_iter,
        "eps": cfg.w_eps, "normalize": cfg.norm, "schedule": getattr(cfg, "lr_step", "cosine"),
        "weight decay": cfg.weight_decay if hasattr(cfg, "weight_decay") else cfg.adam_l2,
    }  # fmt: skip
    # W-MSE's loop counts 500 steps, or none
    facts["warm-up"] = cfg.warmup_iters if hasattr(cfg, "warmup_iters") else 500 * cfg.lr_warmup
    if hasattr(cfg, "group"):
        facts |= {"groups": cfg.group, "random groups": cfg.rand_group}
    return facts


def network_facts(network: Any) -> Facts:
    """Return the stem of a ResNet, and whether its residual branches begin at zero."""
    small = network.conv1.kernel_size == (3, 3)
    no_pool = isinstance(network.maxpool, nn.Identity)
    last = list(network.layer1.children())[-1]
    norm = last.bn3 if hasattr(last, "bn3") else last.bn2
    stem = ("small-no-pool" if no_pool else "small") if small else "imagenet"
    return {"stem": stem, "residual branches begin at zero": bool((norm.weight == 0).all())}


def augmentation_facts(transforms: list[Any]) -> Facts:
    """Return the settings of torchvision's transforms, and their order."""
    facts: Facts = {}
    order: list[str] = []
    for transform in flattened(transforms):
        probability = getattr(transform, "p", None)
        applied = getattr(transform, "transforms", [transform])[0]  # RandomApply holds one
        name, settings = described(applied, probability)
        order += [name] if name else []
        facts |= settings
    return facts | {ORDER: order}


def flattened(transforms: list[Any]) -> Iterator[Any]:
    """Yield transforms in order, those within a Compose as well."""
    for transform in transforms:
        if type(transform).__name__ == "Compose":
            yield from flattened(transform.transforms)
        else:
            yield transform


def described(transform: Any, probability: float | None) -> tuple[str, Facts]:
    """Return a transform's step in the order (empty for none), and its settings."""
    name, facts = type(transform).__name__, dict[str, Any]()
    if name == "RandomResizedCrop":
        name, facts = "crop", {
            "view": transform.size[0], "crop scale": transform.scale,
            "crop ratio": transform.ratio, "interpolation": transform.interpolation.value,
        }  # fmt: skip
    elif name == "ColorJitter":
        ranges = (transform.brightness, transform.contrast, transform.saturation)
        strengths = [round(high - 1, 12) for _, high in ranges] + [transform.hue[1]]
        name, facts = "jitter", {"jitter": strengths, "jitter probability": probability}
    elif name == "RandomGrayscale":
        name, facts = "grayscale", {"grayscale": probability}
    elif name == "RandomHorizontalFlip":
        name, facts = "flip", {"flip": probability}
    elif name == "Normalize":
        name, facts = "", {"mean": transform.mean, "std": transform.std}
    elif name in ("RandomBlur", "GaussianBlur"):
        sigma = transform.sigma if name == "GaussianBlur" else (transform.r0, transform.r1)
        name, facts = "blur", {"blur": probability, "blur sigma": sigma}
    return ("" if name == "ToTensor" else name), facts
