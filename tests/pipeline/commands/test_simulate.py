"""Schedules worked out by hand, and the paper's plan read without its data."""

from pathlib import Path

import pytest

from pipeline.commands.simulate import Job, architecture, jobs_of, read_rates, simulate, summary
from pipeline.plan.build import load_plan

ROOT = Path(__file__).resolve().parents[3]
FULL = ROOT / "configs" / "pipeline" / "full_comparison.yaml"
RATES = ROOT / "configs" / "pipeline" / "rates_v100.yaml"


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


def test_a_stage_that_its_jobs_cannot_end_is_named() -> None:
    plan = load_plan(FULL, ["resources.pretrain.max_jobs=6"], on_paper=True)
    with pytest.raises(ValueError, match=r"pretrain/w-mse-4: 158.9 h take 7 jobs of 1440 min"):
        jobs_of(plan, read_rates(RATES))


def test_training_without_gpus_counts_as_one() -> None:
    plan = load_plan(
        FULL, ["resources.pretrain.gpus=0", "resources.pretrain.max_jobs=99"], on_paper=True
    )
    found = next(j for j in jobs_of(plan, read_rates(RATES)) if j.kind == "pretrain")
    assert found.gpus == 1 and found.hours == pytest.approx(200 * 1_281_167 * 4 / 224 / 3600)


def test_architectures_are_told_apart() -> None:
    fpn = {"BACKBONE": {"NAME": "build_resnet_fpn_backbone"}}
    assert architecture({"MODEL": {"MASK_ON": True}}) == "mask-c4"
    assert architecture({"MODEL": fpn}) == "faster-fpn"


def test_the_full_comparison_is_what_it_says(tmp_path: Path) -> None:
    plan = load_plan(FULL, [], on_paper=True)
    jobs = jobs_of(plan, read_rates(RATES))
    counts = {
        kind: sum(j.kind == kind for j in jobs) for kind in ("pretrain", "convert", "finetune")
    }
    # 2 pretrained, 5 checkpoints and random; VOC x 5 seeds, COCO 1x and 2x x 3 seeds each
    assert counts == {"pretrain": 2, "convert": 7, "finetune": 8 * (5 + 3 + 3)}
    by_name = {j.name: j for j in jobs}
    # 200 epochs of 1,281,167 images in 4 views at 224 views/s on each of 8 GPUs
    hours = 200 * 1_281_167 * 4 / (224 * 8) / 3600
    assert by_name["pretrain/cw-rgp-4"].hours == pytest.approx(hours)
    assert by_name["pretrain/cw-rgp-4"].num_jobs == 7  # 158.9 hours, 23:58 a job
    # 24,000 iterations of 0.551 s, 1.42 times that for SyncBN; 4,952 tests of 0.11 s on 8 GPUs
    voc = (24_000 * 0.551 * 1.42 + 4_952 * 0.11 / 8) / 3600
    assert by_name["finetune/random--voc--seed4"].hours == pytest.approx(voc)
    text = summary(plan, read_rates(RATES), (8, 64, 512))
    assert "| finetune | 88 | 112 | 8 |" in text and "| 512 |" in text
    # pretraining; its conversions and those of checkpoints; fine-tuning by backbone; the report
    assert text.startswith("97 stages in 12 sbatch calls")


def test_what_the_rates_lack_is_named(tmp_path: Path) -> None:
    rates = read_rates(RATES).model_copy(update={"views_per_s_per_gpu": {"resnet18": 1.0}})
    with pytest.raises(ValueError, match="pretrain/cw-rgp-4: the rates say nothing of views_per_s"):
        jobs_of(load_plan(FULL, [], on_paper=True), rates)


def test_a_plan_on_paper_still_finds_faults_of_its_configs() -> None:
    with pytest.raises(ValueError, match=r"model\.stem is small"):
        load_plan(FULL, ["backbones.1.overrides=[model.stem=small]"], on_paper=True)
