"""YAML with bases and overrides: merging, and faults in one line that name the file."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import apply_overrides, load_yaml, validated
from pretrain.config.pretrain import PretrainConfig


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


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a+=3", [1, 2, 3]),
        ("a+=[3, 4]", [1, 2, 3, 4]),
        ("a+=K=[3, 4]", [1, 2, "K=[3, 4]"]),
        ("a+=[[3]]", [1, 2, [3]]),
        ("a=[3]", [3]),
    ],
)
def test_a_list_is_replaced_or_added_to(override: str, expected: list) -> None:
    content = {"a": [1, 2], "b": [{"a": [1, 2]}]}
    assert apply_overrides(content, [override])["a"] == expected
    assert apply_overrides(content, [f"b.0.{override}"])["b"][0]["a"] == expected
    assert content == {"a": [1, 2], "b": [{"a": [1, 2]}]}


def test_adding_to_nothing_makes_a_list_and_to_what_is_none_is_refused() -> None:
    content = {"tasks": [{"name": "voc", "none": None}]}
    for key in ("overrides", "none"):
        changed = apply_overrides(content, [f"tasks.0.{key}+=SEED=1", f"tasks.0.{key}+=SEED=2"])
        assert changed["tasks"][0][key] == ["SEED=1", "SEED=2"]
    for key in ("tasks.0.name", "tasks.0"):
        with pytest.raises(ValueError, match=r"\+= adds to a list"):
            apply_overrides(content, [f"{key}+=x"])
    with pytest.raises(ValueError, match=r"nothing at 'tasks\.3\.overrides' to set"):
        apply_overrides(content, ["tasks.3.overrides+=x"])
    with pytest.raises(ValueError, match="wanted key=value"):
        apply_overrides(content, ["+=x"])


class Lists(BaseModel):
    names: tuple[str, ...] = ()
    numbers: list[int] = []


@pytest.mark.parametrize("text", ["names=SOLVER.MAX_ITER=4", "numbers=3", "numbers=0,1,2"])
def test_one_value_for_a_list_is_told_the_form(text: str) -> None:
    key, _, value = text.partition("=")
    with pytest.raises(ValueError, match=f"wanted a list, such as \\[{value}\\], got {value}"):
        validated(Lists, apply_overrides({}, [text]), "c.yaml")
    validated(Lists, apply_overrides({}, [f"{key}=[{value}]"]), "c.yaml")


def test_every_bad_override_is_named() -> None:
    with pytest.raises(ValueError, match="wanted key=value") as caught:
        apply_overrides({"a": [1]}, ["nonsense", "a.7=1", "a.b.c=2"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_config_is_told_with_the_nearest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine_slurm.yaml").touch()
    with pytest.raises(ValueError, match="no such config file; did you mean ") as caught:
        load_yaml(tmp_path / "mine_slrum.yaml")
    assert str(caught.value).endswith(f"{tmp_path / 'mine_slurm.yaml'}?")


def test_a_name_that_says_which_keys_follow_is_told_with_the_nearest() -> None:
    content = {"loss": {"name": "w-msee"}}
    with pytest.raises(
        ValueError,
        match=r"r\.yaml: loss\.name: unknown name 'w-msee'; did you mean 'w-mse'\? known: w-mse, ",
    ):
        validated(PretrainConfig, content, "r.yaml")
    with pytest.raises(ValueError, match=r"r\.yaml: loss: has no name; wanted one of w-mse, "):
        validated(PretrainConfig, {"loss": {}}, "r.yaml")
    sets = {"datasets": {"mine": {"annotations": "a.json", "images": "a"}}}
    with pytest.raises(ValueError, match=r"datasets\.mine: has no format; wanted one of coco, voc"):
        validated(PipelineConfig, sets, "p.yaml")
