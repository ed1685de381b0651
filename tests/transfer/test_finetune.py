"""Fine-tuning of tiny detectors on a small drawing of the digits, through the stage's own entry."""

import doctest
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml

from examples.digits.build import Sizes, build_digits
from transfer import finetune as finetune_module
from transfer.config.data import KNOWN_DATASETS
from transfer.config.finetune import FinetuneConfig
from transfer.convert import convert_checkpoint
from transfer.detection import trainer as trainer_module
from transfer.detection.cfg import build_cfg
from transfer.detection.run import EFFECTIVE
from transfer.detection.trainer import EXIT_INTERRUPTED, METRICS, TRAINERS, AdamWTrainer, Trainer
from transfer.finetune import (
    check_machine,
    check_stage,
    finetune,
    run_stage,
    strip_state,
)
from transfer.resnet import NEW_PARAMETERS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "transfer"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 8 training and 6 validation scenes and convert a random ResNet-18."""
    root = tmp_path_factory.mktemp("finetune")
    build_digits(root / "digits", sizes=Sizes(8, 6, 2, 20, 20))
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    for name, value in state.items():  # nothing may look like a fresh network
        state[name] = (
            value + 1 if name.endswith("tracked") else value + 0.01 * torch.rand_like(value)
        )
    torch.save(state, root / "source.pth")
    convert_checkpoint(root / "source.pth", root / "backbone.pkl")
    return root


def task(root: Path, name: str, **changes: Any) -> FinetuneConfig:
    """Return one of the demo's tasks, cut to three iterations."""
    content: dict[str, Any] = {}
    for file in ("digits_base.yaml", f"digits_{name}.yaml"):
        for key, value in yaml.safe_load((CONFIGS / file).read_text("utf-8")).items():
            if isinstance(value, dict):
                content[key] = content.get(key, {}) | value
    base_model = yaml.safe_load((CONFIGS / "digits_base.yaml").read_text("utf-8"))["MODEL"]
    content["MODEL"] = base_model | content["MODEL"] | changes.pop("MODEL", {})
    content["SOLVER"] = content["SOLVER"] | {
        "IMS_PER_BATCH": 2, "MAX_ITER": 3, "STEPS": [2], "WARMUP_ITERS": 0,
        "CHECKPOINT_PERIOD": 100,
    } | changes.pop("SOLVER", {})  # fmt: skip
    for section in ("TEST", "INPUT"):
        content[section] = content[section] | changes.pop(section, {})
    names = [*content["DATASETS"]["TRAIN"], *content["DATASETS"]["TEST"]]
    return FinetuneConfig(
        detectron2=content,
        datasets={key: KNOWN_DATASETS[key].under(root) for key in names},
        num_pictures=2,
        **changes,
    )


