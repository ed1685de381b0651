"""`clean`: what is shown and removed, and above all what is not."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.commands.clean import wastes
from pipeline.commands.main import Options, execute
from pipeline.plan.build import load_plan
from pipeline.stages.files import size_of
from pipeline.stages.run_folder import LOCK, lock, read_states
from tests.pipeline.edits import CONFIG, edit
from tests.pipeline.local_runs import ONLY_A
from tests.pipeline.slurm_runs import plan_of, standings_of
from tests.pipeline.slurm_runs import run as submit

YES = Options(yes=True)


def names(changes: list[str]) -> list[str]:
    return [entry.path.name for entry in wastes(load_plan(CONFIG, changes))]


def folders() -> list[str]:
    return sorted(path.name for path in Path("runs/tiny").glob("*/*-*") if path.is_dir())


def test_nothing_of_a_plan_is_removed_and_what_is_outdated_is_shown_first(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("run", CONFIG, ONLY_A) == 0
    assert names(ONLY_A) == []
    before = folders()
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.5))
    assert execute("run", CONFIG, ONLY_A) == 0
    capsys.readouterr()
    assert execute("clean", CONFIG, ONLY_A) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in before) and "clean --yes" in shown
    now = set(folders())
    assert set(before) < now
    assert execute("clean", CONFIG, ONLY_A, YES) == 0
    assert set(folders()) == now - set(before)
    plan = load_plan(CONFIG, ONLY_A)
    assert {state.status for state in read_states(plan.stages).values()} == {"done"}
    assert execute("clean", CONFIG, ONLY_A, YES) == 0 and set(folders()) == now - set(before)


def test_another_config_of_the_name_keeps_what_it_needs(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("run", CONFIG, []) == 0
    content = yaml.safe_load(CONFIG.read_text("utf-8")) | {"seeds": [0]}
    other = Path("configs/other.yaml")
    other.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert execute("plan", other, []) == 0
    assert wastes(load_plan(other, [])) == []
    content["backbones"][1]["pretrain"] = "nowhere.yaml"
    CONFIG.write_text(yaml.safe_dump(content), encoding="utf-8")
    before = folders()
    assert execute("clean", other, [], YES) == 2
    assert "what it needs cannot be told" in capsys.readouterr().err and folders() == before
    CONFIG.unlink()
    assert wastes(load_plan(other, []))


def test_what_is_at_work_stays_and_a_broken_off_removal_goes_on(fakes: Path) -> None:
    assert execute("run", CONFIG, ONLY_A) == 0
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.5))
    pretrain = next(Path("runs/tiny/pretrain").glob("a-*"))
    with lock(pretrain / LOCK):
        assert pretrain.name not in names(ONLY_A)
    Path("runs/tiny/pretrain/notes-of-mine").mkdir()
    half = Path(f"runs/tiny/pretrain/.{pretrain.name}.removed")
    half.mkdir()
    assert {pretrain.name, half.name} <= set(names(ONLY_A))
    half.rmdir()
    assert execute("clean", CONFIG, ONLY_A, YES) == 0
    assert not pretrain.exists() and Path("runs/tiny/pretrain/notes-of-mine").exists()


def test_states_of_finished_pretrainings_go_and_those_of_others_stay(fakes: Path) -> None:
    assert execute("run", CONFIG, ONLY_A) == 0
    pretrain = load_plan(CONFIG, ONLY_A).stages[0]
    for name in ("last.pth", "previous.pth"):
        (pretrain.run_dir / name).write_bytes(b"state")
    assert names(ONLY_A) == ["last.pth", "previous.pth"]
    manifest = pretrain.run_dir / "manifest.json"
    kept = manifest.read_bytes()
    manifest.unlink()
    assert names(ONLY_A) == []
    manifest.write_bytes(kept)
    assert execute("clean", CONFIG, ONLY_A, YES) == 0
    assert not (pretrain.run_dir / "last.pth").exists() and (pretrain.run_dir / "out.txt").exists()


def test_what_a_queued_job_needs_stays(fake) -> None:
    submit()
    queued = {stage.run_dir for stage in plan_of().stages}
    assert {standing.status for standing in standings_of().values()} == {"queued"}
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.5))
    assert wastes(plan_of()) == []
    for job in list(fake.jobs):
        fake.set_state(job, state="CANCELLED")
    assert {entry.path for entry in wastes(plan_of())} <= queued


def test_without_data_or_folder_nothing_is_removed(fakes: Path) -> None:
    assert execute("clean", CONFIG, ONLY_A, YES) == 2
    assert execute("run", CONFIG, ONLY_A) == 0
    before = folders()
    shutil.rmtree("data")
    assert execute("clean", CONFIG, ONLY_A, YES) == 2 and folders() == before


def test_a_hard_link_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"four")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert size_of(tmp_path) == 4 and size_of(tmp_path / "one") == 4
