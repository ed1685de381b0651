"""Files that are whole or absent, the end of logs that still grow, and digests."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from pipeline.stages.files import (
    append_json_line,
    atomic_path,
    last_json_line,
    read_json,
    sha256_of,
    tail,
    write_json,
    write_text,
)


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    assert path.read_text("utf-8") == '{\n  "a": 1\n}\n'
    before = os.umask(0o027)
    write_json(path, {"a": 1})
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("half of it", encoding="utf-8")
        raise RuntimeError
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'"), atomic_path(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_what_is_no_json_is_said_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: not JSON \(.*\); remove it to have it made"):
        read_json(path)


def test_the_last_whole_line_of_a_log_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert last_json_line(path) is None and tail(path, 10) == b""
    append_json_line(path, {"step": 1})
    append_json_line(path, {"step": 2})
    with path.open("a", encoding="utf-8") as file:
        file.write('[3]\nnot json\n{"step": 4')
    assert last_json_line(path) == {"step": 2}
    with path.open("a", encoding="utf-8") as file:
        file.write("}\n")
    assert last_json_line(path) == {"step": 4}
    line = json.dumps({"step": 4}).encode() + b"\n"
    assert tail(path, len(line)) == line and last_json_line(path, len(line) - 1) is None


def test_the_digest_is_sha256s(tmp_path: Path) -> None:
    write_text(tmp_path / "abc", "abc")
    assert sha256_of(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
