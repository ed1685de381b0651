"""The check before the start, with fake stages."""

import json
from pathlib import Path

import pytest

from pipeline.commands.main import execute
from pipeline.executors.preflight import check_before_start
from pipeline.report.collect import all_states
from pipeline.stages.run_folder import State
from pipeline.worker import NOTES_FROM
from pretrain.data import images
from tests.pipeline.local_runs import CONFIG, ONLY_A, ran, run, small_plan
from transfer.datasets import check


@pytest.mark.usefixtures("in_process")
def test_another_config_in_a_run_folder_is_an_error_with_the_difference(fakes: Path) -> None:
    plan = small_plan(ONLY_A)
    run(plan)
    path = plan.stages[0].run_dir / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["config"]["seed"] = 99
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.seed: stored 99, wanted 0"):
        check_before_start(plan, all_states(plan))


def test_faults_found_before_the_start_run_nothing(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("check.txt").write_text("/a.jpg: not an image\nseed is odd", encoding="utf-8")
    assert execute("run", CONFIG, []) == 2
    errors = capsys.readouterr().err.splitlines()
    configs = [f"configs/{name}.yaml: " for name in ("a", "b", "coco", "voc")]
    odd = [f"run_pipeline: {where}seed is odd" for where in (*configs, "")]
    assert errors[0] == "run_pipeline: /a.jpg: not an image"
    assert sorted(errors[1:]) == sorted(odd)
    assert ran() == []


def test_what_the_check_notes_is_told_once_and_stops_nothing(fakes: Path) -> None:
    assert {check.logger.name, images.logger.name} == set(NOTES_FROM)
    plan = small_plan()
    states = {stage.name: State("missing") for stage in plan.stages}
    assert check_before_start(plan, states) == []
    Path("notes.txt").write_text("/a.json: annotation 1: no width\nb [x]", encoding="utf-8")
    notes = ["note: /a.json: annotation 1: no width", "note: b [x]"]
    assert check_before_start(plan, states) == notes
    Path("notes.txt").write_text("\n".join(map(str, range(22))), encoding="utf-8")
    found = check_before_start(plan, states)
    assert found[:20] == [f"note: {number}" for number in range(20)]
    assert found[20:] == ["note: 2 more; tools/check_data.py shows them all"]
    Path("check.txt").write_text("odd", encoding="utf-8")
    with pytest.raises(ValueError, match="odd") as error:
        check_before_start(plan, states)
    assert "note: " not in str(error.value)


@pytest.mark.usefixtures("in_process")
def test_stages_note_what_they_are_made_from(fakes: Path) -> None:
    plan = small_plan()
    states = {stage.name: State("missing") for stage in plan.stages}
    Path("inputs.txt").touch()
    notes = check_before_start(plan, states)
    assert "note: configs/voc.yaml: made from [[], ['weights']]" in notes
    assert "note: made from [['checkpoint']]" in notes  # no config file is its own
    assert len(notes) == len(set(notes))


@pytest.mark.usefixtures("in_process")
def test_what_this_machine_lacks_stops_a_local_run_only(fakes: Path) -> None:
    Path("machine.txt").write_text("8 GPUs, wanted here 9", encoding="utf-8")
    plan = small_plan()
    states = {stage.name: State("missing") for stage in plan.stages}
    with pytest.raises(ValueError, match="8 GPUs, wanted here 9"):
        check_before_start(plan, states)
    check_before_start(plan, states, here=False)


THEIRS = "backbones=[{name: random, random: true}, {name: theirs, checkpoint: theirs.pth%s}]"
HINT = (
    "as the checkpoint or its family's row says; if it was trained otherwise, state its "
    "input.order, else override INPUT.FORMAT in the task"
)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_checkpoints_input_is_compared_with_every_task_before_anything_starts(
    fakes: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    Path("theirs.pth").touch()
    demands = {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.DEPTH": 34,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,  # of basic blocks: read by nothing
    }
    Path("demands.json").write_text(json.dumps(demands), encoding="utf-8")
    assert execute(command, CONFIG, [THEIRS % "", "seeds=[0,1]"]) == 2
    lines = [line.split(": ", 2)[1:] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        [f"configs/{task}.yaml", f"does not fit backbone theirs: {fault}"]
        for task in ("coco", "voc")
        for fault in (
            f"INPUT.FORMAT is RGB, wanted BGR {HINT}",
            "MODEL.RESNETS.DEPTH is 18, wanted 34",
        )
    ]
    assert ran() == []


@pytest.mark.usefixtures("in_process")
def test_what_was_stated_is_not_asked_for_again(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs.pth").touch()
    Path("demands.json").write_text('{"INPUT.FORMAT": "BGR"}', encoding="utf-8")
    assert execute("plan", CONFIG, [THEIRS % ", input: {order: BGR}"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert all(line.endswith("INPUT.FORMAT is RGB, wanted BGR") for line in errors)


@pytest.mark.usefixtures("in_process")
def test_a_task_that_came_later_is_compared_with_weights_that_are_there(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs.pth").touch()
    plan = small_plan([THEIRS % "", "seeds=[0]"])
    assert execute("run", CONFIG, [THEIRS % "", "seeds=[0]"]) == 0
    (convert,) = (stage for stage in plan.stages if stage.kind == "convert")
    companion = convert.result.with_suffix(".json")
    companion.write_text('{"detectron2": {"MODEL.RESNETS.DEPTH": 34}}', encoding="utf-8")
    ran()
    assert execute("run", CONFIG, [THEIRS % "", "seeds=[0,1]"]) == 2
    assert "MODEL.RESNETS.DEPTH is 18, wanted 34" in capsys.readouterr().err
    assert ran() == []
