"""Statements of a file on its network and input are heard, refused or noted."""

import argparse
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from tests.transfer import published
from transfer.checkpoints.read import Backbone, read_backbone
from transfer.checkpoints.statements import kind_of_network
from transfer.convert import convert_checkpoint
from transfer.resnet import to_detectron2
from transfer.verify import fpn_model

State = dict[str, Tensor]
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
HALF = ([127.5] * 3, [127.5] * 3)


def namespace(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**values)


def read(content: object, path: Path) -> Backbone:
    torch.save(content, path)
    return read_backbone(path)


def openmmlab(state: State, text: str, key: str = "cfg") -> dict[str, Any]:
    return {"meta": {key: text}, "state_dict": published.under("backbone.", state)}


NAMES = {
    "plain": ("resnet50", "resnet_50", "ResNet-50", "tv_resnet50", "timm/resnet50.a1_in1k",
              "gluon_resnet50_v1b", "wide_resnet50_2", "resnext50_32x4d", "resnet50w2",
              "resnet50x2",
              "fasterrcnn_resnet50_fpn", "microsoft/resnet-50", "resnet50_mocov2", "ssl_resnet50"),
    "variant": ("resnetblur50", "resnetaa50", "seresnet50", "resnet50d", "resnet50_gn",
                "resnet50-d",
                "resnet50_ibn_a", "antialiased_resnet50", "resnet50_lpf4", "gluon_resnet50_v1c",
                "resnetv2_50", "res2net50_26w_4s", "resnest50d", "skresnet50", "resnetrs50",
                "nf_resnet50", "iresnet50", "resnet50_clip", "ResNetV1d50", "ecaresnet50t",
                "preactresnet50", "legacy_seresnet50",
                "quant_resnet50", "resnet50v2", "tresnet_l"),
    "dilated": ("deeplabv3_resnet50", "fcn_resnet101", "resnet50_dilated", "dilated-resnet50"),
    "unknown": ("R-50", "byol", "vit_small", "my_net"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(NAMES))
def test_names_of_networks(kind: str) -> None:
    assert {name: kind_of_network(name)[0] for name in NAMES[kind]} == dict.fromkeys(
        NAMES[kind], kind
    )


REFUSED: dict[str, tuple[Any, str]] = {
    "timm's arch": (lambda s: {"arch": "resnetblur50", "version": 2, "state_dict": s,
                               "args": namespace(model="resnetblur50")}, "it is resnetblur50"),
    "args alone": (lambda s: {"state_dict": s, "args": namespace(model="seresnet50")},
                   "args.model says that it is seresnet50: no plain ResNet"),
    "args as JSON": (lambda s: {"state_dict": s, "args": '{"model": "seresnet50"}'},
                     "args.model says that it is seresnet50"),
    "a config as YAML": (lambda s: {"state_dict": s, "config": "model:\n  arch: seresnet50\n"},
                         "config.model.arch says that it is seresnet50"),
    "no ResNet": (lambda s: {"state_dict": s, "arch": "vgg16"}, "arch says that it is vgg16"),
    "anti-aliasing": (lambda s: {"model": s, "args": namespace(aa_layer="blurpool")}, "aa_layer"),
    "an activation": (lambda s: {"state_dict": s, "args": namespace(model_kwargs={
        "act_layer": "silu"})}, "act_layer is silu, detectron2's ResNet has ReLU"),
    "output stride": (lambda s: published.lightning(
        published.under("encoder.", s), hyper_parameters={"encoder_output_stride": 16}),
        "encoder_output_stride is 16: a dilated network"),
    "dilation by torchvision's word": (lambda s: {"model": s, "args": namespace(
        replace_stride_with_dilation=[False, True, True])}, "dilated"),
    "dilation in a config": (lambda s: openmmlab(s, "model = dict(backbone=dict(type='ResNetV1b', "
        "depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)))"), "dilations is .*a dilated"),
    "strides in a config": (lambda s: openmmlab(s, "model = dict(backbone=dict(type='ResNet', "
        "strides=(1, 2, 2, 1)))"), "strides"),
    "no max-pool": (lambda s: published.lightning(published.under("encoder.", s), hyper_parameters={
        "maxpool1": False}), "max-pool"),
    "a DeepLab head": (lambda s: published.under("backbone.", s) | {
        "classifier.0.convs.1.0.weight": torch.ones(2)}, "a dilated network"),
    "an FCN head": (lambda s: published.under("backbone.", s) | {
        "classifier.4.weight": torch.ones(2, 2, 1, 1)}, "a dilated network"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_another_network_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    change, expected = REFUSED[name]
    with pytest.raises(ValueError, match=expected) as caught:
        read(change(published.resnet()), tmp_path / "file")
    assert len(str(caught.value)) < 400


CAFFE = ([103.53, 116.28, 123.675], [1.0] * 3)
INPUTS: dict[str, tuple[Any, str, tuple[list[float], list[float]]]] = {
    "timm's args": (lambda s: {"state_dict": s, "arch": "resnet50", "version": 2, "args": namespace(
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))}, "RGB", HALF),
    "silent args": (lambda s: {"state_dict": s, "args": namespace(mean=None, std=None)}, "RGB",
                    IMAGENET),
    "mmcv": (lambda s: openmmlab(s, "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], "
        "std=[1.0, 1.0, 1.0], to_rgb=False)", "config"), "BGR", CAFFE),
    "mmcv's pipeline": (lambda s: openmmlab(s, "n = dict(mean=[1, 2, 3], std=[4, 5, 6], "
        "to_rgb=True)\np = [dict(type='Normalize', **n)]", "config"), "RGB",
        ([1.0, 2, 3], [4.0, 5, 6])),
    "mmengine": (lambda s: openmmlab(s, "model = dict(data_preprocessor=dict(mean=[1, 2, 3], "
        "std=[4, 5, 6], bgr_to_rgb=True))"), "RGB", ([1.0, 2, 3], [4.0, 5, 6])),
    "mmengine, not turned": (lambda s: openmmlab(s, "model = dict(data_preprocessor=dict("
        "mean=[1, 2, 3], std=[4, 5, 6]))"), "BGR", ([1.0, 2, 3], [4.0, 5, 6])),
    "a layer before": (lambda s: published.under("1.", s) | {
        "0.mean": torch.full((1, 3, 1, 1), 0.5), "0.std": torch.full((1, 3, 1, 1), 0.25)},
        "RGB", ([127.5] * 3, [63.75] * 3)),
    "a named layer": (lambda s: published.under("model.", s) | {
        "normalize.mean": torch.full((3,), 0.5), "normalize.std": torch.full((3,), 0.5)},
        "RGB", HALF),
    "buffers": (lambda s: s | {"mean": torch.full((3, 1, 1), 0.5),
                               "std": torch.full((3, 1, 1), 0.5)}, "RGB", HALF),
    "robustness's layer": (lambda s: {"model": published.under("module.model.", s) | {
        "module.normalizer.new_mean": torch.full((3, 1, 1), 0.5),
        "module.normalizer.new_std": torch.full((3, 1, 1), 0.5)}}, "RGB", HALF),
    "mu and sigma": (lambda s: s | {"mu": torch.full((3,), 0.5), "sigma": torch.full((3,), 0.5)},
                     "RGB", HALF),
    "detectron2's buffers": (lambda s: published.under("model.", s) | {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]), "pixel_std": torch.ones(3)},
        "BGR", CAFFE),
    "Cadene's settings": (lambda s: {"state_dict": s, "input_space": "BGR", "input_range": [0, 255],
        "mean": [103.53, 116.28, 123.675], "std": [1, 1, 1]}, "BGR", CAFFE),
    "transformers', scaled alone": (lambda s: {"state_dict": s, "a": {"do_normalize": False,
        "rescale_factor": 0.00392156862745098, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}},
        "RGB", ([0.0] * 3, [255.0] * 3)),
    "transformers', as they are": (lambda s: {"state_dict": s, "a": {"do_normalize": False,
        "do_rescale": False, "rescale_factor": "x"}}, "RGB", ([0.0] * 3, [1.0] * 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_the_input_that_a_file_states_is_taken_and_noted(name: str, tmp_path: Path) -> None:
    change, order, (mean, std) = INPUTS[name]
    backbone = read(change(published.resnet()), tmp_path / "file")
    assert backbone.input == {"format": order, "pixel_mean": mean, "pixel_std": std}
    assert any(" says: mean" in note for note in backbone.notes) == (name != "silent args")
    assert not any(" says: " in warning for warning in backbone.warnings)


def test_what_cannot_be_used_is_noted(tmp_path: Path) -> None:
    state = published.resnet("resnet50")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"arch": "resnet101"}, "arch says resnet101, its weights are resnet50's: not used"),
        ({"arch": "resnext50_32x4d"}, "arch says resnext50_32x4d, its weights are resnet50's"),
        ({"arch": "wide_resnet50_2"}, "arch says wide_resnet50_2, its weights are resnet50's"),
        ({"args": namespace(bn_eps=1e-3)}, "args.bn_eps says BatchNorm eps 0.001"),
        ({"args": namespace(mean=[0.1, 0.1, 0.1])}, "args says mean alone: not used"),
        ({"a": {"mean": [0.1] * 3, "std": [0.2] * 3}, "b": {"mean": [0.2] * 3, "std": [0.2] * 3}},
         "a and b differ in mean, so none is used"),
        ({"arch": "open-mmlab://resnet50_caffe"}, "not assumed, state it by hand"),
    ]  # fmt: skip
    for more, expected in cases:
        backbone = read({"state_dict": state} | more, tmp_path / "file")
        assert any(expected in note for note in backbone.notes), (more, backbone.notes)
        assert any(expected in warning for warning in backbone.warnings), (more, backbone.warnings)
        assert backbone.input["pixel_mean"] == IMAGENET[0]


