"""Stages whose inputs come out byte for byte as before take their older result over."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands import main as commands
from pipeline.plan.build import load_plan
from pipeline.report.collect import collect
from pipeline.stages import stage
from pipeline.stages.run_folder import MANIFEST, prepare, read_state
from pipeline.stages.stage import Stage
from pipeline.stages.staleness import equal_result, files_read, inputs_of
from pipeline.worker import run as run_worker
from tests.pipeline import slurm_runs
from tests.pipeline.local_runs import CONFIG, ONLY_A, ran, run, small_plan
from transfer.checkpoints import other_files

GIVEN = "backbones=[{name: given, checkpoint: given.pth}]"
OF_GIVEN = ["convert/given", "finetune/given--coco--seed0", "finetune/given--voc--seed0"]
pytestmark = pytest.mark.usefixtures("in_process")


def stages() -> dict[str, Stage]:
    return {entry.name: entry for entry in small_plan(ONLY_A).stages}


@pytest.fixture
def done(fakes: Path) -> dict[str, Stage]:
    """Run all stages of a backbone, which write bytes that do not depend on signatures."""
    Path("bytes-without-signature").touch()
    before = stages()
    run(small_plan(ONLY_A))
    Path(before["finetune/a--voc--seed0"].run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
    (before["finetune/a--voc--seed0"].run_dir / "tracking").mkdir()
    (before["finetune/a--voc--seed0"].run_dir / "tracking" / "wandb.json").write_text("{}")
    ran()
    return before


def raise_version(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = stage.STAGE_KINDS["convert"]
    monkeypatch.setitem(stage.STAGE_KINDS, "convert", replace(kind, version=kind.version + 1))


def test_what_is_made_from_the_same_bytes_is_not_made_again(
    done: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_version(monkeypatch)
    commands.execute("plan", CONFIG, ONLY_A)
    assert (
        "or taken over: finetune/a--coco--seed0, finetune/a--voc--seed0: where an input comes out "
        "byte for byte as before, the older result of it is used"
    ) in capsys.readouterr().out.splitlines()
    assert commands.execute("run", CONFIG, ONLY_A) == 0
    assert ran() == ["a"]
    old, new = done["finetune/a--voc--seed0"], stages()["finetune/a--voc--seed0"]
    told = f"taken over from {old.run_dir.name}, made from the same bytes"
    assert told in capsys.readouterr().out.replace("\n", " ")
    before, after = (
        json.loads((each.run_dir / MANIFEST).read_text("utf-8")) for each in (old, new)
    )
    assert after["signature"] == new.signature != before["signature"]
    assert after["inputs"]["weights"]["signature"] == stages()["convert/a"].signature
    assert after["taken_from"] == old.run_dir.name
    for key in ("metrics", "outputs", "provenance"):
        assert after[key] == before[key]
    assert (new.run_dir / "metrics.jsonl").samefile(old.run_dir / "metrics.jsonl")
    assert not (new.run_dir / "tracking").exists()  # that run in a tracker is the old one's
    assert len(collect(load_plan(CONFIG, ONLY_A)).rows) == 2
    assert commands.execute("run", CONFIG, ONLY_A) == 0 and ran() == []


def test_plan_names_the_folder_once_the_inputs_are_there(
    done: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_version(monkeypatch)
    commands.execute("run", CONFIG, ONLY_A, commands.Options(only=("convert/a",)))
    commands.execute("plan", CONFIG, ONLY_A)
    folder = done["finetune/a--voc--seed0"].run_dir
    assert (
        f"taken over: finetune/a--voc--seed0: {folder} was made from inputs that are byte for byte "
        "the same"
    ) in capsys.readouterr().out.splitlines()


def test_other_bytes_or_other_settings_are_made_again(
    done: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bytes-without-signature").unlink()
    raise_version(monkeypatch)
    run(small_plan(ONLY_A))
    assert ran() == ["a", "a--coco--seed0", "a--voc--seed0"]
    new = stages()["finetune/a--voc--seed0"]
    read = inputs_of(new)
    changed = json.loads(json.dumps(new.record))
    changed["config"]["seed"] = 7
    old = done["finetune/a--voc--seed0"]
    assert equal_result(new.run_dir, new.record, inputs_of(old)) is not None
    assert equal_result(new.run_dir, changed, inputs_of(old)) is None
    assert equal_result(new.run_dir, new.record, read) is None


def test_a_damaged_or_renamed_result_is_not_taken_over(done: dict[str, Stage]) -> None:
    old = done["finetune/a--voc--seed0"]
    other = old.run_dir.with_name("a--voc--seed0-0123456789abcdef")
    assert equal_result(other, old.record, inputs_of(old)) is not None
    old.result.write_text("damaged", encoding="utf-8")
    assert equal_result(other, old.record, inputs_of(old)) is None
    old.result.unlink()  # nothing reads it, and the numbers are there
    assert equal_result(other, old.record, inputs_of(old)) is not None
    manifest = old.run_dir / MANIFEST
    manifest.write_text(manifest.read_text("utf-8").replace(old.signature, "0" * 16), "utf-8")
    assert equal_result(other, old.record, inputs_of(old)) is None


@pytest.mark.parametrize("equal_bytes", [True, False])
def test_a_corrected_table_of_families_makes_a_conversion_again_and_what_then_differs(
    fake, equal_bytes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a cluster, where a task starts once the conversion is there."""
    Path("given.pth").write_bytes(b"weights")
    Path("families.py").write_text("a row", encoding="utf-8")
    monkeypatch.setattr(other_files, "FAMILY_TABLES", (Path("families.py"),))
    if equal_bytes:
        Path("bytes-without-signature").touch()
    assert slurm_runs.run(GIVEN) == 0 and slurm_runs.work(fake, GIVEN) == OF_GIVEN
    assert ran() == [name.partition("/")[2] for name in OF_GIVEN]
    Path("families.py").write_text("the row, corrected", encoding="utf-8")
    capsys.readouterr()
    commands.execute("plan", CONFIG, ["seeds=[0]", GIVEN])
    told = capsys.readouterr().out.splitlines()
    assert "again: convert/given: the tables of checkpoint families have changed" in told
    assert f"again: {', '.join(OF_GIVEN[1:])}: made from another convert/given" in told
    assert slurm_runs.run(GIVEN) == 0 and slurm_runs.work(fake, GIVEN) == OF_GIVEN
    made = OF_GIVEN[:1] if equal_bytes else OF_GIVEN
    assert ran() == [name.partition("/")[2] for name in made]
    Path("families.py").write_text("a row", encoding="utf-8")
    commands.execute("plan", CONFIG, ["seeds=[0]", GIVEN])
    assert "3 stages, 0 to run" in capsys.readouterr().out


