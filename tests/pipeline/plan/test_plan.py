"""A part of a plan is the named stages and what they need."""

from pathlib import Path

import pytest

from pipeline.plan.build import load_plan
from pipeline.plan.plan import select


def test_a_stage_comes_with_what_it_needs(project: Path) -> None:
    plan = load_plan(Path("configs/tiny.yaml"), [])
    part = select(plan, ["finetune/a--voc--seed1", "finetune/random--coco--seed0"])
    assert [stage.name for stage in part.stages] == [
        "finetune/random--coco--seed0",
        "pretrain/a",
        "convert/a",
        "finetune/a--voc--seed1",
    ]
    assert part.stages[1] is next(s for s in plan.stages if s.name == "pretrain/a")


def test_an_unknown_stage_is_told_with_the_nearest_name(project: Path) -> None:
    plan = load_plan(Path("configs/tiny.yaml"), [])
    with pytest.raises(ValueError, match=r"--only: unknown stage 'pretrain/aa'; did you mean") as e:
        select(plan, ["pretrain/aa", "nonsense"])
    assert len(str(e.value).splitlines()) == 2 and "and 4 more" in str(e.value)
