"""Write a pipeline config from a few flags or questions: commented, and one that `plan` accepts."""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import TypeAdapter

from pipeline.config.json_schema import SCHEMAS, write_schemas
from pipeline.config.kinds import Kind, load_config
from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import validated
from pipeline.executors.preflight import check_before_start
from pipeline.executors.slurm.arrays import resource_faults
from pipeline.plan.build import load_plan
from pipeline.plan.compatibility import dataset_names
from pipeline.stages.files import atomic_path, unknown
from pipeline.stages.run_folder import read_state
from pretrain.config.pretrain import PretrainConfig
from transfer.config.data import VOC_CLASSES, CocoData, DetectionData, VocData, known_datasets
from transfer.files import near_path

EXAMPLE = """examples:
  python tools/run_pipeline.py init mine.yaml          # asks
  python tools/run_pipeline.py init mine.yaml --backbone random --backbone moco=weights/moco.pth \\
      --task voc=configs/transfer/digits_faster_rcnn_voc.yaml --seeds 0,1,2 --executor slurm
  python tools/run_pipeline.py init cats.yaml --backbone random --task cats=cats_task.yaml \\
      --data cats_train=coco:cats/train.json:cats/images --data cats_val=voc:cats/voc:val"""
EXAMPLES = {
    "backbone": "random moco=moco.pth mine=configs/pretrain/mine.yaml",
    "task": "voc=configs/transfer/voc07_faster_rcnn_r50_c4_9k.yaml",
}
YAML = (".yaml", ".yml")
COMMAND = "python tools/run_pipeline.py"
EXECUTORS = ("local", "slurm")
TEMPLATE = """\
# yaml-language-server: $schema=pipeline.schema.json
# What is compared: every backbone is fine-tuned on every task with every seed.
#   {command} plan {options}    # check it; runs nothing
#   {command} run {options}
# Configs are named relative to this file; checkpoints, data and output relative to where you run.

{name}
backbones:                # random: true is the baseline, unless `baseline:` names one
{backbones}
tasks:
{tasks}
seeds: {seeds}        # mean ± std is over these
num_parallel: 1           # stages at a time on one machine
"""
DATASETS = """
# Sets of your own, named as tasks name them; paths from where you run.
datasets:
{lines}
"""
DATA_FORMS = {"coco": ("annotations", "images"), "voc": ("root", "split")}
DATA_WANTED = "NAME=coco:ANNOTATIONS:IMAGES or NAME=voc:ROOT:SPLIT"
MAX_XML_BYTES = 16_000_000
RESOURCES = """
# What the jobs of each kind of stage ask SLURM for; add partition, account, qos, constraint, setup.
# How many GPUs a task trains on is the task's num_gpus (1 where it is left out).
resources:
  default: {{cpus_per_gpu: 4, mem_gb: 16, timeout_min: 60}}
  pretrain: {{gpus: {gpus}, cpus_per_gpu: 8, mem_gb: 128, timeout_min: 1440}}
  finetune: {{gpus: 1, cpus_per_gpu: 8, mem_gb: 64, timeout_min: 720}}
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
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=FORMAT:..",
        help=f"a detection set of your own, as tasks name it: {DATA_WANTED}",
    )  # fmt: skip
    parser.add_argument("--seeds", metavar="0,1,2", help="default: 0,1,2")
    parser.add_argument("--executor", choices=EXECUTORS)
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
        words = write_config(options, ask=input if sys.stdin.isatty() else None)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"run_pipeline: {line}", file=sys.stderr)
        return 2
    except (EOFError, KeyboardInterrupt):
        print("run_pipeline: nothing was written", file=sys.stderr)
        return 2
    print(f"{options.target}: written, and `plan` accepts it; next: {COMMAND} plan {words}")
    return 0


def write_config(options: argparse.Namespace, ask: Callable[[str], str] | None) -> str:
    """Write what the flags say, asking for what they leave open where somebody can answer.

    Returns the words that name the config and its executor to `plan` and `run`.

    Beside the config lies the schema that its editor reads.

    Raises:
        ValueError: a flag cannot be read, or is missing and nobody can be asked; or every fault in
            the files it names, one a line; or whatever `plan` refuses. Nothing is written then.
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
    if (executor := executor.strip() or "local") not in EXECUTORS:
        raise ValueError(f"executor: {unknown('executor', executor, EXECUTORS)}")
    entries = [_entry(what, text, target.parent) for what in given for text in given[what]]
    try:
        seeds = [int(part) for part in numbers.replace(" ", ",").split(",") if part]
    except ValueError:
        raise ValueError(f"seeds {numbers!r}: wanted numbers, such as 0,1,2") from None
    if target.exists():
        raise ValueError(f"{target}: exists; give another name or remove it")
    words = f"--config-file {shlex.quote(str(target))}"
    words += " --executor slurm" if executor == "slurm" else ""
    text = TEMPLATE.format(
        command=COMMAND,
        options=words,
        name=yaml.safe_dump({"name": target.stem}, width=10_000).strip(),
        backbones="\n".join(entry.line for entry in entries if entry.what == "backbone"),
        tasks="\n".join(entry.line for entry in entries if entry.what == "task"),
        seeds=seeds,
    )
    recipes, tasks, faults = _check_files(entries)
    asked = _asked_sets(options.data, tasks, ask) if ask and not faults else []
    text += _data_section([*options.data, *asked], tasks)
    if executor == "slurm":  # as many GPUs as the batch of every pretraining can be cut over
        fitting = (num for num in (8, 4, 2) if not any(each.faults_on(num) for each in recipes))
        text += RESOURCES.format(gpus=next(fitting, 1))
    try:
        validated(PipelineConfig, yaml.safe_load(text), str(target))
    except ValueError as error:
        faults += str(error).splitlines()
    if faults:
        raise ValueError("\n".join(faults))
    _write_if_planned(target, text, on_slurm=executor == "slurm")
    write_schemas(target.parent, ["pipeline.schema.json"])
    return words


