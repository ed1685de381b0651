"""The scripts as a person runs them: help, exit codes, one line for what is wrong.

Most run in this process, so that torch is imported once; what a process adds is asked of a few.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from tests.tools.conftest import Answer, Run

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


def run(script: str, *arguments: str, cwd: Path = ROOT) -> Answer:
    command = [sys.executable, str(ROOT / "tools" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize("script", ["run_pipeline.py", "pretrain.py", "convert_to_detectron2.py"])
def test_help_of_a_process_of_its_own(script: str, tmp_path: Path) -> None:
    answer = run(script, "--help", cwd=tmp_path)
    assert answer.returncode == 0 and answer.stdout.startswith("usage:"), answer.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_works_everywhere_and_scripts_are_thin(script: str, run_here: Run) -> None:
    answer = run_here(script, "--help")
    assert answer.returncode == 0 and answer.stdout.startswith("usage:"), answer.stderr
    assert "example" in answer.stdout.lower()
    assert len((ROOT / "tools" / script).read_text("utf-8").splitlines()) <= 60


NEED_NONE = {"doctor.py", "install_detectron2.py", "make_bundle.py"}


@pytest.mark.parametrize("script", sorted({*SCRIPTS} - NEED_NONE))
def test_without_its_packages_a_script_says_what_makes_them(script: str, tmp_path: Path) -> None:
    """`-S` leaves out the environment's packages; a benchmark imports them when it begins."""
    words = [sys.executable, "-S", str(ROOT / "tools" / script)]
    words += {
        "benchmark.py": ["whitening"], "convert_to_detectron2.py": ["a.pth", "a.pkl"],
        "export_backbone.py": ["a.pth", "out", "--format", "timm"],
    }.get(script, [])  # fmt: skip
    (tmp_path / "a.pth").touch()  # one that is not there is refused without any package
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, check=False, env=bare
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"{Path(script).stem}: No module named '")
    assert "; `make env` makes the environment" in line and ".venv/bin/activate" in line


WITH_CONFIG = {  # what stands before and behind the config
    "run_pipeline.py": (("plan",), ("seeds=[0]",)),
    "pretrain.py": ((), ("--output-dir", "out", "max_steps=1")),
    "probe.py": (("random:resnet18",), ("linear=null",)),
    "simulate.py": (("seeds=[0]",), ("--gpus", "8")),
    "check_data.py": ((), ("--decode", "none")),
    "train_net.py": ((), ("--num-gpus", "1", "OUTPUT_DIR", "out")),
}


@pytest.mark.parametrize("script", WITH_CONFIG)
def test_a_config_is_taken_without_its_flag_and_one_of_another_kind_is_one_line(
    script: str, run_here: Run, tmp_path: Path
) -> None:
    before, behind = WITH_CONFIG[script]
    other = "pretrain/probe_digits.yaml" if script != "probe.py" else "transfer/digits_base.yaml"
    lines = []
    for flag in ((), ("--config-file",)):
        answer = run_here(script, *before, *flag, "absent.yaml", *behind)
        assert answer.returncode == 2
        lines.append(answer.stderr.splitlines()[-1])
        assert "absent.yaml: no such config file" in lines[-1]
        answer = run_here(script, *before, *flag, str(ROOT / "configs" / other), *behind)
        (line,) = [each for each in answer.stderr.splitlines() if script[:-3] in each]
        lines.append(line)
        kind = "detectron2" if script == "probe.py" else "probe"
        assert f"{other}: is a {kind} config, wanted a " in line and " takes it, and " in line
        assert answer.returncode == 2 and not list(tmp_path.iterdir())
    assert lines[:2] == lines[2:]


@pytest.mark.parametrize("script", ["pretrain.py", "probe.py", "simulate.py"])
def test_a_config_that_is_missing_is_asked_for(script: str, run_here: Run) -> None:
    before, behind = WITH_CONFIG[script]
    answer = run_here(script, *before, *behind)
    assert answer.returncode == 2
    assert answer.stderr.endswith("error: the config is missing: --config-file FILE.yaml\n")


def test_pretrain_and_train_net_leave_a_pipelines_folder_alone(
    run_here: Run, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "configs.json").touch()
    fault = "runs/mine: is the folder of a pipeline (configs.json lies there); give another"
    config = str(ROOT / "configs" / "pretrain" / "digits_w_mse.yaml")
    answer = run_here("pretrain.py", config, "--output-dir", "runs/mine")
    assert (answer.returncode, answer.stderr) == (2, f"pretrain: {fault} --output-dir\n")
    config = str(ROOT / "configs" / "transfer" / "digits_faster_rcnn_voc.yaml")
    answer = run_here("train_net.py", config, "OUTPUT_DIR", "runs/mine")
    assert answer.returncode == 2 and f"train_net: {fault} OUTPUT_DIR\n" in answer.stderr


def test_convert_writes_weights_and_says_what_was_proved(run_here: Run, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r18.pth")
    answer = run_here("convert_to_detectron2.py", "r18.pth", "out/r18.pkl")
    assert answer.returncode == 0, answer.stderr
    assert "resnet18, 120 entries, format torchvision; largest relative" in answer.stdout
    assert json.loads((tmp_path / "out" / "r18.json").read_text("utf-8"))["arch"] == "resnet18"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("absent.pth", "o.pkl"), "absent.pth: no such checkpoint file"),
        (("absent.pth", "o.pth"), "o.pth: wanted a name ending in .pkl"),
        (
            ("absent.pth", "o.pkl", "--format", "moca"),
            "unknown format 'moca'; did you mean 'moco'? known:",
        ),
    ],
)
def test_convert_refuses_in_one_line(
    run_here: Run, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    answer = run_here("convert_to_detectron2.py", *arguments)
    assert answer.returncode == 2 and answer.stdout == ""
    lines = [line for line in answer.stderr.splitlines() if "convert_to_detectron2:" in line]
    assert len(lines) == 1 and expected in lines[0]
    assert "Traceback" not in answer.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["run", "plan", "status", "report"])
