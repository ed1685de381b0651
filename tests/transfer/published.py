"""Published checkpoints rebuilt: the names of each family's files around the weights given."""

from __future__ import annotations

import argparse
import math
import re
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from transfer.checkpoints.families import UNIT_INPUT

State = dict[str, Tensor]


def resnet(arch: str = "resnet18") -> State:
    """Return a cheap network: small random numbers, sound statistics.

    The tensors are those of the last call: clone one before writing into it.
    """
    return dict(_drawn(arch))


@cache
def _drawn(arch: str) -> State:
    with torch.device("meta"):
        names = torchvision.models.get_model(arch, weights=None).state_dict()
    torch.manual_seed(0)
    state = {}
    for name, value in names.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
        elif name.startswith("fc."):
            continue
        else:
            scale = 1 if value.ndim == 1 else (2 / value[0].numel()) ** 0.5
            state[name] = torch.rand(value.shape) * scale + 0.1 * (value.ndim == 1)
    return state


def windows(arch: str = "resnet18", widened: int = 1) -> State:
    """Return a network fit for computing with, whose files are small and quickly written.

    Kernels are windows on one run of numbers and norms on another, no two of them equal. Only
    under the fixture `windows_are_taken` are files of it read. All who ask share the tensors.
    """
    return dict(_windows(arch, widened))


@cache
def _windows(arch: str, widened: int) -> State:
    with torch.device("meta"):
        names = torchvision.models.get_model(arch, weights=None).state_dict()
    shapes = {name: _widened(name, value.shape, widened) for name, value in names.items()}
    generator = torch.Generator().manual_seed(0)
    largest = max(math.prod(shape) for shape in shapes.values())
    kernels = 0.04 * torch.randn(largest + len(names), generator=generator)
    norms = 0.5 + torch.rand(2048 * widened + len(names), generator=generator)
    state = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if name.startswith("fc."):
            continue
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        else:
            run = norms if len(shape) == 1 else kernels
            state[name] = run[index : index + math.prod(shape)].view(shape)
    return state


def _widened(name: str, shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """Return the shape of an entry where every layer has so many times the channels."""
    channels = 1 if name == "conv1.weight" else 2  # the input's stay three
    return tuple(n * factor if axis < channels else n for axis, n in enumerate(shape))


def source_state(arch: str) -> State:
    """Return a ResNet whose every entry differs from what a fresh network holds.

    The tensors are those of the last call: clone one before writing into it.
    """
    return dict(_trained(arch))


@cache
def _trained(arch: str) -> State:
    torch.manual_seed(1)
    model = torchvision.models.get_model(arch, weights=None)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 64, 64) + 0.5)
        for name, value in model.named_parameters():
            if "bn" in name or "downsample.1" in name:
                value.add_(0.2 * torch.rand_like(value))
    return {name: v for name, v in model.state_dict().items() if not name.startswith("fc.")}


