"""The project's commands as a user runs them: digits, tests, pretraining, pipeline, fine-tuning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.results import ROOT, TINY, WORK, Results, seconds_into, seconds_left
from benchmarks.gpu_check.timing import DEVICE, ON_GPU
from pretrain.runtime.tf32 import tf32_faults

NUMERIC_TESTS = (
    "tests/pretrain/views/test_colour.py",
    "tests/pretrain/views/test_batched.py",
    "tests/pretrain/whitening",
    "tests/pretrain/losses",
    "tests/pretrain/training/test_precision.py",
    "tests/pretrain/training/test_trainer.py",
    "tests/pretrain/probes/test_knn.py",
)
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "100", "-W", "default")
GPU_MARKED = (*PYTEST, "-m", "gpu", "tests/pretrain")
# Those of several processes take minutes, the part `smoke` has one; a CPU without bf16 takes half a
# minute for it; reduced decoding is that of any machine.
LEFT_OUT = ("--ignore-glob", "*distributed*", "-k", "not bf16 and not reduced_views")
NUMERIC = (*PYTEST, "-n", "4", *LEFT_OUT, *NUMERIC_TESTS)
PIPELINE = "configs/pipeline/quick.yaml"
Variables = dict[str, str]  # of the environment
HIDDEN: Variables = {"CUDA_VISIBLE_DEVICES": ""}  # the GPUs
ALONE = HIDDEN | {"OMP_NUM_THREADS": "1"}  # OpenMP's threads wait actively for each other
STOPPED = "exit (75 is right)"


@dataclass(frozen=True)
class Done:
    """A command that has ended or was stopped, and what it said."""

    exit: int | str
    seconds: float
    out: str
    err: str

    def row(self, out: int = 0, err: int = 400) -> dict[str, Any]:
        """Return how it ended, with the last characters of its output, and of errors if any."""
        row: dict[str, Any] = {"exit": self.exit, "seconds": self.seconds}
        if out:
            row["out"] = self.out.strip()[-out:]
        if self.exit:
            row["err"] = self.err.strip()[-err:]
        return row


def command(*words: str, limit: float | None = None, variables: Variables | None = None) -> Done:
    """Run Python with `words` in the project's root, for at most `limit` seconds."""
    begin = time.perf_counter()
    process = start(*words, variables=variables)
    code: int | str
    try:
        out, err = process.communicate(timeout=limit or max(5, seconds_left() - 3))
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code = "stopped"
    done = Done(code, round(time.perf_counter() - begin, 1), out, err)
    print(f"$ {' '.join(words)} -> {code} in {done.seconds} s\n{out}\n{err}", flush=True)
    return done


