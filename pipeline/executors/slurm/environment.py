"""Environments of SLURM's clients: what a user's variables may change, and what the plan decides.

A profile's SQUEUE_PARTITION would hide jobs of ours, SBATCH_TIMELIMIT would replace the config's
limit, and a job must not depend on whether it was submitted from inside another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.config.schema import CONFLICTS, SET_BY
from pipeline.stages.provenance import STAGE_PYTHON

FILTERS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SACCTMGR_", "SCONTROL_")
FORMATS = ("SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "SALLOC_")
OF_TORCHRUN = (
    "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
)  # fmt: skip
WHICH_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")
OPTION_OF = {
    "TIMELIMIT": "time",
    "ARRAY_INX": "array",
    "MEM_PER_NODE": "mem",
    "MEM_PER_CPU": "mem",
    "MEM_PER_GPU": "mem",
}  # the others have the option's name
MAY_BE_OPEN = {"partition", "account", "qos", "constraint", "mem"}  # None in a config


def client_environment(outer: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of squeue, sacct, scancel, scontrol and sinfo: no user's filters."""
    return {
        name: value
        for name, value in outer.items()
        if not name.startswith(FILTERS) and name not in FORMATS
    }


def sbatch_environment(outer: Mapping[str, str], options: Iterable[str]) -> dict[str, str]:
    """Return the environment of sbatch, and so of the job, for a script with these `options`.

    Of SBATCH_* stays what the config leaves open. What srun reads in a job is the job's own.
    """
    dropped = {*overruled(outer, options), *OF_TORCHRUN, STAGE_PYTHON}
    return {
        name: value
        for name, value in client_environment(outer).items()
        if name not in dropped and (not name.startswith(OF_A_JOB) or name in WHICH_CLUSTER)
    }


def overruled(outer: Mapping[str, str], options: Iterable[str]) -> list[str]:
    """Return the SBATCH_* variables that do not count, because config or plan say it."""
    options = {OPTION_OF.get(name.upper().replace("-", "_"), name) for name in options}
    decided = {*options, *SET_BY.keys() - MAY_BE_OPEN, "export"}
    names = [name for name in _of_sbatch(outer) if _option(name) in decided]
    return sorted({*names, *(_of_gpus(outer) if "gpus-per-node" in options else ())})


def environment_lines(outer: Mapping[str, str], options: Iterable[str]) -> list[str]:
    """Return what SBATCH_* of this environment means for jobs whose scripts have these options."""
    ignored = overruled(outer, options)
    taken = [f"{name}={outer[name]}" for name in _of_sbatch(outer) if name not in ignored]
    lines = [f"from the environment: {', '.join(taken)}"] if taken else []
    if ignored:
        why = [f"{name} ({SET_BY.get(_option(name), 'resources')} says)" for name in ignored]
        lines.append(f"not taken from the environment: {', '.join(why)}")
    return lines


def asks_for_gpus(outer: Mapping[str, str]) -> bool:
    """Return whether a variable that counts asks for GPUs, such as SBATCH_GRES."""
    return bool(_of_gpus(outer))


def _of_gpus(outer: Mapping[str, str]) -> list[str]:
    """Return the variables that ask for GPUs in other words than the key `gpus`."""
    names = [name for name in _of_sbatch(outer) if _option(name) in CONFLICTS["gpus"]]
    return [name for name in names if "gpu" in f"{name}={outer[name]}".lower()]


def _of_sbatch(outer: Mapping[str, str]) -> list[str]:
    return sorted(name for name in outer if name.startswith("SBATCH_"))


def _option(variable: str) -> str:
    name = variable.removeprefix("SBATCH_")
    return OPTION_OF.get(name, name.lower().replace("_", "-"))
