"""A part of a plan is the named stages and what they need; equal stages share one folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.plan.build import load_plan
from pipeline.plan.plan import other_configs, select, used_configs
from pipeline.stages.files import read_json, write_json
from pipeline.stages.run_folder import JOB, prepare, read_state, write_manifest
from pipeline.stages.stage import STAGE_KINDS, Stage
from pipeline.stages.staleness import shared_lines


def test_a_stage_comes_with_what_it_needs(project: Path) -> None:
    plan = load_plan(Path("configs/tiny.yaml"), [])
    part = select(plan, ["finetune/a--voc--seed1", "finetune/random--coco--seed0"])
    assert [stage.name for stage in part.stages] == [
        "finetune/random--coco--seed0",
        "pretrain/a",
        "convert/a",
        "finetune/a--voc--seed1",
    ]
    assert part.stages[1] is next(s for s in plan.stages if s.name == "pretrain/a")


def test_an_unknown_stage_is_told_with_the_nearest_name(project: Path) -> None:
    plan = load_plan(Path("configs/tiny.yaml"), [])
    with pytest.raises(ValueError, match=r"--only: unknown stage 'pretrain/aa'; did you mean") as e:
        select(plan, ["pretrain/aa", "nonsense"])
    assert len(str(e.value).splitlines()) == 2 and "and 4 more" in str(e.value)


CONFIG = Path("configs/tiny.yaml")
OLD = ["backbones=[{name: old, pretrain: a.yaml}]", "seeds=[0]", "tasks.1.name=voc-old"]
NEW = ["backbones=[{name: new, pretrain: a.yaml}]", "seeds=[0]"]


def made(overrides: list[str]) -> list[Stage]:
    """Leave the folders of a plan's stages, as if all were done."""
    stages = load_plan(CONFIG, overrides).distinct
    for stage in stages:
        prepare(stage)
        for pattern in STAGE_KINDS[stage.kind].outputs:
            path = stage.run_dir / pattern.replace("*", "one")
            path.parent.mkdir(exist_ok=True)
            path.write_text(stage.signature, encoding="utf-8")
        write_manifest(stage.run_dir, read_json(stage.run_dir / JOB), {"bbox/AP": 1.0}, {})
    return list(stages)


def test_what_is_equal_is_used_under_its_old_name(project: Path) -> None:
    old = {stage.run_dir for stage in made(OLD)}
    plan = load_plan(CONFIG, NEW)
    assert {stage.run_dir for stage in plan.stages} == old
    states = {stage.name: read_state(stage) for stage in plan.stages}
    assert {state.status for state in states.values()} == {"done"}
    assert shared_lines(plan.stages, states)[-1] == (
        "finetune/new--voc--seed0: done as finetune/old--voc-old--seed0, whose inputs and settings "
        "are equal"
    )
    assert load_plan(CONFIG, OLD).stages[0].same_as is None


def test_a_finished_folder_is_used_before_one_of_its_own_name_that_is_not(project: Path) -> None:
    old = made(OLD)
    prepare(replace(load_plan(CONFIG, NEW).stages[0], folder_of=""))
    assert load_plan(CONFIG, NEW).stages[0].run_dir == old[0].run_dir
    (old[0].run_dir / "manifest.json").unlink()
    assert load_plan(CONFIG, NEW).stages[0].run_dir.name.startswith("new-")


def test_a_folder_named_by_hand_is_not_used(project: Path) -> None:
    stage = load_plan(CONFIG, NEW).stages[0]
    other = made(["backbones=[{name: b, pretrain: b.yaml}]", "seeds=[0]"])[0]
    other.run_dir.rename(other.run_dir.with_name(f"b-{stage.signature}"))
    assert load_plan(CONFIG, NEW).stages[0].same_as is None


def test_two_configs_of_one_name_are_noticed(project: Path) -> None:
    def lines(name: str) -> list[str]:
        return other_configs(load_plan(Path(name), []))

    assert lines("configs/tiny.yaml") == [] and lines("configs/tiny.yaml") == []
    shutil.copy("configs/tiny.yaml", "configs/copy.yaml")
    (line,) = lines("configs/copy.yaml")
    assert line == (
        f"configs/copy.yaml: {project / 'configs' / 'tiny.yaml'} has the same name, 'tiny': they "
        "share runs/tiny, and each replaces the other's report; give one another `name`"
    )
    assert len(lines("configs/tiny.yaml")) == 1
    content = yaml.safe_load(Path("configs/copy.yaml").read_text("utf-8")) | {"name": "other"}
    Path("configs/copy.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert lines("configs/tiny.yaml") == []
    Path("configs/copy.yaml").unlink()
    assert lines("configs/tiny.yaml") == []
    Path("runs/tiny/configs.json").write_text("{", encoding="utf-8")
    assert lines("configs/tiny.yaml") == []


def copied(project: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on in another clone of the project, into which the runs were copied."""
    shutil.copytree(project, clone)
    (clone / "configs" / "tiny.yaml").rename(clone / "configs" / "moved.yaml")
    monkeypatch.chdir(clone)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_config_of_the_folder_that_this_one_is_a_copy_of_shares_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_old: bool
) -> None:
    other_configs(load_plan(CONFIG, []))
    if is_old:
        write_json(Path("runs/tiny/configs.json"), [str(CONFIG.resolve())])
    copied(project, tmp_path / "clone", monkeypatch)
    plan = load_plan(Path("configs/moved.yaml"), [])
    assert other_configs(plan) == other_configs(plan) == []
    assert [*used_configs(plan.config.root).values()] == ["elsewhere", "here"]
    (project / CONFIG).unlink()
    assert used_configs(plan.config.root)[project / CONFIG] == ("gone" if is_old else "elsewhere")


@pytest.mark.parametrize(
    ("change", "overrides", "place"),
    [
        ({}, [], "here"),
        ({"output_dir": "./runs"}, [], "here"),
        ({"output_dir": "elsewhere"}, [], "elsewhere"),
        ({"output_dir": "/nowhere"}, [], "elsewhere"),
        ({"name": "other"}, [], "elsewhere"),
        ({}, ["output_dir=disk"], "here"),  # given behind the command
        ({"name": "other"}, ["output_dir=disk"], "elsewhere"),
        ({"output_dir": "{project}/disk"}, ["output_dir=disk"], "here"),
        ({"output_dir": "{project}/disk"}, [], "elsewhere"),
        (None, [], "gone"),
        (None, ["output_dir=disk"], "gone"),
        ("{", [], "unreadable"),
    ],
)
def test_where_a_config_leads_is_what_it_says_now(
    project: Path, change: dict[str, str] | str | None, overrides: list[str], place: str
) -> None:
    plan = load_plan(CONFIG, overrides)
    other_configs(plan)
    content = yaml.safe_load(CONFIG.read_text("utf-8"))
    CONFIG.unlink()
    if isinstance(change, dict):
        change = {key: value.format(project=project) for key, value in change.items()}
        CONFIG.write_text(yaml.safe_dump(content | change), encoding="utf-8")
    elif change is not None:
        CONFIG.write_text(change, encoding="utf-8")
    assert used_configs(plan.config.root) == {CONFIG.resolve(): place}


def test_a_folder_that_moved_behind_a_link_is_the_same(project: Path) -> None:
    root = load_plan(CONFIG, []).config.root
    other_configs(load_plan(CONFIG, []))
    Path("runs").rename("disk")
    assert used_configs(Path("disk/tiny")) == {CONFIG.resolve(): "elsewhere"}
    Path("runs").symlink_to("disk")
    assert used_configs(root) == {CONFIG.resolve(): "here"}
