"""Estimates of GPU hours."""

from pathlib import Path

from pipeline.config.schema import PipelineConfig
from pipeline.executors.slurm.arrays import plan_groups
from pipeline.executors.slurm.gpu_hours import gpu_hours
from pipeline.plan.plan import Plan
from tests.pipeline.executors.slurm.made_up import CONFIG, stages_of


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
