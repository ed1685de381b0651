"""Run folders: changed outputs and the lock."""

from pathlib import Path

import pytest

from pipeline.stages.run_folder import lock, read_state
from tests.pipeline.local_runs import ONLY_RANDOM, ran, run, small_plan


def test_changed_or_lost_outputs_are_noticed_and_made_again(fakes: Path) -> None:
    plan = small_plan(ONLY_RANDOM)
    run(plan)
    ran()
    by_name = {entry.name: entry for entry in plan.stages}
    (by_name["finetune/random--coco--seed0"].run_dir / "out.txt").unlink()
    state = read_state(by_name["finetune/random--coco--seed0"])
    assert state.status == "missing" and "gone since it was made" in str(state.reason)
    run(plan)
    assert ran() == ["random--coco--seed0"]
    with (by_name["finetune/random--voc--seed0"].run_dir / "out.txt").open("r+") as file:
        file.truncate(3)
    assert {state.status for state in run(plan).values()} == {"done"}
    assert ran() == ["random--voc--seed0"]


def test_a_lock_is_exclusive_and_names_its_holder(tmp_path: Path) -> None:
    from pipeline.stages.run_folder import LockedError

    path = tmp_path / "lock"
    with lock(path), pytest.raises(LockedError, match=r"process \d+ on"), lock(path):
        pass
    with lock(tmp_path / "lock"):
        pass
