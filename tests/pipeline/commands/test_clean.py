"""`clean`: what is shown and removed, and above all what is not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.commands import clean
from pipeline.commands.clean import wastes
from pipeline.commands.main import Options, execute
from pipeline.plan.build import load_plan
from pipeline.stages import stage
from pipeline.stages.files import read_json, size_of, size_text, write_json
from pipeline.stages.run_folder import LOCK, MANIFEST, lock, read_states
from pipeline.stages.stage import Stage
from tests.pipeline.edits import CONFIG, edit
from tests.pipeline.local_runs import ONLY_A, ONLY_RANDOM
from tests.pipeline.slurm_runs import plan_of, standings_of
from tests.pipeline.slurm_runs import run as submit

YES = Options(yes=True)
pytestmark = pytest.mark.usefixtures("in_process")


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
    size_before = size_of(Path("runs/tiny"))
    assert execute("clean", CONFIG, ONLY_A, YES) == 0
    assert set(folders()) == now - set(before)
    freed = size_before - size_of(Path("runs/tiny"))
    assert f" removed, {size_text(freed)} freed; " in capsys.readouterr().out
    plan = load_plan(CONFIG, ONLY_A)
    assert {state.status for state in read_states(plan.stages).values()} == {"done"}
    assert execute("clean", CONFIG, ONLY_A, YES) == 0 and set(folders()) == now - set(before)


def test_another_config_of_the_name_keeps_what_it_needs(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("run", CONFIG, ONLY_RANDOM[:1]) == 0
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
    assert execute("clean", other, [], YES) == 2 and folders() == before
    told = capsys.readouterr().err
    assert f"{CONFIG.resolve()}: used this folder too, and what it needs cannot be told" in told
    assert "(it is no longer there); put it back, or take it out of runs/tiny/configs.json" in told
    noted = Path("runs/tiny/configs.json")
    write_json(
        noted, {name: to for name, to in read_json(noted).items() if name.endswith("other.yaml")}
    )
    assert wastes(load_plan(other, []))


@pytest.mark.parametrize("fault", ["none", "broken", "gone"])
def test_in_a_copy_nothing_is_kept_for_the_config_of_another_place(
    fakes: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    assert execute("run", CONFIG, ONLY_RANDOM[:1]) == 0
    clone, there = tmp_path / "clone", CONFIG.resolve()
    shutil.copytree(Path.cwd(), clone)
    if fault == "broken":
        there.write_text("{", encoding="utf-8")
    elif fault == "gone":
        there.unlink()
    monkeypatch.chdir(clone)
    moved = CONFIG.rename("configs/moved.yaml")
    edit(str(moved), lambda content: content.update(seeds=[0]))
    capsys.readouterr()
    assert execute("plan", moved, []) == 0
    assert "has the same name" not in capsys.readouterr().out
    assert all("seed1" in entry.path.name for entry in wastes(load_plan(moved, [])))
    assert execute("clean", moved, []) == 0
    line = f"{there}: was used with this folder and leads to another now, so nothing is kept for it"
    assert line in capsys.readouterr().out
    assert execute("clean", moved, [], YES) == 0 and not any("seed1" in name for name in folders())


def test_configs_that_are_given_their_folder_keep_what_they_need_there(fakes: Path) -> None:
    given = ["output_dir=disk"]
    assert execute("run", CONFIG, [*given, *ONLY_RANDOM[:1]]) == 0
    content = yaml.safe_load(CONFIG.read_text("utf-8")) | {"seeds": [0]}
    other = Path("configs/other.yaml")
    other.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert execute("plan", other, given) == 0
    assert wastes(load_plan(other, given)) == []
    assert wastes(load_plan(CONFIG, [*given, "seeds=[0]"])) == []


def test_changes_take_nothing_from_what_the_config_needs_without_them(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(str(CONFIG), lambda content: content.update(seeds=[0]))
    assert execute("run", CONFIG, ["seeds=[0, 1]", *ONLY_RANDOM[:1]]) == 0
    assert names(["seeds=[1]"]) == names(["seeds=[0, 1]"]) == []
    assert names([]) and all("seed1" in name for name in names([]))
    before = folders()
    edit(str(CONFIG), lambda content: content.update(tasks="none"))
    tasks = "tasks=[{name: voc, config: voc.yaml}]"
    assert execute("clean", CONFIG, [tasks, "seeds=[1]"], YES) == 2
    told = capsys.readouterr().err
    assert "tiny.yaml: without the changes given it counts too, and what it needs cannot" in told
    assert folders() == before


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


@pytest.fixture
def finetuned(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return a finished fine-tuning whose output holds a state beside the weights."""
    kind = replace(stage.STAGE_KINDS["finetune"], state_in="out.txt")
    monkeypatch.setitem(stage.STAGE_KINDS, "finetune", kind)
    assert execute("run", CONFIG, ONLY_A) == 0
    return next(each for each in load_plan(CONFIG, ONLY_A).stages if each.kind == "finetune")


