"""The child process that runs one stage, or checks many before any of them starts.

python -m pipeline.worker run RUN_DIR   exit 0 done, 1 failed, 75 interrupted, 76 locked
python -m pipeline.worker probe RUN_DIR JOB.json
                                        measures the probe of a finished pretraining, exit as run
python -m pipeline.worker check JOBS.json ANSWERS.json
                                        asks whether stages can run; writes faults, notes and
                                        demands of each
python -m pipeline.worker strip JOBS.json ANSWERS.json
                                        looks for states to go on from in outputs, or removes them
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import logging.handlers
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.plan.data_identity import check_contents
from pipeline.stages.files import append_json_line, innermost, one_line, read_json, write_json
from pipeline.stages.provenance import ATTEMPTS, attempts_at, origin, provenance
from pipeline.stages.run_folder import (
    CONFIG,
    EXIT_INTERRUPTED,
    EXIT_LOCKED,
    FAILURE,
    JOB,
    LOCK,
    MANIFEST,
    LockedError,
    attempts_s,
    drop_changed_outputs,
    identity_fault,
    lock,
    outputs_fault,
    set_aside,
    strip_output,
    write_manifest,
)
from pipeline.stages.stage import differences
from pipeline.stages.staleness import equal_result, take_over
from pipeline.tracking.child import stage_tracking

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
WRITER_OF_TORCH = "inline_container"  # in what it says where a file does not take all of it
NOTES_FROM = ("transfer.datasets.check", "pretrain.data.images")  # the loggers


def main(arguments: list[str]) -> int:
    """Run the command line above."""
    die_with_parent()
    if len(arguments) == 2 and arguments[0] == "run":
        return run(Path(arguments[1]))
    if len(arguments) == 3 and arguments[0] == "probe":
        return probe(Path(arguments[1]), Path(arguments[2]))
    if len(arguments) == 3 and arguments[0] in ANSWERERS:
        write_json(Path(arguments[2]), ANSWERERS[arguments[0]](read_json(Path(arguments[1]))))
        return 0
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


def probe(run_dir: Path, path: Path) -> int:
    """Measure the probe of a finished pretraining on the states in `run_dir`."""
    try:
        job = read_json(path)
        with lock(run_dir / LOCK):
            importlib.import_module(job["module"]).probe_stage(job["settings"], run_dir)
    except (ValueError, OSError, LockedError) as error:
        print(f"{run_dir}: probe: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _run_stage(run_dir: Path, is_first: bool) -> int:
    try:
        job = read_json(run_dir / JOB)
        inputs = {role: Path(path) for role, path in job["inputs"].items()}
        if is_first:
            _make(run_dir, job, inputs)
        elif not _takes_over(run_dir, job, inputs):
            importlib.import_module(job["module"]).run_stage(job["settings"], inputs, run_dir)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BaseException as error:  # noqa: BLE001  (whatever broke becomes the stage's reason)
        if isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED:
            return EXIT_INTERRUPTED
        traceback.print_exc()
        if is_first:
            write_json(run_dir / FAILURE, {"reason": reason_of(error)[:1000]})
        return 1
    return 0


def reason_of(error: BaseException) -> str:
    """Return why a stage failed, in one line: what a user can fix without the error's type."""
    name, text = innermost(type(error).__name__, str(error))
    text = one_line(text)
    if WRITER_OF_TORCH in text:
        text = f"a checkpoint could not be written whole; is the disk full? ({text})"
    return (text or name) if isinstance(error, ValueError) else f"{name}: {text or name}"


def _make(run_dir: Path, job: dict[str, Any], inputs: dict[str, Path]) -> None:
    """Run a stage and write its manifest; an attempt that began is kept however it ends."""
    started = time.time()
    begun = datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")
    attempt = {"started": begun, **origin()}
    read = check_what_is_read(run_dir, job, inputs)
    if equal := equal_result(run_dir, read_json(run_dir / CONFIG), read):
        logger.info("%s was made from the same bytes: taken over", equal[0])
        if attempts_at(run_dir):
            set_aside(run_dir)
        take_over(run_dir, *equal, {"signature": job["signature"], "inputs": read})
        return
    set_aside_other_inputs(run_dir, read)
    append_json_line(run_dir / ATTEMPTS, attempt | {"inputs": read})
    config = read_json(run_dir / CONFIG)["config"]
    try:
        module = importlib.import_module(job["module"])
        with stage_tracking(run_dir, job, config) as tracking:
            metrics = module.run_stage(job["settings"], inputs, run_dir)
            try:
                if lines := differences(read, check_what_is_read(run_dir, job, inputs)):
                    raise ValueError(f"an input was made again meanwhile ({'; '.join(lines)})")
            except ValueError as error:
                place = set_aside(run_dir)  # nobody knows which of the two was read
                raise ValueError(f"{error}; what was made until then is in {place}") from None
            seconds = round(time.time() - started + attempts_s(run_dir), 1)
            made = provenance(attempt, run_dir) | {"wall_time_s": seconds}
            if hasattr(module, "stage_precision"):
                made["precision"] = module.stage_precision(job["settings"])
            values = {name: float(value) for name, value in metrics.items()}
            # the AP of a class without objects is NaN
            finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
            write_manifest(run_dir, job, finite, made, read)
            tracking.summary = finite
    finally:
        append_json_line(run_dir / ATTEMPTS, {"wall_time_s": time.time() - started})