def test_pipeline_names_a_missing_config(command: str, run_here: Run) -> None:
    answer = run_here("run_pipeline.py", command, "--config-file", "absent.yaml")
    assert answer.returncode == 2
    assert answer.stderr == "run_pipeline: absent.yaml: no such config file\n"


def test_demo_without_data_says_how_to_get_it(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "pipeline" / "demo.yaml")
    answer = run("run_pipeline.py", "run", "--config-file", config, cwd=tmp_path)
    assert answer.returncode == 2
    lines = answer.stderr.splitlines()
    assert all(line.startswith("run_pipeline: datasets/digits/") for line in lines)
    assert any("datasets/digits/unlabeled: no such folder" in line for line in lines)
    assert any("instances_val2017.json: no such file" in line for line in lines)


def test_pretrain_lists_every_fault_of_its_config(run_here: Run, tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "pretrain" / "digits_w_mse.yaml")
    answer = run_here(
        "pretrain.py", "--config-file", config, "--output-dir", "out",
        "optimizer.lr=-1", "batch_size=1", "lossy=3",
    )  # fmt: skip
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 3
    for key in ("optimizer.lr", "batch_size", "lossy"):
        assert f"digits_w_mse.yaml: {key}:" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_pretrain_that_diverges_exits_1_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.effect_noise((32, 32), 90).save(tmp_path / "images" / f"{index}.png")
    config = str(ROOT / "configs" / "pretrain" / "digits_w_mse.yaml")
    answer = run(
        "pretrain.py", "--config-file", config, "--output-dir", "out", "data.root=images",
        "batch_size=4", "loss={name: none}", "loss.normalize=false", "optimizer.lr=1e30",
        "optimizer.warmup_steps=0", cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 1, answer.stderr
    lines = [line for line in answer.stderr.splitlines() if line.startswith("pretrain: ")]
    assert len(lines) == 1 and " with learning rate 1e+30; " in lines[0]
    assert "Traceback" not in answer.stderr
    assert (tmp_path / "out" / "divergence.pth").exists()


def test_reports_of_two_folders_are_compared_and_init_refuses_what_plan_would(
    run_here: Run,
) -> None:
    answer = run_here("run_pipeline.py", "report", "runs/a", "runs/b")
    assert answer.returncode == 2
    assert answer.stderr.startswith("run_pipeline: runs/a/report/results.json: no such file")
    answer = run_here("run_pipeline.py", "report")
    assert (answer.returncode, answer.stderr) == (
        2,
        "run_pipeline: report: --config-file is missing (or two runs' folders to compare)\n",
    )
    task = ROOT / "configs" / "transfer" / "digits_faster_rcnn_voc.yaml"
    arguments = ("--backbone", "random", "--task", f"voc={task}")
    answer = run_here("run_pipeline.py", "init", "mine.yaml", *arguments)
    assert answer.returncode == 2 and "datasets/digits/VOC2007" in answer.stderr
    answer = run_here("run_pipeline.py", "plan", "--config-file", "mine.yaml")
    assert answer.returncode == 2 and "mine.yaml" in answer.stderr  # nothing was written


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(75)])
def test_a_stopped_pretraining_says_how_to_go_on(
    run_here: Run, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    """Before the first step, and after a state is saved; the command as it was given."""

    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr("pretrain.train.pretrain", stopped)
    command = ["python", "tools/pretrain.py", "--output-dir", "runs/two words", "max_steps=3"]
    monkeypatch.setattr(sys, "orig_argv", command)
    config = str(ROOT / "configs" / "pretrain" / "digits_cw_rgp.yaml")
    arguments = ("--config-file", config, "--output-dir", "runs/two words", "data.root=.")
    answer = run_here("pretrain.py", *arguments)
    assert (answer.returncode, answer.stderr) == (
        75,
        "pretrain: stopped; go on with: python tools/pretrain.py --output-dir 'runs/two words' "
        "max_steps=3\n",
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = run_here("pretrain.py", *arguments)
    assert (
        answer.stderr == "pretrain: stopped; go on with: the same command, on as many processes\n"
    )


def test_a_simulation_is_of_the_plan(run_here: Run) -> None:
    config = str(ROOT / "configs" / "pipeline" / "full_comparison.yaml")
    answer = run_here("simulate.py", "--config-file", config, "--gpus", "512")
    assert answer.returncode == 0, answer.stderr
    assert "| all, estimated | 97 |" in answer.stdout
    assert "the longest chain, pretrain/" in answer.stdout
    answer = run_here("simulate.py", "--config-file", config, "--gpus", "4")
    assert answer.returncode == 2 and "needs 8 GPUs of 4" in answer.stderr
    answer = run_here("simulate.py", "--config-file", config, "--price-per-gpu-hour", "-1")
    assert answer.returncode == 2
    assert answer.stderr == "simulate: the price of a GPU hour is -1, wanted a number above 0\n"