def _write_if_planned(target: Path, text: str, on_slurm: bool) -> None:
    """Write the config if `plan` accepts it.

    Raises:
        ValueError: it does not, in its lines; the folder is as it was.
    """
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(target) as draft:
            draft.write_text(text, encoding="utf-8")
            try:
                plan = load_plan(draft, [])
                if on_slurm and (faults := resource_faults(plan)):
                    raise ValueError("\n".join(faults))
                states = {stage.name: read_state(stage) for stage in plan.stages}
                check_before_start(plan, states, here=not on_slurm, trust_kept=True)
            except ValueError as error:
                raise ValueError(str(error).replace(str(draft), str(target))) from None
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


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


def _asked_sets(texts: list[str], tasks: list[set[str]], ask: Callable[[str], str]) -> list[str]:
    """Return what was answered for the sets that tasks name and nobody knows, as --data has it."""
    known = {*known_datasets(), *(text.partition("=")[0] for text in texts)}
    answers = []
    for name in sorted({name for task in tasks for name in task} - known):
        question = f"data set {name}, {DATA_WANTED.replace('NAME=', '')}: "
        if answer := ask(question).strip().removeprefix(f"{name}="):
            answers.append(f"{name}={answer}")
    return answers


def _data_section(texts: list[str], tasks: list[set[str]]) -> str:
    """Return the section `datasets` of what --data says; nothing without any.

    A set in VOC's layout gets the classes of the sets in COCO's that are named in a task with it,
    and whatever else occurs in its annotations; `tasks` are the names of sets of each.

    Raises:
        ValueError: one cannot be read, or a name is there twice.
    """
    contents: dict[str, dict[str, object]] = {}
    for text in texts:
        name, _, value = text.partition("=")
        form, *parts = value.split(":")
        if not name or len(parts) != 2 or not all(parts) or form not in DATA_FORMS:
            raise ValueError(f"data {text!r}: wanted {DATA_WANTED}")
        if name in contents:
            raise ValueError(f"data {name}: named twice")
        contents[name] = {"format": form, **dict(zip(DATA_FORMS[form], parts, strict=True))}
    adapter: TypeAdapter[DetectionData] = TypeAdapter(DetectionData)
    sets = {name: adapter.validate_python(content) for name, content in contents.items()}
    occurring = {name for data in sets.values() for name in _class_names(data)}
    for name, data in sets.items():
        beside = [sets[other] for task in tasks if name in task for other in sorted(task & {*sets})]
        listed = [each for other in beside for each in _categories(other)]
        classes = [*listed, *(each for each in VOC_CLASSES if each in occurring)]
        ordered = list(dict.fromkeys([*classes, *sorted(occurring)]))
        if isinstance(data, VocData) and ordered and ordered != list(VOC_CLASSES):
            contents[name]["class_names"] = ordered
    lines = yaml.safe_dump(
        contents, default_flow_style=None, sort_keys=False, width=10_000, allow_unicode=True
    )
    indented = "\n".join(f"  {line}" for line in lines.splitlines())
    return DATASETS.format(lines=indented) if contents else ""


def _categories(data: DetectionData) -> list[str]:
    """Return the classes of a set in COCO's layout by their ids; what is broken the check finds."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        if isinstance(data, CocoData):
            entries = json.loads(data.annotations.read_text(encoding="utf-8"))["categories"]
            return [str(each["name"]) for each in sorted(entries, key=lambda each: each["id"])]
    return []


def _class_names(data: DetectionData) -> set[str]:
    """Return the names of the objects of a split; what is broken there the check finds."""
    names: set[str] = set()
    if not isinstance(data, VocData):
        return names
    with contextlib.suppress(OSError, ValueError):
        for line in data.index_file.read_text(encoding="utf-8").splitlines():
            path = data.root / "Annotations" / f"{line.strip()}.xml"
            if not path.is_file() or path.stat().st_size > MAX_XML_BYTES:
                continue
            for element in path.read_text("utf-8").split("<object>")[1:]:
                if name := re.search(r"<name>([^<]*)</name>", element):
                    names.add(html.unescape(name[1]))
    return names


def _check_files(
    entries: list[Entry],
) -> tuple[list[PretrainConfig], list[set[str]], list[str]]:
    """Return the pretraining configs among the entries, the sets of each task, and all faults.

    A task must be a detectron2 config that names data sets.
    """
    recipes, tasks, faults = [], [], []
    for entry in entries:
        path = Path(entry.path)
        if entry.path and not path.is_file():
            faults.append(
                f"{entry.path}: no such file ({entry.what} {entry.name}){near_path(path)}"
            )
    for entry in sorted(entries, key=lambda entry: entry.what, reverse=True):  # tasks first
        path = Path(entry.path)
        if not entry.path.endswith(YAML) or not path.is_file():
            continue
        try:
            kind: Kind = "detectron2 config" if entry.what == "task" else "pretraining config"
            content = load_config(path, kind)
        except ValueError as error:
            faults += str(error).splitlines()
            continue
        if entry.what == "task":
            names, broken = dataset_names(content, path)
            tasks.append({name for listed in names.values() for name in listed})
            faults += broken
            continue
        try:
            recipes.append(validated(PretrainConfig, content, str(path)))
        except ValueError as error:
            faults += str(error).splitlines()
    return recipes, tasks, faults
