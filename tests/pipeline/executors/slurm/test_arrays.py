"""From stages to arrays, sbatch text and estimates, without any SLURM."""

import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from pipeline.config.resources import Resources, ResourcesConfig
from pipeline.config.schema import PipelineConfig
from pipeline.executors.slurm.arrays import job_groups, plan_groups, resource_faults
from pipeline.executors.slurm.gpu_hours import gpu_hours
from pipeline.executors.slurm.queue import expand_ids, parse_accounting, parse_queue, parse_time
from pipeline.executors.slurm.sbatch import python_command, sbatch_parameters, sbatch_text
from pipeline.executors.slurm.snapshot import take_snapshot
from pipeline.executors.slurm.stage_job import worker_environment
from pipeline.plan.plan import Plan
from pipeline.stages.stage import Stage

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


def stages_of(backbones: tuple[str, ...], seeds: tuple[int, ...] = (0, 1)) -> list[Stage]:
    """A plan's stages: pretraining, conversion and fine-tuning of every backbone."""
    stages = []
    for name in backbones:
        pretrain = Stage("pretrain", name, {}, {}, Path("runs/tiny"), {}, name)
        convert = Stage("convert", name, {}, {}, Path("runs/tiny"), {"checkpoint": pretrain}, name)
        stages += [pretrain, convert]
        for seed in seeds:
            slug = f"{name}--voc--seed{seed}"
            root, needs = Path("runs/tiny"), {"weights": convert}
            stages.append(Stage("finetune", slug, {}, {}, root, needs, name, task="voc", seed=seed))
    return stages


CONFIG = {
    "name": "tiny",
    "backbones": [{"name": "a", "random": True}],
    "tasks": [{"name": "voc", "config": "voc.yaml"}],
    "seeds": [0],
}
NOTHING = ResourcesConfig()


def shown(groups: list) -> dict[str, tuple[list[str], list[str]]]:
    ids = {group.name: f"<{group.name}>" for group in groups}
    return {
        group.name: (
            [stage.slug for stage in group.stages],
            [needs.text(ids) for needs in group.dependencies],
        )
        for group in groups
    }


def test_a_plan_becomes_one_array_a_kind_and_one_a_backbone() -> None:
    assert shown(job_groups(stages_of(("a", "b")), NOTHING, {})) == {
        "pretrain": (["a", "b"], []),
        "convert": (["a", "b"], ["aftercorr:<pretrain>"]),
        "finetune-a": (["a--voc--seed0", "a--voc--seed1"], ["afterok:<convert>_0"]),
        "finetune-b": (["b--voc--seed0", "b--voc--seed1"], ["afterok:<convert>_1"]),
        "report": (
            [],
            [
                "afterany:<pretrain>",
                "afterany:<convert>",
                "afterany:<finetune-a>",
                "afterany:<finetune-b>",
            ],
        ),
    }


def test_a_random_backbone_does_not_put_finetuning_first() -> None:
    random = Stage("finetune", "random--voc--seed0", {}, {}, Path("runs"), {}, "random", task="voc")
    groups = shown(job_groups([random, *stages_of(("a", "b"))], NOTHING, {}))
    assert list(groups)[:2] == ["pretrain", "convert"]
    assert groups["finetune-random"][1] == []
    assert groups["finetune-b"][1] == ["afterok:<convert>_1"]


def test_a_single_backbone_needs_no_task_numbers() -> None:
    groups = shown(job_groups(stages_of(("a",), (0,)), NOTHING, {}))
    assert groups["convert-a"] == (["a"], ["afterok:<pretrain-a>"])
    assert groups["finetune-a"] == (["a--voc--seed0"], ["afterok:<convert-a>"])


def test_several_probes_of_a_backbone_share_an_array() -> None:
    stages = [stage for stage in stages_of(("a", "b"), ()) if stage.kind == "pretrain"]
    probes = [
        Stage("probe", f"{s.backbone}--{name}", {}, {}, s.root, {"backbone": s}, s.backbone)
        for s in stages
        for name in ("knn", "linear")
    ]
    groups = shown(job_groups([*stages, *probes], NOTHING, {}))
    assert groups["probe-b"] == (["b--knn", "b--linear"], ["afterok:<pretrain>_1"])