def test_the_place_of_the_stride(tmp_path: Path) -> None:
    state = published.resnet("resnet50")
    for style, expected in (("caffe", True), ("pytorch", False)):
        text = f"model = dict(backbone=dict(type='ResNet', depth=50, style='{style}'))"
        assert (
            read(openmmlab(state, text), tmp_path / "file").architecture.stride_in_1x1 is expected
        )
    small = published.resnet("resnet18")
    text = "model = dict(backbone=dict(type='ResNet', depth=18, style='caffe'))"
    assert read(openmmlab(small, text), tmp_path / "file").architecture.stride_in_1x1 is False


def test_the_config_beside_a_detector_of_detectron2_is_read(tmp_path: Path) -> None:
    state = {
        f"backbone.bottom_up.{to_detectron2(name)}": value
        for name, value in published.resnet("resnet50").items()
    }
    detector = {"model": state | {"proposal_generator.a": torch.ones(2)}, "iteration": 9}
    assert read(detector, tmp_path / "model_final.pth").input["format"] == "BGR"
    text = (
        "INPUT: {FORMAT: RGB}\nMODEL:\n  BACKBONE: {NAME: build_resnet_fpn_backbone}\n"
        "  PIXEL_MEAN: [1.0, 2, 3]\n  PIXEL_STD: [4, 5, 6]\n"
        "  RESNETS: {DEPTH: 50, STRIDE_IN_1X1: false, RES5_DILATION: 1}\n"
    )
    (tmp_path / "config.yaml").write_text(text, "utf-8")
    backbone = read(detector, tmp_path / "model_final.pth")
    assert backbone.input == {"format": "RGB", "pixel_mean": [1.0, 2, 3], "pixel_std": [4.0, 5, 6]}
    assert backbone.architecture.stride_in_1x1 is False
    (tmp_path / "config.yaml").write_text(text.replace("DILATION: 1", "DILATION: 2"), "utf-8")
    with pytest.raises(ValueError, match="res5_dilation is 2: a dilated network"):
        read(detector, tmp_path / "model_final.pth")


