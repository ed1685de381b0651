"""The benchmarks' command line: each in small with the JSON that it writes, and refusals."""

import dataclasses
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    coco_scale,
    command_lines,
    finetuning,
    loader,
    plan_scale,
    slurm_commands,
    step,
    whitening,
)
from benchmarks.command import BENCHMARKS, main, parser
from benchmarks.finetuning import FORWARD, PARTS, REST
from benchmarks.whitening import WhiteningCase
from examples.digits.build import Sizes
from pretrain.config.loss import LossConfig

IMAGES = dataclasses.replace(
    loader.LOADER_CASES[0], title="small", image_size=(60, 45), num_images=6, num_views=2,
    augment={"size": 32},
)  # fmt: skip
LOSS = WhiteningCase("small", LossConfig(name="w-mse", sub_batch=8), 16, 2, 4)
Measured = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Measured:
    """Run a benchmark with `--json` and return the tables in the file."""

    def run(name: str, *words: str) -> list[dict[str, Any]]:
        path = tmp_path / "numbers.json"
        assert main([name, *words, "--json", str(path)]) == 0
        printed = capsys.readouterr().out
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["benchmark"] == name and content["packages"]["torch"]
        module = importlib.import_module(f"benchmarks.{BENCHMARKS[name][0]}")
        function = getattr(module, f"benchmark_{name}")
        assert content["options"].keys() == inspect.signature(function).parameters.keys()
        assert printed.endswith(f"wrote {path}\n")
        tables: list[dict[str, Any]] = content["tables"]
        for table in tables:
            assert table["rows"]
        return tables

    return run


def test_commands(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_lines, "REFUSED", {"one.py": (("dear",),)})
    monkeypatch.setattr(command_lines, "cpu_s", lambda folder, words: 0.25)
    answers, large = measured("commands", "--stages", "1", "--rounds", "1")
    assert [row["CPU s"] for row in answers["rows"] + large["rows"]] == [0.25] * 3


def test_whitening(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "WHITENING_CASES", (LOSS,))
    one, two, *_ = measured("whitening", "--rounds", "1", "--threads", "1", "2")
    assert [table["about"]["threads"] for table in (one, two)] == [1, 2]
    (row,) = one["rows"]
    assert row["ratio"] == pytest.approx(row["plain ms"] / row["ours ms"])


def test_loader(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LOADER_CASES", (IMAGES,))
    table, _ = measured("loader", "--rounds", "1", "--workers", "0")
    (row,) = table["rows"]
    assert row["in_loader/PIL"] == pytest.approx(row["in_loader"] / row["PIL"])
    assert table["about"]["device"]


def test_step(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"arch": "resnet18", "embedding_dim": 4}
    config = {"model": model, "loss": {"name": "w-mse", "sub_batch": 8}}
    images = dataclasses.replace(IMAGES, augment={"size": 32, "colours": "on_device"})
    case = step.StepCase("small", images, 8, config)
    monkeypatch.setattr(step, "CPU_CASES", (case,))
    monkeypatch.setattr(step, "GPU_CASES", (case,))
    (table,) = measured("step", "--rounds", "1", "--channels-last")
    steady, loaded = table["rows"]
    assert (steady["case"], loaded["case"]) == ("small", "small, loaded")
    assert {name for name, value in steady.items() if value is None} == {"data"}
    assert steady.keys() == {"case", *step.PARTS, "whole", "views/s", "peak MB", "data"}
    assert steady["encoder"] > steady["projector"] > 0 and steady["loss"] > 0
    assert steady["views/s"] == pytest.approx(16e3 / steady["whole"])
    assert steady["peak MB"] > 4 * 45  # R18 in float32: weights, gradients, two moments of Adam
    assert 0 < loaded["data"] < loaded["whole"]


def test_evaluation(measured: Measured) -> None:
    words = "--images", "4", "--detections", "5", "--mask-images", "3"
    (table,) = measured("evaluation", *words)
    assert [row["detections"] for row in table["rows"]] == [20, 15]


def test_plan(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_scale, "SETTLED_S", 0.0)
    monkeypatch.setattr(plan_scale, "IMAGE_BYTES", 100)
    plans, rates = measured("plan", "--images", "20", "--voc-images", "9")
    assert [row["index"] for row in plans["rows"]] == ["empty", "warm"]
    assert all(row["files/s"] > 0 for row in rates["rows"])


def test_slurm(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("run of 3 stages", 1.0, 0.5, 90.0, "2 sbatch")
    monkeypatch.setattr(slurm_commands, "measured", lambda *_: row)
    (table,) = measured("slurm", "--stages", "3", "--dry-stages", "5")
    assert {row["calls"] for row in table["rows"]} == {"2 sbatch"} and len(table["rows"]) == 5


@pytest.mark.slow
def test_scale(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_scale, "SETTLED_S", 0.0)
    (table,) = measured("scale", "--images", "20", "--objects", "160")
    assert [row["what"].split()[0] for row in table["rows"]] == [
        "check_data,",
        "plan,",
        "plan,",
        "a",
    ]
    for row in table["rows"]:
        assert row["seconds"] > 0 and row["CPU s"] > 0 and row["MB at most"] > 10


def test_finetuning(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "SIZES", Sizes(4, 2, 8, 20, 20))
    (table,) = measured("finetuning", "--steps", "2")
    named = {part for part, *_ in PARTS} - {"precise BN"} | {*FORWARD.values(), "imports", REST}
    assert {row["part"] for row in table["rows"]} == named | {"all"}
    *parts, whole = table["rows"]
    assert sum(row["CPU s"] for row in parts) == pytest.approx(whole["CPU s"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_option_is_one_of_the_function(name: str) -> None:
    module, options, _ = BENCHMARKS[name]
    function = getattr(importlib.import_module(f"benchmarks.{module}"), f"benchmark_{name}")
    assert {each.removesuffix("+") for each in options} == inspect.signature(
        function
    ).parameters.keys()
    assert vars(parser().parse_args([name])) == {"name": name}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--rounds", "0"), "--rounds: got 0, wanted 1 or more"),
        (("--workers", "-1"), "--workers: got -1, wanted 0 or more"),
        (("--json", "nosuch/a.json"), "--json: nosuch: no such folder; make it"),
        (("--json", "."), "--json: .: not a regular file"),
        (("--json", "/dev/null"), "--json: /dev/null: not a regular file"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_measured(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["loader", *words])
    assert left.value.code == 2 and says in capsys.readouterr().err