def save_backbone(path: Path, arch: str) -> Path:
    content = {
        "state_dict": source_state(arch),
        "arch": arch,
        "method": "test",
        "input": {"format": "RGB", "pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [4.0, 5.0, 6.0]},
    }
    torch.save(content, path)
    return path


def under(prefix: str, state: State) -> State:
    return OrderedDict((prefix + name, value) for name, value in state.items())


def other(state: State) -> State:
    """Return weights of a second encoder: other values; what shares memory still does."""
    moved: dict[int, Tensor] = {}
    result: State = OrderedDict()
    for name, value in state.items():
        storage = value.untyped_storage()
        if storage.data_ptr() not in moved:
            moved[storage.data_ptr()] = torch.empty(0, dtype=value.dtype).set_(storage) + 1
        whole = moved[storage.data_ptr()]
        result[name] = whole.as_strided(value.shape, value.stride(), value.storage_offset())
    return result


def head(*names: str) -> State:
    return {name: torch.ones(2) for name in names}


def sequential(state: State) -> State:
    def rename(name: str) -> str:
        name = re.sub(r"^conv1\.", "0.", name)
        name = re.sub(r"^bn1\.", "1.", name)
        return re.sub(r"^layer(\d)\.", lambda m: f"{int(m[1]) + 3}.", name)

    return OrderedDict((rename(name), value) for name, value in state.items())


def hugging_face(state: State) -> State:
    def rename(name: str) -> str:
        name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
        name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
        name = re.sub(
            r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name
        )
        name = name.replace("downsample.0", "shortcut.convolution")
        name = name.replace("downsample.1", "shortcut.normalization")
        name = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", name)
        return re.sub(r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization.", name)

    return OrderedDict((f"resnet.{rename(name)}", value) for name, value in state.items())


def classy(state: State) -> State:
    last = "3" if "layer1.0.conv3.weight" in state else "2"

    def rename(name: str) -> str:
        name = re.sub(r"^conv1\.", "initial_block._module.0.", name)
        name = re.sub(r"^bn1\.", "initial_block._module.1.", name)
        name = re.sub(
            r"^layer(\d)\.(\d+)\.",
            lambda m: f"blocks.{int(m[1]) - 1}.block{int(m[1]) - 1}-{m[2]}.",
            name,
        )
        name = name.replace(f".bn{last}.", ".bn.")
        numbers = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6}
        for part, index in numbers.items():
            name = name.replace(f".{part}.", f".convolutional_block.{index}.")
        return name

    return OrderedDict((rename(name), value) for name, value in state.items())


def simclr_v2(state: State) -> State:
    def rename(name: str) -> str:
        name = re.sub(r"^conv1\.", "net.0.0.", name)
        name = re.sub(r"^bn1\.", "net.0.1.0.", name)
        name = re.sub(r"^layer(\d)\.(\d+)\.", r"net.\1.blocks.\2.", name)
        name = name.replace("downsample.0", "projection.shortcut")
        name = name.replace("downsample.1", "projection.bn.0")
        name = re.sub(r"\.conv(\d)\.", lambda m: f".net.{2 * int(m[1]) - 2}.", name)
        return re.sub(r"\.bn(\d)\.", lambda m: f".net.{2 * int(m[1]) - 1}.0.", name)

    return OrderedDict((rename(name), value) for name, value in state.items())


def caffe2(state: State) -> dict[str, Any]:
    def rename(name: str) -> str:
        name = re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"res{int(m[1]) + 1}_{m[2]}_", name)
        name = re.sub(r"^conv1\.weight", "conv1_w", name)
        name = re.sub(r"^bn1\.", "res_conv1_bn_", name)
        name = name.replace("downsample.0.weight", "branch1_w")
        name = name.replace("downsample.1.", "branch1_bn_")
        name = re.sub(r"conv(\d)\.weight", lambda m: f"branch2{'abc'[int(m[1]) - 1]}_w", name)
        name = re.sub(r"bn(\d)\.", lambda m: f"branch2{'abc'[int(m[1]) - 1]}_bn_", name)
        return name.replace("bn_weight", "bn_gamma").replace("bn_bias", "bn_beta")

    return {
        rename(name): value.numpy()
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    } | {"conv1_b": np.zeros(64, "f4"), "fc1000_w": np.ones((2, 2), "f4")}


def haiku(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a network as haiku's parameters and state: numpy, kernels HWIO, one dict a module."""
    params: dict[str, Any] = {}
    averages: dict[str, Any] = {}
    entries = {"running_mean": "mean_ema", "running_var": "var_ema"}
    for name, value in state.items():
        module, _, entry = name.rpartition(".")
        module = re.sub(r"^conv1$", "initial_conv", module)
        module = re.sub(r"^bn1$", "initial_batchnorm", module)
        module = re.sub(
            r"^layer(\d)\.(\d+)\.",
            lambda m: f"block_group_{int(m[1]) - 1}/~/block_{m[2]}/~/",
            module,
        )
        module = module.replace("downsample.0", "shortcut_conv")
        module = module.replace("downsample.1", "shortcut_batchnorm")
        module = re.sub(r"conv(\d)$", lambda m: f"conv_{int(m[1]) - 1}", module)
        module = "res_net50/~/" + re.sub(r"bn(\d)$", lambda m: f"batchnorm_{int(m[1]) - 1}", module)
        array = value.numpy()
        if value.ndim == 4:
            params[module] = {"w": np.ascontiguousarray(array.transpose(2, 3, 1, 0))}
        elif entry in entries:
            average = {"counter": np.int32(7), "hidden": array[None, None, None]}
            average["average"] = array[None, None, None]
            averages[f"{module}/~/{entries[entry]}"] = average
        elif value.ndim == 1:
            key = {"weight": "scale", "bias": "offset"}[entry]
            params.setdefault(module, {})[key] = array[None, None, None]
    params["projector/linear"] = {"w": np.ones((2, 3), "f4"), "b": np.ones(3, "f4")}
    return params, averages


def lightning(state: State, **more: Any) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        **more,
    }


