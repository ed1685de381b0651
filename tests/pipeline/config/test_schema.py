"""Names in a pipeline config: unique and plain."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config.schema import BackboneConfig
from pipeline.plan.build import load_plan
from tests.pipeline.edits import edit, faults


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({}, "exactly one of pretrain, checkpoint and random"),
        ({"random": True, "checkpoint": "x.pth"}, "exactly one of pretrain, checkpoint and random"),
        ({"random": True, "overrides": ["seed=1"]}, "overrides go with pretrain"),
        ({"pretrain": "a.yaml", "format": "moco"}, "format, encoder and input go with checkpoint"),
        ({"random": True, "seed": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_backbone_has_one_source_and_what_goes_with_it(
    content: dict[str, object], fault: str
) -> None:
    with pytest.raises(ValidationError, match=fault):
        BackboneConfig.model_validate({"name": "a", **content})


def test_names_must_be_unique_and_plain(project: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content["backbones"][2].update(name="a"))
    assert "backbones: named twice: a" in faults()[0]
    edit("configs/tiny.yaml", lambda content: content["backbones"][2].update(name="../../etc"))
    assert "backbones.2.name" in faults()[0]


def test_names_of_two_stages_cannot_be_the_same(project: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content["backbones"][2].update(name="a--b"))
    edit("configs/tiny.yaml", lambda content: content["tasks"][0].update(name="b--coco"))
    lines = faults()
    assert len(lines) == 2 and "backbones.2.name" in lines[0] and "tasks.0.name" in lines[1]
    assert "'a--b' holds '--', which parts the names of a stage" in lines[0]
    edit("configs/tiny.yaml", lambda content: content["tasks"][0].update(name="coco"))
    edit("configs/tiny.yaml", lambda content: content.update(probes=[{"name": "p--q"}]))
    assert any("probes.0.name: 'p--q' holds '--'" in line for line in faults())


def test_a_baseline_is_one_of_the_backbones(project: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content.update(baseline="radnom"))
    hint = "did you mean 'random'? known: random, a, b"
    assert faults() == [f"configs/tiny.yaml: baseline: unknown backbone 'radnom'; {hint}"]


def test_a_number_of_seeds_is_told_the_form(project: Path) -> None:
    for change in ("seeds=3", "tasks.0.seeds=3"):
        with pytest.raises(ValueError, match="seeds: wanted a list") as caught:
            load_plan(Path("configs/tiny.yaml"), [change])
        (line,) = str(caught.value).splitlines()
        assert line.endswith("[0, 1, 2] are three seeds, [3] is the seed 3 alone, got 3")
    with pytest.raises(ValueError, match=r"seeds: wanted a list, such as \[0,1,2\], got 0,1,2"):
        load_plan(Path("configs/tiny.yaml"), ["seeds=0,1,2"])
    plan = load_plan(
        Path("configs/tiny.yaml"), ["seeds+=3", "tasks.0.overrides+=SOLVER.MAX_ITER=4"]
    )
    assert plan.config.seeds == (0, 1, 3) and plan.config.tasks[0].overrides == (
        "SOLVER.MAX_ITER=4",
    )
