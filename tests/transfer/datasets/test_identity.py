"""The identity of a detection set: what makes it another, and what does not."""

import shutil
from pathlib import Path

import pytest

from transfer.config.data import CocoData, VocData
from transfer.datasets.identity import content_digest


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_a_set_is_its_annotations_and_the_names_and_sizes_of_its_images(
    coco: CocoData, voc: VocData, tmp_path: Path, layout: str
) -> None:
    data: CocoData | VocData = coco if layout == "coco" else voc
    digest = content_digest(data)
    folder = coco.images if layout == "coco" else voc.root / "JPEGImages"
    (folder / ".DS_Store").write_text("not listed", encoding="utf-8")
    assert content_digest(data) == digest
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / layout, moved)
    at = {"root": moved} | {"annotations": moved / "val.json", "images": moved / "val"}
    fields = type(data).model_fields
    assert content_digest(data.model_copy(update={k: at[k] for k in at if k in fields})) == digest
    image = folder / "001.jpg"
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    assert content_digest(data) != digest
    image.write_bytes(content)
    assert content_digest(data) == digest
    path = coco.annotations if layout == "coco" else voc.root / "Annotations" / "001.xml"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert content_digest(data) != digest


def test_a_part_and_another_year_are_others(coco: CocoData, voc: VocData) -> None:
    part = coco.model_copy(update={"fraction": 0.5})
    assert content_digest(part) != content_digest(coco)
    assert content_digest(voc.model_copy(update={"year": 2012})) != content_digest(voc)