def training(state: State, key: str = "state_dict", **more: Any) -> dict[str, Any]:
    return {"epoch": 3, "arch": "resnet50", key: state, "optimizer": {"state": {}}, **more}


def namespace() -> argparse.Namespace:
    return argparse.Namespace(lr=0.1, arch="resnet50")


@cache
def photographs() -> Tensor:
    """Return scikit-learn's two photographs, RGB from 0 to 255."""
    images = [
        interpolate(torch.tensor(one).permute(2, 0, 1).double()[None], (256, 384), mode="area")
        for one in load_sample_images().images
    ]
    return torch.cat(images)


def fed_with(state: State, fed: dict[str, Any]) -> State:
    """Return bn1's statistics as if these photographs, fed so, had been the training images."""
    if not state:
        return {}
    pixels = photographs().flip(1) if fed["format"] == "BGR" else photographs()
    mean, std = (torch.tensor(fed[key])[:, None, None] for key in ("pixel_mean", "pixel_std"))
    out = conv2d((pixels - mean) / std, state["conv1.weight"].double(), stride=2).transpose(0, 1)
    statistics = {"mean": out.flatten(1).mean(1), "var": out.flatten(1).var(1)}
    return {f"bn1.running_{key}": value.float() for key, value in statistics.items()}


def files(s: State) -> dict[str, tuple[str, str, Any]]:
    """Return name -> (family, encoder, content) of every transferable form in the survey."""
    o = other(s)
    moco_heads = head("module.encoder_q.fc.0.weight", "module.queue", "module.queue_ptr")
    mm = under("backbone.", s) | head("neck.mlp.0.weight", "queue", "queue_ptr")
    lit_head = head("projection_head.layers.0.weight", "online_classifier.weight")
    lars = {"param_groups": [{"lr": np.float64(0.1), "lars_adaptation_filter": True}]}
    rate = {"param_groups": [{"lr": np.float64(0.1)}]}
    return {
        "moco": ("moco", "module.encoder_q.", training(
            under("module.encoder_q.", s) | moco_heads | under("module.encoder_k.", o))),
        "moco-v3": ("moco-v3", "module.base_encoder.", training(
            under("module.base_encoder.", s) | under("module.momentum_encoder.", o)
            | head("module.base_encoder.fc.0.weight", "module.predictor.0.weight"), scaler={})),
        "simsiam": ("simsiam", "module.encoder.", training(
            under("module.encoder.", s) | head("module.encoder.fc.0.weight",
                                               "module.predictor.0.weight"))),
        "barlow-full": ("barlow-twins", "module.backbone.", {"epoch": 1, "optimizer": rate,
            "model": under("module.backbone.", s) | head("module.projector.0.weight",
                                                        "module.bn.running_mean")}),
        "vicreg-full": ("vicreg", "module.backbone.", {"epoch": 1, "optimizer": lars,
            "model": under("module.backbone.", s) | head("module.projector.0.weight")}),
        "vicreg-linear": ("vicreg", "module.0.", {"epoch": 1, "best_acc": namespace(),
            "model": under("module.0.", s) | head("module.1.weight", "module.1.bias")}),
        "swav-flat": ("swav", "module.",
            under("module.", s) | head("module.projection_head.0.weight",
                                       "module.prototypes.weight")),
        "swav-training": ("swav", "module.", training(
            under("module.", s) | head("module.prototypes.weight"), rates=rate)),
        "dino-full": ("dino", "teacher.module.backbone.", {
            "student": under("module.backbone.", o) | head("module.head.last_layer.weight_g"),
            "teacher": under("module.backbone.", s) | head("module.head.last_layer.weight_v"),
            "optimizer": rate, "epoch": 2, "args": namespace(), "dino_loss": head("center")}),
        "cw-rgp-ddp": ("cw-rgp", "module.model.", training(
            under("module.model.", s) | head("module.head.0.weight"))),
        "cw-rgp-one-process": ("cw-rgp", "model.module.", training(
            under("model.module.", s) | head("head.0.weight"))),
        "cw-rgp-both": ("cw-rgp", "module.model.module.", training(
            under("module.model.module.", s) | head("module.head.0.weight"))),
        "cw-rgp-base-byol": ("unlisted", "model.module.", training(
            under("model.module.", s) | under("model_t.module.", o) | head("pred.0.weight"))),
        "w-mse": ("w-mse", "model.module.", under("model.module.", s) | head("head.0.weight")),
        "w-mse-byol": ("unlisted", "model.module.", under("model.module.", s)
                       | under("model_t.module.", o) | head("head_t.0.weight")),
        "intl": ("intl", "module.backbone.", training(
            under("module.backbone.", s) | under("module.momentum_backbone.", o)
            | head("module.projection.0.weight", "module.momentum_projection.0.weight"))),
        "pixpro": ("pixpro", "module.encoder.", {"opt": namespace(), "epoch": 1, "model":
            under("module.encoder.", s) | under("module.encoder_k.", o)
            | head("module.projector.bn1.weight", "module.projector.linear1.weight")}),
        "pixpro-published": ("pixpro", "module.encoder.", {"model":
            under("module.encoder.", s) | under("module.encoder_k.", o)
            | head("module.projector_k.bn1.weight")}),
        "pycontrast": ("pycontrast", "module.encoder.", {"epoch": 1, "contrast": head("memory"),
            "model": under("module.encoder.", s) | head("module.head.0.weight"),
            "model_ema": under("encoder.", o) | head("head.0.weight"), "optimizer": rate}),
        "byol-yaox12": ("byol-yaox12", "module.online_network.encoder.", {"config": {}, "steps": 1,
            "model": under("module.online_network.encoder.", sequential(s))
            | under("module.target_network.encoder.", sequential(o))
            | head("module.online_network.projetion.bn1.weight", "module.predictor.fc1.weight"),
            "optimizer": rate}),
        "byol-yaox12-released": ("byol-yaox12", "online_backbone", {
            "online_backbone": OrderedDict((f"m{i}", v) for i, v in enumerate(s.values())),
            "target_backbone": OrderedDict((f"m{i}", v) for i, v in enumerate(o.values())),
            "optimizer": rate}),
        "byol-lucidrains": ("byol-lucidrains", "net.", under("net.", s) | head("net.fc.weight")
            | under("online_encoder.net.", s) | under("target_encoder.net.", o)
            | head("online_encoder.projector.0.weight", "online_predictor.0.weight")),
        "pytorch-examples": ("pytorch-examples", "module.", training(
            under("module.", s) | head("module.fc.weight"), best_acc1=torch.tensor(1.0))),
        "torchvision": ("torchvision", "", s | head("fc.weight", "fc.bias")),
        "torchvision-reference": ("torchvision", "model", {"model": s | head("fc.weight"),
            "args": namespace(), "lr_scheduler": {}, "epoch": 1,
            "model_ema": under("module.", o) | head("n_averaged")}),
        "vissl": ("vissl", "classy_state_dict.base_model.model.trunk._feature_blocks.", {
            "phase_idx": 1, "loss": under("moco_encoder.trunk._feature_blocks.", o),
            "classy_state_dict": {"base_model": {"model": {
                "trunk": under("_feature_blocks.", s), "heads": head("0.clf.0.weight")}}}}),
        "vissl-zoo": ("vissl", "_feature_blocks.", {"model_state_dict":
                                                    under("_feature_blocks.", s)}),
        "classyvision": ("classyvision", "", {"input_args": {}, "classy_state_dict": {
            "base_model": {"model": {"trunk": classy(s), "heads": head("a.fc.weight")}}}}),
        "solo-learn": ("solo-learn", "backbone.", lightning(
            under("backbone.", s) | under("momentum_backbone.", o)
            | head("classifier.weight", "projector.0.weight", "momentum_projector.0.weight"))),
        "solo-learn-old": ("solo-learn", "encoder.", lightning(
            under("encoder.", s) | under("momentum_encoder.", o)
            | head("classifier.weight", "momentum_projector.0.weight"))),
        "lightly-moco": ("lightly", "backbone.", lightning(
            under("backbone.", s) | under("key_backbone.", o) | lit_head)),
        "lightly-byol": ("lightly", "backbone.", lightning(
            under("backbone.", s) | under("teacher_backbone.", o) | lit_head)),
        "lightly-tico": ("lightly", "backbone.", lightning(
            under("backbone.", s) | under("backbone_momentum.", o) | lit_head)),
        "lightly-dino": ("lightly", "backbone.", lightning(
            under("backbone.", s) | under("student_backbone.", o) | lit_head)),
        "lightly-examples": ("lightly", "backbone.", under("backbone.", sequential(s))
            | under("backbone_momentum.", sequential(o)) | lit_head),
        "lightly-examples-lightning": ("lightly", "backbone.", lightning(
            under("backbone.", sequential(s)) | lit_head)),
        "openselfsup": ("openselfsup", "backbone.", {"meta": {"mmcv_version": "1"}, "state_dict":
            mm | under("encoder_q.0.", s) | under("encoder_k.0.", o), "optimizer": {}}),
        "openselfsup-byol": ("openselfsup", "backbone.", {"meta": {}, "state_dict":
            mm | under("online_net.0.", s) | under("target_net.0.", o)}),
        "densecl-extracted": ("openselfsup", "", {"state_dict": s, "author": "OpenSelfSup"}),
        "mmselfsup-extracted": ("torchvision", "", {"state_dict": s, "meta": {}}),
        "mmpretrain": ("mmselfsup", "backbone.", {"meta": {}, "message_hub": {}, "state_dict":
            mm | under("encoder_k.module.0.", o) | head("encoder_k.steps"),
            "param_schedulers": []}),
        "timm": ("timm", "state_dict_ema", training(
            o | head("fc.weight"), version=2, args=namespace(),
            state_dict_ema=s | head("fc.weight"))),
        "hugging-face": ("hugging-face", "resnet.", hugging_face(s) | head("classifier.1.weight")),
        "simclr-v1": ("simclr-v1", "", {"state_dict": {
            name: value * 0 if name.endswith("tracked") else value for name, value in s.items()
        } | fed_with(s, UNIT_INPUT) | head("fc.weight", "fc.bias")}),
        "bolts-simclr": ("lightning-bolts", "encoder.", lightning(
            under("encoder.", s) | head("projection.model.0.weight"))),
        "bolts-byol": ("lightning-bolts", "online_network.encoder.", lightning(
            under("online_network.encoder.", s) | under("target_network.encoder.", o)
            | head("online_network.projector.model.0.weight", "predictor.model.0.weight"))),
        "bolts-moco": ("moco", "encoder_q.", lightning(
            under("encoder_q.", s) | under("encoder_k.", o) | head("encoder_q.fc.0.weight"))),
        "bolts-swav": ("lightning-bolts", "model.", lightning(
            under("model.", s) | head("model.projection_head.0.weight", "model.prototypes.bias"))),
    }  # fmt: skip


def forms(s: State, arch: str) -> dict[str, tuple[str, str, Any]]:
    """Return every form that exists for weights of `arch`."""
    return {**files(s), **(basic_files(s) if arch == "resnet18" else bottleneck_files(s))}


def basic_files(s: State) -> dict[str, tuple[str, str, Any]]:
    """Return the forms that exist for networks of two convolutions a block only."""
    del s  # none yet
    return {}


def bottleneck_files(s: State) -> dict[str, tuple[str, str, Any]]:
    """Return the forms that exist for bottleneck networks only."""
    params, averages = haiku(s)
    return {
        "byol-deepmind": ("byol-deepmind", "", {
            "experiment_state": {"online_params": params, "online_state": averages}, "step": 9}),
        "simclr-v2": ("simclr-v2", "", {
            "resnet": simclr_v2(s) | head("fc.weight"), "head": head("layers.0.weight")}),
        "caffe2": ("caffe2", "", caffe2(s)),
        "caffe2-blobs": ("caffe2", "", {"blobs": caffe2(s), "cfg": "text"}),
    }  # fmt: skip