def start(*words: str, variables: Variables | None = None) -> subprocess.Popen[str]:
    """Return the process of Python with `words`, which leads a group of its own."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": path, "DETECTRON2_DATASETS": "datasets"}
        | (variables or {}),
    )


def new_folder(name: str) -> Path:
    """Return where a part writes, without what an earlier check has left there."""
    shutil.rmtree(WORK / name, ignore_errors=True)
    return WORK / name


def digits_data(results: Results) -> None:
    """Make the digits that several parts read."""
    results["made"] = command("tools/make_digits.py").row()
    results["failed"] = failures(results)


def failures(results: Results) -> list[str]:
    """Return the names of the commands that did not end with 0."""
    return [name for name, row in results.items() if isinstance(row, dict) and row.get("exit", 0)]


def numeric_tests(results: Results) -> None:
    """Run the tests marked `gpu` (golden vectors), then losses, whitening, colours, trainer.

    These are of the CPU, as everywhere: some ask for bits that two steps on a GPU do not share.
    """
    numeric = (*PYTEST, NUMERIC_TESTS[0]) if TINY else NUMERIC
    reasons = []
    for name, words, variables in (("gpu-marked", GPU_MARKED, {}), ("numeric", numeric, ALONE)):
        # reasons are cut to the width
        done = command(*words, variables={"COLUMNS": "300"} | variables)
        lines = done.out.strip().splitlines()
        results[name] = done.row() | {"said": "".join(lines[-1:])}
        reasons += [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
        results.save()
    results["not passed"] = reasons
    results["failed"] = failures(results)


def digits(results: Results) -> None:
    """Stop a real pretraining by a signal, resume it, and probe its backbone on GPU and CPU."""
    folder = new_folder("digits")
    words = (
        "tools/pretrain.py",
        *("--config-file", "configs/pretrain/digits_cw_rgp.yaml", "--output-dir", str(folder)),
        *("checkpoint_every=10", "augment.colours=on_device", "data.num_workers=2"),
        *(("max_steps=8", "log_every=1", "batch_size=64") if TINY else ()),
        *(() if TINY else ("max_steps=100", "log_every=5")),
    )
    results["stopped"] = stopped_run(words, folder / "metrics.jsonl", num_lines=1 if TINY else 8)
    results.save()
    done = command(*words)
    lines = json_lines(folder / "metrics.jsonl")
    said = [line for line in (done.out + done.err).splitlines() if "resumed" in line]
    kept = ("step", "loss", "images_per_s", "regularized", "embedding/effective_rank")
    results["resumed"] = done.row() | {"log says": said[-1:], "first loss": lines[0]["loss"]}
    results["last step"] = {name: lines[-1][name] for name in kept if name in lines[-1]}
    results.save()
    for name, variables in (("GPU", None), ("CPU", HIDDEN)):
        output = WORK / f"probe-{name}.json"
        done = command(
            *("tools/probe.py", str(folder / "backbone.pth"), "--output", str(output)),
            *("--config-file", "configs/pretrain/probe_digits.yaml"),
            f"linear.epochs={3 if TINY else 50}",
            variables=variables,
        )
        results[f"probes on {name}"] = done.row() | metrics_of(output)
        results.save()
    failed = failures(results)
    results["failed"] = failed if results["stopped"][STOPPED] == 75 else ["stopped", *failed]


def stopped_run(words: tuple[str, ...], metrics: Path, num_lines: int) -> dict[str, Any]:
    """Start a run, send SIGTERM once it has logged `num_lines`, and return how it ended."""
    row: dict[str, Any] = {}
    signalled = False
    with seconds_into(row, "seconds"):
        process = start(*words)
        while True:
            try:
                out, err = process.communicate(timeout=0.02)
                break
            except subprocess.TimeoutExpired:
                if seconds_left() < 20:
                    process.kill()
                elif not signalled and len(json_lines(metrics)) >= num_lines:
                    process.send_signal(signal.SIGTERM)
                    signalled = True
    print(out, err, sep="\n", flush=True)
    lines = json_lines(metrics)
    return row | {STOPPED: process.returncode, "at step": lines[-1]["step"] if lines else None}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log of metrics, which may not be there yet."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def metrics_of(path: Path) -> dict[str, float]:
    """Return the metrics in a probe's file, none where it is missing."""
    if not path.exists():
        return {}
    metrics: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return metrics


def pipeline(results: Results) -> None:
    """Run the quick pipeline from images to a report."""
    done = command("tools/run_pipeline.py", "run", "--config-file", PIPELINE)
    results["run"] = done.row(out=900, err=1500)
    results.save()
    state = command("tools/run_pipeline.py", "status", "--config-file", PIPELINE, limit=40)
    results["status"] = state.out[-900:]
    results["failed"] = failures(results)
    if done.exit:
        logs = sorted((ROOT / "runs").rglob("log.txt"), key=lambda path: path.stat().st_mtime)
        for path in logs[-4:]:
            print(path, path.read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)


def fine_tuning(results: Results) -> None:
    """Fine-tune a detector in every precision that the device has: a CPU in float32 alone."""
    mixed = ("SOLVER.AMP.ENABLED", "True")
    changes: dict[str, tuple[str, ...]] = {"float32": ()}
    if ON_GPU:
        changes |= {"fp16": mixed, "bf16": (*mixed, "SOLVER.AMP.PRECISION", "bf16")}
    if not tf32_faults("MODEL.PRECISION", "tf32", DEVICE):
        changes["tf32"] = ("MODEL.PRECISION", "tf32")
    for name, options in changes.items():
        folder = new_folder(f"fine-tuned-{name}")
        done = command(
            *("tools/train_net.py", "--config-file"),
            *("configs/transfer/digits_mask_rcnn_coco.yaml", "--optimizer", "adamw"),
            *("MODEL.WEIGHTS", "", "OUTPUT_DIR", str(folder), "TEST.EVAL_PERIOD", "0"),
            *("SOLVER.MAX_ITER", "2" if TINY else "30", "SOLVER.STEPS", "()"),
            *("SOLVER.CHECKPOINT_PERIOD", "1" if TINY else "15"),
            *(("SOLVER.IMS_PER_BATCH", "1") if TINY else ()),
            *options,
        )
        logged = json_lines(folder / "metrics.jsonl")
        losses = [round(line["total_loss"], 4) for line in logged if "total_loss" in line]
        results[name] = done.row(out=150, err=900) | {"losses": losses[:2] + losses[-1:]}
        results.save()
    results["failed"] = failures(results)
