"""A task that does not fit a backbone is refused before pretraining."""

from pathlib import Path

import pytest

from pipeline.plan.compatibility import disagreements
from tests.pipeline.edits import edit, faults


def test_disagreements_by_hand() -> None:
    demands = {"MODEL.RESNETS.DEPTH": 50, "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}
    assert disagreements(demands, {}) == []  # detectron2's defaults
    task = {"MODEL": {"PIXEL_STD": "(1, 1, 2)", "RESNETS": {"DEPTH": 101}}}
    assert disagreements(demands, task) == [
        "MODEL.RESNETS.DEPTH is 101, wanted 50",
        "MODEL.PIXEL_STD is (1, 1, 2), wanted [1.0, 1.0, 1.0]",
    ]
    stride = {"MODEL.RESNETS.STRIDE_IN_1X1": False}
    assert len(disagreements(stride, {})) == 1
    assert disagreements({"MODEL.RESNETS.DEPTH": 18, **stride}, {})[1:] == []


def test_a_task_that_contradicts_a_backbone_is_found_before_pretraining(project: Path) -> None:
    edit("configs/voc.yaml", lambda content: content["MODEL"]["RESNETS"].update(DEPTH=50))
    edit("configs/voc.yaml", lambda content: content.pop("INPUT"))
    assert faults() == [
        f"configs/voc.yaml: does not fit backbone {name}: {fault}"
        for name in ("a", "b")
        for fault in (
            "INPUT.FORMAT is BGR, wanted RGB",
            "MODEL.RESNETS.DEPTH is 50, wanted 18",
        )
    ]


def test_the_stride_of_bottlenecks_is_compared_that_of_basic_blocks_is_read_by_nothing(
    project: Path,
) -> None:
    edit("configs/a.yaml", lambda content: content["model"].update(arch="resnet50"))
    edit("configs/coco.yaml", lambda content: content["MODEL"]["RESNETS"].update(DEPTH=50))
    where = "configs/coco.yaml: does not fit backbone"
    assert [line for line in faults() if line.startswith(where)] == [
        f"{where} a: MODEL.RESNETS.STRIDE_IN_1X1 is True, wanted False",
        f"{where} b: MODEL.RESNETS.DEPTH is 50, wanted 18",
    ]


@pytest.mark.parametrize("stem", ["small", "small-no-pool"])
def test_a_stem_that_detectron2_lacks_is_refused_before_pretraining(
    project: Path, stem: str
) -> None:
    edit("configs/a.yaml", lambda content: content["model"].update(stem=stem))
    (line,) = faults()
    assert line.startswith(f"configs/a.yaml: backbone a: model.stem is {stem} (a 3x3 first")
    assert "use model.stem imagenet, or pretrain and probe this backbone without tasks" in line
