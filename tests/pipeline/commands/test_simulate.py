"""Schedules worked out by hand, and the paper's plan read without its data."""

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pipeline.commands.simulate import Job, Numbers, detector, read_rates, simulate, summary
from pipeline.commands.simulate import jobs_of as jobs_with
from pipeline.plan.build import load_plan
from pipeline.plan.plan import Plan
from transfer.config import finetune, recipe

ROOT = Path(__file__).resolve().parents[3]
PLANS = ROOT / "configs" / "pipeline"
FULL, RATES = PLANS / "full_comparison.yaml", PLANS / "rates_v100.yaml"


def jobs_of(plan: Plan, rates: Path = RATES) -> dict[str, Job]:
    return {job.name: job for job in jobs_with(plan, Numbers(read_rates(rates)))}


def job(name: str, gpus: int, hours: float, *needs: str) -> Job:
    return Job(name, name.partition("/")[0], gpus, hours, 1.0, needs)


CHAIN = [
    job("pretrain/a", 8, 10.0),
    job("convert/a", 0, 1.0, "pretrain/a"),
    job("finetune/a0", 8, 4.0, "convert/a"),
    job("finetune/a1", 8, 4.0, "convert/a"),
    job("finetune/random", 8, 4.0),
]


def test_on_as_many_gpus_as_one_job_needs_they_follow_each_other() -> None:
    found = simulate(CHAIN, 8)
    # pretrain first (longest chain behind it), random in the hour of the conversion, then a0, a1
    assert found.spans["pretrain/a"] == (0.0, 10.0)
    assert found.spans["finetune/random"] == (10.0, 14.0)
    assert found.spans["convert/a"] == (10.0, 11.0)
    assert found.hours == 22.0 and found.busy_gpu_hours == 176.0
    assert found.utilisation == 1.0 and found.limit == "the number of GPUs"


def test_on_plenty_the_longest_chain_is_the_limit() -> None:
    found = simulate(CHAIN, 64)
    assert found.hours == 15.0
    assert found.limit == "the longest chain, pretrain/a -> convert/a -> finetune/a0"
    assert found.utilisation == pytest.approx(176 / (64 * 15))


def test_no_more_gpus_are_used_than_there_are() -> None:
    jobs = [job(f"finetune/{i}", 3, 1.0 + i) for i in range(7)]
    found = simulate(jobs, 8)
    for start, _ in found.spans.values():
        at_work = sum(3 for begin, end in found.spans.values() if begin <= start < end)
        assert at_work <= 8
    assert len(found.spans) == 7


def test_a_job_that_never_fits_is_named() -> None:
    with pytest.raises(ValueError, match="pretrain/a: needs 8 GPUs of 4"):
        simulate(CHAIN, 4)


def test_without_gpus_nothing_is_simulated() -> None:
    with pytest.raises(ValueError, match="0 GPUs: wanted at least one"):
        simulate([job("probe/a", 0, 0.5)], 0)


def test_a_fault_of_the_plan_stands_alone_without_data_and_checkpoints() -> None:
    with pytest.raises(ValueError, match="overrides") as fault:
        load_plan(FULL, ["backbones.0.overrides+=[compute.precision=tf32]"], on_paper=True)
    [line] = str(fault.value).splitlines()
    assert line.endswith("backbones.0: overrides go with pretrain")


def test_a_stage_that_its_jobs_cannot_end_is_named() -> None:
    plan = load_plan(FULL, ["resources.pretrain.max_jobs=6"], on_paper=True)
    fault = r"full_comparison.yaml: resources.pretrain: pretrain/w-mse-4 takes 158.9 h, 7 jobs of"
    with pytest.raises(ValueError, match=fault):
        jobs_of(plan)


