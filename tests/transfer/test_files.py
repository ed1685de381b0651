"""Files that are whole or absent, their digests, and lists in JSON."""

import hashlib
import json
import threading
from pathlib import Path

import pytest

from transfer.files import (
    Entries,
    list_under,
    locked_folder,
    sha256_of,
    whole_file,
    whole_folder,
    write_json,
)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1, {"b": "x"}], "info": {}}', [1, {"b": "x"}]),
        ('{"info": {"b": [0]}, "a" :\n [2], "rest": [[]]}', [2]),
        ('{"long": "long enough to be no start", "a": [3]}', [3]),
        ('{"a": []}', []),
        ('{"info": {"a": [1]}}', None),
        ('{"info": {"a": [1]}, "long": "so that the start is shorter"}', None),
        ('[{"a": [1]}]', None),
        ('{"a": [1], "a": [2]}', None),
        ('{"a": [1], "b": "a"}', None),
        ('{"\\u0061": [1]}', None),
        ('{"b": "\\"a\\": [1]"}', None),
        ('{"a": {"b": [1]}}', None),
        ('{"a": [1}', None),
        ('{"b": [1]}', None),
        ("", None),
    ],
)
def test_a_list_is_read_where_it_can_only_be_the_outermost_objects(
    text: str, expected: list[object] | None
) -> None:
    assert list_under(text, "a") == expected
    if expected is not None:
        assert json.loads(text)["a"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1, {"b": [2]} , "x"], "b": 3}', [1, {"b": [2]}, "x"]),
        ('{"b": {}, "a":[ ] }', []),
        ('{"b": 1,\n "a" : [\n [1]\n]}', [[1]]),
    ],
)
def test_entries_are_decoded_whenever_they_are_walked(text: str, expected: list[object]) -> None:
    seen: list[tuple[int, object]] = []
    entries = Entries(text, "a", lambda *each: seen.append(each))
    assert list(entries) == list(entries) == expected == [entry for _, entry in seen]
    assert len(entries) == len(expected) and [index for index, _ in seen] == [*range(len(seen))]
    assert entries.around == json.loads(text) | {"a": []}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1], "a": [2]}', '{"b": {"a": [1]}}', '[{"a": [1]}]', '{"a": [1] 2}', "",
        '{"a": [,]}', '{"a": [1', '{"a": [1 2]}', '{"a": {}}', '{"a": [1]} 2', '{"a": [1,]}',
    ],
)  # fmt: skip
def test_entries_that_only_the_whole_text_can_tell_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Entries(text, "a", lambda *_: None)