def test_what_is_done_or_queued_is_not_waited_for_again() -> None:
    stages = stages_of(("a", "b", "c"))
    named = {stage.name: stage for stage in stages}
    waiting = [named[name] for name in ("pretrain/a", "convert/a", "convert/b", "convert/c")] + [
        stage for stage in stages if stage.kind == "finetune" and stage.backbone != "a"
    ]
    groups = shown(job_groups(waiting, NOTHING, {"pretrain/b": "40_1"}))
    assert groups["pretrain-a"] == (["a"], [])
    assert groups["convert-a"] == (["a"], ["afterok:<pretrain-a>"])
    assert groups["convert-b"] == (["b"], ["afterok:40_1"])
    assert groups["convert-c"] == (["c"], [])
    assert groups["finetune-c"][1] == ["afterok:<convert-c>"]
    assert groups["report"][1][-1] == "afterany:40"


def test_tasks_on_different_gpus_have_arrays_of_their_own() -> None:
    stages = stages_of(("a",))
    bigger = replace(stages[-1], settings={"num_gpus": 8, "num_nodes": 2}, slug="a--coco--seed0")
    groups = {g.name: g for g in job_groups([*stages, bigger], NOTHING, {})}
    assert [s.seed for s in groups["finetune-a-1-1gpus"].stages] == [0, 1]
    big = groups["finetune-a-2-8gpus"].resources
    assert (big.gpus, big.nodes, groups["finetune-a-1-1gpus"].resources.gpus) == (8, 2, 0)
    config = PipelineConfig.model_validate(CONFIG | {"resources": {"finetune": {"gpus": 4}}})
    (first, second) = resource_faults(Plan(config, Path("x"), (), (*stages, bigger)))
    assert first.startswith("resources.finetune.gpus: 4, but task voc has num_gpus: 1")
    assert "num_gpus: 8" in second


def test_arrays_stop_at_slurms_default_limit() -> None:
    stages = stages_of(("a",), tuple(range(1500)))
    groups = job_groups(stages, NOTHING, {})
    assert [(g.name, g.num_tasks) for g in groups if g.kind == "finetune"] == [
        ("finetune-a", 1000),
        ("finetune-a-2", 500),
    ]
    many = job_groups(stages_of(tuple(f"b{i}" for i in range(1200)), ()), NOTHING, {})
    named = shown(many)
    rest = [f"b{number}" for number in range(1000, 1200)]
    assert named["pretrain-2"][0] == named["convert-pretrain-2"][0] == rest
    assert named["convert-pretrain-2"][1] == ["aftercorr:<pretrain-2>"]
    twice = job_groups(stages_of(("a", "a-2"), tuple(range(1500))), NOTHING, {})
    assert len({group.name for group in twice}) == len(twice)


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


