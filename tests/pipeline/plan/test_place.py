"""A plan's folder is one of a pipeline; where nothing of it lies, what does is said."""

import json
from pathlib import Path

import pytest

from pipeline.commands.main import Options, execute
from pipeline.config.schema import PipelineConfig
from pipeline.plan.build import load_plan
from pipeline.plan.place import (
    FINE_TUNING,
    PIPELINE,
    PRETRAINING,
    folder_fault,
    nothing_begun,
    run_folders,
)
from tests.pipeline.local_runs import CONFIG, ONLY_RANDOM

RUN = "pretrain/a-0123456789abcdef"
pytestmark = pytest.mark.usefixtures("in_process")
FILES = {  # of a folder, with the kind that it then is of
    f"{RUN}/config.json": PIPELINE,
    "configs.json": PIPELINE,
    "job.json": "stage of a pipeline",
    "backbone.pth": PRETRAINING,
    "metrics.jsonl": PRETRAINING,
    "effective_config.yaml": FINE_TUNING,
    "pretrain/models.py": None,
    "pretrain/notes-final/a.txt": None,
}


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize(("file", "kind"), FILES.items())
def test_a_folder_of_another_kind_of_run_is_told(
    tmp_path: Path, file: str, kind: str | None
) -> None:
    assert (
        folder_fault(tmp_path, PIPELINE, "K") is None
        and folder_fault(tmp_path / "no", "x", "K") is None
    )
    write(tmp_path / file)
    for wanted in (PIPELINE, PRETRAINING, FINE_TUNING):
        fault = folder_fault(tmp_path, wanted, "K")
        if kind in (None, wanted):
            assert fault is None
        else:
            place = RUN if file.startswith(RUN) else file
            assert fault == (
                f"{tmp_path}: is the folder of a {kind} ({place} lies there); give another K"
            )


def test_files_that_several_kinds_have_are_of_the_one_that_has_all(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "effective_config.yaml"):  # as fine-tuning writes them
        write(tmp_path / name)
    assert folder_fault(tmp_path, FINE_TUNING, "K") is None
    assert folder_fault(tmp_path, PRETRAINING, "K") is not None
    write(tmp_path / RUN / "config.json")  # of two kinds already: each goes on
    assert folder_fault(tmp_path, FINE_TUNING, "K") is folder_fault(tmp_path, PIPELINE, "K") is None


@pytest.mark.parametrize("command", ["run", "plan", "status", "logs", "report", "cancel", "clean"])
def test_a_pipeline_refuses_the_folder_of_a_pretraining(
    fakes: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write(Path("runs/tiny/last.pth"))
    assert execute(command, CONFIG, ONLY_RANDOM) == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        "run_pipeline: runs/tiny: is the folder of a pretraining (last.pth lies there); give "
        "another `name` or `output_dir`"
    )
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["last.pth"]


def test_output_dir_is_not_the_pipelines_folder_itself(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("run", CONFIG, ONLY_RANDOM) == 0
    for command in ("status", "plan", "run"):
        capsys.readouterr()
        assert execute(command, CONFIG, [*ONLY_RANDOM, "output_dir=runs/tiny"]) == 2
        assert capsys.readouterr().err == (
            "run_pipeline: output_dir: runs/tiny is itself the folder of a pipeline's runs, wanted "
            "the one in which it lies: output_dir=runs, and its `name`: tiny\n"
        )
    assert not Path("runs/tiny/tiny").exists()


def test_where_nothing_was_run_the_folder_and_what_lies_there_are_told(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute("run", CONFIG, ONLY_RANDOM) == 0
    write(Path("runs/notes/a.txt"))
    write(Path("elsewhere/b/a.txt"))
    answers = {
        "name=other": "runs/other: it is not there; runs holds the pipelines tiny; output_dir",
        "output_dir=elsewhere": "elsewhere/tiny: it is not there; elsewhere holds b; output_dir",
        "output_dir=gone": f"gone/tiny: there is no folder {fakes / 'gone'}; output_dir (gone) is",
    }
    for change, expected in answers.items():
        capsys.readouterr()
        assert execute("status", CONFIG, [*ONLY_RANDOM, change]) == 0
        out = capsys.readouterr().out
        assert f"nothing was run in {expected}" in " ".join(out.split()) and "missing" not in out
        for command in ("logs", "report", "cancel", "clean"):
            assert execute(command, CONFIG, [*ONLY_RANDOM, change]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"run_pipeline: nothing was run in {expected}")
        assert not Path("runs/other").exists() and not Path("gone").exists()
    assert execute("plan", CONFIG, [*ONLY_RANDOM, "name=other"]) == 0  # it leaves a file there
    assert "nothing was run" not in capsys.readouterr().out
    assert execute("status", CONFIG, [*ONLY_RANDOM, "name=third"]) == 0  # `other` was not run
    assert "runs holds the pipelines tiny;" in " ".join(capsys.readouterr().out.split())
    assert execute("status", CONFIG, [*ONLY_RANDOM, "name=other"]) == 0
    assert "runs/other: it holds no run; runs holds the pipelines tiny" in " ".join(
        capsys.readouterr().out.split()
    )
    others = ["backbones=[{name: b, pretrain: b.yaml}]", "seeds=[7]"]
    assert execute("status", CONFIG, others, Options(as_json=True)) == 0
    note = json.loads(capsys.readouterr().out)["notes"][0]
    assert note.startswith(
        "runs/tiny holds no run of this plan as it is now, but finetune/random--"
    )
    assert execute("status", CONFIG, ONLY_RANDOM, Options(as_json=True)) == 0
    assert '"done": 2' in capsys.readouterr().out
    assert nothing_begun(load_plan(CONFIG, ONLY_RANDOM).config) is None


def test_what_lies_there_is_cut_short(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / f"p{number}" / RUN / "config.json")
    assert len(run_folders(tmp_path / "p1")) == 1
    backbones = [{"name": "a", "random": True}]
    content = {"name": "x", "backbones": backbones, "output_dir": tmp_path, "seeds": [0]}
    config = PipelineConfig.model_validate(content | {"tasks": [{"name": "t", "config": "t.yaml"}]})
    assert "holds the pipelines p0, p1, p2, p3, p4, p5 and 2 more;" in str(nothing_begun(config))
