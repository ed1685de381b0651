"""Refusals in one line with exit code 2, and the choice by hand."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from tests.scripts import load_script
from tests.transfer import published
from tests.transfer.checkpoints.reading import State
from tests.transfer.published import resnet, windows
from transfer.checkpoints.families import FORMATS
from transfer.checkpoints.read import read_backbone
from transfer.resnet import Architecture, ordered_names

ROOT = Path(__file__).resolve().parents[3]


command = load_script("convert_to_detectron2")


def renamed(rule: str, to: str) -> Callable[[State], State]:
    return lambda state: {re.sub(rule, to, name): value for name, value in state.items()}


def changed(name: str, value: Tensor | None) -> Callable[[State], State]:
    def change(state: State) -> State:
        return {key: old for key, old in (state | {name: value}).items() if old is not None}

    return change


def norm_without_statistics(state: State) -> State:
    return {name: v for name, v in state.items() if "running" not in name and "tracked" not in name}


def resnet200(state: State) -> State:
    state = dict(windows("resnet50"))
    for stage, count in ((2, 24), (3, 36)):
        for block in range(3, count):
            for name in [n for n in state if n.startswith(f"layer{stage}.1.")]:
                state[name.replace(f"layer{stage}.1.", f"layer{stage}.{block}.")] = state[name]
    return state


def lightly_own(state: State) -> State:
    def rename(name: str) -> str:
        name = re.sub(r"^conv1\.", "0.", re.sub(r"^bn1\.", "1.", name))
        name = re.sub(r"^layer(\d)\.", lambda m: f"{int(m[1]) + 1}.", name)
        return "backbone." + name.replace("downsample", "shortcut")

    return {rename(name): value for name, value in state.items()} | {
        "backbone.0.weight": torch.ones(64, 3, 3, 3)
    }


def lightly_zoo(state: State) -> State:
    """Return lightly's own ResNet as its command line saves it: a norm of the input comes first."""
    shifted = {
        re.sub(r"\.(\d)\.", lambda m: f".{int(m[1]) + 1}.", name, count=1): value
        for name, value in lightly_own(state).items()
    }
    return published.under("model.", shifted | {"backbone.0.weight": torch.ones(3)})


def uneven(stem: int, width: int, res2: int, base: str = "resnet50") -> State:
    shape = Architecture(base, stem, width, res2).shape
    return {name: torch.ones(shape(name)) for name in ordered_names(base)}


