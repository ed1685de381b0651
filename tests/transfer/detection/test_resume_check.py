"""Resuming by hand: what changes a result is refused, key by key; a run may become longer."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from examples.digits.build import Sizes, build_digits
from transfer.config.data import CocoData, VocData, content_digest
from transfer.detection.cfg import for_this_machine
from transfer.detection.cli import main, read_config
from transfer.detection.resume_check import evaluation_faults, resume_faults, weights_ignored
from transfer.detection.run import EFFECTIVE, INPUTS, input_digests
from transfer.files import write_json

CONFIG = Path(__file__).resolve().parents[3] / "configs/transfer/digits_faster_rcnn_voc.yaml"
BASE = ["SOLVER.MAX_ITER", "10", "SOLVER.STEPS", "(8,)", "SOLVER.WARMUP_ITERS", "2"]


def config(*changes: str) -> CfgNode:
    return for_this_machine(read_config(str(CONFIG), [*BASE, *changes]))


OLD, NEW = (f"sha256 {hashlib.sha256(content).hexdigest()[:16]}" for content in (b"weights", b"x"))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder as a run of SGD leaves it that was stopped with five iterations done."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    torch.save({"optimizer": optimizer.state_dict(), "iteration": 4}, tmp_path / "model_4.pth")
    (tmp_path / "last_checkpoint").write_text("model_4.pth", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("some").mkdir()
    for name in ("some/backbone.pkl", "x.pth", "copy.pkl"):
        Path(name).write_text("x" if name == "x.pth" else "weights", encoding="utf-8")
    cfg = config("MODEL.WEIGHTS", "some/backbone.pkl")
    (tmp_path / EFFECTIVE).write_text(cfg.dump(), encoding="utf-8")
    write_json(tmp_path / INPUTS, input_digests(cfg, {}))
    return tmp_path


def faults(folder: Path, *changes: str, optimizer: Any = "sgd") -> list[str]:
    cfg = config("MODEL.WEIGHTS", "some/backbone.pkl", *changes)
    lines = resume_faults(cfg, folder, optimizer, {})
    assert all("\n" not in line and "or train anew in another folder" in line for line in lines)
    return [line.removeprefix(f"{folder}: ").partition("; a resumed run")[0] for line in lines]


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("OUTPUT_DIR", "elsewhere", "DATALOADER.NUM_WORKERS", "7", "TEST.EVAL_PERIOD", "3"),
        ("SOLVER.CHECKPOINT_PERIOD", "1", "VIS_PERIOD", "5"),
        ("MODEL.WEIGHTS", "./some/../some/backbone.pkl"),
        ("MODEL.WEIGHTS", "copy.pkl"),
        ("SOLVER.MAX_ITER", "20"),  # longer
        ("SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "(5, 15)"),  # no drop before iteration 5
        ("SOLVER.MAX_ITER", "6"),
    ],
)
def test_what_changes_nothing_that_is_done_is_accepted(trained: Path, changes: Any) -> None:
    assert faults(trained, *changes) == []


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (("SOLVER.BASE_LR", "0.5", "SEED", "3"), ["SEED was 0, asked 3", "BASE_LR was 0.0003, as"]),
        (
            ("MODEL.WEIGHTS", "x.pth"),
            [f"MODEL.WEIGHTS was 'some/backbone.pkl' {OLD}, asked 'x.pth' {NEW}"],
        ),
        (("MODEL.WEIGHTS", ""), ["MODEL.WEIGHTS was 'some/backbone.pkl', asked ''"]),
        (("INPUT.MIN_SIZE_TRAIN", "(96,)"), ["INPUT.MIN_SIZE_TRAIN was [128], asked [96]"]),
        (("SOLVER.MAX_ITER", "4"), ["MAX_ITER was 10, asked 4, but 5 iterations are done"]),
        (("SOLVER.STEPS", "(3,)"), ["SOLVER.STEPS was [8], asked [3], but iteration 3 of the 5"]),
        (("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"), ["LR_SCHEDULER_NAME was 'WarmupMulti"]),
    ],
)
def test_what_changes_a_result_is_refused_with_a_line_for_each_key(
    trained: Path, changes: Any, lines: list[str]
) -> None:
    told = faults(trained, *changes)
    assert len(told) == len(lines) and all(map(str.__contains__, told, lines)), told


def test_a_folder_from_before_a_key_has_its_default(trained: Path) -> None:
    text = (trained / EFFECTIVE).read_text(encoding="utf-8")
    assert text.count("  PRECISION: float32\n") == 1
    text = text.replace("  PRECISION: float32\n", "")
    (trained / EFFECTIVE).write_text(text, encoding="utf-8")
    assert faults(trained) == []
    asked = faults(trained, "MODEL.DEVICE", "cuda", "MODEL.PRECISION", "tf32")
    assert any(line.startswith("MODEL.PRECISION was None, asked 'tf32'") for line in asked)


def test_a_longer_run_is_another_where_its_rates_were(trained: Path) -> None:
    cosine = ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "MODEL.WEIGHTS", "some/backbone.pkl")
    (trained / EFFECTIVE).write_text(config(*cosine).dump(), encoding="utf-8")
    assert faults(trained, *cosine) == []
    (line,) = faults(trained, *cosine, "SOLVER.MAX_ITER", "20")
    assert "MAX_ITER was 10, asked 20, but iteration 1 of the 5 that are done had learn" in line


def test_another_optimiser_is_refused(trained: Path) -> None:
    assert faults(trained, optimizer="adamw") == ["SOLVER.OPTIMIZER was 'sgd', asked 'adamw'"]


@pytest.mark.parametrize(
    "content", [None, "- a list", "{", "a: !!python/object/apply:os.getpid []"]
)
def test_a_folder_that_does_not_say_its_settings_is_not_resumed(
    trained: Path, content: str | None
) -> None:
    (trained / EFFECTIVE).unlink()
    if content is not None:
        (trained / EFFECTIVE).write_text(content, encoding="utf-8")
    (line,) = resume_faults(config(), trained, "sgd", {})
    assert line.startswith(f"{trained / EFFECTIVE}: cannot be compared with the config (")
    (trained / EFFECTIVE).write_text(config().dump(), encoding="utf-8")
    (trained / "model_4.pth").write_bytes(b"cut")
    (line,) = resume_faults(config(), trained, "sgd", {})
    assert line.startswith(f"{trained / 'model_4.pth'}: not a checkpoint to resume from (")


def test_a_checkpoint_that_lost_its_optimiser_is_not_resumed(trained: Path) -> None:
    torch.save({"iteration": 4}, trained / "model_4.pth")
    (line,) = faults(trained)
    assert "model_4.pth: not a checkpoint to resume from (its optimiser's state was rem" in line


def test_weights_that_were_made_anew_under_their_name_are_others(trained: Path) -> None:
    Path("some/backbone.pkl").write_text("x", encoding="utf-8")
    name = "'some/backbone.pkl'"
    assert faults(trained) == [f"MODEL.WEIGHTS was {name} {OLD}, asked {name} {NEW}"]


def test_other_data_of_the_same_name_are_refused(
    trained: Path, coco: CocoData, voc: VocData
) -> None:
    cfg = config("MODEL.WEIGHTS", "some/backbone.pkl")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("learn",), ("measure",)
    (trained / EFFECTIVE).write_text(cfg.dump(), encoding="utf-8")
    sets = {"learn": coco, "measure": voc}
    write_json(trained / INPUTS, input_digests(cfg, sets))
    assert resume_faults(cfg, trained, "sgd", sets) == []
    was = content_digest(voc)
    path = voc.root / "Annotations" / "001.xml"
    path.write_text(path.read_text(encoding="utf-8").replace(">30<", ">31<"), encoding="utf-8")
    (line,) = resume_faults(cfg, trained, "sgd", sets)
    assert line.startswith(
        f"{trained}: content of data set measure was sha256 {was[:16]}, asked sha256 "
        f"{content_digest(voc)[:16]}; a resumed run keeps its settings"
    )


def test_a_folder_that_does_not_say_its_inputs_is_not_resumed(trained: Path) -> None:
    (trained / INPUTS).unlink()
    (line,) = resume_faults(config(), trained, "sgd", {})
    assert "cannot be compared" in line and INPUTS in line


def test_an_evaluation_of_the_folder_takes_no_other_weights(trained: Path) -> None:
    assert weights_ignored(config(), trained) is None
    assert weights_ignored(config("MODEL.WEIGHTS", "some/backbone.pkl"), trained) is None
    fault = weights_ignored(config("MODEL.WEIGHTS", "x.pth"), trained)
    assert fault is not None and "but MODEL.WEIGHTS is x.pth; leave out one of" in fault


def test_weights_are_evaluated_with_the_input_that_they_were_trained_with(trained: Path) -> None:
    """No shape tells another order of channels, mean or anchors: AP would be another one."""
    assert evaluation_faults(config("INPUT.MIN_SIZE_TEST", "64"), trained) == []
    assert evaluation_faults(config("INPUT.FORMAT", "BGR"), trained / "some") == []  # not known
    asked = config("INPUT.FORMAT", "BGR", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32]]")
    lines = evaluation_faults(asked, trained)
    assert [line.partition("; evaluate them")[0] for line in lines] == [
        f"{trained / EFFECTIVE}: the weights were trained with {change}"
        for change in (
            "INPUT.FORMAT 'RGB', asked 'BGR'",
            "MODEL.ANCHOR_GENERATOR.SIZES [[20], [32], [48]], asked [[8], [16], [32]]",
        )
    ]


@pytest.mark.slow
def test_a_longer_run_ends_like_one_that_was_long_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    build_digits(tmp_path / "digits", sizes=Sizes(4, 20, 2, 20, 20))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    line = ["--config-file", str(CONFIG), "--resume"]
    changes = ["SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "(3,)", "SOLVER.IMS_PER_BATCH", "2"]
    changes += ["TEST.DETECTIONS_PER_IMAGE", "3"]

    def train(folder: str, length: int, *more: str) -> int:
        length_of = ["OUTPUT_DIR", folder, "SOLVER.MAX_ITER", str(length)]
        return main(arguments=[*line, *changes, *length_of, *more])

    assert train("twice", 2) == 0 and train("twice", 4) == 0 and train("once", 4) == 0
    states = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("twice", "once")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    before = (tmp_path / "twice" / EFFECTIVE).read_bytes()
    assert train("twice", 4, "SOLVER.BASE_LR", "0.5") == 2
    assert "train_net: twice: SOLVER.BASE_LR was 0.0003, asked 0.5" in capsys.readouterr().err
    assert (tmp_path / "twice" / EFFECTIVE).read_bytes() == before
    with caplog.at_level(logging.INFO):
        assert train("twice", 4) == 0
    assert "already at iteration 4 of 4: nothing to train, evaluating" in caplog.text
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["iteration"] == 4
