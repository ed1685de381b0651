"""Estimates of GPU hours."""

from pathlib import Path

from pipeline.config.schema import PipelineConfig
from pipeline.executors.slurm.arrays import plan_groups
from pipeline.executors.slurm.gpu_hours import gpu_hours
from pipeline.plan.plan import Plan
from pipeline.stages.stage import Stage


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
