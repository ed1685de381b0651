"""The local executor with fake stages: order, reuse, failure, interruption, locks."""

import json
import os
from pathlib import Path

import pytest

from pipeline.executors import local
from pipeline.executors.preflight import check_before_start
from pipeline.plan.plan import select
from pipeline.stages.run_folder import FAILURE, LOG, MANIFEST, State
from tests.pipeline.local_runs import ONLY_RANDOM, ran, run, small_plan

TWO = ["backbones=[{name: a, pretrain: a.yaml}, {name: random, random: true}]", "seeds=[0]"]


def test_everything_runs_once_in_order_and_never_again(fakes: Path) -> None:
    plan = small_plan(TWO)
    states = run(plan)
    assert {state.status for state in states.values()} == {"done"}
    assert ran() == [entry.slug for entry in plan.stages]
    assert run(plan) == states
    assert ran() == []
    tuned = plan.stages[-1]
    manifest = json.loads((tuned.run_dir / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["metrics"] == {"bbox/AP": 10.0, "bbox/AP50": None}
    assert manifest["outputs"]["out.txt"]["size"] == (tuned.run_dir / "out.txt").stat().st_size
    assert manifest["provenance"]["wall_time_s"] >= 0
    assert json.loads((tuned.run_dir / "config.json").read_text("utf-8")) == tuned.record


def test_a_failed_stage_stops_only_what_needs_it(fakes: Path) -> None:
    Path("behaviour-a").write_text("fail", encoding="utf-8")
    plan = small_plan(TWO)
    states = run(plan)
    assert states["pretrain/a"] == State("failed", "the loss became NaN at step 3")
    assert states["convert/a"].reason == (
        "needs pretrain/a, which failed: the loss became NaN at step 3"
    )
    assert states["finetune/a--voc--seed0"] == State("missing", states["convert/a"].reason)
    others = [state for name, state in states.items() if "/a" not in name]
    assert {state.status for state in others} == {"done"}
    pretrain = next(entry for entry in plan.stages if entry.name == "pretrain/a")
    assert "Traceback" in (pretrain.run_dir / LOG).read_text(encoding="utf-8")
    assert not (pretrain.run_dir / MANIFEST).exists()
    ran()
    Path("behaviour-a").unlink()
    assert {state.status for state in run(plan).values()} == {"done"}
    assert ran() == ["a", "a", "a--coco--seed0", "a--voc--seed0"]
    assert not (pretrain.run_dir / FAILURE).exists()


TWINS = "backbones=[{name: a, pretrain: a.yaml}, {name: twin, pretrain: a.yaml}]"


def test_two_names_of_one_recipe_run_once(fakes: Path) -> None:
    plan = small_plan([TWINS, "seeds=[0]"])
    by_name = {entry.name: entry for entry in plan.stages}
    assert by_name["finetune/twin--voc--seed0"].run_dir == by_name["finetune/a--voc--seed0"].run_dir
    assert by_name["convert/twin"].inputs["checkpoint"] is by_name["pretrain/a"]
    states = run(plan)
    assert {state.status for state in states.values()} == {"done"} and len(states) == 8
    assert sorted(ran()) == ["a", "a", "a--coco--seed0", "a--voc--seed0"]
    assert {state.status for state in run(select(plan, ["convert/twin"])).values()} == {"done"}
    assert ran() == []


def test_a_failure_is_that_of_both_names(fakes: Path) -> None:
    Path("behaviour-a").write_text("fail", encoding="utf-8")
    states = run(small_plan([TWINS, "seeds=[0]"]))
    assert states["pretrain/a"].status == states["pretrain/twin"].status == "failed"
    assert states["finetune/a--voc--seed0"].status == "missing"
    assert states["finetune/twin--voc--seed0"] == states["finetune/a--voc--seed0"]
    assert ran() == ["a"]


def test_children_import_the_code_that_started_them(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another checkout that is installed nor the folder of the start comes first."""
    for folder in (fakes, fakes / "installed"):
        (folder / "pipeline").mkdir(parents=True)
        for name in ("__init__", "worker"):
            other = folder / "pipeline" / f"{name}.py"
            other.write_text("raise SystemExit('another checkout')", encoding="utf-8")
    paths = [str(fakes / "installed"), os.environ["PYTHONPATH"].split(os.pathsep)[-1]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    plan = small_plan(ONLY_RANDOM)
    check_before_start(plan, {entry.name: State("missing") for entry in plan.stages})
    assert {state.status for state in run(plan).values()} == {"done"}
    log = (plan.stages[0].run_dir / LOG).read_text("utf-8")
    assert "another checkout" not in log


@pytest.mark.parametrize("others", [{}, {"GLIBC_TUNABLES": "glibc.malloc.check=1"}])
def test_a_worker_keeps_freed_memory_unless_the_user_tunes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: dict[str, str]
) -> None:
    given: dict[str, str] = {}
    monkeypatch.setattr(local.subprocess, "Popen", lambda *_, env, **__: given.update(env))
    local.start_worker(tmp_path, others, 0)
    kept = "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=268435456:glibc.malloc."
    tuned = kept + "mmap_threshold=268435456"
    assert given["GLIBC_TUNABLES"] == others.get("GLIBC_TUNABLES", tuned)
