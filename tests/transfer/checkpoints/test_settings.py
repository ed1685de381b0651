"""Settings beside tensors: namespaces, texts of configs that are never run, files beside."""

import argparse
import json
from pathlib import Path

import torch
from omegaconf import OmegaConf

from transfer.checkpoints.containers import read_content
from transfer.checkpoints.settings import MAX_GROUPS, groups_of, settings_beside, settings_in_text

CONFIG = """
_base_ = ['../base.py']
norm = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
model = dict(backbone=dict(type='ResNet', depth=50, style='caffe', dilations=(1, 1, -1, 1)))
train = [dict(type='Normalize', **norm), {'keys': norm, **norm}]
hostile = __import__('os').system('touch owned')
made = [n for n in range(10)]
"""


def test_a_config_is_read_as_text_and_never_run(tmp_path: Path) -> None:
    read = settings_in_text(CONFIG)
    assert read["model"]["backbone"] == {
        "type": "ResNet", "depth": 50, "style": "caffe", "dilations": [1, 1, -1, 1],
    }  # fmt: skip
    assert read["train"][0] == {"type": "Normalize", **read["norm"]}
    assert read["train"][1] == {"keys": read["norm"], **read["norm"]}
    assert read["hostile"] is None and read["made"] is None
    assert not Path("owned").exists()
    for nonsense in ("a = (" * 5000, "x" * 2**20, "a = \x00", "{not json", "[1]"):
        assert settings_in_text(nonsense) == {}
    assert settings_in_text("model:\n  arch: resnet50\n") == {"model": {"arch": "resnet50"}}
    merges = "\n".join(f"a{i + 1}: &a{i + 1}\n  <<: [*a{i}, *a{i}]" for i in range(40))
    assert settings_in_text(f"a0: &a0 {{k: v}}\n{merges}") == {}  # 2**40 pairs
    doubling = "a0 = dict(x=1)\n" + "\n".join(f"a{i + 1} = [a{i}, a{i}]" for i in range(60))
    assert len(groups_of({"config": doubling})) < MAX_GROUPS  # each dict is visited once


def test_namespaces_and_omegaconf_are_settings_and_other_networks_are_not(tmp_path: Path) -> None:
    content = {
        "args": argparse.Namespace(model="resnet50", mean=[1, 2, 3]),
        "hyper_parameters": OmegaConf.create({"backbone": {"name": "resnet50", "Depth": 50}}),
        "optimizer": {"mean": [0, 0, 0]},
        "args_of_teacher": {"teacher_arch": "x", "teacher": {"arch": "seresnet50"}},
        "state_dict": {"conv1.weight": torch.ones(3)},
    }
    torch.save(content, tmp_path / "file")
    groups = {
        ".".join(path): group for path, group in groups_of(read_content(tmp_path / "file").value)
    }
    assert groups["args"]["model"] == "resnet50" and groups["args"]["mean"] == [1, 2, 3]
    assert groups["hyper_parameters.backbone"] == {"name": "resnet50", "depth": 50}
    assert not any("optimizer" in path or path.endswith("teacher") for path in groups)
    assert "state_dict" not in groups


def test_files_beside_are_small_json_objects(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "relu"}), "utf-8")
    (tmp_path / "preprocessor_config.json").write_text("[" * 10**5, "utf-8")
    assert settings_beside(tmp_path / "model.safetensors") == {
        "config.json": {"hidden_act": "relu"}
    }
    assert settings_beside(tmp_path) == {"config.json": {"hidden_act": "relu"}}
