"""The set of COCO's size, in small: sound, of the layout, the same each time."""

import json
from pathlib import Path

from benchmarks.coco_scale import write_set
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
