"""The child process that runs one stage, or checks many before any of them starts.

python -m pipeline.worker run RUN_DIR       exit 0 done, 1 failed, 75 interrupted, 76 locked
python -m pipeline.worker check JOBS.json   prints one fault a line, exit 2 if there are any, else
                                            what the check of the data sets notes
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import logging.handlers
import math
import os
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.stages.files import append_json_line, read_json, write_json
from pipeline.stages.provenance import provenance
from pipeline.stages.run_folder import (
    ATTEMPTS,
    EXIT_INTERRUPTED,
    EXIT_LOCKED,
    FAILURE,
    JOB,
    LOCK,
    MANIFEST,
    NOTE,
    LockedError,
    attempts_s,
    drop_changed_outputs,
    lock,
    outputs_fault,
    write_manifest,
)

PR_SET_PDEATHSIG = 1
NOTES_FROM = "transfer.datasets.check"  # the logger


def main(arguments: list[str]) -> int:
    """Run the command line above."""
    die_with_parent()
    if len(arguments) == 2 and arguments[0] == "run":
        return run(Path(arguments[1]))
    if len(arguments) == 2 and arguments[0] == "check":
        notes = logging.handlers.MemoryHandler(1, flushLevel=sys.maxsize)  # without target it keeps
        logging.getLogger(NOTES_FROM).addHandler(notes)
        faults = check(json.loads(Path(arguments[1]).read_text(encoding="utf-8")))
        told = (NOTE + record.getMessage() for record in notes.buffer)
        print("\n".join(faults or dict.fromkeys(told)))
        return 2 if faults else 0
    print(__doc__, file=sys.stderr)
    return 2


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, so that a killed `run` leaves nothing behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run(run_dir: Path) -> int:
    """Run the stage whose `job.json` is in `run_dir` and write its manifest, or its failure.

    Of several processes the first one holds the lock and writes the files.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if int(os.environ.get("RANK", "0")) > 0:
        return _run_stage(run_dir, is_first=False)
    try:
        with lock(run_dir / LOCK):
            return 0 if (run_dir / MANIFEST).exists() else _run_stage(run_dir, is_first=True)
    except LockedError as holder:
        print(f"{run_dir}: is being worked on by {holder}", file=sys.stderr)
        return EXIT_LOCKED


def _run_stage(run_dir: Path, is_first: bool) -> int:
    started = time.time()
    try:
        job = read_json(run_dir / JOB)
        inputs = {role: Path(path) for role, path in job["inputs"].items()}
        for path in inputs.values() if is_first else ():
            check_input(path)
        module = importlib.import_module(job["module"])
        metrics = module.run_stage(job["settings"], inputs, run_dir)
        if is_first:
            made = provenance() | {
                "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
                "wall_time_s": round(time.time() - started + attempts_s(run_dir), 1),
            }
            values = {name: float(value) for name, value in metrics.items()}
            finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
            write_manifest(run_dir, job, finite, made)  # NaN: the AP of a class without objects
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BaseException as error:  # noqa: BLE001  (whatever broke becomes the stage's reason)
        if isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED:
            return EXIT_INTERRUPTED
        traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        if is_first:
            write_json(run_dir / FAILURE, {"reason": reason[:1000]})
        return 1
    finally:
        if is_first:
            append_json_line(run_dir / ATTEMPTS, {"wall_time_s": time.time() - started})
    return 0


def check_input(path: Path) -> None:
    """Compare a stage's input with the manifest it was made under.

    Raises:
        ValueError: the input is not what its stage wrote.
    """
    folder = path.parent
    try:
        fault = outputs_fault(folder, read_json(folder / MANIFEST), thorough=True)
    except FileNotFoundError:
        fault = f"{folder}: its manifest is gone; run again to have it made again"
    if fault is not None:
        drop_changed_outputs(folder)  # so the next run makes them again
        raise ValueError(fault)


def check(jobs: list[dict[str, Any]]) -> list[str]:
    """Return the faults that stages find in their settings, data and checkpoints.

    One that begins with no file (their paths are absolute) is of the config, and is named by it.
    """
    faults: list[str] = []
    for job in jobs:
        try:
            module = importlib.import_module(job["module"])
        except ImportError as error:
            faults.append(f"{job['module']} cannot be imported: {error}; run make env")
            continue
        of_job = list(module.check_stage(job["settings"]))
        if job["here"] and hasattr(module, "check_machine"):
            of_job += module.check_machine(job["settings"])
        for fault in of_job:
            where = job.get("source", "")
            of_config = where and not Path(fault.partition(": ")[0]).is_absolute()
            faults.append(f"{where}: {fault}" if of_config else fault)
    return list(dict.fromkeys(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