def test_training_without_gpus_counts_as_one() -> None:
    plan = load_plan(
        FULL, ["resources.pretrain.gpus=0", "resources.pretrain.max_jobs=99"], on_paper=True
    )
    job = jobs_of(plan)["pretrain/w-mse-4"]
    assert job.gpus == 1 and job.hours == pytest.approx(200 * 1_281_167 * 4 / 224 / 3600)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({}, "faster_rcnn_r50_c4"),
        ({"MASK_ON": True, "RESNETS": {"DEPTH": 101}}, "mask_rcnn_r101_c4"),
        ({"BACKBONE": {"NAME": "build_resnet_fpn_backbone"}}, "faster_rcnn_r50_fpn"),
        ({"KEYPOINT_ON": True}, "keypoint_rcnn_r50_c4"),
        ({"ROI_HEADS": {"NAME": "CascadeROIHeads"}}, "cascade_faster_rcnn_r50_c4"),
        (
            {
                "META_ARCHITECTURE": "RetinaNet",
                "BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone"},
            },
            "retinanet_r50_fpn",
        ),
    ],
)
def test_detectors_are_told_apart(model: dict[str, Any], name: str) -> None:
    assert detector({"MODEL": model} if model else {}) == name


def test_the_full_comparison_is_what_it_says() -> None:
    plan = load_plan(FULL, [], on_paper=True)
    jobs = jobs_of(plan)
    counts = {
        kind: sum(j.kind == kind for j in jobs.values())
        for kind in ("pretrain", "convert", "finetune")
    }
    # 2 pretrained, 5 checkpoints and random; VOC x 5 seeds, COCO 1x and 2x x 3 seeds each
    assert counts == {"pretrain": 2, "convert": 7, "finetune": 8 * (5 + 3 + 3)}
    # 200 epochs of 1,281,167 images in 4 views at 224 views/s on each of 8 GPUs
    hours = 200 * 1_281_167 * 4 / (224 * 8) / 3600
    assert jobs["pretrain/cw-rgp-4"].hours == pytest.approx(hours)
    assert jobs["pretrain/cw-rgp-4"].num_jobs == 7  # 158.9 hours, 23:58 a job
    # 24,000 iterations of 0.551 s, 1.42 times that for SyncBN; 4,952 tests of 0.11 s on 8 GPUs
    voc = (24_000 * 0.551 * 1.42 + 4_952 * 0.11 / 8) / 3600
    assert jobs["finetune/random--voc--seed4"].hours == pytest.approx(voc)
    text = summary(plan, read_rates(RATES), (8, 64, 512))
    assert "| finetune | 88 | 112 | 8 |" in text and "| 512 |" in text
    # pretraining; its conversions and those of checkpoints; fine-tuning by backbone; the report
    assert text.startswith("97 stages in 12 sbatch calls")


METHODS = {
    "w-mse", "cw-rgp", "simclr", "barlow-twins", "vicreg", "simsiam", "byol", "moco-v2", "intl",
}  # fmt: skip


def pretrainings(name: str) -> dict[str, dict[str, Any]]:
    stages = load_plan(PLANS / name, [], on_paper=True).stages
    return {stage.slug: stage.settings for stage in stages if stage.kind == "pretrain"}


def test_the_comparison_of_methods_is_under_one_length_batch_and_number_of_views() -> None:
    configs = pretrainings("full_comparison_methods.yaml")
    assert configs.keys() == METHODS
    for name, config in configs.items():
        assert config["loss"]["name"] == name
        assert (config["epochs"], config["batch_size"], config["num_views"]) == (200, 1024, 2)
        assert config["data"]["name"] == "imagenet" and config["model"]["arch"] == "resnet50"
    warmup = {name: config["optimizer"]["warmup_steps"] for name, config in configs.items()}
    per_epoch = 1_281_167 // 1024
    published = dict.fromkeys(("simclr", "byol", "barlow-twins", "vicreg"), 10) | {"intl": 2}
    assert {name: warmup[name] for name in published} == {
        name: epochs * per_epoch for name, epochs in published.items()
    }
    jobs = jobs_of(load_plan(PLANS / "full_comparison_methods.yaml", [], on_paper=True))
    assert sum(job.kind == "finetune" for job in jobs.values()) == 10 * (5 + 3 + 3)