def test_a_signal_during_the_imports_is_kept_for_the_job() -> None:
    program = """
import signal, sys
print("importing", flush=True)
sys.stdin.readline()
from pipeline.executors.slurm.stage_job import listen
signal.signal(signal.SIGUSR2, lambda number, frame: print("signal", flush=True))
print("listening", flush=True)
listen()
print("working", flush=True)
"""
    command = f"exec {python_command(sys.executable)} -c {shlex.quote(program)}"
    job = subprocess.Popen(
        ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None and job.stdout.readline() == "importing\n"
    job.send_signal(signal.SIGUSR2)
    assert job.communicate("\n")[0].split() == ["listening", "signal", "working"]
    assert job.returncode == 0


def test_finetuning_has_one_task_a_node_with_all_its_gpus() -> None:
    resources = Resources(gpus=8, nodes=2, cpus_per_gpu=4)
    assert (resources.tasks_per_node("finetune"), resources.cpus_per_task("finetune")) == (1, 32)
    assert (resources.tasks_per_node("pretrain"), resources.cpus_per_task("pretrain")) == (8, 4)
    assert resources.num_gpus == 16
    assert Resources(cpus_per_gpu=3).cpus_per_task("convert") == 3


def test_resources_of_a_kind_stand_on_the_default() -> None:
    config = ResourcesConfig.model_validate(
        {"default": {"partition": "gpu", "gpus": 1}, "pretrain": {"gpus": 8, "timeout_min": 1440}}
    )
    assert config.of("pretrain").gpus == 8 and config.of("pretrain").partition == "gpu"
    assert config.of("finetune").gpus == 1 and config.of("finetune").timeout_min == 60


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"pretrian": {}}, "unknown stage 'pretrian'; did you mean 'pretrain'? known: default"),
        ({"pretrain": {"extra": {"time": "1:00"}}}, "time: is set by timeout_min"),
        ({"pretrain": {"extra": {"job_name": "x"}}}, "job_name: is set by"),
        ({"pretrain": {"extra": {"a b": 1}}}, "a b: not the name of an sbatch option"),
        ({"pretrain": {"partition": "a\n#SBATCH --uid=0"}}, "match pattern"),
        ({"pretrain": {"extra": {"comment": "a\nrm -rf"}}}, "match pattern"),
        ({"default": {"timeout_min": 2}}, "is before the start"),
        ({"pretrain": {"gpu": 1}}, "Extra inputs are not permitted"),
    ],
)
def test_faults_of_resources_are_found_before_submission(content: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        ResourcesConfig.model_validate(content)


def test_ids_and_times_of_slurm() -> None:
    assert expand_ids("12") == ["12"] and expand_ids("12_3") == ["12_3"]
    assert expand_ids("12_[0-2,7%2]") == ["12_0", "12_1", "12_2", "12_7"]
    assert expand_ids("12_[0-4:2]") == ["12_0", "12_2", "12_4"]
    assert [parse_time(text) for text in ("1:05", "2:00:00", "1-00:00:01", "7")] == [
        65, 7200, 86401, 7,
    ]  # fmt: skip
    assert parse_time("UNLIMITED") is parse_time("INVALID") is parse_time("") is None


def test_rows_of_squeue_and_sacct() -> None:
    (row, *more) = parse_queue("5_[1-2%1]|x|PENDING||0:00|1:00:00|Dependency\nnoise\n")
    assert (row.job_id, more[0].job_id, row.is_queued, row.left_s) == ("5_1", "5_2", True, 3600)
    (never,) = parse_queue("6|x|PENDING||0:00|1:00|DependencyNeverSatisfied")
    assert not never.is_active
    rows = parse_accounting(
        "7|x|CANCELLED by 1000|None assigned|00:00:00\n7.batch|batch|FAILED|n1|00:00:01\n"
        "8_[0-1]|y|OUT_OF_MEMORY|n[1-2]|1-00:00:00"
    )
    assert [(row.job_id, row.state, row.node) for row in rows] == [
        ("7", "CANCELLED", ""),
        ("8_0", "OUT_OF_MEMORY", "n[1-2]"),
        ("8_1", "OUT_OF_MEMORY", "n[1-2]"),
    ]


def test_gpu_hours_come_from_limits_until_something_is_measured() -> None:
    config = PipelineConfig.model_validate(
        CONFIG
        | {
            "resources": {
                "pretrain": {"gpus": 8, "nodes": 2, "timeout_min": 90},
                "finetune": {"gpus": 4, "timeout_min": 30},
            },
        }
    )
    plan = Plan(config, Path("x.yaml"), (), tuple(stages_of(("a", "b"))))
    hours = gpu_hours(plan, plan_groups(plan))
    assert hours["pretrain"].hours == 2 * 16 * 1.5 and hours["pretrain"].source == "time limit"
    assert hours["finetune-a"].hours == 2 * 4 * 0.5
    assert hours["convert"].hours == hours["report"].hours == 0


def test_several_processes_get_what_torchrun_would_give_them() -> None:
    job = SimpleNamespace(
        num_tasks=4, num_nodes=2, raw_job_id="12", hostnames=["n1", "n2"], global_rank=3,
        local_rank=1,
    )  # fmt: skip
    inner = worker_environment({"SLURM_CPUS_PER_TASK": "6", "SLURM_RESTART_COUNT": "2"}, job)
    assert inner["OMP_NUM_THREADS"] == "6"
    assert inner["MASTER_ADDR"] == "n1" and inner["MASTER_PORT"] == str(20_000 + 12 * 31 + 2)
    assert (inner["RANK"], inner["WORLD_SIZE"]) == ("3", "4")
    assert (inner["LOCAL_RANK"], inner["LOCAL_WORLD_SIZE"]) == ("1", "2")
    alone = worker_environment({}, SimpleNamespace(num_tasks=1))
    assert "RANK" not in alone and alone["OMP_NUM_THREADS"] == "1"


def test_a_snapshot_is_the_code_of_its_moment_and_shared(tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    (source / "pipeline").mkdir(parents=True)
    (source / "pipeline" / "a.py").write_text("x = 1\n", encoding="utf-8")
    (source / "pipeline" / "data.bin").write_bytes(b"0")
    first = take_snapshot(tmp_path / "code", source)
    assert take_snapshot(tmp_path / "code", source) == first
    (source / "pipeline" / "a.py").write_text("x = 2\n", encoding="utf-8")
    second = take_snapshot(tmp_path / "code", source)
    assert (first / "pipeline" / "a.py").read_text(encoding="utf-8") == "x = 1\n"
    assert second != first and (second / "code_state.json").exists()
    assert not (first / "pipeline" / "data.bin").exists()
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == sorted(
        [first.name, second.name]
    )
