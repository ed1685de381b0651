"""Digests of files that are kept between commands: when they count, and in trouble."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.stages import content_index
from pipeline.stages.content_index import file_digest, file_digests, kept_json

NAMES = ["b/2.png", "b/10.png", "a.png"]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def not_read(*_: object) -> str:
    raise AssertionError("a file was read")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep digests in a folder of their own, also of files that were written just now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content_index, "SETTLED_S", -1e9)
    return tmp_path / "cache" / "whitening-transfer-benchmark"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "b").mkdir(parents=True)
    for name in NAMES:
        (root / name).write_bytes(name.encode())
    return root


def test_a_file_of_the_same_stamp_is_not_read_again_and_any_other_is(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [sha(name.encode()) for name in NAMES]
    assert file_digests(folder, NAMES) == digests
    assert len(list(kept.iterdir())) == 2  # one of each folder
    with monkeypatch.context() as patch:
        patch.setattr(content_index, "_digest_of", not_read)
        assert file_digests(folder, NAMES) == digests
        assert file_digest(folder / "b" / "2.png") == digests[0]
        with pytest.raises(AssertionError):
            file_digests(folder, NAMES, "blocks")
        os.utime(folder / "a.png")  # the same content; only reading it can tell
        with pytest.raises(AssertionError):
            file_digests(folder, NAMES)
    assert file_digests(folder, NAMES) == digests


def same_size(path: Path) -> None:
    """Write another content of the same size in place, with the time of before."""
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def another_file(path: Path) -> None:
    """Put another file of the same size and time in its place, as `rsync -a` does."""
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[::-1])
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.replace(path)


def to_another(path: Path) -> None:
    """Make it a link to a file of the same size and time."""
    another = path.with_name("elsewhere")
    another.write_bytes(path.read_bytes()[::-1])
    os.utime(another, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    path.unlink()
    path.symlink_to(another)


@pytest.mark.parametrize("change", [same_size, another_file, to_another])
def test_another_content_is_seen_whatever_size_and_time_say(
    folder: Path, kept: Path, change: Callable[[Path], None]
) -> None:
    path = folder / "a.png"
    time_of = path.stat().st_mtime_ns
    assert file_digest(path) == sha(b"a.png")
    change(path)
    assert path.stat().st_mtime_ns == time_of and path.stat().st_size == 5
    assert file_digest(path) == sha(b"gnp.a")


def test_two_files_that_change_places_and_a_link_that_changes_its_target(
    folder: Path, kept: Path
) -> None:
    link = folder / "link.png"
    link.symlink_to("a.png")
    before = file_digests(folder, ["b/2.png", "a.png", "link.png"])
    (folder / "a.png").rename(folder / "x")
    (folder / "b/2.png").rename(folder / "a.png")
    (folder / "x").rename(folder / "b/2.png")
    assert file_digests(folder, ["b/2.png", "a.png"]) == before[1::-1]
    link.unlink()
    link.symlink_to("b/10.png")
    assert file_digest(link) == sha(b"b/10.png")
    (folder / "b").rename(folder / "c")
    (folder / "b").symlink_to("c")  # a folder's link too leads to what was read before
    assert file_digest(folder / "b" / "10.png") == sha(b"b/10.png")


def test_a_file_that_changed_just_now_is_not_kept(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_index, "SETTLED_S", 60.0)
    old = time.time() - 3600
    os.utime(folder / "a.png", (old, old))  # which sets the other time, the ctime, to now
    assert file_digest(folder / "a.png") == sha(b"a.png")
    assert not kept.exists()


def test_what_is_there_and_no_file_has_no_digest(folder: Path, kept: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "to_nowhere.png").symlink_to("gone")
    names = ["pipe.png", "b", "gone.png", "a.png/x", "to_nowhere.png"]
    assert file_digests(folder, names) == [None] * 5
    assert file_digests(folder, []) == []
    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        file_digest(folder / "gone.png")
    (folder / "loop.png").symlink_to("loop.png")
    with pytest.raises(ValueError, match=r"loop\.png: cannot be read \(Too many levels"):
        file_digests(folder, ["a.png", "loop.png"])


def test_a_file_that_changes_while_it_is_read(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def growing(*_: object) -> str:
        (folder / "a.png").write_bytes(b"longer than before")
        return "0" * 64

    monkeypatch.setattr(content_index, "_digest_of", growing)
    with pytest.raises(ValueError, match=r"a\.png: changed while it was read"):
        file_digest(folder / "a.png")
    assert not kept.exists()


def test_blocks_are_size_and_both_ends(folder: Path, kept: Path) -> None:
    path, size = folder / "large.bin", 3 * content_index.BLOCK
    contents = [bytes(size)]
    contents += [
        bytes(at) + b"x" + bytes(size - at - 1) for at in (0, content_index.BLOCK - 1, size - 1)
    ]
    contents += [bytes(size + 1), b"", b"x", bytes(content_index.BLOCK)]
    digests = []
    for content in contents:
        path.write_bytes(content)
        digests += file_digests(folder, ["large.bin"], "blocks")
    assert len(set(digests)) == len(contents)
    path.write_bytes(bytes(size // 2) + b"x" + bytes(size // 2 - 1))  # the middle is not read
    assert file_digests(folder, ["large.bin"], "blocks") == digests[:1]
    assert file_digest(path) == sha(path.read_bytes())


@pytest.mark.parametrize("damage", [b"", b"{}", b"x\n{}", "cut", "turned"])
def test_a_damaged_index_is_made_again(folder: Path, kept: Path, damage: bytes | str) -> None:
    assert file_digest(folder / "a.png") == sha(b"a.png")
    (path,) = kept.iterdir()
    content = path.read_bytes()
    if damage == "cut":
        damage = content[:-9]
    elif damage == "turned":
        damage = content.replace(sha(b"a.png").encode(), sha(b"b.png").encode())
    assert isinstance(damage, bytes) and damage != content
    path.write_bytes(damage)
    assert file_digest(folder / "a.png") == sha(b"a.png")
    assert path.read_bytes() == content


def test_where_nothing_can_be_kept_the_digests_are_right(
    folder: Path, kept: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_bytes(b"a file is in the way")
    assert file_digests(folder, NAMES) == [sha(name.encode()) for name in NAMES]
    assert kept_json("key", lambda: [1]) == [1]


def test_files_that_are_gone_are_forgotten_and_what_others_kept_is_not(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = content_index._FolderIndex.save

    def late(index: content_index._FolderIndex) -> None:
        with monkeypatch.context() as patch:  # another process, between our reading and keeping
            patch.setattr(content_index._FolderIndex, "save", save)
            file_digests(folder, ["b/10.png"])
        save(index)

    with monkeypatch.context() as patch:
        patch.setattr(content_index._FolderIndex, "save", late)
        file_digests(folder, ["b/2.png"])
    with monkeypatch.context() as patch:
        patch.setattr(content_index, "_digest_of", not_read)
        file_digests(folder, ["b/2.png", "b/10.png"])
    (folder / "b/2.png").unlink()
    (folder / "b/3.png").write_bytes(b"3")
    file_digests(folder, ["b/3.png"])
    (path,) = kept.iterdir()
    assert b"2.png" not in path.read_bytes() and b"10.png" in path.read_bytes()


def test_what_was_read_before_an_interrupt_is_kept(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, digest_of = threading.Event(), content_index._digest_of
    wait = content_index.wait

    def interrupted(futures: list, timeout: float) -> object:
        if blocked.is_set():
            raise KeyboardInterrupt
        return wait(futures, timeout)

    def slow(file, size: int, level: content_index.Level, stop: threading.Event) -> str:
        if file.name.endswith("a.png"):
            blocked.set()
            assert stop.wait(60)
        return digest_of(file, size, level, stop)

    monkeypatch.setattr(content_index, "BATCH", 1)
    monkeypatch.setattr(content_index, "NUM_THREADS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(content_index, "wait", interrupted)
        patch.setattr(content_index, "_digest_of", slow)
        with pytest.raises(KeyboardInterrupt):
            file_digests(folder, NAMES)
    monkeypatch.setattr(content_index, "_digest_of", not_read)
    assert file_digests(folder, NAMES[:2]) == [sha(b"b/2.png"), sha(b"b/10.png")]
    with pytest.raises(AssertionError):
        file_digests(folder, NAMES[2:])  # half a file has no digest


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_kill_while_an_index_is_written_loses_nothing(
    folder: Path, kept: Path, moment: str
) -> None:
    file_digests(folder, ["b/2.png"])
    (before,) = [path.read_bytes() for path in kept.iterdir()]
    code = f"""