def test_what_a_momentum_branch_sees_counts_a_third_of_a_view() -> None:
    """Two views each: BYOL's branch sees both of them too, MoCo v2's the second alone."""
    plan = load_plan(PLANS / "full_comparison_methods.yaml", [], on_paper=True)
    jobs = jobs_of(plan)
    hours = {
        name: jobs[f"pretrain/{name}"].hours * jobs[f"pretrain/{name}"].gpus for name in METHODS
    }
    two_views = 200 * 1_281_167 * 2 / 224 / 3600
    views = dict.fromkeys(METHODS, 1.0) | {"byol": 4 / 3, "moco-v2": 2 / 3}
    assert {name: each / two_views for name, each in hours.items()} == pytest.approx(views)
    assert hours["moco-v2"] == pytest.approx(53 * 8, rel=0.01)  # the rate is MoCo's own
    text = summary(plan, read_rates(RATES), (64,))
    assert "- pretrain/byol: 2 views count as 2.67: what a momentum branch sees passes" in text
    assert "- pretrain/moco-v2: 2 views count as 1.33: " in text and text.count("count as") == 2


def test_a_view_of_the_branch_alone_counts_by_its_own_size() -> None:
    backbones = "backbones=[{name: six, pretrain: ../pretrain/intl_6_imagenet.yaml}]"
    plan = load_plan(FULL, [backbones, "resources.pretrain.max_jobs=99"], on_paper=True)
    settings = plan.stages[0].settings
    augment = settings["augment"]
    sizes = [
        view["size"] or augment["size"] for view in augment["views"] for _ in range(view["count"])
    ]
    first, *others = ((size / 224) ** 2 for size in sizes)
    views = settings["epochs"] * 1_281_167 * (first / 3 + sum(others))
    assert len(others) == 5
    assert jobs_of(plan)["pretrain/six"].hours == pytest.approx(views / (224 * 8) / 3600)


def test_the_digits_comparison_has_all_methods_of_the_demos_length() -> None:
    configs = pretrainings("methods.yaml")
    assert configs.keys() == METHODS
    assert {config["loss"]["name"] for config in configs.values()} == METHODS
    assert {(c["max_steps"], c["batch_size"], c["num_views"]) for c in configs.values()} == {
        (200, 128, 2)
    }
    demo, methods = (
        load_plan(PLANS / f"{name}.yaml", [], on_paper=True) for name in ("demo", "methods")
    )
    tasks = {stage.task for stage in methods.stages}
    assert tasks == {stage.task for stage in demo.stages} and len(tasks) == 3  # and none


def test_the_price_is_that_of_the_work_and_of_all_gpus_while_it_lasts() -> None:
    plan = load_plan(FULL, [], on_paper=True)
    lines = summary(plan, read_rates(RATES), (512,), price=2.5).splitlines()
    rows = {line.split(" | ")[0]: line.split(" | ") for line in lines if line.startswith("|")}
    spent, paid = (float(rows[name][-1].strip(" |").replace(",", "")) for name in (ALL, "| 512"))
    hours = sum(job.gpus * job.hours for job in jobs_of(plan).values())
    assert spent == pytest.approx(2.5 * hours, abs=1)
    days = simulate(jobs_of(plan).values(), 512).hours / 24
    assert paid == pytest.approx(2.5 * 512 * 24 * days, abs=1) and paid > 5 * spent
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the price of a GPU hour is"):
            summary(plan, read_rates(RATES), (512,), price=wrong)


ALL = "| all, estimated"


@pytest.mark.parametrize("gpu", ["v100", "a100", "h100"])
def test_what_nobody_has_measured_is_marked_wherever_it_is_printed(gpu: str) -> None:
    rates = read_rates(PLANS / f"rates_{gpu}.yaml")
    text = summary(load_plan(FULL, [], on_paper=True), rates, (8,))
    assert "\n| pretrain, estimated |" in text and f"\n{ALL} |" in text
    assert ("\n| finetune |" in text) == (gpu == "v100")  # detectron2's model zoo has timed it
    rate = rates.views_per_s_per_gpu["resnet50"]
    assert f"- views_per_s_per_gpu.resnet50: {rate:g}, estimated\n" in text
    assert "\n- num_images.imagenet: 1,281,167\n" in text
    assert all(f"\n- {source}" in text for source in rates.sources)


def test_shipped_rates_know_every_depth_with_every_detector() -> None:
    for gpu in ("v100", "a100", "h100"):
        rates = read_rates(PLANS / f"rates_{gpu}.yaml")
        depths = (18, 34, 50, 101)
        assert set(rates.views_per_s_per_gpu) == {f"resnet{depth}" for depth in depths}
        assert set(rates.s_per_iteration) == {
            f"{head}_rcnn_r{depth}_{neck}"
            for head in ("faster", "mask") for depth in depths for neck in ("c4", "fpn")
        }  # fmt: skip


