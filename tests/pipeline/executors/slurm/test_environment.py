"""Environments of SLURM's clients: a user's filters and SBATCH_* against the config."""

from pipeline.executors.slurm.environment import (
    client_environment,
    environment_lines,
    sbatch_environment,
)

USER = {
    "PATH": "/bin",
    "SLURM_CONF": "/etc/slurm.conf",
    "SQUEUE_PARTITION": "urgent",
    "SQUEUE_USERS": "nobody",
    "SACCT_FORMAT": "x",
    "SCANCEL_STATE": "PENDING",
    "SINFO_FORMAT": "%P",
    "SLURM_TIME_FORMAT": "%s",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_TIMELIMIT": "1",
    "SRUN_CPUS_PER_TASK": "9",
    "STAGE_PYTHON": '["python"]',
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_ARRAY_INX": "0-3",
    "SBATCH_WAIT": "1",
    "SBATCH_GPUS": "3",
    "SBATCH_MEM_PER_CPU": "1G",
    "SBATCH_ACCOUNT": "lab",
    "SBATCH_PARTITION": "gpu",
    "SBATCH_RESERVATION": "course",
}
OPTIONS = ["time", "requeue", "export", "mem", "partition"]
KEPT = {
    "PATH": "/bin",
    "SLURM_CONF": "/etc/slurm.conf",
    "SBATCH_ACCOUNT": "lab",
    "SBATCH_RESERVATION": "course",
}


def test_no_client_sees_a_users_filters() -> None:
    kept = client_environment(USER)
    assert not [name for name in kept if name.startswith(("SQUEUE", "SACCT", "SCANCEL", "SINFO"))]
    assert kept["PATH"] == "/bin" and kept["SLURM_CONF"] == "/etc/slurm.conf"


def test_the_config_counts_and_what_it_leaves_open_the_user_says() -> None:
    assert sbatch_environment(USER, OPTIONS) == KEPT


def test_other_words_for_what_the_config_says_do_not_count_beside_it() -> None:
    user = {"SBATCH_GRES": "gpu:8", "SBATCH_GPUS_PER_TASK": "8", "SBATCH_MEM_PER_NODE": "9G"}
    assert sbatch_environment(user, ["gpus-per-node", "mem-per-cpu"]) == {}
    assert sbatch_environment({"SBATCH_GRES": "lustre:1"}, ["gpus-per-node"]) != {}
    assert sbatch_environment(user, ["time"]) == user
    assert "SBATCH_GRES (resources says)" in environment_lines(user, ["gpus-per-node"])[1]


def test_it_is_the_same_inside_an_allocation() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURMD_NODENAME": "n1", "RANK": "0"}
    assert sbatch_environment(USER | job, OPTIONS) == KEPT


def test_plan_says_what_counts_and_what_does_not() -> None:
    taken, ignored = environment_lines(USER, OPTIONS)
    assert taken == "from the environment: SBATCH_ACCOUNT=lab, SBATCH_RESERVATION=course"
    assert "SBATCH_TIMELIMIT (timeout_min says)" in ignored and "SBATCH_PARTITION" in ignored
    assert environment_lines({"PATH": "/bin"}, OPTIONS) == []
