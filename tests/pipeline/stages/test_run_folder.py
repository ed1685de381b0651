"""Run folders: changed and lost outputs, and the lock."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.plan.build import load_plan
from pipeline.plan.plan import Plan
from pipeline.report.write import make_report
from pipeline.stages.run_folder import (
    MANIFEST,
    State,
    drop_changed_outputs,
    lock,
    prepare,
    read_state,
    read_states,
    strip_output,
    write_manifest,
)
from pipeline.stages.staleness import kept_lines
from tests.pipeline.local_runs import CONFIG, ONLY_A, ONLY_RANDOM, ran, run, small_plan
from tests.source import ROOT

# A child is killed before its n-th touch of a file, n from 1 on, until one comes through.
STRIPPED_AND_KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.stages.files import read_json
from pipeline.stages.run_folder import outputs_fault, read_stripped, strip_output, write_manifest

folder = Path("folder")
folder.mkdir()
job = {{"stage": "finetune", "signature": "0", "outputs": ["model"]}}

def strip():
    strip_output(folder, "model", lambda path, target: target.write_bytes(b"weights"))

def child(last):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            if event.startswith(("open", "os.", "fcntl.")):
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        strip()
        os._exit(0)
    return os.waitpid(pid, 0)[1]

killed, sizes = 0, set()
while True:
    (folder / "stripped.json").unlink(missing_ok=True)
    (folder / "model").write_bytes(b"weights and optimiser")
    write_manifest(folder, job, {{}}, {{}})
    manifest = read_json(folder / "manifest.json")
    code = child(killed + 1)
    assert outputs_fault(folder, manifest, thorough=True) is None, killed
    sizes.add((folder / "model").stat().st_size)
    strip()
    assert (folder / "model").read_bytes() == b"weights", killed
    assert outputs_fault(folder, manifest, thorough=True) is None, killed
    assert not list(folder.glob(".model.*")), killed
    if code == 0:
        break
    killed += 1
assert killed > 10 and sizes == {{7, 21}}, (killed, sizes)
(folder / "model").write_bytes(b"WEIGHTS")
assert "sha256 differs" in outputs_fault(folder, manifest, thorough=True)
"""


def lose(plan: Plan, *names: str) -> None:
    for entry in plan.stages:
        if entry.name in names:
            (entry.run_dir / "out.txt").unlink()


def numbers() -> int:
    make_report(load_plan(CONFIG, ONLY_A))
    return len(json.loads(Path("runs/tiny/report/results.json").read_text("utf-8"))["rows"])


@pytest.mark.usefixtures("in_process")
def test_changed_outputs_are_noticed_and_made_again(fakes: Path) -> None:
    plan = small_plan(ONLY_RANDOM)
    run(plan)
    ran()
    by_name = {entry.name: entry for entry in plan.stages}
    with (by_name["finetune/random--voc--seed0"].run_dir / "out.txt").open("r+") as file:
        file.truncate(3)
    state = read_state(by_name["finetune/random--voc--seed0"])
    assert state.status == "missing" and "3 bytes, wanted" in str(state.reason)
    assert {state.status for state in run(plan).values()} == {"done"}
    assert ran() == ["random--voc--seed0"]


def test_whenever_it_is_killed_an_output_is_whole_or_stripped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STRIPPED_AND_KILLED]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr


def test_what_was_stripped_is_no_changed_output(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights and optimiser")
    (tmp_path / "other").write_bytes(b"other")
    job = {"stage": "finetune", "signature": "0", "outputs": ["model", "other"]}
    write_manifest(tmp_path, job, {}, {})
    strip_output(tmp_path, "model", lambda path, target: target.write_bytes(path.read_bytes()[:7]))
    (tmp_path / "other").write_bytes(b"OTHER")
    drop_changed_outputs(tmp_path)
    assert (tmp_path / "model").read_bytes() == b"weights" and not (tmp_path / "other").exists()


@pytest.mark.usefixtures("in_process")
def test_a_lost_output_that_nothing_reads_any_more_takes_no_number_with_it(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    ran()
    assert numbers() == 2
    lose(plan, "pretrain/a", "convert/a", "finetune/a--voc--seed0")
    states = run(plan)
    assert {state.status for state in states.values()} == {"done"} and ran() == []
    assert numbers() == 2
    (pretrain, *_) = plan.stages
    assert kept_lines(plan.stages, states)[0] == (
        f"kept: pretrain/a: {pretrain.run_dir / 'out.txt'}: gone; the numbers stay, and nothing "
        "that has yet to run reads it"
    )


@pytest.mark.usefixtures("in_process")
def test_a_lost_output_is_made_again_for_what_is_asked_for_later(fakes: Path) -> None:
    run(small_plan(ONLY_A))
    ran()
    more = small_plan([ONLY_A[0], "seeds=[0,1]"])
    lose(more, "pretrain/a")
    run(more)  # the conversion that new seeds read is there
    assert ran() == ["a--coco--seed1", "a--voc--seed1"]
    again = small_plan([ONLY_A[0], "seeds=[0,1,2]", "tasks.1.seeds=[0]"])
    lose(again, "convert/a")
    states = read_states(again.stages)
    pretrain, convert = again.stages[:2]
    why = "gone since it was made; it will be made again for"
    assert states["pretrain/a"].reason == f"{pretrain.run_dir / 'out.txt'}: {why} convert/a"
    assert states["convert/a"].reason == (
        f"{convert.run_dir / 'out.txt'}: {why} finetune/a--coco--seed2"
    )
    run(again)
    assert ran() == ["a", "a", "a--coco--seed2"]


@pytest.mark.usefixtures("in_process")
def test_a_manifest_without_numbers_keeps_none(fakes: Path) -> None:
    plan = small_plan(ONLY_RANDOM)
    run(plan)
    entry = plan.stages[0]
    lose(plan, entry.name)
    content = json.loads((entry.run_dir / MANIFEST).read_text("utf-8"))
    (entry.run_dir / MANIFEST).write_text(json.dumps(content | {"metrics": None}), "utf-8")
    assert read_state(entry).status == "missing"


def test_a_lock_is_exclusive_and_names_its_holder(tmp_path: Path) -> None:
    from pipeline.stages.run_folder import LockedError

    path = tmp_path / "lock"
    with lock(path), pytest.raises(LockedError, match=r"process \d+ on"), lock(path):
        pass
    with lock(tmp_path / "lock"):
        pass


@pytest.mark.usefixtures("in_process")
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


@pytest.mark.usefixtures("in_process")
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