def _takes_over(run_dir: Path, job: dict[str, Any], inputs: dict[str, Path]) -> bool:
    """Return whether the first process takes a result over, so that the others need not start."""
    if (run_dir / MANIFEST).exists() or not inputs:
        return bool(inputs)
    record = read_json(run_dir / CONFIG)
    read = {}
    for role, path in inputs.items():
        outputs = read_json(path.parent / MANIFEST)["outputs"]
        names = job.get("reads") or [path.name]
        files = {name: outputs[name]["sha256"] for name in names}
        read[role] = {"signature": record["inputs"][role], "files": files}
    return equal_result(run_dir, record, read) is not None


def check_what_is_read(
    run_dir: Path, job: dict[str, Any], inputs: dict[str, Path]
) -> dict[str, Any]:
    """Compare what a stage reads with what it was planned with, which its `config.json` holds.

    Returns signature and sha256 of what it reads of each input, by role.

    Raises:
        ValueError: an input, the data, the checkpoint or the number of processes is another.
    """
    record, read = read_json(run_dir / CONFIG), {}
    for role, path in inputs.items():
        files = check_input(path, job.get("reads"))
        if fault := identity_fault(path.parent, record["inputs"][role]):
            raise ValueError(fault)
        read[role] = {"signature": record["inputs"][role], "files": files}
    check_contents(job["stage"], record["config"], job["settings"])
    return read


def check_input(path: Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """Compare a stage's input with the manifest it was made under; return the sha256 by name.

    `names` are the files that are read beside `path`, which is the only one where there are none.

    Raises:
        ValueError: the input is not what its stage wrote.
    """
    folder, names = path.parent, names or [path.name]
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: its manifest is gone; run again to have it made again"
        ) from None
    if (fault := outputs_fault(folder, manifest, thorough=True, names=names)) is not None:
        drop_changed_outputs(folder)  # so the next run makes them again
        raise ValueError(f"{fault}: run again")
    return {name: manifest["outputs"][name]["sha256"] for name in names}


def set_aside_other_inputs(run_dir: Path, read: dict[str, Any]) -> None:
    """Move away what an attempt left that read other bytes, so that none goes on from it.

    An input that was lost and made again need not have the same bytes.
    """
    attempts = attempts_at(run_dir)
    if attempts and attempts[-1].get("inputs", read) != read:
        place = set_aside(run_dir)
        logger.warning("begun with other inputs, so begun anew; what there was is in %s", place)


def check(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each job what its stage finds in its settings, data and checkpoint.

    `faults` stop it, `notes` and `remarks` on its config do not, `demands` are the detectron2 keys
    that its result needs.
    """
    notes = logging.handlers.MemoryHandler(1, flushLevel=sys.maxsize)  # without target it keeps
    loggers = [logging.getLogger(name) for name in NOTES_FROM]
    for logger in loggers:
        logger.addHandler(notes)
    answers = []
    try:
        for job in jobs:
            notes.buffer.clear()
            answer = _answer(job)
            told = dict.fromkeys(record.getMessage() for record in notes.buffer)
            answers.append(answer | {"notes": list(told)})
    finally:
        for logger in loggers:
            logger.removeHandler(notes)
    return answers


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        module = importlib.import_module(job["module"])
    except ImportError as error:
        return {"faults": [f"{job['module']} cannot be imported: {error}; run make env"]}
    faults = list(module.check_stage(job["settings"]))
    if not faults and hasattr(module, "check_inputs"):
        faults += module.check_inputs(job["settings"], job["inputs"])
    if job["here"] and hasattr(module, "check_machine"):
        faults += module.check_machine(job["settings"], job["num_processes"])
    answer: dict[str, Any] = {"faults": faults}
    if not faults and hasattr(module, "demanded_keys"):
        answer["demands"] = module.demanded_keys(job["settings"])
    if not faults and hasattr(module, "stage_notes"):
        answer["remarks"] = module.stage_notes(job["settings"], job["inputs"])
    return answer


def strip(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each job `num_bytes` of the state to go on from in an output, or the `fault`.

    With `yes` the output is stripped of it.
    """
    answers = []
    for job in jobs:
        run_dir, name = Path(job["run_dir"]), job["output"]
        try:
            strip_state = importlib.import_module(job["module"]).strip_state
            answer = {"num_bytes": strip_state(run_dir / name, None)}
            if job["yes"]:
                strip_output(run_dir, name, strip_state)
        except Exception as error:  # noqa: BLE001  (damage shows in many types)
            answer = {"fault": reason_of(error)}
        answers.append(answer)
    return answers


ANSWERERS = {"check": check, "strip": strip}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
