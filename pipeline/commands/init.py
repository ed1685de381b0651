"""Write a pipeline config from a few flags or questions: commented, valid, ready to run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel

from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import BASE_KEY, load_yaml, validated
from pipeline.plan.compatibility import dataset_names
from pipeline.stages.files import write_text
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig

EXAMPLE = """examples:
  python tools/run_pipeline.py init mine.yaml          # asks
  python tools/run_pipeline.py init mine.yaml --backbone random --backbone moco=weights/moco.pth \\
      --task voc=configs/transfer/digits_faster_rcnn_voc.yaml --seeds 0,1,2 --executor slurm"""
EXAMPLES = {
    "backbone": "random moco=moco.pth mine=configs/pretrain/mine.yaml",
    "task": "voc=configs/transfer/voc07_faster_rcnn_r50_c4_9k.yaml",
}
YAML = (".yaml", ".yml")
SCHEMAS: dict[str, type[BaseModel]] = {
    "pipeline.schema.json": PipelineConfig,
    "pretrain.schema.json": PretrainConfig,
    "probe.schema.json": ProbeConfig,
}
TEMPLATE = """\
# yaml-language-server: $schema=pipeline.schema.json
# What is compared: every backbone is fine-tuned on every task with every seed.
#   python tools/run_pipeline.py plan --config-file {target}    # check it; runs nothing
#   python tools/run_pipeline.py run --config-file {target}{executor}
# Configs are named relative to this file; checkpoints, data and output relative to where you run.

{name}
backbones:                # random: true is the baseline of all differences
{backbones}
tasks:
{tasks}
seeds: {seeds}        # mean ± std is over these
num_parallel: 1           # stages at a time on one machine
"""
RESOURCES = """
# What the jobs of each kind of stage ask SLURM for; add partition, account, qos, constraint, setup.
resources:
  default: {cpus_per_gpu: 4, mem_gb: 16, timeout_min: 60}
  pretrain: {gpus: 8, cpus_per_gpu: 8, mem_gb: 128, timeout_min: 1440}
  finetune: {gpus: 8, cpus_per_gpu: 4, mem_gb: 64, timeout_min: 720}
"""


def main(arguments: list[str]) -> int:
    """Run `run_pipeline.py init`; return the exit code: 0 written, 2 something to fix."""
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
            print("\n".join(map(str, write_schemas(options.schemas, SCHEMAS))))
            return 0
        if options.target is None:
            raise ValueError("init: the config to write is missing")
        write_config(options, ask=input if sys.stdin.isatty() else None)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"run_pipeline: {line}", file=sys.stderr)
        return 2
    except (EOFError, KeyboardInterrupt):
        print("run_pipeline: nothing was written", file=sys.stderr)
        return 2
    print(f"{options.target}: written; next: run_pipeline.py plan --config-file {options.target}")
    return 0


def write_config(options: argparse.Namespace, ask: Callable[[str], str] | None) -> None:
    """Write what the flags say, asking for what they leave open where somebody can answer.

    Beside the config lies the schema that its editor reads.

    Raises:
        ValueError: a flag cannot be read, or is missing and nobody can be asked; or every fault in
            the config and in the files it names, one a line. Nothing is written then.
    """
    target: Path = options.target
    given: dict[str, list[str]] = {"backbone": options.backbone, "task": options.task}
    for what, example in EXAMPLES.items():
        if not given[what]:
            if ask is None:
                raise ValueError(f"--{what} is missing, and there is no terminal to ask at")
            given[what] = ask(f"{what}s, such as `{example}`: ").split()
    numbers = options.seeds or (ask("seeds [0,1,2]: ") if ask else "") or "0,1,2"
    executor = options.executor or (ask("executor, local or slurm [local]: ") if ask else "")
    entries = [_entry(what, text, target.parent) for what in given for text in given[what]]
    try:
        seeds = [int(part) for part in numbers.replace(" ", ",").split(",") if part]
    except ValueError:
        raise ValueError(f"seeds {numbers!r}: wanted numbers, such as 0,1,2") from None
    if target.exists():
        raise ValueError(f"{target}: exists; give another name or remove it")
    text = TEMPLATE.format(
        target=target,
        executor=" --executor slurm" if executor == "slurm" else "",
        name=yaml.safe_dump({"name": target.stem}, width=10_000).strip(),
        backbones="\n".join(entry.line for entry in entries if entry.what == "backbone"),
        tasks="\n".join(entry.line for entry in entries if entry.what == "task"),
        seeds=seeds,
    )
    text += RESOURCES if executor == "slurm" else ""
    files = [entry for entry in entries if entry.path and Path(entry.path).is_file()]
    faults = [
        f"{entry.path}: no such file ({entry.what} {entry.name})"
        for entry in entries
        if entry.path and entry not in files
    ]
    for entry in sorted(files, key=lambda entry: entry.what, reverse=True):  # tasks first
        faults += _faults_in(Path(entry.path), entry.what) if entry.path.endswith(YAML) else []
    try:
        validated(PipelineConfig, yaml.safe_load(text), str(target))
    except ValueError as error:
        faults += str(error).splitlines()
    if faults:
        raise ValueError("\n".join(faults))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_schemas(target.parent, ["pipeline.schema.json"])
    write_text(target, text)


class Entry(NamedTuple):
    """A backbone or task; `path` as it was typed, `line` the YAML."""

    what: str
    name: str
    path: str
    line: str


def _entry(what: str, text: str, folder: Path) -> Entry:
    """Return an entry of a config in `folder`."""
    name, _, path = text.partition("=")
    is_random = what == "backbone" and text == "random"
    if not is_random and (not name or not path):
        raise ValueError(f"{what} {text!r}: wanted NAME=PATH")
    content: dict[str, object] = {"name": name}
    if is_random:
        content["random"] = True
    elif what == "backbone" and not path.endswith(YAML):
        content["checkpoint"] = path
    else:
        content["pretrain" if what == "backbone" else "config"] = os.path.relpath(path, folder)
    line = yaml.safe_dump(content, default_flow_style=True, sort_keys=False, width=10_000)
    return Entry(what, name, path, f"  - {line.strip()}")


def _faults_in(path: Path, what: str) -> list[str]:
    """Return why a file is no detectron2 config that names data sets, or no pretraining config."""
    try:
        content = load_yaml(path)
    except ValueError as error:
        return [f"{path}: not a config ({error})"]
    if what == "task":
        return dataset_names(content, path)[1]
    try:
        validated(PretrainConfig, content, str(path))
    except ValueError as error:
        return str(error).splitlines()
    return []


def write_schemas(folder: Path, names: Iterable[str]) -> list[Path]:
    """Write JSON schemas of configs, for editors that complete and check YAML; return the paths.

    Any key may come from the file that `_BASE_` names, so that none is required.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        schema = SCHEMAS[name].model_json_schema()
        schema["properties"][BASE_KEY] = {
            "type": "string",
            "description": "config that this one is merged over, beside this file",
        }
        for part in (schema, *schema.get("$defs", {}).values()):
            part.pop("required", None)
        write_text(folder / name, json.dumps(schema, indent=1) + "\n")
    return [folder / name for name in names]
