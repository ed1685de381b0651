"""Write a pipeline config from a few flags or questions: commented, valid, ready to run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from pipeline.config.editor_schemas import write_schemas
from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import faults_of, load_yaml
from pipeline.plan.compatibility import dataset_names
from pipeline.stages.files import write_text
from pretrain.config.pretrain import PretrainConfig

EXAMPLE = """examples:
  python tools/run_pipeline.py init mine.yaml          # asks
  python tools/run_pipeline.py init mine.yaml --backbone random --backbone moco=weights/moco.pth \\
      --task voc=configs/transfer/digits_faster_rcnn_voc.yaml --seeds 0,1,2 --executor slurm"""
YAML = (".yaml", ".yml")
SCHEMA = Path(__file__).resolve().parents[2] / "configs" / "schemas" / "pipeline.schema.json"
HEADER = """\
# yaml-language-server: $schema={schema}
# What is compared: every backbone is fine-tuned on every task with every seed.
#   python tools/run_pipeline.py plan --config-file {target}    # check it; runs nothing
#   python tools/run_pipeline.py run --config-file {target}{executor}
# Configs are named relative to this file; checkpoints, data and output relative to where you run.
"""
RESOURCES = """
# What the jobs of each kind of stage ask SLURM for; add partition, account, qos, constraint, setup.
resources:
  default: {cpus_per_gpu: 4, mem_gb: 16, timeout_min: 60}
  pretrain: {gpus: 8, cpus_per_gpu: 8, mem_gb: 128, timeout_min: 1440}
  finetune: {gpus: 8, cpus_per_gpu: 4, mem_gb: 64, timeout_min: 720}
