"""Files that are whole or absent, and their digests."""

import hashlib
import json
import threading
from pathlib import Path

import pytest

from transfer.files import locked_folder, sha256_of, whole_file, whole_folder, write_json


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".a.") and temporary.name.endswith(".tmp.json")
        temporary.write_text("half of it", encoding="utf-8")
        raise RuntimeError
    assert json.loads(path.read_text("utf-8")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_of_a_file_and_of_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert sha256_of(path) == sha256_of(path, 5) == hashlib.sha256(b"12345").hexdigest()
    assert sha256_of(path, 2) == hashlib.sha256(b"45").hexdigest()
    assert sha256_of(path, 0) == hashlib.sha256().hexdigest()
    with pytest.raises(OSError, match="Invalid argument"):
        sha256_of(path, 6)  # shorter than it was


def test_the_longest_legal_names_have_temporary_names(tmp_path: Path) -> None:
    for stem in ("n" * 251, "я" * 125):
        path = tmp_path / f"{stem}.pkl"
        with whole_file(path) as temporary:
            temporary.write_text("all", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "all"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lock_is_waited_for_and_ends_with_its_block(tmp_path: Path) -> None:
    passed: list[str] = []

    def second() -> None:
        with locked_folder(tmp_path) as lock:
            lock()
            passed.append("second")

    with locked_folder(tmp_path) as lock:
        lock()
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(timeout=0.2)
        passed.append("first")
    waiting.join(timeout=60)
    assert passed == ["first", "second"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "below" / "out"
    with pytest.raises(ZeroDivisionError), whole_folder(out) as folder:
        (folder / "a").write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert list(out.parent.iterdir()) == []
    out.mkdir()
    with whole_folder(out) as folder:  # an empty one is replaced
        (folder / "a").write_text("whole", encoding="utf-8")
    with pytest.raises(OSError, match="not empty"), whole_folder(out) as folder:
        (folder / "a").write_text("another", encoding="utf-8")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "a").read_text("utf-8") == "whole"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("whole", encoding="utf-8")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "a").is_file()