def parts() -> list[tuple[Path, int]]:
    waste = [entry for entry in wastes(load_plan(CONFIG, ONLY_A)) if entry.is_part]
    return [(entry.path.resolve(), entry.num_bytes) for entry in waste]


def test_an_optimiser_goes_and_its_stage_is_the_same(
    finetuned: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path: path.read_bytes() for path in finetuned.run_dir.iterdir() if path.is_file()}
    report = Path("runs/tiny/report/results.json").read_bytes()
    output = finetuned.run_dir / "out.txt"
    size, ran = len(files[output]), Path("ran.txt").read_text("utf-8")
    assert (output.resolve(), size - 3) in parts()
    capsys.readouterr()
    assert execute("clean", CONFIG, ONLY_A) == 0
    assert f"{size - 3} B  {output}  (finished; the opt" in capsys.readouterr().out
    assert output.read_bytes() == files[output]
    assert execute("clean", CONFIG, ONLY_A, YES) == 0
    now = {path: path.read_bytes() for path in finetuned.run_dir.iterdir() if path.is_file()}
    assert now.pop(finetuned.run_dir / "stripped.json") and now.pop(output) == files[output][:3]
    assert now.pop(finetuned.run_dir / LOCK)  # names the last process
    assert now == {path: content for path, content in files.items() if path in now}
    assert parts() == [] and names(ONLY_A) == []
    assert execute("run", CONFIG, ONLY_A) == 0 and Path("ran.txt").read_text("utf-8") == ran
    assert Path("runs/tiny/report/results.json").read_bytes() == report
    output.write_bytes(b"other")
    assert read_states([finetuned])[finetuned.name].status == "missing"


def test_an_optimiser_that_somebody_may_need_stays(
    finetuned: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = (finetuned.run_dir / "out.txt").resolve()
    assert output in dict(parts())
    with lock(finetuned.run_dir / LOCK):
        assert output not in dict(parts())
    with monkeypatch.context() as patch:
        patch.setattr(clean, "queued_folders", lambda _: {finetuned.run_dir.resolve()})
        assert output not in dict(parts())
    (finetuned.run_dir / "link").hardlink_to(output)
    assert output not in dict(parts())
    (finetuned.run_dir / "link").unlink()
    before = output.read_bytes()
    Path("behaviour-strip").touch()
    assert parts() == [] and "out.txt: left as it is: KeyError: 'model'" in caplog.text
    Path("behaviour-strip").unlink()
    output.write_bytes(before[::-1])  # of the same size, so it counts as done
    caplog.clear()
    assert execute("clean", CONFIG, ONLY_A, YES) == 0
    assert output.read_bytes() == before[::-1] and "(sha256 differs)" in caplog.text
    manifest = finetuned.run_dir / MANIFEST
    manifest.rename(manifest.with_name("moved"))
    assert output not in dict(parts())


def test_what_a_queued_job_needs_stays(fake) -> None:
    submit()
    queued = {stage.run_dir for stage in plan_of().stages}
    assert {standing.status for standing in standings_of().values()} == {"queued"}
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.5))
    assert wastes(plan_of()) == []
    for job in list(fake.jobs):
        fake.set_state(job, state="CANCELLED")
    assert {entry.path for entry in wastes(plan_of())} <= queued


def test_without_data_or_folder_nothing_is_removed(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("clean", CONFIG, ONLY_A, YES) == 2
    assert execute("run", CONFIG, ONLY_A) == 0
    before = folders()
    shutil.rmtree("data")
    capsys.readouterr()
    assert execute("clean", CONFIG, ONLY_A, YES) == 2 and folders() == before
    assert capsys.readouterr().err.splitlines()[-1] == (
        "run_pipeline: clean: nothing is removed: which run folders the plan needs is known by the "
        "content of its data and settings alone; run it where these are"
    )


def test_a_hard_link_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"four")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert size_of(tmp_path) == 4 and size_of(tmp_path / "one") == 4


def test_states_that_the_probe_of_another_plan_reads_stay(
    fakes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert execute("run", CONFIG, ONLY_A) == 0
    plan = load_plan(CONFIG, ONLY_A)
    pretrain = plan.stages[0]
    (pretrain.run_dir / "last.pth").write_bytes(b"state")
    assert names(ONLY_A) == ["last.pth"]
    # the plan with the changes given has no probe, the config without them has one
    monkeypatch.setattr(
        clean,
        "late_probes",
        lambda each, _: {} if len(each.stages) == len(plan.stages) else {"a": (pretrain, [])},
    )
    assert names(ONLY_A) == []
