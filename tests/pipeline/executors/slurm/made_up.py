"""Stages and a config of a plan that was never loaded from a file."""

from pathlib import Path

from pipeline.config.schema import ResourcesConfig
from pipeline.stages.stage import Stage

CONFIG = {
    "name": "tiny",
    "backbones": [{"name": "a", "random": True}],
    "tasks": [{"name": "voc", "config": "voc.yaml"}],
    "seeds": [0],
}
NOTHING = ResourcesConfig()


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
