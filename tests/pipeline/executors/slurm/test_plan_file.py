"""A plan survives being a file."""

from pathlib import Path

from pipeline.executors.slurm.plan_file import read_plan, write_plan
from tests.pipeline.slurm_runs import plan_of


def test_a_plan_survives_being_a_file(fake) -> None:
    plan = plan_of("resources.pretrain.gpus=2")
    write_plan(plan, Path("plan.json"))
    again = read_plan(Path("plan.json"))
    assert [s.signature for s in again.stages] == [s.signature for s in plan.stages]
    assert again.config.resources.of("pretrain").gpus == 2 and again.config.root == plan.config.root
