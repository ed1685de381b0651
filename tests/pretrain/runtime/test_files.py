"""Files that are whole or absent, whatever happens while they are written."""

import json
from pathlib import Path

import pytest

from pretrain.runtime.files import near_folder, one_line, whole_file, write_json


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json({"a": 1}, path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"a": float("nan")}, path)
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        assert temporary.parent == tmp_path and temporary.name.endswith(".tmp")
        temporary.write_text("half of it", encoding="utf-8")
        raise RuntimeError
    assert json.loads(path.read_text("utf-8")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_errors_in_one_line() -> None:
    assert one_line(ValueError("a\n\tb ")) == "a b"
    assert one_line(KeyError()) == "KeyError"


def test_a_folder_of_nearly_the_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "phot").touch()
    assert near_folder(tmp_path / "photo") == f"; did you mean {tmp_path / 'photos'}?"
    assert near_folder(tmp_path / "scans") == near_folder(tmp_path / "none" / "photos") == ""
