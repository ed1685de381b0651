"""The formats in which a backbone is given away: names of its entries, and configs beside them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.resnet import BASIC, BLOCKS, COUNTER, ordered_names

if TYPE_CHECKING:
    from torch import Tensor

    from transfer.checkpoints import Backbone

LIBRARIES = ("timm", "torchvision", "transformers", "detectron2")
WEIGHTS, CONFIG, IMAGES = "model.safetensors", "config.json", "preprocessor_config.json"
IN_TORCHVISION = (
    *BLOCKS, "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2",
    "wide_resnet101_2",
)  # fmt: skip
NAMES = {"torchvision": IN_TORCHVISION, "timm": (*IN_TORCHVISION, "resnext101_32x4d")}
SIDE, CROP = 224, 0.875  # of the image that a config proposes, and the part of it that is shown

_RULES: tuple[tuple[str, str], ...] = (
    (r"conv1\.weight", r"embedder.embedder.convolution.weight"),
    (r"bn1\.(\w+)", r"embedder.embedder.normalization.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", r"{stage}.\2.layer.{index}.convolution.weight"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"{stage}.\2.layer.{index}.normalization.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", r"{stage}.\2.shortcut.convolution.weight"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"{stage}.\2.shortcut.normalization.\3"),
)


def to_transformers(name: str) -> str:
    """Return transformers' name of an entry of torchvision's ResNet.

    >>> to_transformers("layer2.0.bn3.bias")
    'encoder.stages.1.layers.0.layer.2.normalization.bias'
    """
    for pattern, replacement in _RULES:
        if match := re.fullmatch(pattern, name):
            parts = dict(enumerate(match.groups()))
            index = int(parts.get(2, "1")) - 1 if "{index}" in replacement else None
            stage = f"encoder.stages.{int(parts[0]) - 1}.layers" if "{stage}" in replacement else ""
            return match.expand(replacement.format(stage=stage, index=index))
    raise ValueError(f"{name}: no such entry in torchvision's ResNet backbone")


def format_fault(backbone: Backbone, format: str) -> str | None:
    """Return why the library of a format builds no network of these weights, or None."""
    built, arch = backbone.architecture, backbone.arch
    width = built.stem if built.base in BASIC else built.res2 // 4
    shortcut = built.base in BASIC or built.stem != built.res2  # in the first block
    if format == "transformers" and (built.groups, built.width, shortcut) != (1, width, True):
        return (
            f"transformers' ResNet has no groups and no wide 3x3 convolutions, as {arch} has; "
            "say --format timm, torchvision or detectron2"
        )
    if format in NAMES and built.stride_in_1x1:
        return (
            f"its bottlenecks halve their map in the 1x1 convolution, which {format}'s {arch} does "
            "not; say --format transformers or detectron2"
        )
    if format in NAMES and arch not in NAMES[format]:
        return (
            f"{format} has no {arch}; it has {', '.join(NAMES[format])}; say --format detectron2, "
            "which takes all widths, or transformers"
        )
    return None


def entries(backbone: Backbone, format: str) -> dict[str, Tensor]:
    """Return the tensors under a library's names, each in memory of its own.

    transformers warns of counters of batches that are missing: there they are 0.
    """
    import torch  # noqa: PLC0415  (what is refused needs no torch)

    state = {name: value.detach().clone() for name, value in backbone.state_dict.items()}
    if format != "transformers":
        return state
    for name in ordered_names(backbone.architecture.base):
        if name.endswith(COUNTER) and name not in state:
            state[name] = torch.tensor(0)
    return {to_transformers(name): value for name, value in state.items()}


def metadata(backbone: Backbone) -> dict[str, str]:
    """Return what stands in the weights' file, for this project's converter to read again."""
    stated = {
        "input": backbone.input,
        "architecture": asdict(backbone.architecture),
        "family": backbone.format,
        "method": backbone.method,
    }
    from transfer.checkpoints.read import AUTHOR  # noqa: PLC0415  (imports numpy)

    return {"format": "pt", AUTHOR: json.dumps(stated)}


def configs(backbone: Backbone, format: str) -> dict[str, dict[str, Any]]:
    """Return the JSON files beside the weights, by name.

    transformers' own preprocessing knows RGB alone: images of a network that takes BGR have none.
    """
    files = {CONFIG: _CONFIGS[format](backbone)}
    if format == "transformers" and backbone.input["format"] == "RGB":
        files[IMAGES] = _preprocessor(backbone)
    return files


def unit(values: list[float]) -> list[float]:
    """Return means or deviations of pixels from 0 to 255 as those of pixels from 0 to 1."""
    return [round(value / 255, 9) for value in values]


def _timm(backbone: Backbone) -> dict[str, Any]:
    return {
        "architecture": backbone.arch,
        "num_classes": 0,
        "num_features": backbone.architecture.res2 * 8,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, SIDE, SIDE],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": CROP,
            "crop_mode": "center",
            "mean": unit(backbone.input["pixel_mean"]),
            "std": unit(backbone.input["pixel_std"]),
            "num_classes": 0,
            "pool_size": [7, 7],
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def _torchvision(backbone: Backbone) -> dict[str, Any]:
    return {
        "library": "torchvision",
        "architecture": backbone.arch,
        "input": {
            "order": backbone.input["format"],
            "mean": unit(backbone.input["pixel_mean"]),
            "std": unit(backbone.input["pixel_std"]),
        },
    }


def _transformers(backbone: Backbone) -> dict[str, Any]:
    built, stages = backbone.architecture, [f"stage{number}" for number in range(1, 5)]
    return {
        "architectures": ["ResNetBackbone"],
        "model_type": "resnet",
        "dtype": "float32",
        "num_channels": 3,
        "embedding_size": built.stem,
        "hidden_sizes": [built.res2 * 2**index for index in range(4)],
        "depths": list(BLOCKS[built.base]),
        "layer_type": "basic" if built.base in BASIC else "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": built.stride_in_1x1,
        "stage_names": ["stem", *stages],
        "out_features": stages,
        "out_indices": [1, 2, 3, 4],
    }


def _preprocessor(backbone: Backbone) -> dict[str, Any]:
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "crop_pct": CROP,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": unit(backbone.input["pixel_mean"]),
        "image_std": unit(backbone.input["pixel_std"]),
    }


_CONFIGS = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}


def write_weights(backbone: Backbone, format: str, folder: Path) -> None:
    """Write weights and configs of a format other than detectron2's into a folder."""
    from safetensors.torch import save  # noqa: PLC0415  (imports torch)

    weights = save(entries(backbone, format), metadata(backbone))
    (folder / WEIGHTS).write_bytes(weights)  # save_file gives rights to nobody else
    for name, content in configs(backbone, format).items():
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def loading_code(backbone: Backbone, format: str) -> str:
    """Return the lines of Python, or of a detectron2 config, that load the folder."""
    if format == "timm":
        return (
            "import timm\n\n"
            'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:ORG/NAME\n'
            f'same = timm.create_model("{backbone.arch}", num_classes=0, '
            f'checkpoint_path="FOLDER/{WEIGHTS}")'
        )
    if format == "torchvision":
        return (
            "import torch, torchvision\nfrom safetensors.torch import load_file\n\n"
            f"model = torchvision.models.{backbone.arch}()\n"
            "model.fc = torch.nn.Identity()  # the backbone has no classifier\n"
            f'model.load_state_dict(load_file("FOLDER/{WEIGHTS}"))'
        )
    if format == "transformers":
        return (
            "from transformers import ResNetBackbone\n\n"
            'model = ResNetBackbone.from_pretrained("FOLDER")  # or ORG/NAME\n'
            "features = model(pixel_values).feature_maps  # of four stages, strides 4 to 32"
        )
    keys = {"MODEL.WEIGHTS": "FOLDER/backbone.pkl", **backbone.detectron2}
    return "from detectron2.config import get_cfg\n\ncfg = get_cfg()\ncfg.merge_from_list([\n" + (
        "".join(f"    {json.dumps(key)}, {value!r},\n" for key, value in keys.items()) + "])"
    )
