"""The provenance of a result: the code's commit, and versions without importing anything."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.stages import provenance


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
