"""`tools/train_net.py`: detectron2's command line, and one line for whatever is wrong."""

import json
import logging
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser as theirs
from torch.distributed import TCPStore

from transfer.config.command_line import merged_config
from transfer.config.finetune import defaults, flat
from transfer.detection import cli
from transfer.detection.cfg import default_cfg
from transfer.detection.cli import machines_for, main, named_datasets, read_config
from transfer.detection.run import Machines

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "transfer"
FAST = [
    "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.IMS_PER_BATCH", "2",
    "TEST.DETECTIONS_PER_IMAGE", "3",
]  # fmt: skip


@pytest.fixture
def data(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(drawn))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_training_resuming_and_evaluating(
    data: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = ["--config-file", str(CONFIGS / "digits_faster_rcnn_voc.yaml")]
    output = [*FAST, "OUTPUT_DIR", "out"]
    with caplog.at_level(logging.INFO):
        assert main(arguments=[*config, "--num-gpus", "8", "--resume", *output]) == 0
    trained = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    said = caplog.text
    if not torch.cuda.is_available():
        assert "no CUDA device: one process instead of 8" in said
    assert "--resume, but out has no checkpoint: starting anew" in said
    assert "1 process(es) on" in said and "memory, a rule of thumb" in said
    assert (data / "out" / "effective_config.yaml").is_file()
    weights = ["MODEL.WEIGHTS", "out/model_final.pth", "OUTPUT_DIR", "again", *FAST]
    assert main(arguments=[*config, "--eval-only", *weights]) == 0
    evaluated = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert "bbox/AP" in evaluated and evaluated.items() <= trained.items()
    assert trained["iteration"] == trained["best/iteration"] == 2


@pytest.mark.slow
def test_everything_written_is_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    config = ["--config-file", str(CONFIGS / "digits_mask_rcnn_coco.yaml")]  # no large objects
    assert main(arguments=[*config, *FAST, "TEST.EVAL_PERIOD", "1", "OUTPUT_DIR", "out"]) == 0
    printed = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert printed["bbox/APl"] is None and printed["segm/APl"] is None
    for name in ("metrics.json", "metrics.jsonl"):
        for line in (data / "out" / name).read_text(encoding="utf-8").splitlines():
            assert "bbox/APl" not in json.loads(line, parse_constant=refuse)
    text = (data / "out" / "predictions.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config-file", "absent.yaml"], "absent.yaml: no such config file"),
        (["--config-file", "bad.yaml"], "bad.yaml: SOLVER.LR: detectron2 has no such key"),
        (["--config-file", "code.yaml"], "code.yaml: not a config: could not determine"),
        (["SOLVER.LR", "1"], "refuses the config: Non-existent key: SOLVER.LR"),
        (["MODEL.WEIGHTS", "detectron2://x.pkl"], "MODEL.WEIGHTS is detectron2://x.pkl, wanted"),
        (["MODEL.WEIGHTS", "x.pth"], "x.pth: no such file (MODEL.WEIGHTS)"),
        (["MODEL.WEIGHTS", "text.pth"], "text.pth: torch cannot read it (UnpicklingError); wanted"),
        (["MODEL.WEIGHTS", "cut.pth"], "cut.pth: torch cannot read it (RuntimeError); wanted a"),
        (["MODEL.WEIGHTS", "backbone.pth"], "backbone.pth: no tensors by name under 'model'; wan"),
        (["MODEL.WEIGHTS", "lonely.pkl"], "lonely.json: not there; make weights with"),
        (["DATASETS.TRAIN", "('cats',)"], "unknown data set cats; known: coco_2017_train"),
        (["DATASETS.TRAIN", "('cats',)"], "one of your own is an entry under `datasets:` of a"),
        (["DATASETS.TEST", "('voc_2007_tset',)"], "set voc_2007_tset; did you mean voc_2007_test?"),
        (["DATASETS.TEST", "('lvis_v1_val',)"], "lvis_v1_val, which is measured by other rules ("),
        (["DATASETS.TEST", "('cityscapes_fine_instance_seg_val',)"], "(cityscapes_instance);"),
        (["DATALOADER.SAMPLER_TRAIN", "X"], "SAMPLER_TRAIN is 'X', wanted 'TrainingSampler'"),
        (["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED is True, wanted False"),
        (["SOLVER.AMP.PRECISION", "fp8"], "PRECISION is 'fp8', wanted one of fp16, bf16"),
        (["--eval-only"], "nothing to evaluate: MODEL.WEIGHTS is empty"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "NUM_CLASSES is 3, but digits_voc_test has 10"),
    ],
)
def test_what_is_wrong_is_one_line(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    (data / "bad.yaml").write_text("SOLVER: {LR: 1}\n", encoding="utf-8")
    (data / "code.yaml").write_text("SEED: !!python/object/apply:os.getpid []\n", encoding="utf-8")
    (data / "lonely.pkl").touch()
    (data / "text.pth").write_text("garbage\n", encoding="utf-8")
    torch.save({"state_dict": {"conv1.weight": torch.ones(64)}}, data / "backbone.pth")
    (data / "cut.pth").write_bytes((data / "backbone.pth").read_bytes()[:600])
    if "--config-file" not in arguments:
        arguments = ["--config-file", str(CONFIGS / "digits_faster_rcnn_voc.yaml"), *arguments]
    assert main(arguments=arguments) == 2
    error = capsys.readouterr().err
    assert expected in error.splitlines()[-1] and error.count("train_net:") == 1
    assert "Traceback" not in error


def test_sets_of_detectron2_alone_are_said_not_to_be_checked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ["DATASETS.TRAIN", ("digits_coco_train",), "DATASETS.TEST", ("coco_2014_minival",)]
    cfg = read_config(str(CONFIGS / "digits_faster_rcnn_voc.yaml"), names)
    assert list(named_datasets(cfg)) == ["digits_coco_train"]
    (line,) = caplog.messages
    assert line.startswith("coco_2014_minival: detectron2's own, so neither files nor images that")


def test_the_command_line_is_that_of_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli, "execute", lambda options, _: seen.append(vars(options)) or {})
    line = ["--config-file", "f", "--num-gpus", "4", "--num-machines", "2", "--machine-rank", "1"]
    line += ["--dist-url", "tcp://n1:5", "--resume", "--eval-only", "SOLVER.BASE_LR", "1"]
    assert main(arguments=line) == 0
    assert seen == [vars(theirs().parse_args(line)) | {"optimizer": None}]


