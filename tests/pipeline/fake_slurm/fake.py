#!/usr/bin/env python3
"""sbatch, squeue, sacct, scancel, scontrol, sinfo and srun over a JSON file in $FAKE_SLURM.

Nothing runs by itself: a test moves jobs with `set_state`. `calls.txt` lists the commands;
`<command>.fails` makes a command fail with its text; `refuse.txt` has a name that sbatch refuses;
`scontrol.txt` and `sinfo.txt` have what these two say.
"""

import json
import os
import shlex
import sys
from pathlib import Path


def options_of(script: str) -> dict[str, str]:
    """Return the `#SBATCH` options of a script, unquoted as SLURM does."""
    options = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, _, value = word.partition("=")
            options[name.removeprefix("--")] = value
    return options


def sbatch(words: list[str], jobs: dict) -> str:
    script = Path(words[-1]).read_text(encoding="utf-8")
    options = options_of(script)
    if options.get("partition") == "nowhere":
        raise SystemExit("sbatch: error: invalid partition specified: nowhere")
    if "--test-only" in words:
        return ""
    refused = Path(os.environ["FAKE_SLURM"]) / "refuse.txt"
    if refused.exists() and refused.read_text(encoding="utf-8") in options["job-name"]:
        raise SystemExit("sbatch: error: Batch job submission failed: no more today")
    number = 1 + max((int(key.split("_")[0]) for key in jobs), default=100)
    tasks = []
    for span in filter(None, options.get("array", "").partition("%")[0].split(",")):
        first, _, last = span.partition("-")
        tasks += range(int(first), int(last or first) + 1)
    for task in tasks or [None]:
        key = str(number) if task is None else f"{number}_{task}"
        reason = "Dependency" if "dependency" in options else "Priority"
        jobs[key] = {"name": options["job-name"], "state": "PENDING", "node": "", "reason": reason}
    return f"Submitted batch job {number}"


def squeue(words: list[str], jobs: dict) -> str:
    options = dict(word.partition("=")[::2] for word in words)
    names, ids = (set(filter(None, options.get(o, "").split(","))) for o in ("--name", "--jobs"))
    if "SQUEUE_PARTITION" in os.environ or "--all" not in words:
        return ""  # a partition without jobs; those of a hidden one are shown on demand alone
    known = {key: job for key, job in jobs.items() if not job.get("purged")}
    if len(ids) == 1 and not any(key.partition("_")[0] in ids for key in known):
        raise SystemExit("slurm_load_jobs error: Invalid job id specified")
    return "\n".join(
        f"{key}|{job['state']}|{job['node']}|1:05|58:55|{job['reason']}|{job['name']}"
        for key, job in known.items()
        if (not names or job["name"] in names) and (not ids or key.partition("_")[0] in ids)
    )


def sacct(words: list[str], jobs: dict) -> str:
    return "\n".join(f"{key}|{job['state']}|{job['node']}|00:01:05" for key, job in jobs.items())


def scancel(words: list[str], jobs: dict) -> str:
    for key, job in jobs.items():
        if job["state"] not in ("PENDING", "RUNNING"):
            continue
        if key in words or key.split("_")[0] in words:
            job.update(state="CANCELLED", reason="None")
    return ""


def said(words: list[str], jobs: dict) -> str:
    path = Path(os.environ["FAKE_SLURM"]) / f"{Path(sys.argv[0]).name}.txt"
    return path.read_text(encoding="utf-8") if path.exists() else ""


COMMANDS = {
    "scontrol": said,
    "sinfo": said,
    "sbatch": sbatch,
    "squeue": squeue,
    "sacct": sacct,
    "scancel": scancel,
}


def main() -> None:
    folder, command = Path(os.environ["FAKE_SLURM"]), Path(sys.argv[0]).name
    with (folder / "calls.txt").open("a", encoding="utf-8") as file:
        file.write(command + (" --test-only" if "--test-only" in sys.argv else "") + "\n")
    fails = folder / f"{command}.fails"
    if fails.exists():
        sys.exit(fails.read_text(encoding="utf-8"))
    path = folder / "jobs.json"
    jobs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    answer = COMMANDS[command](sys.argv[1:], jobs)
    path.write_text(json.dumps(jobs), encoding="utf-8")
    print(answer)


if __name__ == "__main__":
    main()
