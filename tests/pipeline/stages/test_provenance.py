"""The provenance of a result: the code's state and versions, of every attempt at it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from pipeline.stages import files, provenance
from tests.source import ROOT, imports_of, modules_in

NO_NUMBERS = {  # they read and write, or an export is compared with them
    "huggingface_hub", "pydantic", "rich", "safetensors", "timm", "transformers", "yacs", "yaml",
}  # fmt: skip


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let the code lie in a folder of its own, outside any repository."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "pipeline" / "stages" / "x.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    provenance.code_state.cache_clear()
    yield tmp_path
    provenance.code_state.cache_clear()


def test_a_copy_of_the_code_says_what_the_original_was(code: Path) -> None:
    state = {"commit": "0" * 40, "dirty": True}
    (code / provenance.CODE_STATE).write_text(json.dumps(state), encoding="utf-8")
    assert provenance.code_state() == state


def test_without_git_the_code_is_unknown(code: Path) -> None:
    assert provenance.code_state() == {"commit": None, "dirty": None}


def test_versions_are_those_of_the_installed_packages() -> None:
    assert provenance.version_of("numpy") == version("numpy")
    assert provenance.version_of("no-such-package") is None


def test_every_package_that_computes_a_number_is_recorded() -> None:
    modules = modules_in(ROOT, "pretrain", "transfer")
    names = {name.partition(".")[0] for path in modules.values() for name in imports_of(path, {})}
    names -= {*sys.stdlib_module_names, *NO_NUMBERS, "pretrain", "transfer"}
    assert {"torch", "PIL", "detectron2"} < names
    installed = packages_distributions()
    for name in names:
        packages = {each.lower().replace("_", "-") for each in installed.get(name, [name])}
        assert packages & set(provenance.PACKAGES), name


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


def state() -> dict[str, object]:
    provenance.code_state.cache_clear()
    return provenance.code_state()


@pytest.fixture
def checkout(code: Path) -> Path:
    """Commit one module of each package."""
    git(code, "init", "-q")
    for name in provenance.CODE_FOLDERS:
        (code / name).mkdir(exist_ok=True)
        (code / name / "module.py").write_text("x = 1\n", encoding="utf-8")
    git(code, "add", ".")
    git(code, "commit", "-qm", "first")
    return code


def test_changes_have_a_digest_that_goes_with_them(checkout: Path) -> None:
    clean = state()
    assert len(str(clean["commit"])) == 40 and clean["dirty"] is False
    module = checkout / "pretrain" / "module.py"
    module.write_text("x = 2\n", encoding="utf-8")
    first = state()
    assert first == clean | {"dirty": True, "diff": first["diff"]}
    module.write_text("x = 3\n", encoding="utf-8")
    assert state()["diff"] != first["diff"]
    module.write_text("x = 2\n", encoding="utf-8")
    git(checkout, "add", ".")  # staged or not is the same code
    assert state() == first
    module.write_text("x = 1\n", encoding="utf-8")
    git(checkout, "add", ".")
    assert state() == clean


def test_python_files_that_git_does_not_track_count_where_they_can_be_imported(
    checkout: Path,
) -> None:
    clean = state()
    for name in ("notes.txt", "pretrain/notes.txt", "scratch.py"):
        (checkout / name).write_text("x", encoding="utf-8")
    assert state() == clean
    (checkout / ".gitignore").write_text("*.py\n", encoding="utf-8")
    new = checkout / "pretrain" / "new.py"
    new.write_text("x = 1\n", encoding="utf-8")
    one = state()
    new.write_text("x = 2\n", encoding="utf-8")
    assert one["dirty"] is True and state()["diff"] != one["diff"]


def test_an_installed_copy_within_another_repository_is_unknown(code: Path) -> None:
    git(code, "init", "-q")
    (code / "theirs.txt").write_text("x", encoding="utf-8")
    git(code, "add", ".")
    git(code, "commit", "-qm", "first")
    assert state() == {"commit": None, "dirty": None}


def attempt(commit: str | None = "a", dirty: bool = False, torch: str = "2") -> dict[str, object]:
    code = {"commit": commit, "dirty": dirty}
    return {"started": "now", "code": code, "python": "3", "packages": {"torch": torch}}


@pytest.mark.parametrize(
    ("attempts", "fault"),
    [
        ([attempt()], None),
        ([attempt(), attempt()], None),
        ([attempt(dirty=True), attempt()], "modified (uncommitted) code"),
        ([attempt(None), attempt()], "unknown code (no git)"),
        ([{}, attempt()], "unknown code (no git)"),
        ([attempt("b"), attempt()], "code or packages that changed between attempts"),
        ([attempt(torch="3"), attempt()], "code or packages that changed between attempts"),
    ],
)
def test_one_attempt_is_enough_to_mark_a_result(attempts: list, fault: str | None) -> None:
    assert provenance.code_fault({**attempts[-1], "attempts": attempts}) == fault


def test_a_result_without_attempts_is_judged_by_itself() -> None:
    assert provenance.code_fault({"code": {"commit": "a", "dirty": False}}) is None
    assert provenance.code_fault({}) == "unknown code (no git)"


def test_attempts_are_kept_whatever_became_of_them(tmp_path: Path) -> None:
    path = tmp_path / provenance.ATTEMPTS
    start, end = attempt(), {"wall_time_s": 1.0}
    cut = '{"started": "no'
    for lines, wanted in (
        ([start, end], [start]),
        ([start, start, end], [start, start]),  # the first was killed
        ([end, start, end], [{}, start]),  # written by a version that kept no states
    ):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        assert provenance.attempts_at(tmp_path) == wanted
    path.write_text(cut, encoding="utf-8")
    files.append_json_line(path, start)
    assert provenance.attempts_at(tmp_path) == [{}, start]