def test_options_may_stand_behind_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli, "execute", lambda options, _: seen.append(options) or {})
    line = ["--config-file", "f", "OUTPUT_DIR", "a", "--resume", "SEED", "1", "OUTPUT_DIR", "b"]
    assert main(arguments=[*line, "--optimizer", "adamw", "SEED", "2"]) == 0
    (options,) = seen
    assert options.resume and options.optimizer == "adamw" and options.config_file == "f"
    assert options.opts == ["OUTPUT_DIR", "a", "SEED", "1", "OUTPUT_DIR", "b", "SEED", "2"]


def test_a_config_may_stand_without_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli, "execute", lambda options, _: seen.append(options) or {})
    for line in (["a.yaml", "--resume", "SEED", "1"], ["--resume", "a.yaml", "SEED", "1"]):
        assert main(arguments=line) == 0
        assert seen[-1].resume and seen[-1].config_file == "a.yaml"
        assert seen[-1].opts == ["SEED", "1"]
    assert main(arguments=["--config-file", "a.yaml", "b.yaml", "1"]) == 0  # a key, to be refused
    assert seen[-1].config_file == "a.yaml" and seen[-1].opts == ["b.yaml", "1"]


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_is_told_that_processes_are_started_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    monkeypatch.setattr(cli, "execute", lambda options, _: {})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(arguments=["--config-file", "f"]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    assert main(arguments=["--config-file", "f"]) == 2
    told = capsys.readouterr().err
    assert told.count("train_net: torchrun started 2 processes, but train_net starts") == 1 - rank


def test_torchruns_first_process_to_come_prints_and_all_wait_until_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    environment = place | {"TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "1"}
    cli.tell_once("the line", environment)
    assert capsys.readouterr().err == "the line\n" and server.check(["train_net/printed"])
    waited = []
    monkeypatch.setattr(cli.TCPStore, "wait", lambda store, keys: waited.extend(keys))
    cli.tell_once("the line", environment | {"RANK": "0"})
    assert capsys.readouterr().err == "" and waited == ["train_net/printed"]


def test_machines_follow_the_command_line_and_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    options = theirs().parse_args(["--num-gpus", "4", "--num-machines", "2", "--machine-rank", "1"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machines_for(options) == Machines(4, 2, 1, options.dist_url)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--num-machines: this machine has no CUDA device"):
        machines_for(options)
    options.num_machines = 1
    assert machines_for(options) == Machines()


@pytest.mark.parametrize(
    "changes",
    [["NOSUCH.KEY", "1"], ["MODEL.DEVICE"], ["SOLVER.BASE_LR", "[1]"], []],
    ids=str,
)
def test_what_is_refused_before_torch_is_imported_is_refused_in_the_same_words(
    changes: list[str],
) -> None:
    path = str(CONFIGS / "digits_faster_rcnn_voc.yaml")
    answers = []
    for cfg in (default_cfg(), defaults().clone()):
        try:
            answers.append(flat(merged_config(cfg, path, changes, CfgNode.load_yaml_with_base)))
        except ValueError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