def logged(folder: Path) -> list[dict[str, float]]:
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds"), [("faster_rcnn_voc", {"bbox"}), ("mask_rcnn_coco", {"bbox", "segm"})]
)
def test_a_stage_writes_ap_predictions_and_pictures(
    root: Path, tmp_path: Path, name: str, kinds: set[str]
) -> None:
    settings = task(root, name).model_dump(mode="json")
    settings["detectron2"]["TEST"] = {"EVAL_PERIOD": 2}
    metrics = run_stage(settings, {"weights": root / "backbone.pkl"}, tmp_path)
    curve = [(line["step"], line["bbox/AP"]) for line in logged(tmp_path) if "bbox/AP" in line]
    assert [step for step, _ in curve] == [2, 3]  # after the period, and at the end
    assert (metrics["iteration"], metrics["bbox/AP"]) == curve[-1]
    assert metrics["best/bbox/AP"] == max(value for _, value in curve)
    assert metrics["best/iteration"] in (2, 3)
    missing = {"classes"}  # six scenes do not show all ten digits
    assert {key.partition("/")[0] for key in metrics} == {*kinds, "best", "iteration", *missing}
    assert 0 < metrics["classes/measured"] < metrics["classes/all"] == 10
    assert all(0 <= metrics[f"{kind}/AP"] <= 100 for kind in kinds)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert "model_final.pth" in names and "predictions.json" in names
    assert not [name for name in names if name.startswith("model_0")]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "00-detections.jpg", "00-ground_truth.jpg", "01-detections.jpg", "01-ground_truth.jpg",
        "grid.jpg",
    ]  # fmt: skip
    assert logged(tmp_path)[-1]["step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_its_optimiser_a_finished_run_is_evaluated_to_the_same_ap(
    root: Path, tmp_path: Path, optimizer: Any
) -> None:
    config = task(root, "faster_rcnn_voc", optimizer=optimizer, SOLVER={"BASE_LR": 1e-3})
    metrics = finetune(config, root / "backbone.pkl", tmp_path)
    path, target = tmp_path / "model_final.pth", tmp_path / "stripped.pth"
    size = path.stat().st_size
    num_bytes = strip_state(path, target)
    before, after = (torch.load(each, weights_only=True) for each in (path, target))
    assert before.keys() - after.keys() == {"optimizer"} and path.stat().st_size == size
    parameters = sum(value.nbytes for value in before["model"].values())
    copies = {"sgd": 1, "adamw": 2}[optimizer]  # momentum, of what is trained; and two averages
    assert 0.7 * copies * parameters < num_bytes <= copies * parameters
    assert size - target.stat().st_size == pytest.approx(num_bytes, rel=0.1)
    assert strip_state(target, None) == 0
    target.replace(path)
    assert finetune(config, root / "backbone.pkl", tmp_path) == metrics
    assert path.stat().st_size < size - 0.9 * num_bytes


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_right_learning_rate(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = {"MAX_ITER": 4, "STEPS": [3], "BASE_LR": 0.01, "WARMUP_ITERS": 2, "WARMUP_FACTOR": 0.5}
    config = task(root, "faster_rcnn_voc", SOLVER=solver)
    original, rates, momentum = Trainer.run_step, [], []

    def run_step(self: Trainer) -> None:
        rates.append(self.optimizer.param_groups[0]["lr"])
        momentum.append(len(self.optimizer.state))
        if len(rates) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    with pytest.raises(SystemExit) as stopped:
        finetune(config, root / "backbone.pkl", tmp_path)
    assert stopped.value.code == EXIT_INTERRUPTED
    assert rates == pytest.approx([0.005, 0.0075])
    assert (tmp_path / "last_checkpoint").read_text("utf-8") == "model_0000001.pth"
    finetune(config, root / "backbone.pkl", tmp_path)
    assert rates == pytest.approx([0.005, 0.0075, 0.01, 0.001])
    assert momentum[0] == 0 and momentum[2] == momentum[1] > 50


@pytest.mark.slow
def test_precise_norms_and_evaluations_say_how_far_they_are_and_change_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = {"EVAL_PERIOD": 2, "PRECISE_BN": {"ENABLED": True, "NUM_ITER": 2}}
    config = task(root, "faster_rcnn_voc", TEST=test)
    monkeypatch.setattr(trainer_module, "TELL_EVERY_S", 3600)
    silent = finetune(config, root / "backbone.pkl", tmp_path / "silent")
    monkeypatch.setattr(trainer_module, "TELL_EVERY_S", -1)
    assert finetune(config, root / "backbone.pkl", tmp_path / "telling") == silent
    assert_equal_runs(tmp_path / "silent", tmp_path / "telling")
    lines = logged(tmp_path / "telling")
    said = [(line["step"], line["doing"]) for line in lines if "doing" in line]
    norms = ["precise BatchNorm 0/2", "precise BatchNorm 1/2"]  # the last batch asks for no more
    images = [f"evaluating {done}/6" for done in range(7)]
    assert said == [(step, doing) for step in (2, 3) for doing in (*norms, *images)]
    begun = [line["doing"] for line in logged(tmp_path / "silent") if "doing" in line]
    assert begun == 2 * [norms[0], images[0]]


def test_the_example_runs_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(finetune_module)
    assert failed == 0 and attempted >= 7


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "model_final.pth"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return state


def assert_equal_runs(one: Path, other: Path) -> None:
    """Compare weights bit by bit, then what was detected, then the losses of the last step."""
    first, second = final_weights(one), final_weights(other)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for file in ("predictions.json", EFFECTIVE):
        written = [(folder / file).read_text("utf-8") for folder in (one, other)]
        assert written[0].replace(str(one), "") == written[1].replace(str(other), "")


@pytest.mark.slow
def test_a_killed_run_ends_bit_by_bit_like_one_that_was_not(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 5 iterations of 3 images out of 8; checkpoints after 2 and 4; killed in the iterations with
    # numbers 1 (before any checkpoint), 3 (between two) and asked to stop in 4
    solver = {"MAX_ITER": 5, "STEPS": [4], "IMS_PER_BATCH": 3, "CHECKPOINT_PERIOD": 2}
    config = task(
        root, "faster_rcnn_voc", SOLVER=solver,
        TEST={"EVAL_PERIOD": 2, "PRECISE_BN": {"ENABLED": True, "NUM_ITER": 2}},
        INPUT={"MIN_SIZE_TRAIN": [96, 112, 128], "RANDOM_FLIP": "horizontal"},
    )  # fmt: skip
    finetune(config, root / "backbone.pkl", tmp_path / "whole")
    original, deaths = Trainer.run_step, {1: "kill", 3: "kill", 4: "stop"}
    seen: list[int] = []

    def run_step(self: Trainer) -> None:
        seen.append(self.iter)
        death = deaths.pop(self.iter, "")
        if death == "kill":
            raise MemoryError  # whatever ends a process without a word
        if death == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    for error in (MemoryError, MemoryError, SystemExit):
        torch.rand(7)  # a new process does not start with the same generators
        with pytest.raises(error):
            finetune(config, root / "backbone.pkl", tmp_path / "killed")
    finetune(config, root / "backbone.pkl", tmp_path / "killed")
    assert seen == [0, 1, 0, 1, 2, 3, 2, 3, 4]
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_a_seed_decides_heads_and_order_and_nothing_else(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, torch.Tensor]] = []
    images: list[list[str]] = []
    original = Trainer.run_step

    def run_step(self: Trainer) -> None:
        if self.iter == 0:
            started.append({name: v.clone() for name, v in self.model.state_dict().items()})
            batches = zip(range(3), self.data_loader, strict=False)
            images.append([image["file_name"] for _, batch in batches for image in batch])
        original(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = task(root, "faster_rcnn_voc", SOLVER={"MAX_ITER": 2, "STEPS": []}, seed=seed)
        finetune(config, root / "backbone.pkl", tmp_path / folder)
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert images[0] == images[1] != images[2]
    differ = {name for name in started[0] if not torch.equal(started[0][name], started[2][name])}
    assert differ and all(name.startswith(NEW_PARAMETERS) for name in differ)
    assert "roi_heads.box_predictor.cls_score.weight" in differ
    settings = [(tmp_path / folder / EFFECTIVE).read_text("utf-8") for folder in "ac"]
    lines = [set(text.splitlines()) for text in settings]
    assert {line.split(":")[0] for line in lines[0] ^ lines[1]} == {"SEED", "OUTPUT_DIR"}


def test_a_config_that_contradicts_the_weights_is_refused(root: Path, tmp_path: Path) -> None:
    changed = {"PIXEL_MEAN": [0.0, 0.0, 0.0], "RESNETS": {"DEPTH": 34}}
    base = task(root, "faster_rcnn_voc").detectron2["MODEL"]["RESNETS"]
    changed["RESNETS"] = base | {"DEPTH": 34}
    config = task(root, "faster_rcnn_voc", MODEL=changed)
    with pytest.raises(ValueError, match=r"PIXEL_MEAN is \[0.0.*DEPTH is 34, wanted 18"):
        finetune(config, root / "backbone.pkl", tmp_path)


def test_weights_without_their_companion_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "lonely.pkl").write_bytes((root / "backbone.pkl").read_bytes())
    with pytest.raises(ValueError, match=r"lonely\.json: not there; make weights with"):
        finetune(task(root, "faster_rcnn_voc"), tmp_path / "lonely.pkl", tmp_path)
    (tmp_path / "lonely.json").write_bytes((root / "backbone.json").read_bytes())
    (tmp_path / "lonely.pkl").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"lonely\.pkl: not the file that lonely\.json describes"):
        finetune(task(root, "faster_rcnn_voc"), tmp_path / "lonely.pkl", tmp_path)