def test_files_beside_a_transformers_file_are_read_and_others_are_not(tmp_path: Path) -> None:
    state = published.resnet("resnet50")
    hub = {"architecture": "resnetaa50", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(hub), "utf-8")
    with pytest.raises(ValueError, match=r"config\.json\.architecture says that it is resnetaa50"):
        read(state, tmp_path / "pytorch_model.bin")
    assert read(state, tmp_path / "mine.pth").input["pixel_mean"] == IMAGENET[0]
    (tmp_path / "config.json").write_text(json.dumps(hub | {"architecture": "resnet50"}), "utf-8")
    assert read(state, tmp_path / "pytorch_model.bin").input["pixel_mean"] == HALF[0]
    theirs = {"model_type": "resnet", "downsample_in_bottleneck": True, "hidden_act": "relu"}
    (tmp_path / "config.json").write_text(json.dumps(theirs), "utf-8")
    backbone = read(published.hugging_face(state), tmp_path / "any.bin")
    assert backbone.architecture.stride_in_1x1 is True
    (tmp_path / "config.json").write_text(json.dumps(theirs | {"hidden_act": "gelu"}), "utf-8")
    with pytest.raises(ValueError, match="hidden_act is gelu"):
        read(published.hugging_face(state), tmp_path / "any.bin")


class Normalised(nn.Module):
    """A network with its normalisation in front, fed from 0 to 1."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4])[:, None, None])
        self.model = torchvision.models.resnet18()
        self.model.load_state_dict(state, strict=False)
        self.model.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features."""
        return self.model((images - self.mean) / self.std)


def test_detectron2_with_the_keys_computes_what_the_files_network_computes(tmp_path: Path) -> None:
    network = Normalised(published.source_state("resnet18")).eval()
    torch.save(network.state_dict(), tmp_path / "robust.pth")
    report = convert_checkpoint(tmp_path / "robust.pth", tmp_path / "out.pkl")
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    mean, std = (torch.tensor(report.detectron2[f"MODEL.PIXEL_{what}"])[:, None, None]
                 for what in ("MEAN", "STD"))  # fmt: skip
    detector = fpn_model(read_backbone(tmp_path / "robust.pth"))
    DetectionCheckpointer(detector).load(str(tmp_path / "out.pkl"))
    with torch.no_grad():
        theirs = network(pixels / 255)
        ours = detector.get_submodule("backbone.bottom_up")((pixels - mean) / std)["res5"]
    assert torch.allclose(ours.mean((2, 3)), theirs, rtol=1e-4, atol=1e-5)
    with (tmp_path / "out.pkl").open("rb") as file:
        assert not any(re.search("mean$|std$", name) for name in pickle.load(file)["model"]
                       if "norm" not in name)  # fmt: skip
