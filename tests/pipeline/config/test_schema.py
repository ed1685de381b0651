"""Names in a pipeline config: unique and plain."""

from pathlib import Path

from tests.pipeline.edits import edit, faults


def test_names_must_be_unique_and_plain(project: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content["backbones"][2].update(name="a"))
    assert "backbones: named twice: a" in faults()[0]
    edit("configs/tiny.yaml", lambda content: content["backbones"][2].update(name="../../etc"))
    assert "backbones.2.name" in faults()[0]