def test_weights_that_do_not_reach_the_model_are_an_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "resume_or_load", lambda self, resume: None)
    with pytest.raises(ValueError, match=r"120 entries were not loaded: .*stem\.conv1\.weight"):
        finetune(task(root, "faster_rcnn_voc"), root / "backbone.pkl", tmp_path)


@pytest.mark.slow
def test_divergence_ends_in_one_line_with_a_hint(root: Path, tmp_path: Path) -> None:
    clip = {"CLIP_GRADIENTS": {"ENABLED": False}, "BASE_LR": 1e6, "MAX_ITER": 6}
    with pytest.raises(ValueError, match=r"diverged at iteration \d of 6 .*SOLVER\.BASE_LR"):
        finetune(task(root, "faster_rcnn_voc", SOLVER=clip), None, tmp_path)


def test_checks_before_the_start(root: Path) -> None:
    assert check_stage(task(root, "mask_rcnn_coco").model_dump(mode="json")) == []
    unknown = task(root, "mask_rcnn_coco", SOLVER={"BASE_LRR": 0.1}).model_dump(mode="json")
    unknown["detectron2"] |= {"SEED": 5, "MODELL": 1, "INPUT": 3}
    assert check_stage(unknown) == [
        "INPUT: got 3, wanted a section of keys",
        "SOLVER.BASE_LRR: detectron2 has no such key; did you mean SOLVER.BASE_LR?",
        "MODELL: detectron2 has no such key; did you mean MODEL?",
        "SEED is 5, but the pipeline sets it; remove it from the config",
    ]
    classes = task(root, "mask_rcnn_coco").model_dump(mode="json")
    classes["detectron2"]["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] = 3
    (fault,) = check_stage(classes)
    digits = "zero, one, two, three, four, five, six, seven, eight, nine"
    known = f"digits_coco_val has 10 classes: {digits}"
    assert fault == f"MODEL.ROI_HEADS.NUM_CLASSES is 3, but {known}"
    wrong = task(root, "mask_rcnn_coco", SOLVER={"BASE_LR": "fast"}).model_dump(mode="json")
    (fault,) = check_stage(wrong)
    assert "BASE_LR" in fault
    elsewhere = task(root / "gone", "faster_rcnn_voc").model_dump(mode="json")
    faults = check_stage(elsewhere)
    assert len(faults) >= 2 and all("gone" in line for line in faults)


def test_class_count_must_match_the_data(root: Path, tmp_path: Path) -> None:
    base = task(root, "faster_rcnn_voc").detectron2["MODEL"]["ROI_HEADS"]
    config = task(root, "faster_rcnn_voc", MODEL={"ROI_HEADS": base | {"NUM_CLASSES": 3}})
    with pytest.raises(ValueError, match="NUM_CLASSES is 3, but digits_voc_test has 10 classes"):
        finetune(config, None, tmp_path)


def test_adamw_takes_its_settings_from_solver(root: Path) -> None:
    clip = {"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 1.0}
    solver = {"BASE_LR": 0.003, "WEIGHT_DECAY": 0.05, "CLIP_GRADIENTS": clip}
    cfg = build_cfg(task(root, "faster_rcnn_voc", SOLVER=solver), None, Path())
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = AdamWTrainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.003, 0.05)}
    model.weight.grad = torch.full((2, 3), 100.0)
    optimizer.step()
    assert float(model.weight.grad.norm()) == pytest.approx(1.0, rel=1e-5)
    assert TRAINERS[task(root, "faster_rcnn_voc").optimizer] is AdamWTrainer  # its base says so
    assert TRAINERS["sgd"] is Trainer


