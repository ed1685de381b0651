"""The identity of data: what changes it whatever sizes and times say, and what does not."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.plan.data_identity import (
    cheaper_parts,
    content_read,
    detection_identity,
    image_identity,
)
from pipeline.stages import content_index
from pipeline.stages.stage import TABLES
from pretrain.config.data import DataConfig
from tests.files import write
from transfer.checkpoints.other_files import tables_sha256
from transfer.config.data import CocoData, VocData

NUM_VOC = 2_100  # no number of files is too many to be read


def data(root: Path, data_format: str, **settings: str) -> DataConfig:
    content = {"name": "set", "root": root, "format": data_format} | settings
    return DataConfig.model_validate(content)


def in_place(path: Path, content: bytes) -> None:
    """Overwrite a file by as many bytes, and set its times to those of before."""
    status = path.stat()
    assert status.st_size == len(content) and path.read_bytes() != content
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def copied_over(path: Path, content: bytes) -> None:
    """Put a new file of the same size and times in the place of the old one, as `rsync -a` does."""
    new = path.with_name(f".{path.name}.Xa81b")
    new.write_bytes(content)
    shutil.copystat(path, new)
    new.replace(path)


def swapped(one: Path, two: Path) -> None:
    one.rename(one.with_name("swap"))
    two.rename(one)
    one.with_name("swap").rename(two)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep all digests, so that no change is seen only because nothing was kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content_index, "SETTLED_S", -1e9)


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> DataConfig:
    root = tmp_path / "tiny"
    for name in ("a", "b"):
        write(root / "train" / name / "images" / "0.JPEG", f"train {name}".encode())
        write(root / "val" / "images" / f"{name}.JPEG", f"val {name}".encode())
    write(root / "val" / "val_annotations.txt", b"a.JPEG\ta\t0\nb.JPEG\tb\t0\n")
    return data(root, "imagefolder")


@pytest.fixture
def coco(tmp_path: Path) -> CocoData:
    root = tmp_path / "coco"
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(8)]
    for image in images:
        write(root / "images" / str(image["file_name"]), f"image {image['id']}".encode())
    write(root / "a.json", json.dumps({"images": images, "annotations": []}).encode())
    return CocoData(annotations=root / "a.json", images=root / "images")


@pytest.fixture
def voc(tmp_path: Path) -> VocData:
    root = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, suffix in enumerate((".jpg", ".png", ".JPG")):
        write(root / "JPEGImages" / f"{number:06d}{suffix}", f"image {number:06d}".encode())
    add_annotations(root, 3)
    return VocData(root=root, split="all")


def add_annotations(root: Path, count: int) -> None:
    names = [f"{number:06d}" for number in range(count)]
    for name in names:
        (root / "Annotations" / f"{name}.xml").write_bytes(b"<name>cat</name>")
    write(root / "ImageSets/Main/all.txt", "".join(f"{name}\n" for name in names).encode())


def test_images_of_a_folder_are_known_by_name_and_content_in_the_loaders_order(
    tmp_path: Path,
) -> None:
    names = ["a.png", "b/10.png", "b/2.png", "b-c/1.png"]
    for name in names:
        write(tmp_path / "images" / name, name.encode())
    listed = [[name, hashlib.sha256(name.encode()).hexdigest()] for name in names]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    images = {"by": "content", "num_files": 4, "digest": digest}
    assert image_identity(data(tmp_path / "images", "folder")) == {"pretrain": {"images": images}}


CHANGED: list[Callable[[Path], object]] = [
    lambda root: in_place(root / "train/a/images/0.JPEG", b"trainXa"),
    lambda root: copied_over(root / "train/a/images/0.JPEG", b"trainXa"),
    lambda root: swapped(root / "train/a/images/0.JPEG", root / "train/b/images/0.JPEG"),
    lambda root: (root / "train/a/images/0.JPEG").rename(root / "train/b/images/1.JPEG"),
    lambda root: in_place(root / "val/val_annotations.txt", b"a.JPEG\tb\t0\nb.JPEG\ta\t0\n"),
    lambda root: (root / "val/val_annotations.txt").unlink(),
    lambda root: swapped(root / "val/images/a.JPEG", root / "val/images/b.JPEG"),
    lambda root: write(root / "train/a/images/1.PNG"),
]


@pytest.mark.parametrize("change", CHANGED)
def test_a_change_of_images_or_labels_is_seen(
    tiny_imagenet: DataConfig, change: Callable[[Path], object]
) -> None:
    splits = ("pretrain", "train", "test")
    before = image_identity(tiny_imagenet, splits)
    assert image_identity(tiny_imagenet, splits) == before
    change(tiny_imagenet.root)
    assert image_identity(tiny_imagenet, splits) != before


def test_a_links_content_counts_and_another_target_is_seen(tiny_imagenet: DataConfig) -> None:
    plain = image_identity(tiny_imagenet)
    image, other = tiny_imagenet.root / "train/a/images/0.JPEG", tiny_imagenet.root / "one"
    image.rename(other)
    image.symlink_to(other)
    assert image_identity(tiny_imagenet) == plain
    write(tiny_imagenet.root / "two", b"trainXa")
    image.unlink()
    image.symlink_to(tiny_imagenet.root / "two")
    assert image_identity(tiny_imagenet) != plain
    (tiny_imagenet.root / "train").rename(tiny_imagenet.root / "old")
    shutil.copytree(tiny_imagenet.root / "old", tiny_imagenet.root / "new")
    in_place(tiny_imagenet.root / "new/b/images/0.JPEG", b"trainXb")
    (tiny_imagenet.root / "train").symlink_to("old")
    old = image_identity(tiny_imagenet)
    (tiny_imagenet.root / "train").unlink()
    (tiny_imagenet.root / "train").symlink_to("new")
    assert image_identity(tiny_imagenet) != old


NOT_READ = [
    "README", ".DS_Store", "train/.DS_Store", "train/Thumbs.db", "train/a/images/.nfs00001",
    "train/a/a_boxes.txt", "train/.thumbs/0.JPEG", "train/a/images/._0.JPEG", "test/images/0.JPEG",
    "val/images/notes.txt", "wnids.txt",
]  # fmt: skip


def test_what_no_loader_reads_changes_nothing(
    tiny_imagenet: DataConfig, coco: CocoData, voc: VocData
) -> None:
    def identities() -> list[Any]:
        images = image_identity(tiny_imagenet, ("pretrain", "train", "test"))
        return [images, detection_identity("coco", coco), detection_identity("voc", voc)]

    before = identities()
    for name in NOT_READ:
        write(tiny_imagenet.root / name)
    for name in (".DS_Store", "of_another_split.jpg", "1.txt", "1.jpg.bak", "sub/1.jpg"):
        write(coco.images / name)
        write(voc.root / "JPEGImages" / name)
    write(coco.annotations.with_name("another.json"))
    for name in ("README", "Annotations/x.xml", "ImageSets/Main/other.txt", "Annotations/.nfs1"):
        write(voc.root / name)
    assert identities() == before


def test_where_data_lie_and_what_they_are_called_is_not_in_it(
    tmp_path: Path, tiny_imagenet: DataConfig, coco: CocoData, voc: VocData
) -> None:
    images, elsewhere = image_identity(tiny_imagenet), tmp_path / "elsewhere"
    renamed = tiny_imagenet.model_copy(update={"name": "another", "root": elsewhere})
    shutil.copytree(tiny_imagenet.root, elsewhere)
    assert image_identity(renamed) == images
    before = detection_identity("coco", coco), detection_identity("voc", voc)
    coco.annotations.rename(tmp_path / "instances.json")
    coco.images.rename(tmp_path / "val2017")
    voc.root.rename(tmp_path / "VOC2007")
    (tmp_path / "VOC2007/ImageSets/Main/all.txt").rename(
        tmp_path / "VOC2007/ImageSets/Main/test.txt"
    )
    coco = CocoData(annotations=tmp_path / "instances.json", images=tmp_path / "val2017")
    voc = VocData(root=tmp_path / "VOC2007", split="test")
    assert (detection_identity("x", coco), detection_identity("y", voc)) == before


def test_coco_is_its_annotations_and_the_images_they_name(coco: CocoData) -> None:
    before = detection_identity("set", coco)
    assert before["images"]["num_files"] == 8
    text = coco.annotations.read_bytes()
    in_place(coco.annotations, text.replace(b'"id": 7', b'"id": 9'))
    edited = detection_identity("set", coco)
    assert edited["annotations"] != before["annotations"] and edited["images"] == before["images"]
    copied_over(coco.annotations, text)
    assert detection_identity("set", coco) == before
    in_place(coco.images / "3.jpg", b"imagE 3")
    assert detection_identity("set", coco)["images"] != before["images"]
    (coco.images / "3.jpg").unlink()  # the check before the start says that it is missing
    assert detection_identity("set", coco)["images"]["num_files"] == 7


def test_a_part_of_coco_is_known_by_its_images_alone(coco: CocoData) -> None:
    part = coco.model_copy(update={"fraction": 0.25})
    before = detection_identity("part", part)
    assert before["images"]["num_files"] == 2
    changes = 0
    for path in sorted(coco.images.iterdir()):
        content = path.read_bytes()
        path.write_bytes(b"x" * len(content))
        changes += detection_identity("part", part) != before
        path.write_bytes(content)
    assert changes == 2 and detection_identity("part", part) == before


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"images": 3}', b'{"images": [3, {"id": [], "file_name": "0.jpg"}]}',
                b'{"images": [{"id": 1, "file_name": "../coco/images/0.jpg"}]}', b"\xff" * 9]
)  # fmt: skip
def test_broken_annotations_are_left_to_the_check(coco: CocoData, content: bytes) -> None:
    coco.annotations.write_bytes(content)
    identity = detection_identity("set", coco)
    assert identity["images"]["num_files"] == 0 and identity["annotations"]["num_files"] == 1


@pytest.mark.parametrize("change", [in_place, copied_over])
def test_one_of_thousands_of_voc_annotations_that_was_edited_is_seen(
    voc: VocData, change: Callable[[Path, bytes], None]
) -> None:
    add_annotations(voc.root, NUM_VOC)
    before = detection_identity("set", voc)
    assert before["annotations"]["num_files"] == NUM_VOC and before["images"]["num_files"] == 3
    change(voc.root / "Annotations" / "001234.xml", b"<name>dog</name>")
    after = detection_identity("set", voc)
    assert after["annotations"] != before["annotations"] and after["images"] == before["images"]


def test_names_of_a_split_count_in_their_order_and_blanks_do_not(voc: VocData) -> None:
    split = voc.root / "ImageSets/Main/all.txt"
    split.write_bytes(b"000001\n000002\n000000\n")
    before = detection_identity("set", voc)
    assert before["images"]["num_files"] == 3  # whatever their suffixes
    for same in (b"000001\r\n000002\r\n000000\r\n", b"000001  \n000002\t\n\n000000\n\n"):
        split.write_bytes(same)
        assert detection_identity("set", voc) == before
    split.write_bytes(b"000000\n000001\n000002\n")
    assert detection_identity("set", voc) != before
    split.write_bytes(b"000001\n000002\n000000\n")
    in_place(voc.root / "JPEGImages/000001.png", b"imagE 000001")
    assert detection_identity("set", voc)["images"] != before["images"]
    write(voc.root / "Annotations/gone.xml")
    (voc.root / "Annotations/000002.xml").unlink()
    with pytest.raises(ValueError, match=r"000002\.xml: no such file; .*all\.txt lists it"):
        detection_identity("set", voc)


def test_a_detection_set_that_is_not_there_is_one_line(coco: CocoData, voc: VocData) -> None:
    shutil.rmtree(coco.images)
    with pytest.raises(ValueError, match="no such folder; data set mine is expected there"):
        detection_identity("mine", coco)
    coco.images.mkdir()
    with pytest.raises(ValueError, match="empty folder; data set mine is expected there"):
        detection_identity("mine", coco)
    with pytest.raises(ValueError, match=r"b\.txt: no such file; data set mine wants VOC's list"):
        detection_identity("mine", voc.model_copy(update={"split": "b"}))
    (voc.root / "ImageSets/Main/all.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a text file; data set mine wants names there"):
        detection_identity("mine", voc)


def test_blocks_are_cheaper_and_the_identity_says_so(
    tmp_path: Path, coco: CocoData, voc: VocData
) -> None:
    size = 4 * content_index.BLOCK
    write(tmp_path / "images" / "large.png", bytes(size))
    exact = data(tmp_path / "images", "folder")
    blocks = exact.model_copy(update={"identity": "blocks"})
    before = image_identity(exact), image_identity(blocks)
    assert before[0] != before[1]
    content = bytearray(size)
    content[size // 2] = 1
    in_place(tmp_path / "images" / "large.png", bytes(content))
    assert image_identity(exact) != before[0] and image_identity(blocks) == before[1]
    content[-1] = 1
    in_place(tmp_path / "images" / "large.png", bytes(content))
    assert image_identity(blocks) != before[1]
    assert cheaper_parts(before[0]) == []
    words = "files by size, first and last 16 KiB"
    assert cheaper_parts(before[1]) == [f"pretrain images: 1 {words}"]
    for one in (coco, voc):
        identity = detection_identity("set", one.model_copy(update={"identity": "blocks"}))
        assert [part["by"] for part in identity.values()] == ["content", "blocks"]
        assert len(cheaper_parts({"set": identity})) == 1
        (line,) = cheaper_parts({"TRAIN": [identity], "TEST": []})
        assert line.startswith("TRAIN 1 images: ")


def test_binary_sets_are_known_by_content_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("one", "two/deep"):
        for name, content in (("train", b"abc"), ("test", b"xyz"), ("unlabeled", b"rest")):
            write(tmp_path / place / "stl10_binary" / f"{name}_X.bin", content)
            write(tmp_path / place / "stl10_binary" / f"{name}_y.bin", b"1")
    one = data(tmp_path / "one", "stl10", identity="blocks")  # labels are among them
    two = data(tmp_path / "two/deep", "stl10")
    first = image_identity(one)
    assert first == image_identity(two)
    assert first["pretrain"]["images"]["num_files"] == 2
    in_place(tmp_path / "two/deep/stl10_binary/test_X.bin", b"zyx")
    assert image_identity(two) == first  # a pretraining does not read it
    assert image_identity(one, ("train", "test")) != image_identity(two, ("train", "test"))
    in_place(tmp_path / "two/deep/stl10_binary/unlabeled_X.bin", b"tser")
    assert image_identity(two) != first


def test_all_that_a_stage_reads_from_its_settings(
    tmp_path: Path, tiny_imagenet: DataConfig, coco: CocoData, voc: VocData
) -> None:
    settings = {"data": tiny_imagenet.model_dump(mode="json")}
    assert content_read("pretrain", settings) == image_identity(tiny_imagenet)
    assert content_read("probe", settings) == image_identity(tiny_imagenet, ("train", "test"))
    sets = {"c": coco, "v": voc}
    settings = {"datasets": {name: each.model_dump(mode="json") for name, each in sets.items()}}
    assert content_read("finetune", settings) == {
        name: detection_identity(name, each) for name, each in sets.items()
    }
    write(tmp_path / "w.pth", b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    settings = {"checkpoint": str(tmp_path / "w.pth")}
    read = content_read("convert", settings)
    assert read == {"checkpoint_sha256": digest, TABLES: tables_sha256()}
    assert content_read("convert", {}) == content_read("probe", {"data": None}) == {}


@pytest.mark.parametrize("given", ["model", "model/pytorch_model.bin.index.json"])
@pytest.mark.parametrize("other", ["b.bin", "config.json", "config.yaml"])
def test_all_files_of_a_checkpoint_enter(tmp_path: Path, given: str, other: str) -> None:
    index = json.dumps({"weight_map": {"conv1.weight": "a.bin", "fc.weight": "b.bin"}})
    write(tmp_path / "model/pytorch_model.bin.index.json", index.encode())
    for name in ("a.bin", "b.bin", "config.json", "config.yaml"):
        write(tmp_path / "model" / name, b"one")
    settings = {"checkpoint": str(tmp_path / given)}
    before = content_read("convert", settings)
    assert content_read("convert", settings) == before
    in_place(tmp_path / "model" / other, b"two")
    assert content_read("convert", settings) != before


def test_the_companion_of_converted_weights_enters(tmp_path: Path) -> None:
    write(tmp_path / "w.pkl", b"weights")
    settings = {"checkpoint": str(tmp_path / "w.pkl")}
    before = content_read("convert", settings)
    write(tmp_path / "w.json", b"{}")
    assert content_read("convert", settings) != before


def test_a_checkpoint_that_is_no_file_of_weights_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ValueError, match=r"pipe\.pth: is a named pipe"):
        content_read("convert", {"checkpoint": str(tmp_path / "pipe.pth")})
