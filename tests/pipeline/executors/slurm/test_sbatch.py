"""The sbatch text of a job group, without any SLURM."""

import subprocess
from pathlib import Path

from pipeline.config.resources import Resources, ResourcesConfig
from pipeline.executors.slurm.arrays import job_groups
from pipeline.executors.slurm.sbatch import sbatch_parameters, sbatch_text
from tests.pipeline.executors.slurm.made_up import stages_of

GOLDEN = """#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-1%7
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=6
#SBATCH --dependency=aftercorr:17
#SBATCH --exclude=n3
#SBATCH --gpus-per-node=4
#SBATCH --job-name=tiny-pretrain-T
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=65536M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/dev/null
#SBATCH --overcommit
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=600

# setup
folder='/a b/it'"'"'s
here'
for _ in $(seq 60); do [ -d "$folder" ] && break; sleep 5; done
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
[ -d "$folder" ] || [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || { scontrol requeue "$job"; exit 1; }
exec >>"$folder/batch-$job.log" 2>&1
export PYTHONPATH=/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1  # the folder it starts from may hold newer code
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/a b/it'"'"'s
here/%A_%a_%t_log.out' --cpus-per-task=6 --kill-on-bad-exit=1 bash -c 'trap "" USR2; exec "$@"' bash /bin/python -ISc 'import os, signal as s, sys; s.pthread_sigmask(s.SIG_BLOCK, [s.SIGUSR2]); os.execv(sys.argv[1], sys.argv[1:])' /bin/python -u -m submitit.core._submit '/a b/it'"'"'s
here'
"""  # noqa: E501


def test_sbatch_text_is_golden_and_bash_takes_it(tmp_path: Path) -> None:
    resources = Resources(
        gpus=4, nodes=2, cpus_per_gpu=6, mem_gb=64, timeout_min=600, save_s=90, partition="gpu",
        account="lab", qos="high", constraint="a100", array_parallelism=7,
        setup=("module load cuda",), extra={"exclude": "n3", "overcommit": True, "hold": False},
    )  # fmt: skip
    group = job_groups(stages_of(("a", "b"), ()), ResourcesConfig(default=resources), {})[0]
    group = group.__class__(**(vars(group) | {"resources": resources.model_copy(
        update={"array_parallelism": 7})}))  # fmt: skip
    folder = Path("/a b/it's\nhere")
    parameters = sbatch_parameters(group, "tiny-pretrain-T", "aftercorr:17", folder, Path("/code"))
    text = sbatch_text(parameters, group, folder, "/bin/python")
    assert text == GOLDEN.replace("0-1%7", "0-1%2")
    path = tmp_path / "script.sh"
    path.write_text(text, encoding="utf-8")
    subprocess.run(["bash", "-n", path], check=True)
