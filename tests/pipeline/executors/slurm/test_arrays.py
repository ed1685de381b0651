"""From stages to arrays, sbatch text and estimates, without any SLURM."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.config.schema import PipelineConfig, ResourcesConfig
from pipeline.executors.slurm.arrays import job_groups, resource_faults, without_gpus
from pipeline.executors.slurm.sbatch import dependency_words
from pipeline.plan.plan import Plan
from pipeline.stages.stage import Stage
from tests.pipeline.executors.slurm.made_up import CONFIG, NOTHING, stages_of


def shown(groups: list) -> dict[str, tuple[list[str], list[str]]]:
    ids = {group.name: f"<{group.name}>" for group in groups}
    return {
        group.name: ([stage.slug for stage in group.stages], dependency_words(group, ids))
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


def test_an_array_follows_what_is_in_the_queue_task_by_task() -> None:
    stages = stages_of(("a", "b", "c", "d"), ())
    converts = [stage for stage in stages if stage.kind == "convert"]
    queued = {"pretrain/a": "40_7", "pretrain/c": "40_2", "pretrain/d": "40_3"}
    groups = {g.name: g for g in job_groups(converts, NOTHING, queued)}
    array = groups["convert-40"]
    assert [stage.backbone for stage in array.stages] == ["c", "d", "a"]
    assert (array.task_numbers, array.task_span) == ((2, 3, 7), "2-3,7")
    assert dependency_words(array, {}) == ["aftercorr:40"]
    assert groups["convert-b"].stages[0].backbone == "b" and groups["convert-b"].task_span == ""
    single = job_groups(converts[:1], NOTHING, queued)[0]
    assert dependency_words(single, {}) == ["afterok:40_7"] and not single.is_array


def test_done_inputs_leave_one_array_a_kind() -> None:
    converts = [s for s in stages_of(("a", "b", "c"), ()) if s.kind == "convert"]
    assert shown(job_groups(converts, NOTHING, {}))["convert"] == (["a", "b", "c"], [])


def test_a_report_alone_follows_what_is_in_the_queue() -> None:
    (report,) = job_groups([], NOTHING, {"pretrain/a": "40_1", "pretrain/b": "40_2"})
    assert shown([report]) == {"report": ([], ["afterany:40"])}
    assert job_groups([], NOTHING, {}) == []


def test_a_sites_smaller_limit_cuts_arrays() -> None:
    groups = job_groups(stages_of(("a",), tuple(range(8))), NOTHING, {}, max_array=5)
    assert [g.task_span for g in groups if g.kind == "finetune"] == ["0-4", "0-2"]


@pytest.mark.parametrize(
    ("resources", "environment", "kinds"),
    [
        ({}, {}, ["pretrain", "finetune"]),
        ({"default": {"cpus_per_gpu": 8}}, {"SBATCH_PARTITION": "gpu"}, ["pretrain", "finetune"]),
        ({"pretrain": {"gpus": 8}}, {"SBATCH_GPUS": "1"}, ["finetune"]),  # which does not count
        ({"default": {"extra": {"gres": "nvme:1"}}}, {}, ["pretrain", "finetune"]),
        ({"finetune": {"extra": {"gpus_per_task": 1}}}, {}, ["pretrain"]),
        ({"default": {"extra": {"tres-per-node": "gres/gpu:1"}}}, {}, []),
        ({"default": {"gpus": 1}}, {}, []),
        ({}, {"SBATCH_GRES": "gpu:a100:1"}, []),
    ],
)
def test_stages_that_ask_for_no_gpu_are_named(
    resources: dict, environment: dict[str, str], kinds: list[str]
) -> None:
    config = ResourcesConfig.model_validate(resources)
    lines = without_gpus(job_groups(stages_of(("a", "b")), config, {}), environment)
    assert [line.partition(": no GPU is asked for")[0].split(", ") for line in lines] == (
        [kinds] if kinds else []
    )
    for line in lines:  # what it says to give is what ends it
        given = yaml.safe_load("{" + line.partition("give ")[2] + "}")["resources"]
        config = ResourcesConfig.model_validate(resources | given)
        assert without_gpus(job_groups(stages_of(("a",)), config, {}), environment) == []


def test_a_task_that_says_its_gpus_asks_for_them() -> None:
    stages = [
        replace(stage, settings={"num_gpus": 1 + seed})
        for seed in (0, 1)
        for stage in stages_of(("a",), (seed,))
        if stage.kind == "finetune"
    ]
    assert without_gpus(job_groups(stages[1:], NOTHING, {}), {}) == []
    for some in (stages, stages[::-1]):
        (line,) = without_gpus(job_groups(some, NOTHING, {}), {})
        assert line.startswith("finetune: ")
