"""`plan` asks what `run` asks; what was clean is not asked again before something has changed."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.main import Options, execute
from pipeline.executors import preflight
from pipeline.executors.preflight import Answer, keep_answers, read_answers
from pipeline.plan import data_identity
from tests.pipeline.edits import edit

CONFIG = Path("configs/tiny.yaml")
KEPT = Path("runs/tiny/checked.json")
SLURM = Options(executor="slurm")


@pytest.fixture
def asked(fakes: Path, in_process: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the jobs of every worker that is asked."""
    counts: list[int] = []
    ask = preflight.ask_worker

    def counted(command: str, jobs: list) -> list:
        counts.append(len(jobs))
        return ask(command, jobs)

    monkeypatch.setattr(preflight, "ask_worker", counted)
    return counts


def plan(*overrides: str, options: Options | None = None) -> int:
    return execute("plan", CONFIG, list(overrides), options)


def overwrite(path: Path) -> None:
    """Change a byte in place, size and modification time as before."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("options", [Options(), SLURM], ids=["local", "slurm"])
def test_plan_refuses_what_run_refuses_in_the_same_lines(
    fake, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("check.txt").write_text("/a.jpg: not an image\nSOLVER.X: no such key", encoding="utf-8")
    codes, lines = [], []
    for command in ("run", "plan", "plan"):
        codes.append(execute(command, CONFIG, [], options))
        lines.append(capsys.readouterr().err)
    assert codes == [2, 2, 2] and lines[0] == lines[1] == lines[2]
    assert "/a.jpg: not an image" in lines[0] and "sbatch" not in fake.calls
    Path("check.txt").unlink()
    assert plan(options=options) == 0


def test_plan_on_slurm_asks_for_no_gpus_of_this_machine(asked: list[int]) -> None:
    Path("machine.txt").write_text("8 GPUs, wanted here 9", encoding="utf-8")
    assert plan() == 2
    assert plan(options=SLURM) == 0
    assert plan() == 2


def test_what_was_clean_is_asked_once_and_its_notes_are_told_again(
    asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("/a.json: annotation 1: no width", encoding="utf-8")
    KEPT.parent.mkdir(parents=True)  # `plan` says whether it is there
    assert plan() == 0
    first = capsys.readouterr().out
    assert plan() == 0
    assert capsys.readouterr().out == first and "note: /a.json: annotation 1: no width" in first
    assert asked == [5]  # two pretrainings, their conversions in one, two tasks
    assert plan("seeds=[7]") == 0
    assert asked == [5]  # another seed asks nothing new
    assert plan("backbones.1.overrides=[seed=5]") == 0
    assert asked == [5, 1]


def test_files_are_listed_once_however_many_stages_read_them(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "test"):
        shutil.copytree("data/images", f"data/labelled/{name}/one")
    labelled = {"name": "labelled", "root": "data/labelled", "format": "imagefolder"}
    for name in ("a", "b"):
        probe = {"every_epochs": 1, "data": labelled}
        edit(f"configs/{name}.yaml", lambda recipe: recipe.update(probe=probe))  # noqa: B023
    listed: list[Path] = []
    take = data_identity.file_digests

    def counted(root: Path, *arguments: Any) -> list[str | None]:
        listed.append(root.absolute())
        return take(root, *arguments)

    monkeypatch.setattr(data_identity, "file_digests", counted)
    assert plan() == plan() == 0
    folders = ["coco/val", "images", "labelled/test", "labelled/train"]
    folders += ["voc/Annotations", "voc/JPEGImages"]
    assert sorted(listed) == sorted(2 * [Path("data", name).absolute() for name in folders])


def test_run_trusts_no_kept_answer_and_what_it_refuses_is_kept_no_more(asked: list[int]) -> None:
    assert plan() == 0
    Path("check.txt").write_text("odd", encoding="utf-8")
    assert plan() == 0
    assert execute("run", CONFIG, []) == 2
    assert plan() == 2
    assert asked == [5, 5, 5]


@pytest.mark.parametrize(
    ("change", "jobs"),
    [
        (lambda: overwrite(Path("data/images/003.png")), 2),
        (lambda: Path("data/images/003.png").rename("data/images/x.png"), 2),
        (lambda: overwrite(Path("data/coco/val/000.jpg")), 1),
        (lambda: overwrite(Path("data/coco/annotations.json")), 1),
        (lambda: overwrite(Path("data/voc/Annotations/000.xml")), 1),
        (lambda: Path("data/voc/JPEGImages/000.png").touch(), 1),  # beside 000.jpg
        (lambda: Path("data/voc/JPEGImages/more").mkdir(), 0),
        (lambda: KEPT.write_text("{", encoding="utf-8"), 5),
        (lambda: KEPT.write_text('{"a": {"notes": 3}}', encoding="utf-8"), 5),
        (KEPT.unlink, 5),
    ],
)
def test_whatever_changed_is_asked_anew(
    asked: list[int], change: Callable[[], object], jobs: int
) -> None:
    assert plan() == 0
    change()
    assert plan() == 0
    assert plan() == 0
    assert asked == [5, jobs][: 1 + (jobs > 0)]


def test_other_packages_code_or_machines_ask_anew(
    asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert plan() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert plan() == 0
    monkeypatch.setattr(preflight, "version_of", lambda name: "9.9")
    assert plan() == 0
    for name in ("pipeline", "pretrain", "transfer"):
        (tmp_path / "code" / name).mkdir(parents=True)
    monkeypatch.setattr(preflight, "CODE", tmp_path / "code")
    assert plan() == 0
    (tmp_path / "code" / "transfer" / "new.py").touch()
    assert plan() == 0
    (tmp_path / "code" / "transfer" / "new.pyc").touch()
    assert plan() == 0
    assert asked == [5] * 5


def test_a_checkpoint_that_changed_is_asked_anew(asked: list[int]) -> None:
    Path("theirs.pth").write_bytes(b"0" * 20)
    changes = ["backbones=[{name: theirs, checkpoint: theirs.pth}]"]
    assert plan(*changes) == 0
    overwrite(Path("theirs.pth"))
    assert plan(*changes) == 0
    assert asked == [3, 1]


def test_where_nothing_can_be_written_nothing_is_kept(asked: list[int]) -> None:
    KEPT.mkdir(parents=True)  # in the place of the file
    assert plan() == plan() == 0
    assert asked == [5, 5]


def test_what_a_fault_stopped_is_not_kept_nor_more_than_a_thousand(tmp_path: Path) -> None:
    keep_answers(tmp_path, {"a": Answer(notes=("n",)), "b": Answer(faults=("f",))})
    assert read_answers(tmp_path) == {"a": Answer(notes=("n",))}
    keep_answers(tmp_path, {str(number): Answer() for number in range(preflight.MAX_KEPT)})
    kept = read_answers(tmp_path)
    assert len(kept) == preflight.MAX_KEPT and "a" not in kept


def test_a_check_that_breaks_says_so_in_one_line(
    fakes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = subprocess.CompletedProcess([], 1, "", "Traceback\nKeyError: 'x'\n")
    monkeypatch.setattr(preflight.subprocess, "run", lambda *_, **__: broken)
    assert plan() == 2
    line = "run_pipeline: the worker's check broke: KeyError: 'x'"
    assert capsys.readouterr().err.splitlines() == [line]