@pytest.mark.parametrize("equal_bytes", [True, False])
def test_after_an_older_table_on_this_machine(
    fakes: Path, equal_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(slurm_runs.__file__).parent))
    Path("given.pth").write_bytes(b"weights")
    Path("older.py").touch()
    if equal_bytes:
        Path("bytes-without-signature").touch()
    with monkeypatch.context() as older:
        older.setattr(other_files, "FAMILY_TABLES", (Path("older.py"),))
        for entry in small_plan([GIVEN, "seeds=[0]"]).stages:
            prepare(entry)
            assert run_worker(entry.run_dir) == 0
    ran()
    assert commands.execute("run", CONFIG, [GIVEN, "seeds=[0]"]) == 0
    made = OF_GIVEN[:1] if equal_bytes else OF_GIVEN
    assert ran() == [name.partition("/")[2] for name in made]


def test_a_table_that_changes_after_the_plan_stops_the_conversion(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("given.pth").write_bytes(b"weights")
    entry = small_plan([GIVEN, "seeds=[0]"]).stages[0]
    prepare(entry)
    Path("families.py").touch()
    monkeypatch.setattr(other_files, "FAMILY_TABLES", (Path("families.py"),))
    assert run_worker(entry.run_dir) == 1
    told = str(read_state(entry).reason)
    assert told.startswith("the tables of checkpoint families changed between the plan and this")


def test_a_companion_that_describes_the_bytes_is_none_of_them() -> None:
    files = {"backbone.pkl": "1", "backbone.json": "2"}
    assert files_read({"weights": {"signature": "x", "files": files}}) == {
        "weights": {"backbone.pkl": "1"}
    }
