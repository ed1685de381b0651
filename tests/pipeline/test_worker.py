"""The worker with fake stages: its inputs, its failures and its end."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from pipeline import worker
from pipeline.plan.build import load_plan
from pipeline.stages import provenance
from pipeline.stages.files import TRACEBACK
from pipeline.stages.run_folder import LOG, MANIFEST, prepare, read_state
from pipeline.worker import check_input, reason_of
from tests.pipeline.local_runs import CONFIG, ONLY_A, RUN, ran, run, small_plan, until


def test_an_input_without_its_manifest_is_refused(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    path = plan.stages[0].result
    check_input(path)
    (plan.stages[0].run_dir / MANIFEST).unlink()
    with pytest.raises(ValueError, match="its manifest is gone; run again to have it made again"):
        check_input(path)


def test_a_stage_that_is_killed_or_writes_nothing_has_failed(fakes: Path) -> None:
    Path("behaviour-a").write_text("die", encoding="utf-8")
    Path("behaviour-b").write_text("write nothing", encoding="utf-8")
    states = run(small_plan())
    assert "ended with code -9" in str(states["pretrain/a"].reason)
    pretrain = next(entry for entry in load_plan(CONFIG, []).stages if entry.name == "pretrain/a")
    assert read_state(pretrain) == states["pretrain/a"]
    assert "ended without writing out.txt" in str(states["pretrain/b"].reason)


class Broken(Dataset[int]):
    """Images of which reading one fails, in its own words or in those of another error."""

    def __init__(self, raised: type[Exception]) -> None:
        self.raised = raised

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise EOFError("cut\noff")
        except EOFError as error:
            raise self.raised("data/7.png: cannot\nbe read") from error


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ValueError, "data/7.png: cannot be read"),
        (OSError, "OSError: data/7.png: cannot be read"),
        (UnidentifiedImageError, "UnidentifiedImageError: data/7.png: cannot be read"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_failure_in_a_loaders_worker_is_told_in_its_own_words(
    raised: type[Exception], reason: str, num_workers: int
) -> None:
    loader = DataLoader(Broken(raised), num_workers=num_workers)
    with pytest.raises(raised) as error:
        next(iter(loader))
    assert reason_of(error.value) == reason


def test_a_failure_in_a_started_process_is_told_in_its_own_words() -> None:
    text = (
        f"\n\n-- Process 1 terminated with the following error:\n{TRACEBACK}\n  File x\nKeyError: 4"
    )
    assert reason_of(RuntimeError(text)) == "KeyError: 4"
    assert reason_of(RuntimeError("CUDA\nout of memory")) == "RuntimeError: CUDA out of memory"
    assert reason_of(AssertionError()) == "AssertionError: AssertionError"
    full = reason_of(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9"))
    assert full.startswith(
        "RuntimeError: a checkpoint could not be written whole; is the disk full?"
    )


def test_an_input_edited_by_hand_is_refused_and_made_again(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    ran()
    by_name = {entry.name: entry for entry in plan.stages}
    backbone = by_name["convert/a"].run_dir / "out.txt"
    backbone.write_text("x" * backbone.stat().st_size, encoding="utf-8")
    for name in (MANIFEST, "out.txt"):
        (by_name["finetune/a--voc--seed0"].run_dir / name).unlink()
    states = run(plan)
    assert "sha256 differs" in str(states["finetune/a--voc--seed0"].reason)
    assert {state.status for state in run(plan).values()} == {"done"}


def test_a_killed_run_takes_its_child_with_it(fakes: Path) -> None:
    Path("behaviour-a").write_text("hang", encoding="utf-8")
    script = RUN.format(paths=sys.path, changes=ONLY_A)
    parent = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: Path("hanging").exists() or parent.poll() is not None)
    assert parent.poll() is None
    pretrain = next(entry for entry in small_plan(ONLY_A).stages if entry.name == "pretrain/a")
    assert read_state(pretrain).status == "running"
    parent.kill()
    parent.wait()
    until(lambda: read_state(pretrain).status != "running")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_attempt_keeps_the_code_and_versions_that_it_started_with(fakes: Path) -> None:
    plan = small_plan(["backbones=[{name: random, random: true}]", "seeds=[0]"])
    entry = plan.stages[0]
    Path(f"behaviour-{entry.slug}").write_text("fail", encoding="utf-8")
    run(plan)
    Path(f"behaviour-{entry.slug}").unlink()
    run(plan)
    (entry.run_dir / MANIFEST).unlink()  # made again, it does not forget what it is made from
    run(plan)
    made = json.loads((entry.run_dir / MANIFEST).read_text("utf-8"))["provenance"]
    provenance.code_state.cache_clear()  # what a test before asked may have had no git
    state = provenance.code_state()
    assert [attempt["code"] for attempt in made["attempts"]] == [state] * 3
    assert made["code"] == state and made["packages"]["torch"]
    assert made["started"] == made["attempts"][-1]["started"]
    assert made["precision"] == "bf16"


def test_the_state_is_taken_before_the_stage_is_imported(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [entry] = small_plan(["backbones=[{name: random, random: true}]", "seeds=[0]",
                          "tasks=[{name: voc, config: voc.yaml}]"]).stages  # fmt: skip
    prepare(entry)
    asked = []
    monkeypatch.setattr(worker, "origin", lambda: asked.append(set(sys.modules)) or {})
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])
    sys.modules.pop("fake_stages", None)
    assert worker.run(entry.run_dir) == 0
    assert len(asked) == 1 and "fake_stages" not in asked[0]


def manifest_of(name: str) -> dict:
    entry = next(entry for entry in small_plan(ONLY_A).stages if entry.name == name)
    return json.loads((entry.run_dir / MANIFEST).read_text("utf-8"))


def test_a_manifest_holds_the_digests_of_what_was_read(fakes: Path) -> None:
    run(small_plan(ONLY_A))
    for name, role, source in (
        ("convert/a", "checkpoint", "pretrain/a"),
        ("finetune/a--voc--seed0", "weights", "convert/a"),
    ):
        entry = next(entry for entry in small_plan(ONLY_A).stages if entry.name == source)
        sha256 = manifest_of(source)["outputs"]["out.txt"]["sha256"]
        assert manifest_of(name)["inputs"] == {
            role: {"signature": entry.signature, "files": {"out.txt": sha256}}
        }
    assert manifest_of("pretrain/a")["inputs"] == {}


def test_only_what_a_stage_reads_is_looked_at(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small_plan(ONLY_A))
    folder = small_plan(ONLY_A).stages[1].run_dir
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["outputs"]["gone.pth"] = {"size": 1, "sha256": "0"}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for reads in (None, [], ["out.txt"]):
        assert list(check_input(folder / "out.txt", reads)) == ["out.txt"]
    with pytest.raises(
        ValueError, match=r"gone\.pth: gone since it was made; it will be made again: run again$"
    ):
        check_input(folder / "out.txt", ["out.txt", "gone.pth"])


def test_no_attempt_goes_on_from_states_that_were_begun_with_other_inputs(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    pretrain, convert = plan.stages[:2]
    (convert.run_dir / MANIFEST).unlink()
    (convert.run_dir / "state.pth").write_text("of the old one", encoding="utf-8")
    content = json.loads((pretrain.run_dir / MANIFEST).read_text("utf-8"))
    pretrain.result.write_text("made again", encoding="utf-8")
    sha256 = hashlib.sha256(b"made again").hexdigest()
    content["outputs"]["out.txt"] = {"size": len("made again"), "sha256": sha256}
    (pretrain.run_dir / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    assert run(plan)["convert/a"].status == "done"
    assert (convert.run_dir / "set-aside-1" / "state.pth").exists()
    assert (convert.run_dir / "set-aside-1" / "out.txt").exists()
    assert not (convert.run_dir / "state.pth").exists()
    assert "begun with other inputs" in (convert.run_dir / LOG).read_text("utf-8")
    made = manifest_of("convert/a")
    assert made["inputs"]["checkpoint"]["files"] == {"out.txt": sha256}
    assert len(made["provenance"]["attempts"]) == 2
    run(plan)
    assert not (convert.run_dir / "set-aside-2").exists()
