"""Run folders: changed outputs and the lock."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.stages.run_folder import MANIFEST, State, lock, prepare, read_state
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


def test_a_folder_that_holds_another_stages_result_is_refused(fakes: Path) -> None:
    plan = small_plan(ONLY_RANDOM)
    run(plan)
    of_coco, of_voc = (entry for entry in plan.stages if entry.kind == "finetune")
    shutil.rmtree(of_voc.run_dir)
    of_coco.run_dir.rename(of_voc.run_dir)  # as a merge by hand would do
    told = f"is of signature {of_coco.signature}, wanted {of_voc.signature}; move the folder away"
    state = read_state(of_voc)
    assert state == State("failed", f"{of_voc.run_dir / MANIFEST}: {told}")
    (of_voc.run_dir / "config.json").unlink()
    assert read_state(of_voc) == state
    with pytest.raises(ValueError, match=told):
        prepare(of_voc)
    assert (of_voc.run_dir / "out.txt").exists() and read_state(of_coco).status == "missing"


def test_a_config_that_is_not_the_signatures_is_refused(fakes: Path) -> None:
    (entry,) = (entry for entry in small_plan(ONLY_RANDOM).stages if entry.task == "voc")
    run(small_plan(ONLY_RANDOM))
    path = entry.run_dir / "config.json"
    content = json.loads(path.read_text("utf-8"))
    content["config"]["seed"] = 5
    path.write_text(json.dumps(content), encoding="utf-8")
    state = read_state(entry)
    assert state.status == "failed" and str(state.reason).startswith(f"{path}: ")
    with pytest.raises(ValueError, match="seed: stored 5, wanted 0"):
        prepare(entry)