def permuted(state: State) -> State:
    """Return a network of unknown modules, the entries of each in the alphabet's order."""
    modules: dict[str, list[str]] = {}
    for name in state:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    return {
        f"m{index}.{name.rpartition('.')[2]}": state[name]
        for index, names in enumerate(modules.values())
        for name in sorted(names)
    }


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "cifar stem": (changed("conv1.weight", torch.ones(64, 3, 3, 3)), "3x3 stem"),
    "5x5 stem": (changed("conv1.weight", torch.ones(64, 3, 5, 5)), "5x5 stem"),
    "deep stem of timm": (renamed(r"^conv1\.weight", "conv1.0.weight"), "deep stem"),
    "deep stem of mmpretrain": (renamed(r"^conv1\.weight", "stem.0.conv.weight"), "deep stem"),
    "average-pool shortcut": (renamed(r"downsample\.1\.", "downsample.2."), "average-pool"),
    "gray": (changed("conv1.weight", torch.ones(64, 1, 7, 7)), "1 channels"),
    "Sobel": (changed("conv1.weight", torch.ones(64, 2, 7, 7)), "2 channels"),
    "GroupNorm": (norm_without_statistics, "GroupNorm"),
    "R200": (resnet200, "ResNet-200"),
    "selective kernels": (
        lambda s: published.under("net.1.blocks.0.net.2.main_conv.", {"0.weight": torch.ones(2)})
        | published.simclr_v2(windows("resnet50")), "selective kernels"),
    "lightly's own": (lightly_own, "3x3 stem|lightly's own"),
    "ViT": (lambda s: {"cls_token": torch.ones(2), "blocks.0.attn.qkv.weight": torch.ones(2)},
            "vision transformer"),
    "ViT of MoCo v3": (lambda s: {"state_dict": {
        "module.base_encoder.patch_embed.proj.weight": torch.ones(2)}}, "vision transformer"),
    "a head": (lambda s: {"fc.weight": torch.ones(2), "fc.bias": torch.ones(2)}, "only a head"),
    "a missing tensor": (changed("layer4.1.bn2.running_var", None),
                         r"1 missing \['layer4.1.bn2.running_var'\]"),
    "a missing stem": (changed("conv1.weight", None), r"1 missing \['conv1.weight'\]"),
    "a missing stage": (lambda s: {n: v for n, v in s.items() if "layer3" not in n}, "missing"),
    "an extra block": (lambda s: s | {n.replace("layer2.1", "layer2.2"): v for n, v in s.items()},
                       "extra|blocks"),
    "an extra tensor": (changed("layer1.0.conv4.weight", torch.ones(2)),
                        r"1 extra \['layer1.0.conv4.weight'\]"),
    "an extra tensor outside": (changed("stray.weight", torch.ones(2)), r"\['stray.weight'\]"),
    "a misshapen tensor": (changed("layer2.0.conv2.weight", torch.ones(128, 127, 3, 3)),
                           r"layer2.0.conv2.weight has shape \(128, 127, 3, 3\), wanted"),
    "a misshapen norm": (changed("layer2.0.bn1.running_mean", torch.ones(256)), "has shape"),
    "NaN": (changed("bn1.weight", torch.full((64,), float("nan"))), "NaN or infinity"),
    "infinity": (changed("bn1.bias", torch.full((64,), float("inf"))), "NaN or infinity"),
    "whole numbers": (changed("bn1.bias", torch.ones(64, dtype=torch.int64)), "torch.int64"),
    "a detectron2 detector": (lambda s: {"model": {
        "backbone.bottom_up.stem.conv1.weight": torch.ones(64, 3, 7, 7),
        "backbone.bottom_up.res2.0.conv1.weight": torch.ones(64, 64, 1, 1)}, "iteration": 3},
        "not a complete torchvision ResNet"),
    "nothing": (lambda s: {"epoch": 3}, "no tensors"),
    "two Lab halves": (lambda s: {"model":
        published.under("module.encoder1.", s | {"conv1.weight": torch.ones(64, 1, 7, 7)})
        | published.under("module.encoder2.", s | {"conv1.weight": torch.ones(64, 2, 7, 7)})},
        "channels"),
    "a scalar stem": (changed("conv1.weight", torch.tensor(1.0)), r"conv1.weight has shape \(\)"),
    "no channels": (changed("layer1.0.conv1.weight", torch.ones(0, 64, 3, 3)),
                    r"\(0, 64, 3, 3\), wanted 4"),
    "odd width": (lambda s: uneven(64, 100, 192), "odd widths: stem 64, 3x3 100 in 1 groups"),
    "narrow stem": (lambda s: uneven(32, 64, 64, "resnet18"), "a resnet18 of 32 channels in the"),
    "complex counter": (changed("bn1.num_batches_tracked", torch.tensor(1j)), "is no count"),
    "values negated by a flag": (changed("bn1.bias", torch._neg_view(torch.ones(64))),
                                 r"negated or conjugated by a flag.*\(bn1\.bias\)"),
    "a bias in the stem": (lambda s: published.caffe2(windows("resnet50"))
                           | {"conv1_b": np.ones(64, "f4")}, "conv1_b is not zero"),
    "only a momentum encoder": (
        lambda s: {"state_dict": published.under("module.encoder_k.", s)},
        r"only the momentum encoder module\.encoder_k\. is readable; say --encoder module"),
    "only a target's dict": (lambda s: {"target": {"state_dict": s}}, "only the target network t"),
    "only a student": (lambda s: {"student": published.under("module.backbone.", s)},
                       r"only the student network student\.module\.backbone is readable; "
                       r"say --encoder student\.module\.backbone to take it"),
    "only an average": (lambda s: {"ema_state_dict": published.under("backbone.", s)},
                        r"only the averaged \(EMA\) weights ema_state_dict\.backbone is"),
    "only a model's average": (lambda s: {"model_ema": published.under("module.", s)},
                               r"only the averaged \(EMA\) weights model_ema\.module is"),
    "only a momentum backbone": (
        lambda s: published.lightning(published.under("momentum_backbone.", s)),
        r"only the momentum encoder momentum_backbone\. is"),
    "CLIP's stem": (lambda s: s | {"conv1.weight": torch.ones(32, 3, 3, 3),
                                   "conv2.weight": torch.ones(32, 32, 3, 3)}, "deep stem"),
    "VISSL's list of slices": (lambda s: {"type": "slice_list", "layers": ["a"]},
                               "a list of the files that hold the weights"),
    "lightly's zoo": (lightly_zoo, r"lightly's own ResNet \(3x3 stem"),
    "a whole model in a dict": (lambda s: {"a": {"model": torchvision.models.resnet18()}},
                                "a whole pickled model under 'a.model'"),
    "permuted names": (lambda s: {"online_backbone": permuted(s)},
                       r"m1\.bias stands where torchvision's order has bn1\.weight"),
    "two dicts at one path": (lambda s: {"a.b": s, "a": {"b": published.other(s)}},
                              r"same path a\.b"),
    "encoders in a list": (lambda s: {"models": [s, published.other(s)]},
                           r"2 encoders.*models\.0 \(120 tensors\), models\.1"),
    "a whole model": (lambda s: {"model": torchvision.models.resnet18()},
                      r"a whole pickled model under 'model'; save its state_dict\(\)"),
    "two strangers": (lambda s: {"state_dict": published.under("one.", s)
                                 | published.under("two.", published.other(s))},
                      r"2 encoders and no known family.*one\. \(120 tensors\), two\. \(120"),
    "two strangers of unknown spelling": (
        lambda s: {key: renamed(r"^bn1\.", "norm1.")(part)
                   for key, part in (("fast", s), ("slow", published.other(s)))},
        r"2 encoders of no known family, none of them a complete.*family\.md\): fast.*slow.*\n"),
    "a stranger of unknown spelling": (
        renamed(r"^bn1\.", "norm1."),
        r"not a complete.*4 missing.*5 extra.*add-a-checkpoint-family\.md\n"),
}  # fmt: skip


