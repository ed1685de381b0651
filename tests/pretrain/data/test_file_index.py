"""The index of large folders and files between commands, and its expiry."""

import hashlib
import json
from pathlib import Path

import pytest

from pretrain.data import file_index
from pretrain.data.file_index import file_sha256, folder_names, folder_summary
from tests.files import age, write


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep indexes of any size in a folder of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "CACHED_FROM", 1)
    monkeypatch.setattr(file_index, "DIGEST_CACHED_FROM", 0)
    return tmp_path / "cache" / "whitening-transfer-benchmark"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.png", "b/10.png", "b-c/1.png", "a.png"):
        write(tmp_path / "images" / name, name.encode())
    age(tmp_path / "images")
    return tmp_path / "images"


def test_a_kept_index_is_used_and_a_changed_folder_is_noticed(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, summary = folder_names(folder), folder_summary(folder)
    with monkeypatch.context() as patch:
        patch.setattr(file_index, "_scan", None)
        assert (folder_names(folder), folder_summary(folder)) == (names, summary)
    write(folder / "b" / "3.png")
    assert folder_names(folder) == ["a.png", "b/10.png", "b/2.png", "b/3.png", "b-c/1.png"]
    assert folder_summary(folder).num_files == 5
    (folder / "b" / "3.png").unlink()
    age(folder)
    assert (folder_names(folder), folder_summary(folder)) == (names, summary)
    (folder / "b-c").rename(folder / "z")
    assert folder_names(folder)[-1] == "z/1.png"
    age(folder)
    folder_names(folder)
    (folder / "a.png").write_bytes(b"longer than before")  # in place: found by the sample
    assert folder_summary(folder).digest != summary.digest


def test_a_folder_that_changed_just_now_is_not_kept(folder: Path, kept: Path) -> None:
    write(folder / "new.png")
    folder_names(folder)
    assert not kept.exists()


@pytest.mark.parametrize("suffix", ["json", "names"])
@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[1]", b'{"version": 1, "folders": 3}', b"\xff\0a"]
)
def test_a_damaged_index_is_built_again(
    folder: Path, kept: Path, suffix: str, damage: bytes
) -> None:
    names, summary = folder_names(folder), folder_summary(folder)
    (path,) = kept.glob(f"*.{suffix}")
    path.write_bytes(damage)
    assert (folder_names(folder), folder_summary(folder)) == (names, summary)
    assert path.read_bytes() != damage


def test_where_nothing_can_be_kept_the_index_is_still_right(
    folder: Path, kept: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_bytes(b"a file is in the way")
    assert len(folder_names(folder)) == 4
    assert file_sha256(folder / "a.png") == hashlib.sha256(b"a.png").hexdigest()


def test_a_kept_digest_follows_the_file(folder: Path, kept: Path) -> None:
    path = folder / "a.png"
    assert file_sha256(path) == hashlib.sha256(b"a.png").hexdigest()
    (entry,) = kept.glob("*.digest")
    content = json.loads(entry.read_bytes())
    entry.write_text(json.dumps(content | {"digest": "0" * 64}), encoding="utf-8")
    assert file_sha256(path) == "0" * 64  # so it is what is used
    path.write_bytes(b"b.png")
    assert file_sha256(path) == hashlib.sha256(b"b.png").hexdigest()
    entry.write_bytes(b"{")
    assert file_sha256(path) == hashlib.sha256(b"b.png").hexdigest()
