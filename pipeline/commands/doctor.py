"""The doctor: what this machine has for a benchmark, and what to do about the rest.

Needs nothing but Python's own library, so that it also speaks where nothing is installed yet; what
has to be imported to be known is imported in a child process.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from pipeline.stages.provenance import version_of

Status = Literal["ok", "absent", "broken"]
MIN_PYTHON = (3, 11)
MIN_FREE_GB = 20.0
ENV_REMEDY = (
    "run make env, create the environment of environment.yml, or python -m pip install -e . in one "
    "that has torch"
)
# Distributions without which the pipeline does not run, with pyproject.toml's lower bounds.
REQUIRED = {
    "torch": "2.6", "torchvision": "0.21", "numpy": "1.26.4", "pillow": "11", "PyYAML": "6",
    "pydantic": "2.10", "rich": "13", "Jinja2": "3.1", "matplotlib": "3.9", "tensorboard": "2.18",
    "scikit-learn": "1.5", "scipy": "1.11", "fvcore": "0.1.5", "iopath": "0.1.9",
    "pycocotools": "2.0.8", "safetensors": "0.4.3", "faster-coco-eval": "1.6.7", "submitit": "1.5",
}  # fmt: skip
# What a data set is, and one path below $DETECTRON2_DATASETS that shows it is there.
DATASETS = {
    "embedded digits": (
        "digits/coco/annotations/instances_train2017.json",
        "python tools/make_digits.py draws them",
    ),
    "VOC 2007": (
        "VOC2007/ImageSets/Main/trainval.txt",
        "python tools/get_data.py voc2007 --to {root}",
    ),
    "VOC 2012": (
        "VOC2012/ImageSets/Main/trainval.txt",
        "python tools/get_data.py voc2012 --to {root}",
    ),
    "COCO 2017": (
        "coco/annotations/instances_train2017.json",
        "python tools/get_data.py coco2017 --to {root}",
    ),
}
TORCH_PROBE = """
import json, torch, torchvision
gpus = [(torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory / 1e9)
        for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(json.dumps([torch.__version__, torchvision.__version__, torch.version.cuda, gpus]))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do unless it is `ok`."""

    name: str
    status: Status
    text: str
    remedy: str = ""
    required: bool = False


def examine(detectron2: Finding, *, datasets_root: Path, output_dir: Path) -> list[Finding]:
    """Return everything that was looked at; `detectron2` is examined by who knows it."""
    of_packages = packages()
    return [
        python_version(),
        environment(),
        of_packages,
        *(torch_and_gpu() if of_packages.status == "ok" else ()),
        detectron2,
        *datasets(datasets_root),
        slurm(),
        accounting(),
        disk(output_dir),
        memory(Path("/proc/meminfo"), Path("/dev/shm")),
    ]


def python_version() -> Finding:
    """Return whether this Python is new enough."""
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info >= MIN_PYTHON:
        return Finding("Python", "ok", text, required=True)
    needed = ".".join(map(str, MIN_PYTHON))
    return Finding("Python", "broken", text, f"install Python {needed} or newer", required=True)


def environment() -> Finding:
    """Return the environment, what it takes from outside, and which packages are there twice.

    One over another (`--system-site-packages`, a module's PYTHONPATH) imports its own first.
    """
    prefix = Path(sys.prefix).resolve()
    outside: dict[Path, list[str]] = {}
    hidden = []
    for name in REQUIRED:
        places: dict[Path, str] = {}
        for each in distributions(name=name):
            places.setdefault(Path(str(each.locate_file(""))).resolve(), each.version)
        (place, version), *others = places.items() or [(prefix, "")]
        if not place.is_relative_to(prefix):
            outside.setdefault(place, []).append(name)
        hidden += [f"{name} {version} hides {old} of {where}" for where, old in others]
    text = "; ".join(
        [str(prefix), *(f"{', '.join(names)} of {place}" for place, names in outside.items())]
    )
    if hidden:
        remedy = "to have the hidden ones again: python -m pip uninstall those that hide them"
        return Finding("environment", "absent", f"{text}; {', '.join(hidden)}", remedy)
    return Finding("environment", "ok", text)


def packages() -> Finding:
    """Return whether every required package is installed and new enough, without importing any."""
    versions = {name: version_of(name) for name in REQUIRED}
    missing = [name for name, version in versions.items() if version is None]
    old = [
        f"{name} {version} instead of {REQUIRED[name]} or newer"
        for name, version in versions.items()
        if version is not None and _numbers(version) < _numbers(REQUIRED[name])
    ]
    if missing or old:
        text = "; ".join([*([f"missing: {', '.join(missing)}"] if missing else ()), *old])
        return Finding("packages", "broken", text, ENV_REMEDY, required=True)
    return Finding("packages", "ok", f"all {len(REQUIRED)} are installed", required=True)


def _numbers(version: str) -> list[int]:
    """Return the release of a version, without zeros at its end: [2, 6] for 2.6.0+cu124."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    release = [int(number) for number in numbers[0].split(".")] if numbers else []
    while release and release[-1] == 0:
        release.pop()
    return release


def torch_and_gpu() -> list[Finding]:
    """Return whether torch and torchvision work together, and the GPUs they see."""
    out, error = _run([sys.executable, "-P", "-c", TORCH_PROBE], timeout_s=120)
    if out is None:
        remedy = "install torch and torchvision of one release together; " + ENV_REMEDY
        return [Finding("torch", "broken", error, remedy, required=True)]
    torch, torchvision, cuda, gpus = json.loads(out.splitlines()[-1])
    text = f"{torch} ({f'CUDA {cuda}' if cuda else 'CPU only'}), torchvision {torchvision}"
    remedy = "stages run on the CPU, fit for the demo; real recipes want GPUs or --executor slurm"
    gpu = Finding("GPU", "absent", "torch sees none", remedy)
    if gpus:
        gpu = Finding("GPU", "ok", ", ".join(f"{name}, {gb:.0f} GB" for name, gb in gpus))
    return [Finding("torch", "ok", text, required=True), gpu]


def datasets(root: Path) -> list[Finding]:
    """Return which of the known detection sets are below `root`."""
    return [
        Finding(name, "ok", f"{root / path}")
        if (root / path).is_file()
        else Finding(
            name, "absent", f"no {root / path}", remedy.format(root=shlex.quote(str(root)))
        )
        for name, (path, remedy) in DATASETS.items()
    ]


def slurm() -> Finding:
    """Return the cluster's partitions, where there is a cluster."""
    if shutil.which("sbatch") is None:
        return Finding("SLURM", "absent", "no sbatch on PATH", "--executor local works without")
    out, error = _run(["sinfo", "-h", "-o", "%P %D %a"], timeout_s=20)
    if out is None:
        return Finding("SLURM", "broken", f"sinfo failed: {error}", "ask who runs the cluster")
    lines = [line.split() for line in out.splitlines()]
    text = ", ".join(f"{name} ({nodes} nodes, {state})" for name, nodes, state in lines)
    return Finding("SLURM", "ok", text or "no partition")


def accounting() -> Finding:
    """Return whether `sacct` answers; everything works without it from squeue and run folders."""
    error = "no sacct on PATH"
    if shutil.which("sacct") is not None:
        out, error = _run(["sacct", "-n", "-X", "--jobs", "1"], timeout_s=20)
        if out is not None:
            return Finding("SLURM accounting", "ok", "sacct answers")
    return Finding("SLURM accounting", "absent", error, "status does without")


def disk(folder: Path) -> Finding:
    """Return the space for run folders, from the nearest folder that exists."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    text = f"{free_gb:.0f} GB free at {there.absolute()}"
    if not os.access(there, os.W_OK):
        return Finding("disk", "broken", f"{there.absolute()} is not writable", "set output_dir")
    if free_gb < MIN_FREE_GB:
        remedy = f"a fine-tuning keeps about 0.5 GB, pretraining 1 GB; wanted {MIN_FREE_GB:.0f} GB"
        return Finding("disk", "absent", text, remedy)
    return Finding("disk", "ok", text)


def memory(meminfo: Path, shm: Path) -> Finding:
    """Return main memory, and shared memory, which data-loading workers need."""
    try:
        line = re.search(r"MemTotal:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))
    except OSError:
        line = None
    total = f"{int(line.group(1)) / 1e6:.0f} GB" if line else "unknown"
    text = f"{total}, {len(os.sched_getaffinity(0))} processors"
    if shm.is_dir() and (gb := shutil.disk_usage(shm).total / 1e9) < 1:
        remedy = "start the container with --shm-size=8g, or use num_workers: 0"
        return Finding("memory", "absent", f"{text}, {shm} of only {gb:.2f} GB", remedy)
    return Finding("memory", "ok", text)


def table(findings: list[Finding]) -> str:
    """Return the findings as aligned lines, remedies below what needs one."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<6}  {finding.name:<{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<8}{'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> str:
    """Return the findings for a machine."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)


def healthy(findings: list[Finding]) -> bool:
    """Return whether everything that the demo needs works."""
    return all(finding.status == "ok" for finding in findings if finding.required)


def _run(command: list[str], timeout_s: float) -> tuple[str | None, str]:
    """Return stdout, None if the command failed, hung or is absent; and the last line of stderr."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return None, f"{command[0]} did not answer within {timeout_s:.0f} s"
    except OSError as error:
        return None, str(error)
    last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
    return answer.stdout if answer.returncode == 0 else None, last
