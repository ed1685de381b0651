"""The sbatch text of a job group, without any SLURM."""

import json
import subprocess
from pathlib import Path

from pipeline.config.schema import Container, Resources, ResourcesConfig
from pipeline.executors.slurm.arrays import job_groups
from pipeline.executors.slurm.sbatch import (
    options_of,
    sbatch_parameters,
    sbatch_text,
    setup_lines,
)
from tests.pipeline.executors.slurm.made_up import stages_of

GOLDEN = """#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-1%7
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=6
#SBATCH --dependency=aftercorr:17
#SBATCH --exclude=n3
#SBATCH --export=ALL
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
stage_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
stage_job=${stage_job:-$SLURM_JOB_ID}
# The controller may be away for a moment, and srun does not wait for it.
answered() {
    command -v scontrol >/dev/null || return
    for _ in $(seq 120); do
        scontrol --oneliner show job "$stage_job" 2>/dev/null && return
        sleep 5
    done
}
put_back() {
    answered | grep -q " JobState=RUNNING " || exit 1
    scontrol requeue "$stage_job" && sleep 60
    exit 1
}
trap put_back TERM USR2
stage_folder='/a b/it'"'"'s
here'
for _ in $(seq 60); do [ -d "$stage_folder" ] && break; sleep 5; done
[ -d "$stage_folder" ] || [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || put_back
exec >>"$stage_folder/batch-$stage_job.log" 2>&1
export PYTHONPATH=/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1  # the folder it starts from may hold newer code
module load cuda
cd -- "$SLURM_SUBMIT_DIR" || exit 1  # whatever the lines above did
answered >/dev/null
trap : TERM USR2  # the stage hears them itself
# Ended by one of them all the same, the stage had not even begun to hear.
ended() {
    case $1 in 140 | 143) [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || put_back ;; esac
    exit "$1"
}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/a b/it'"'"'s
here/%A_%a_%t_log.out' --cpus-per-task=6 --export=ALL --kill-on-bad-exit=1 bash -c 'trap "" USR2 TERM; exec "$@"' bash /bin/python -ISc 'import os, signal as s, sys; s.pthread_sigmask(s.SIG_BLOCK, [s.SIGUSR2, s.SIGTERM]); os.execv(sys.argv[1], sys.argv[1:])' /bin/python -u -m submitit.core._submit '/a b/it'"'"'s
here' || ended $?
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
    assert {"time", "export", "requeue", "array"} < options_of(text)


def test_a_signal_before_the_stage_puts_the_job_back(tmp_path: Path) -> None:
    """The lines before the command, run by bash with a scontrol that says what it was asked."""
    said = tmp_path / "said.txt"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f"#!/bin/bash\necho $* >>{said}\n[ $1 = requeue ] && kill -KILL $PPID\n"
        "echo JobId=7 JobState=RUNNING Reason=None\n"
    )
    scontrol.chmod(0o755)
    (tmp_path / "folder").mkdir()
    setup = Resources(setup=("cd /; kill -TERM $$", "echo too far"))
    lines = setup_lines(setup, tmp_path / "folder", tmp_path)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, check=False)
    assert said.read_text().splitlines() == ["--oneliner show job 7", "requeue 7"]
    assert "too far" not in (tmp_path / "folder" / "batch-7.log").read_text()


def test_a_stage_starts_where_the_plan_was_submitted(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "scontrol").write_text("#!/bin/bash\n[ -e asked ] || { touch asked; exit 1; }\n")
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "sleep").symlink_to("/bin/true")
    lines = setup_lines(Resources(setup=("cd /",)), tmp_path / "folder", tmp_path)
    path = f"{tmp_path}:/usr/bin:/bin"
    environment = {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)}
    script = "\n".join([*lines, "kill -TERM $$; pwd"])  # from here on the stage hears signals
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    assert (tmp_path / "folder" / "batch-7.log").read_text() == f"{tmp_path}\n"
    assert (tmp_path / "asked").exists()  # once in vain: the controller was away


def test_no_shell_reads_the_words_that_start_a_stage_in_its_container(tmp_path: Path) -> None:
    """bash hands them to the job as the config has them, whatever they hold."""
    words = ["a'b\"c", "$(touch x) `touch x` $HOME; touch x", "*", "", "~ é\\"]
    command = ("run it", *words[:3], "IMAGE", words[4], "python")
    container = Container(image=f'{tmp_path}/o\'clock "x".sif', command=command)
    (tmp_path / "folder").mkdir()
    (tmp_path / "scontrol").symlink_to("/bin/true")
    setup = ("export STAGE_PYTHON=theirs",)
    lines = setup_lines(Resources(setup=setup, container=container), tmp_path / "folder", tmp_path)
    assert lines[-2].startswith("export STAGE_PYTHON=") and "\n" not in lines[-2]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    environment["SLURM_SUBMIT_DIR"] = str(tmp_path)
    script = "\n".join([*lines, 'printf %s "$STAGE_PYTHON" >told'])
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    told = json.loads((tmp_path / "told").read_text("utf-8"))
    assert told == [command[0], *words[:3], f'{tmp_path}/o\'clock "x".sif', words[4], "python"]
    assert not (tmp_path / "x").exists()
