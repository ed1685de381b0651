"""Faults that are told by the override they are of."""

from pathlib import Path

import pytest

from pipeline.commands.main import execute
from pipeline.plan.overrides import blamed, mentioned
from tests.pipeline.local_runs import CONFIG

PLACE = "plan.yaml: task voc"


def faults_with(some: tuple[str, ...]) -> list[str]:
    """A file that lacks a key, and whose lr and batch must not both be changed."""
    both = {"lr=1", "batch=2"} <= set(some)
    return ["a.yaml: seed: missing"] + ["a.yaml: too fast"] * both + ["/data: gone"] * bool(some)


def test_a_fault_that_goes_without_an_override_is_its_own() -> None:
    overrides = ("lr=1", "batch=2", "epochs=3")
    assert blamed(faults_with(overrides), "a.yaml", PLACE, overrides, faults_with) == [
        "a.yaml: seed: missing",
        f"{PLACE}: override lr=1, batch=2: too fast",
        "/data: gone",
    ]
    assert blamed(faults_with(()), "a.yaml", PLACE, (), faults_with) == ["a.yaml: seed: missing"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("SOLVER.MAX_ITER is 0, wanted 1", f"{PLACE}: override SOLVER.MAX_ITER=0: {{}}"),
        ("KeyError: 'XX'", f"{PLACE}: override MODEL.NORM=XX: {{}}"),
        ("no box", "a.yaml (with override SOLVER.MAX_ITER=0, MODEL.NORM=XX): {}"),
        ("SOLVER.MAX_ITERS is 0", "a.yaml: {}"),
        ("MODEL.RESNETS.DEPTH is 18, wanted 50", "a.yaml: {}"),
    ],
)
def test_an_override_is_named_where_its_key_or_word_is(fault: str, told: str) -> None:
    overrides = ("SOLVER.MAX_ITER=0", "MODEL.NORM=XX")
    assert mentioned(fault, "a.yaml", PLACE, overrides) == told.format(fault)
    assert mentioned(fault, "a.yaml", PLACE, ()) == f"a.yaml: {fault}"


@pytest.mark.parametrize("command", ["plan", "run"])
def test_plan_and_run_name_overrides_of_every_kind(
    fakes: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    changes = [
        "backbones.1.overrides=[max_stps=4]",
        "tasks.0.overrides=[SOLVER.MAX_ITR=4, SOLVER.IMS_PER_BATCH=many]",
    ]
    assert execute(command, CONFIG, changes) == 2
    lines = capsys.readouterr().err.splitlines()
    name = f"run_pipeline: {CONFIG}"
    assert any(line.startswith(f"{name}: backbone ") and "override max_stps=4: " in line
               for line in lines), lines  # fmt: skip
    assert any("override SOLVER.MAX_ITR=4: SOLVER.MAX_ITR: detectron2 has no" in x for x in lines)