def test_an_estimate_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    for name in ("s_per_iteration.mask", "per_iteration", "hardware.x", "s_per_test_image.voc"):
        path.write_text(f"_BASE_: {RATES}\nestimated: [{name}]\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f"estimated: {name} is not among these rates"):
            read_rates(path)


def test_what_the_rates_lack_is_named_once_with_file_key_and_stages(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    entries = read_rates(RATES).model_dump(mode="json", exclude={"file"})
    entries |= {"estimated": [], "views_per_s_per_gpu": {"resnet18": 1}, "num_images": {}}
    path.write_text(json.dumps(entries), encoding="utf-8")
    plan = load_plan(FULL, ["backbones=[{name: random, random: true}]"], on_paper=True)
    with pytest.raises(ValueError) as caught:
        jobs_of(plan, path)
    add = "add it there, or put the set where the plan has it, to be counted"
    assert str(caught.value).splitlines() == [
        f"{path}: num_images: nothing of voc_2007_test, which finetune/random--voc--seed0 and 4 "
        f"more needs; {add}",
        f"{path}: num_images: nothing of coco_2017_val, which finetune/random--coco--seed0 and 5 "
        f"more needs; {add}",
    ]
    with pytest.raises(ValueError) as caught:
        jobs_of(load_plan(FULL, [], on_paper=True), path)
    fault = "views_per_s_per_gpu: nothing of resnet50, which pretrain/cw-rgp-4 and 1 more needs"
    assert f"{path}: {fault}; add it there" in str(caught.value).splitlines()


def test_a_plan_of_ones_own_is_simulated_with_what_is_counted(project: Path) -> None:
    """Sets that no rate names, no `resources`, keys left to detectron2: nothing to write first."""
    changes = ["backbones.1.overrides=[max_steps=null,epochs=3]", "tasks.1.optimizer=adamw"]
    changes += ["tasks.1.overrides=[SOLVER.IMS_PER_BATCH=4,SOLVER.MAX_ITER=90,SOLVER.BASE_LR=0.1]"]
    plan = load_plan(project / "configs" / "tiny.yaml", changes, on_paper=True)
    jobs = jobs_of(plan)
    # 8 images in 2 views of 32 pixels, an area of a 49th
    assert jobs["pretrain/a"].hours == pytest.approx(3 * 8 * 2 / 506 / 49 / 3600)
    views = "'augment.views=[{},{size: 16}]'"
    crops = [*changes, f"backbones.1.overrides=[max_steps=null,epochs=3,{views}]"]
    of_crops = jobs_of(load_plan(project / "configs" / "tiny.yaml", crops, on_paper=True))
    assert of_crops["pretrain/a"].hours == pytest.approx(5 / 8 * jobs["pretrain/a"].hours)
    # 90 iterations of 4 images on one GPU, three images tested; detectron2's 40,000 of 16
    voc, coco = (90 * 4, 40_000 * 16)
    for name, images in (("voc", voc), ("coco", coco)):
        hours = (images * 0.509 * 8 / 16 + 3 * 0.11) / 3600
        assert jobs[f"finetune/random--{name}--seed0"].hours == pytest.approx(hours)
    assert {job.num_jobs for job in jobs.values()} == {1}  # nothing has a time limit
    text = summary(plan, read_rates(RATES), (1,))
    for name, count in (("my_coco", 3), ("my_voc", 3), ("tiny", 8)):
        assert f"\n- num_images.{name}: {count}, counted\n" in text
    shutil.rmtree(project / "data")
    with pytest.raises(ValueError) as caught:
        jobs_of(plan)
    assert [line.split(": ")[2].split(",")[0] for line in str(caught.value).splitlines()] == [
        f"nothing of {name}" for name in ("my_coco", "my_voc", "tiny")
    ]


def test_files_that_are_there_count_more_than_the_rates(project: Path) -> None:
    changes = ["backbones.1.overrides=[max_steps=null,epochs=3,data.name=imagenet]"]
    plan = load_plan(project / "configs" / "tiny.yaml", changes, on_paper=True)
    assert "num_images.imagenet: 8, counted" in summary(plan, read_rates(RATES), (1,))
    changes[0] = changes[0].replace("]", ",data.format=cifar10]")  # binary files have one number
    plan = load_plan(project / "configs" / "tiny.yaml", changes, on_paper=True)
    assert "num_images.cifar10: 50,000\n" in summary(plan, read_rates(RATES), (1,))


@pytest.mark.parametrize(("stem", "times"), [("imagenet", 1), ("small", 4), ("small-no-pool", 16)])
def test_a_stem_that_halves_less_costs_by_the_area_of_its_maps(
    project: Path, stem: str, times: int
) -> None:
    probe = ROOT / "configs" / "pretrain" / "probe_digits.yaml"
    changes = [f"backbones.1.overrides=[model.stem={stem}]", "tasks=[]", "seeds=[]"]
    changes.append(f"probes=[{{name: crops, config: {probe}}}]")
    plan = load_plan(project / "configs" / "tiny.yaml", changes, on_paper=True)
    hours = 2 * 8 * 2 / 506 / 49 * times / 3600
    assert jobs_of(plan)["pretrain/a"].hours == pytest.approx(hours)


@pytest.mark.parametrize("key", ["SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "INPUT.MIN_SIZE_TRAIN"])
@pytest.mark.parametrize("value", ["0", "abc", "1.5", "true"])
def test_a_number_of_a_task_that_is_none_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    """By the override, or, where there is no detectron2 to say of which type it is, by the file."""
    config, change = project / "configs" / "tiny.yaml", f"{key}={value}"
    with pytest.raises(ValueError, match=rf"tiny.yaml: task coco: override {change}: {key} is "):
        load_plan(config, [f"tasks.0.overrides=[{change}]"], on_paper=True)
    for module in (finetune, recipe):
        monkeypatch.setattr(module, "defaults", not_installed)
    plan = load_plan(config, [f"tasks.0.overrides=[{change}]"], on_paper=True)
    with pytest.raises(ValueError, match=rf"coco.yaml: {key} is .*, wanted a whole number above 0"):
        jobs_of(plan)


def not_installed() -> NoReturn:
    raise FileNotFoundError("detectron2 is not installed")


def test_another_size_of_images_than_the_rates_is_said(project: Path) -> None:
    config = project / "configs" / "tiny.yaml"
    sizes = [f"tasks.{i}.overrides=['INPUT.MIN_SIZE_TRAIN={size}']" for i, size in enumerate(SIZES)]
    text = summary(load_plan(config, sizes, on_paper=True), read_rates(RATES), (1,))
    assert "\n- coco: images of 128 pixels, the rates are of 800: it takes less than" in text
    assert "\n- voc: images of 1000 pixels, the rates are of 800: it takes more than" in text
    assert "images of" not in summary(load_plan(FULL, [], on_paper=True), read_rates(RATES), (8,))


def test_another_precision_than_the_rates_is_said(project: Path) -> None:
    """float32 takes more than tf32, and everything else less than float32."""
    rates = {gpu: read_rates(PLANS / f"rates_{gpu}.yaml") for gpu in ("v100", "h100")}
    changes = [
        "tasks.0.overrides=[MODEL.PRECISION=tf32]",
        "tasks.1.overrides=[SOLVER.AMP.ENABLED=True]",
    ]
    changes.append("backbones.1.overrides=[compute.precision=tf32]")
    plan = load_plan(project / "configs" / "tiny.yaml", changes, on_paper=True)
    lines = {gpu: summary(plan, rates[gpu], (1,)).splitlines() for gpu in rates}
    told = {gpu: [line for line in lines[gpu] if ", the rates are of" in line] for gpu in rates}
    assert told["v100"] == [
        "- coco, pretrain/a: in tf32, the rates are of float32: it takes less than this",
        "- voc: in fp16, the rates are of float32: it takes less than this",
    ]
    assert told["h100"] == [
        "- voc: in fp16, the rates are of tf32: it takes less than this",
        "- pretrain/b: in float32, the rates are of tf32: it takes more than this",
    ]


SIZES = ("[128]", "[640,1000]")


def test_a_plan_on_paper_still_finds_faults_of_its_configs() -> None:
    with pytest.raises(ValueError, match=r"model\.stem is small"):
        load_plan(FULL, ["backbones.1.overrides=[model.stem=small]"], on_paper=True)
