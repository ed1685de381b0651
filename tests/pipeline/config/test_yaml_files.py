"""YAML with bases and overrides: merging, and faults in one line that name the file."""

from pathlib import Path

import pytest

from pipeline.config.yaml_files import apply_overrides, load_yaml


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_base_is_merged_key_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "a: {x: 1, y: [1, 2]}\nb: 3\n")
    child = write(tmp_path / "sub" / "child.yaml", "_BASE_: ../base.yaml\na: {y: [9]}\nc: 4\n")
    assert load_yaml(child) == {"a": {"x": 1, "y": [9]}, "b": 3, "c": 4}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [1", "not YAML"),
        ("- 1", "wanted a mapping"),
        ("_BASE_: self.yaml", "leads back"),
        ("_BASE_: absent.yaml", "absent.yaml: no such config file"),
        ("_BASE_: 3", "wanted a path"),
        ("a: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_faults_are_one_line_and_name_the_file(tmp_path: Path, text: str, fault: str) -> None:
    path = write(tmp_path / "self.yaml", text)
    with pytest.raises(ValueError, match=fault) as caught:
        load_yaml(path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_into_lists_and_parse_yaml() -> None:
    content = {"seeds": [0], "backbones": [{"name": "a"}, {"name": "b"}]}
    changed = apply_overrides(content, ["seeds=[1, 2]", "backbones.1.name=c", "new.key=1.5"])
    assert changed["seeds"] == [1, 2]
    assert changed["backbones"] == [{"name": "a"}, {"name": "c"}]
    assert changed["new"] == {"key": 1.5}
    assert content["seeds"] == [0]


def test_every_bad_override_is_named() -> None:
    with pytest.raises(ValueError, match="wanted key=value") as caught:
        apply_overrides({"a": [1]}, ["nonsense", "a.7=1", "a.b.c=2"])
    assert len(str(caught.value).splitlines()) == 3
