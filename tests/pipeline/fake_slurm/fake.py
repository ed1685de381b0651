#!/usr/bin/env python3
"""sbatch, squeue, sacct, scancel, scontrol and srun over a JSON file in $FAKE_SLURM.

Nothing runs by itself: a test moves jobs with `set_state`. `calls.txt` lists the commands;
`<command>.fails` makes a command fail with its text.
"""

import json
import os
import re
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
    number = 1 + max((int(key.split("_")[0]) for key in jobs), default=100)
    array = re.match(r"(\d+)-(\d+)", options.get("array", ""))
    last = int(array[2]) if array else 0
    for task in range(last + 1):
        key = f"{number}_{task}" if array else str(number)
        reason = "Dependency" if "dependency" in options else "Priority"
        jobs[key] = {"name": options["job-name"], "state": "PENDING", "node": "", "reason": reason}
    return f"Submitted batch job {number}"


def squeue(words: list[str], jobs: dict) -> str:
    chosen = [word.removeprefix("--name=") for word in words if word.startswith("--name=")]
    names = set(chosen[0].split(",")) if chosen else None
    return "\n".join(
        f"{key}|{job['name']}|{job['state']}|{job['node']}|1:05|58:55|{job['reason']}"
        for key, job in jobs.items()
        if (names is None or job["name"] in names) and not job.get("purged")
    )


def sacct(words: list[str], jobs: dict) -> str:
    return "\n".join(
        f"{key}|{job['name']}|{job['state']}|{job['node']}|00:01:05" for key, job in jobs.items()
    )


def scancel(words: list[str], jobs: dict) -> str:
    for key, job in jobs.items():
        if key in words or key.split("_")[0] in words:
            job.update(state="CANCELLED", reason="None")
    return ""


COMMANDS = {"sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel}


def main() -> None:
    folder, command = Path(os.environ["FAKE_SLURM"]), Path(sys.argv[0]).name
    with (folder / "calls.txt").open("a", encoding="utf-8") as file:
        file.write(command + (" --test-only" if "--test-only" in sys.argv else "") + "\n")
    fails = folder / f"{command}.fails"
    if fails.exists():
        sys.exit(fails.read_text(encoding="utf-8"))
    path = folder / "jobs.json"
    jobs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    said = COMMANDS[command](sys.argv[1:], jobs)
    path.write_text(json.dumps(jobs), encoding="utf-8")
    print(said)


if __name__ == "__main__":
    main()