@pytest.mark.usefixtures("windows_are_taken")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_in_one_line_and_nothing_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = REFUSED[name]
    source = tmp_path / "some.pth"
    torch.save(change(windows()), source)
    assert command.main([str(source), str(tmp_path / "out.pkl")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert re.search(expected, printed.err) and "some.pth" in printed.err, printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["some.pth"]


def test_a_format_that_does_not_fit_is_refused_and_one_that_does_sets_the_input(
    tmp_path: Path,
) -> None:
    source = tmp_path / "file"
    torch.save({"state_dict": published.under("module.backbone.", resnet())}, source)
    with pytest.raises(ValueError, match=r"no encoder where --format moco has it \(encoder_q\)"):
        read_backbone(source, format="moco")
    with pytest.raises(ValueError, match="unknown format 'nonsense'; known: barlow-twins"):
        read_backbone(source, format="nonsense")
    assert read_backbone(source).format == "unlisted"
    torch.save({"state_dict": resnet(), "epoch": 1}, source)
    assert read_backbone(source).input["pixel_std"] == [58.395, 57.12, 57.375]
    assert read_backbone(source, format="simclr-v1").input["pixel_std"] == [255.0] * 3


def test_help_lists_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert all(name in shown for name in FORMATS)


def test_an_unforeseen_error_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("two\nlines")

    monkeypatch.setattr("transfer.convert.convert_checkpoint", fail)
    (tmp_path / "in").touch()
    assert command.main([str(tmp_path / "in"), str(tmp_path / "out.pkl")]) == 2
    error = capsys.readouterr().err
    assert error.endswith("in: unexpected TypeError('two\\nlines')\n") and error.count("\n") == 1


def test_the_command_as_a_process(tmp_path: Path) -> None:
    torch.save(published.files(resnet())["cw-rgp-one-process"][2], tmp_path / "cw.pth.tar")
    (tmp_path / "text").write_text("hello\n", encoding="utf-8")
    script = str(ROOT / "tools" / "convert_to_detectron2.py")
    environment = dict(os.environ, OMP_NUM_THREADS="1")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, script, *arguments], cwd=tmp_path, text=True,
                              capture_output=True, check=False, env=environment)  # fmt: skip

    good, bad = run("cw.pth.tar", "out.pkl"), run("text", "bad.pkl")
    assert (good.returncode, good.stderr) == (0, "")
    assert "cw-rgp" in good.stdout and "encoder model.module." in good.stdout
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["cw.pth.tar", "out.json", "out.pkl", "text"]
