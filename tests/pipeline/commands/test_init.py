"""`init`: what is written can be planned, and what cannot be is refused in one line each."""

import json
from pathlib import Path

import pytest

from pipeline.commands.init import main
from pipeline.config.schema import PipelineConfig
from pipeline.plan.build import load_plan
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig


def init(*arguments: str) -> int:
    return main(list(arguments))


def test_flags_give_a_config_that_plans(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "voc.yaml").write_text(
        "_BASE_: configs/voc.yaml\nDATASETS: {TRAIN: [set], TEST: [set]}\n", encoding="utf-8"
    )
    arguments = ["--backbone", "random", "--backbone", "ours=configs/a.yaml", "--seeds", "3,5"]
    assert init("new/mine.yaml", *arguments, "--task", "voc=voc.yaml") == 0
    assert "new/mine.yaml: written" in capsys.readouterr().out
    text = Path("new/mine.yaml").read_text("utf-8")
    assert (
        "# What is compared" in text
        and text.startswith("# yaml-language-server: $schema=")
        and "resources" not in text
    )
    with pytest.raises(ValueError, match="unknown data set 'set'") as error:
        load_plan(Path("new/mine.yaml"), [])
    assert len(str(error.value).splitlines()) == 1  # the paths were right, seen from new/
    given = "datasets={set: {format: voc, root: data/voc, split: all, class_names: [one]}}"
    plan = load_plan(Path("new/mine.yaml"), [given])
    assert plan.config.seeds == (3, 5) and plan.config.name == "mine"
    assert [stage.name for stage in plan.stages][-1] == "finetune/ours--voc--seed5"


def test_slurm_gets_resources(project: Path) -> None:
    assert init("s.yaml", "--backbone", "random", "--task", "v=configs/voc.yaml",
                "--executor", "slurm") == 0  # fmt: skip
    text = Path("s.yaml").read_text("utf-8")
    assert "--executor slurm" in text and "timeout_min: 1440" in text


def test_every_fault_at_once_and_nothing_written(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--backbone", "a b=absent.pth", "--task", "v=absent.yaml", "--seeds", "0,0"]
    assert init("n.yaml", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any("absent.pth: no such file (backbone a b)" in line for line in lines)
    assert any("absent.yaml: no such file (task v)" in line for line in lines)
    assert any("backbones.0.name" in line for line in lines)
    assert not Path("n.yaml").exists()


def test_configs_of_another_kind_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = ["--backbone", "ours=configs/voc.yaml", "--task", "v=configs/a.yaml"]
    assert init("n.yaml", *swapped) == 2
    error = capsys.readouterr().err
    assert "configs/a.yaml: DATASETS.TRAIN: wanted a list of data set names" in error
    assert "configs/voc.yaml: DATASETS: unknown key 'DATASETS'; " in error
    assert not Path("n.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backbone", "moco.pth", "--task", "v=configs/voc.yaml"], "wanted NAME=PATH"),
        (["--backbone", "random"], "--task is missing, and there is no terminal"),
        (
            ["--backbone", "random", "--task", "v=configs/voc.yaml", "--seeds", "x"],
            "wanted numbers",
        ),
    ],
)
def test_a_flag_that_cannot_be_read(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert init("n.yaml", *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.splitlines()) == 1


def test_an_existing_file_is_kept(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("n.yaml").write_text("mine", encoding="utf-8")
    assert init("n.yaml", "--backbone", "random", "--task", "v=configs/voc.yaml") == 2
    assert "n.yaml: exists" in capsys.readouterr().err
    assert Path("n.yaml").read_text("utf-8") == "mine"


def test_questions_are_asked_at_a_terminal(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["random", "v=configs/voc.yaml", "", "slurm"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert init("q.yaml") == 0
    assert "seeds: [0, 1, 2]" in Path("q.yaml").read_text("utf-8")


def test_schemas_for_editors_are_those_of_the_configs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init("--schemas", str(tmp_path)) == 0
    names = [f"{name}.schema.json" for name in ("pipeline", "pretrain", "probe")]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    for name, model in zip(names, (PipelineConfig, PretrainConfig, ProbeConfig), strict=True):
        schema = json.loads((tmp_path / name).read_text("utf-8"))
        assert set(schema["properties"]) == {*model.model_fields, "_BASE_"}
        assert schema["additionalProperties"] is False and "required" not in schema
        assert not any("required" in part for part in schema["$defs"].values())


def test_a_config_points_an_editor_at_a_schema_that_is_there(project: Path) -> None:
    assert init("new/n.yaml", "--backbone", "random", "--task", "v=configs/voc.yaml") == 0
    first = Path("new/n.yaml").read_text("utf-8").splitlines()[0]
    schema = Path("new") / first.removeprefix("# yaml-language-server: $schema=")
    properties = json.loads(schema.read_text("utf-8"))["properties"]
    assert {"backbones", "tasks", "resources", "_BASE_"} <= set(properties)
