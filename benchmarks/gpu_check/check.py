"""Runs the parts of the GPU check, each in a process and under a time limit of its own.

What is about right and wrong comes first and runs side by side; what is timed runs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.results import ROOT, TINY, WORK

OUT = Path(os.environ.get("OUT", WORK.parent / "gpu-check-out"))
SCALE = float(os.environ.get("GPU_CHECK_SCALE", "1"))  # of the limits, for a slow machine
BEGIN = float(os.environ.get("GPU_CHECK_BEGIN", time.time()))
LEAST_SECONDS, RESERVE = 12, 6  # to begin a part with; for the files at the end
PAGE_LINES, PAGE_WIDTH = 5, 160  # of a part; summary.txt has 60
GRACE = 6.0  # seconds between the two signals


@dataclass
class Part:
    """One part: its limit in seconds, and how many cores it may keep busy."""

    name: str
    limit: float
    threads: int = 4
    program: tuple[str, ...] = ("-m", "benchmarks.gpu_check.part")
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    seconds: float = 0.0
    status: str = "not started"

    @property
    def log(self) -> Path:
        """What the part prints."""
        return WORK / f"{self.name}.log"

    @property
    def result(self) -> Path:
        """What the part has measured."""
        return WORK / f"{self.name}.json"

    @property
    def mark(self) -> str:
        """What all its processes have in their environment."""
        return f"{os.getpid()}-{self.name}"

    def start(self, limit: float) -> None:
        """Start it, with at most `limit` seconds."""
        self.begun, self.limit = time.time(), min(SCALE * self.limit, limit)
        self.result.unlink(missing_ok=True)
        marks = {
            "OMP_NUM_THREADS": "1" if TINY else str(self.threads),
            "GPU_CHECK_PART_END": str(self.begun + self.limit),
            "GPU_CHECK_MARK": self.mark,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, self.name, str(self.result)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=ROOT,
                env=os.environ | marks,
            )
        self.status = "running"

    def is_over(self) -> bool:
        """Return whether it is over; ends it at its limit."""
        if self.status != "running" or self.process is None:
            return True
        code = self.process.poll()
        if code is None and time.time() - self.begun < self.limit:
            return False
        if code is None:
            self.status = f"stopped at {self.limit:.0f} s"
        else:
            self.status = "ok" if code == 0 else f"exit {code}"
        self.end()
        self.seconds = time.time() - self.begun
        print(
            f"[{time.time() - BEGIN:5.0f} s] {self.name}: {self.status} after {self.seconds:.0f} s",
            flush=True,
        )
        return True

    def end(self) -> None:
        """End the part and all that it started, what has a session of its own too."""
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 2.0)):
            end = time.time() + seconds
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            while time.time() < end and self.pids():
                time.sleep(0.05)
        if self.process is not None:
            self.process.poll()

    def pids(self) -> list[int]:
        """Return the processes that have this part's mark in their environment."""
        mark, pids = f"GPU_CHECK_MARK={self.mark}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    pids.append(int(folder.name))
        return pids


# the parts of a group run side by side
GROUPS = (
    (Part("data", 60), Part("env", 50)),
    (
        Part("tests", 110),
        Part("smoke", 130),
        Part("digits", 130),
        Part("pipeline", 150),
        Part("amp", 130),
    ),
    (Part("whitening", 60),),
    (Part("step", 100),),
    (Part("loader", 70, threads=8),),
    (Part("detection", 90),),
    (Part("compile", 150, threads=8),),
)


def write(parts: list[Part]) -> None:
    """Write what is known so far, so that a stop of the whole loses nothing."""
    results: dict[str, dict[str, Any]] = {}
    for part in parts:
        results[part.name] = {"status": part.status, "seconds": round(part.seconds, 1)}
        if part.result.exists():
            results[part.name]["result"] = json.loads(part.result.read_text(encoding="utf-8"))
    temporary = OUT / ".results.json"
    temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")
    temporary.replace(OUT / "results.json")
    (OUT / "summary.txt").write_text(summary(results), encoding="utf-8")
    with tarfile.open(OUT / "logs.tar.gz", "w:gz") as archive:
        for path in sorted(WORK.glob("*.log")) + sorted(WORK.glob("*.json")):
            if path.stat().st_size < 20_000_000:
                archive.add(path, path.name)


def summary(results: dict[str, dict[str, Any]], lines: int = 60) -> str:
    """Return the results as text: a line for each part, then its numbers, at most `lines` each."""
    wrong = [name for name, entry in results.items() if entry["status"] != "ok"]
    text = [f"{len(results) - len(wrong)} of {len(results)} parts right"]
    text[0] += f"; not: {', '.join(wrong)}" if wrong else ""
    for name, entry in results.items():
        text.append(f"== {name}: {entry['status']}, {entry['seconds']} s")
        text += [f"  {line}" for line in lines_of(entry.get("result", {}))[:lines]]
    return "\n".join(text) + "\n"


def lines_of(value: object) -> list[str]:
    """Return nested results as lines of text; a small flat table is one line."""
    if value in ({}, []):
        return ["none"]
    if isinstance(value, dict):
        if len(value) <= 14 and not any(isinstance(v, dict | list) for v in value.values()):
            return [", ".join(f"{key} {_short(v)}" for key, v in value.items())]
        return [line for key, entry in value.items() for line in _titled(str(key), entry)]
    if isinstance(value, list):
        if not any(isinstance(entry, dict | list) for entry in value):
            return [" | ".join(map(_short, value))]
        return [line for entry in value for line in lines_of(entry)]
    return [_short(value)]


def _titled(title: str, value: object) -> list[str]:
    if not isinstance(value, dict | list):
        return [f"{title} {_short(value)}"]
    lines = lines_of(value)
    if len(lines) == 1:
        return [f"{title}: {lines[0]}"]
    return [f"{title}:", *(f"  {line}" for line in lines)]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:300]


def run(groups: list[list[Part]], end: float) -> bool:
    """Run one group after the other until `end`; return whether all parts are right."""
    parts = [part for group in groups for part in group]
    for group in groups:
        for part in group:
            left = end - time.time()
            if left < LEAST_SECONDS:
                part.status = "no time left"
            else:
                part.start(left - RESERVE)
        while not all([part.is_over() for part in group]):  # each is asked, to be ended in time
            time.sleep(0.1)
        write(parts)
    return all(part.status == "ok" for part in parts)


def main(arguments: list[str] | None = None) -> int:
    """Run the check and print a page; return 0 if all parts are right, 2 without a GPU, else 1."""
    names = [part.name for group in GROUPS for part in group]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, metavar="M", help="for all parts")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="only these")
    parser.add_argument("--serial", action="store_true", help="one part after the other")
    options = parser.parse_args(arguments)
    if not (TINY or torch.cuda.is_available()):
        print("gpu-check: torch sees no GPU; GPU_CHECK_TINY=1 makes a dry run", file=sys.stderr)
        return 2
    for folder in (WORK, OUT):
        folder.mkdir(parents=True, exist_ok=True)
    chosen = {names[0], *options.parts}  # the first makes the images of the others
    groups = [[part for part in group if part.name in chosen] for group in GROUPS]
    if options.serial:
        groups = [[part] for group in groups for part in group]
    all_right = run(groups, BEGIN + 60 * options.minutes)
    results = json.loads((OUT / "results.json").read_text(encoding="utf-8"))
    print(*(line[:PAGE_WIDTH] for line in summary(results, PAGE_LINES).splitlines()), sep="\n")
    print(f"whole check {time.time() - BEGIN:.0f} s; all of it: {OUT / 'results.json'}")
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