import os, signal
from pipeline.stages import content_index

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def torn(**options):
    file = make(**options)
    write = file.write
    file.write = lambda text: (write(text[: len(text) // 2]), file.flush(), kill())
    return file

make = content_index.tempfile.NamedTemporaryFile
if {moment == "write"}:
    content_index.tempfile.NamedTemporaryFile = torn
else:
    os.replace = kill
index = content_index._FolderIndex.load({str(folder / "b")!r}, "content")
index.new["10.png"] = "1.1.1.1 " + "0" * 64
index.save()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert before in [path.read_bytes() for path in kept.iterdir()]
    assert file_digests(folder, NAMES) == [sha(name.encode()) for name in NAMES]


def test_two_processes_at_once_leave_a_whole_index(folder: Path, kept: Path) -> None:
    code = f"""
from pathlib import Path
from pipeline.stages import content_index
content_index.SETTLED_S = -1e9
for _ in range(20):
    for name in ("2.png", "10.png"):
        Path({str(folder / "b")!r}, name).touch()
        content_index.file_digests(Path({str(folder / "b")!r}), [name])
"""
    children = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        error = child.communicate()[1]
        assert child.returncode == 0 or "changed while it was read" in error, error
    file_digests(folder, NAMES)
    assert sorted(path.suffix for path in kept.iterdir()) == [".kept", ".kept"]
    assert all(content_index._read_kept(path) for path in kept.iterdir())


def test_what_takes_long_says_so_on_stderr(
    folder: Path,
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file_digests(folder, NAMES)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(content_index, "SHOWN_AFTER_S", -1.0)
    file_digests(folder, NAMES)
    captured = capsys.readouterr()
    assert captured.err == f"reading {folder} once for its identity: 3 of 3 files\n"
    assert captured.out == ""


def test_json_is_kept_under_its_key(kept: Path) -> None:
    assert kept_json("one", lambda: {"a": [1, "x"]}) == {"a": [1, "x"]}
    assert kept_json("one", not_read) == {"a": [1, "x"]}
    assert kept_json("two", lambda: 2) == 2