@pytest.mark.parametrize(
    ("found", "wanted", "nodes", "is_enough"),
    [(0, 1, 1, True), (0, 2, 1, False), (2, 2, 1, True), (2, 1, 2, False), (2, 3, 1, False)],
)
def test_a_machine_is_asked_for_its_gpus_before_the_start(
    monkeypatch: pytest.MonkeyPatch, found: int, wanted: int, nodes: int, is_enough: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    config = {"detectron2": {}, "datasets": {}, "num_gpus": wanted, "num_nodes": nodes}
    faults = check_machine(config)
    assert len(faults) == (0 if is_enough else 1)
    if faults:
        assert f"num_gpus {wanted} on num_nodes {nodes}" in faults[0]
        assert f"one machine with {found} GPUs" in faults[0]


def test_mixed_precision_without_a_gpu_is_refused_before_anything_is_trained(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = task(root, "faster_rcnn_voc", SOLVER={"AMP": {"ENABLED": True}})
    settings = config.model_dump(mode="json")
    assert not check_stage(settings)  # the machine that will run it may have one
    (fault,) = check_machine(settings)
    with pytest.raises(ValueError, match=r"^SOLVER\.AMP\.ENABLED is True") as refused:
        finetune(config, None, tmp_path)
    assert str(refused.value) == fault
    assert not list(tmp_path.iterdir())