"""


@dataclass(frozen=True)
class Answers:
    """What a config is written from; sources and tasks are (name, path as the user typed it)."""

    backbones: tuple[tuple[str, str], ...]
    tasks: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    executor: str = "local"


def main(arguments: list[str]) -> int:
    """Run `run_pipeline.py init`; return the exit code: 0 written, 2 something to mend."""
    parser = argparse.ArgumentParser(
        prog="run_pipeline.py init",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target", type=Path, nargs="?", help="config to write (YAML); must not exist"
    )
    parser.add_argument(
        "--backbone", action="append", default=[], metavar="NAME=PATH",
        help="a checkpoint or a pretraining config (.yaml); plain `random` for no pretraining",
    )  # fmt: skip
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME=PATH", help="a detectron2 config"
    )
    parser.add_argument("--seeds", metavar="0,1,2", help="default: 0,1,2")
    parser.add_argument("--executor", choices=["local", "slurm"])
    parser.add_argument(
        "--schemas", type=Path, metavar="FOLDER", help="write the JSON schemas for editors instead"
    )
    options = parser.parse_args(arguments)
    try:
        if options.schemas is not None:
            print("\n".join(map(str, write_schemas(options.schemas))))
            return 0
        if options.target is None:
            raise ValueError("init: the config to write is missing")
        answers = answers_of(options, ask=input if sys.stdin.isatty() else None)
        write_config(options.target, answers)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"run_pipeline: {line}", file=sys.stderr)
        return 2
    except (EOFError, KeyboardInterrupt):
        print("run_pipeline: nothing was written", file=sys.stderr)
        return 2
    print(f"{options.target}: written; next: run_pipeline.py plan --config-file {options.target}")
    return 0


def answers_of(options: argparse.Namespace, ask: Callable[[str], str] | None) -> Answers:
    """Return what the flags say, asking for what they leave open where somebody can answer.

    Raises:
        ValueError: a flag cannot be read, or is missing and nobody can be asked.
    """
    backbones, tasks = list(options.backbone), list(options.task)
    if not backbones:
        question = "backbones, such as `random moco=moco.pth mine=configs/pretrain/mine.yaml`: "
        backbones = _asked(ask, question, "--backbone").split()
    if not tasks:
        question = "tasks, such as `voc=configs/transfer/voc07_faster_rcnn_r50_c4_9k.yaml`: "
        tasks = _asked(ask, question, "--task").split()
    seeds = options.seeds or (ask("seeds [0,1,2]: ") if ask else "") or "0,1,2"
    executor = options.executor or (ask("executor, local or slurm [local]: ") if ask else "")
    return Answers(
        tuple(_pair("backbone", text) for text in backbones),
        tuple(_pair("task", text) for text in tasks),
        _seeds(seeds),
        executor or "local",
    )


def _asked(ask: Callable[[str], str] | None, question: str, flag: str) -> str:
    if ask is None:
        raise ValueError(f"{flag} is missing, and there is no terminal to ask at")
    return ask(question)


def _pair(what: str, text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if what == "backbone" and text == "random":
        return "random", ""
    if not separator or not name or not path:
        raise ValueError(f"{what} {text!r}: wanted NAME=PATH")
    return name, path


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        raise ValueError(f"seeds {text!r}: wanted numbers, such as 0,1,2") from None


def write_config(target: Path, answers: Answers) -> None:
    """Write the config that `config_text` gives, if it is valid and names files that exist.

    Raises:
        ValueError: every fault, one a line; nothing is written.
    """
    if target.exists():
        raise ValueError(f"{target}: exists; give another name or remove it")
    text = config_text(target, answers)
    faults = [
        f"{path}: no such file ({what} {name})"
        for what, pairs in (("backbone", answers.backbones), ("task", answers.tasks))
        for name, path in pairs
        if path and not Path(path).is_file()
    ]
    faults += [
        fault
        for pairs, faults_in in ((answers.tasks, _task_faults), (answers.backbones, _recipe_faults))
        for _, path in pairs
        if path.endswith(YAML) and Path(path).is_file()
        for fault in faults_in(Path(path))
    ]
    try:
        PipelineConfig.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        faults += faults_of(error, str(target), PipelineConfig)
    if faults:
        raise ValueError("\n".join(faults))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)


def _task_faults(path: Path) -> list[str]:
    """Return why a file is not a detectron2 config that names data sets."""
    try:
        return dataset_names(load_yaml(path), path)[1]
    except ValueError as error:
        return [f"{path}: not a config ({error})"]


def _recipe_faults(path: Path) -> list[str]:
    """Return why a file is not a pretraining config."""
    try:
        PretrainConfig.model_validate(load_yaml(path))
    except ValidationError as error:
        return faults_of(error, str(path), PretrainConfig)
    except ValueError as error:
        return [f"{path}: not a config ({error})"]
    return []


def config_text(target: Path, answers: Answers) -> str:
    """Return the commented YAML."""
    slurm = answers.executor == "slurm"
    lines = [
        HEADER.format(
            target=target,
            executor=" --executor slurm" if slurm else "",
            schema=os.path.relpath(SCHEMA, target.parent),
        ),
        _entry("", {"name": target.stem}),
        "backbones:                # random: true is the baseline of all differences",
        *(_entry("  - ", _backbone(target, name, path)) for name, path in answers.backbones),
        "tasks:",
        *(
            _entry("  - ", {"name": name, "config": _relative(target, path)})
            for name, path in answers.tasks
        ),
        f"seeds: {list(answers.seeds)}        # mean ± std is over these",
        "num_parallel: 1           # stages at a time on one machine",
    ]
    return "\n".join(lines) + "\n" + (RESOURCES if slurm else "")


def _backbone(target: Path, name: str, path: str) -> dict[str, object]:
    if not path:
        return {"name": name, "random": True}
    if path.endswith(YAML):
        return {"name": name, "pretrain": _relative(target, path)}
    return {"name": name, "checkpoint": path}


def _relative(target: Path, path: str) -> str:
    return os.path.relpath(path, target.parent)


def _entry(prefix: str, content: dict[str, object]) -> str:
    """Return one line of YAML, quoted where it has to be."""
    flow = bool(prefix)
    text = yaml.safe_dump(content, default_flow_style=flow, sort_keys=False, width=10_000)
    return prefix + text.strip()
