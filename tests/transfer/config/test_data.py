"""The files and images that sets name, and the sets known by name."""

import json
import shutil
from pathlib import Path

import pytest

from transfer.config.data import (
    CocoData,
    VocData,
    coco_classes,
    coco_images,
    content_digest,
    image_files,
    known_datasets,
    part_ids,
    split_names,
)


def test_known_sets_lie_below_the_datasets_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    sets = known_datasets()
    val, test = sets["coco_2017_val"], sets["voc_2007_test"]
    assert isinstance(val, CocoData) and isinstance(test, VocData)
    assert val.annotations == Path("/data/coco/annotations/instances_val2017.json")
    assert (test.root, test.split, test.year) == (Path("/data/VOC2007"), "test", 2007)


def test_places_in_each_layout() -> None:
    coco = CocoData(annotations=Path("a.json"), images=Path("i"))
    voc = VocData(root=Path("voc"), split="test")
    assert [coco.index_file, coco.image_root] == [Path("a.json"), Path("i")]
    places = [voc.index_file, voc.image_root]
    assert places == [Path("voc/ImageSets/Main/test.txt"), Path("voc/JPEGImages")]


def test_names_of_a_split_have_no_blanks(tmp_path: Path) -> None:
    voc = VocData(root=tmp_path, split="all")
    voc.index_file.parent.mkdir(parents=True)
    voc.index_file.write_bytes(b"b \r\n\r\na\t\n\n")
    assert split_names(voc) == ["b", "a"]
    voc.index_file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        split_names(voc)


def test_an_image_has_the_name_of_its_annotation_and_any_suffix(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("1.png", "2.JPG", "2.webp", "3.txt", "sub/4.jpeg", ".5.jpg"):
        (tmp_path / name).touch()
    files = image_files(tmp_path, ["1", "2", "3", "sub/4", "5"])
    names = {name: [path.name for path in paths] for name, paths in files.items()}
    assert names == {
        "1": ["1.png"], "2": ["2.JPG", "2.webp"], "3": ["3.jpg"], "sub/4": ["4.jpeg"],
        "5": ["5.jpg"],
    }  # fmt: skip
    assert image_files(tmp_path / "gone", ["1"]) == {"1": [tmp_path / "gone" / "1.jpg"]}


def test_images_of_coco_are_those_the_check_accepts() -> None:
    entries = [
        {"id": 2, "file_name": "b/2.jpg"}, {"id": "x", "file_name": "x.jpg"}, 7, {},
        {"id": 2, "file_name": "again.jpg"}, {"id": True, "file_name": "yes.jpg"},
        {"id": 4, "file_name": "/etc/passwd"}, {"id": 5, "file_name": ["5.jpg"]}, {"id": 6},
    ]  # fmt: skip
    content = json.dumps({"images": entries}).encode()
    assert coco_images(content) == [(2, "b/2.jpg"), ("x", "x.jpg")]
    for broken in (b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"images": {}}'):
        assert coco_images(broken) == []


def test_images_are_read_by_their_key_as_from_the_whole_text() -> None:
    entries = [{"id": 3, "file_name": "3.jpg"}]
    annotations = [{"id": number, "image_id": 3} for number in range(9)]
    plain = {"images": entries, "annotations": annotations, "categories": []}
    nested = {"info": {"images": [7]}, **plain}
    for content in (plain, dict(reversed(plain.items())), nested):
        assert coco_images(json.dumps(content).encode()) == [(3, "3.jpg")]
    assert coco_images(json.dumps(plain).encode()[:-1]) == []


def test_classes_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "set.json"

    def classes(*entries: object) -> list[str] | None:
        path.write_text(json.dumps({"images": [], "categories": entries}), encoding="utf-8")
        return coco_classes(path)

    one, two = {"id": 9, "name": "one"}, {"id": 4, "name": "two"}
    assert classes(one, two) == ["two", "one"]
    for odd in ([one, one], [7], [{"id": "1", "name": "x"}], [{"id": 1}], []):
        assert classes(*odd) is None


def test_a_part_lies_within_a_larger_one_whatever_the_order() -> None:
    tenth, fifth = (part_ids(range(100), part, 3) for part in (0.1, 0.2))
    assert len(tenth) == 10 and tenth < fifth
    assert part_ids(reversed(range(100)), 0.1, 3) == tenth != part_ids(range(100), 0.1, 4)


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
