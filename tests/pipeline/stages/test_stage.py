"""A stage's name, record, folder and result."""

from pathlib import Path

from pipeline.stages.stage import RULE, STAGE_KINDS, Stage


def test_a_stage_is_known_by_what_can_change_its_result() -> None:
    root = Path("runs/tiny")
    source = Stage("pretrain", "a", {"seed": 0}, {"seed": 0, "workers": 4}, root, {}, "a")
    stage = Stage("convert", "a", {"format": None}, {}, root, {"checkpoint": source}, "a")
    assert stage.name == "convert/a"
    assert stage.record == {
        "rule": RULE,
        "stage": "convert",
        "version": STAGE_KINDS["convert"].version,
        "config": {"format": None},
        "inputs": {"checkpoint": source.signature},
    }
    assert stage.run_dir == root / "convert" / f"a-{stage.signature}"
    assert stage.result == stage.run_dir / "backbone.pkl"
    workers = Stage("pretrain", "a", {"seed": 0}, {"seed": 0, "workers": 8}, root, {}, "a")
    assert workers.signature == source.signature
    other = Stage("pretrain", "a", {"seed": 1}, {"seed": 1, "workers": 4}, root, {}, "a")
    moved = Stage("convert", "a", {"format": None}, {}, root, {"checkpoint": other}, "a")
    assert len({source.signature, other.signature, stage.signature, moved.signature}) == 4


def test_every_kind_has_its_result_among_its_outputs() -> None:
    assert set(STAGE_KINDS) == {"pretrain", "convert", "probe", "finetune"}
    for kind in STAGE_KINDS.values():
        assert kind.result in kind.outputs and kind.version >= 1
