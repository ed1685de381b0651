"""The set of COCO's size, in small: sound, of the layout, checked, planned and started on."""

import json
from pathlib import Path

import pytest

from benchmarks import coco_scale
from benchmarks.coco_scale import benchmark_scale, write_set
from transfer.config.data import CocoData
from transfer.datasets.check import task_faults
from transfer.datasets.findings import Needs


def test_the_set_is_sound_and_the_same_each_time(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_set(folder, "train", 40, 300)
    one, two = (tmp_path / folder / "train.json" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    content = json.loads(one.read_text(encoding="utf-8"))
    assert (len(content["images"]), len(content["annotations"])) == (40, 300)
    data = CocoData(annotations=one, images=one.with_suffix(""))
    assert task_faults({"train": (data, Needs(evaluated=True, masks=True))}) == []


@pytest.mark.slow
def test_a_row_is_printed_for_the_check_the_plan_and_the_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_scale, "SETTLED_S", 0.0)
    benchmark_scale(images=20, objects=160)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["check_data,", "plan,", "plan,", "a"]
    assert all(float(number) >= 0 for row in rows for number in row[-3:])
