"""Files of a data set that are damaged, of another kind than expected, or no files at all."""

import io
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from detectron2.data.detection_utils import _apply_exif_orientation
from PIL import Image

from tests.transfer.datasets.edits import Faults, check_set
from transfer.config.data import CocoData, VocData
from transfer.datasets.findings import ImageJob, Needs
from transfer.datasets.images import TURNS, opened_image


def test_an_image_is_decoded_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 48), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-900])
    job = ImageJob(path, (64, 48), tmp_path / "a.json")
    header = opened_image(job, decode=False)
    assert header.findings == [] and not header.is_decoded
    ((kind, line),) = opened_image(job, decode=True).findings
    assert kind == "unreadable images" and line.startswith(f"{path}: not a readable image")


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_unreadable_images_are_named(
    coco: CocoData, voc: VocData, damage: str, detection_faults: Faults
) -> None:
    for path in (coco.images / "002.jpg", voc.root / "JPEGImages" / "002.jpg"):
        if damage == "text":
            path.write_text("hello", encoding="utf-8")
        else:
            Image.effect_noise((64, 48), 90).convert("RGB").save(path)
            path.write_bytes(path.read_bytes()[:-900])
    for data in (coco, voc):
        (fault,) = detection_faults(data)
        assert "002.jpg: not a readable image" in fault


def noise(folder: Path, **options: Any) -> bytes:
    path = folder / "noise.jpg"
    Image.effect_noise((64, 48), 90).convert("RGB").save(path, **options)
    return path.read_bytes()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_image(path: Path, kind: str) -> None:
    """Write an image of 64 x 48 pixels that is damaged, or of another kind than RGB."""
    rgb = Image.effect_noise((64, 48), 90).convert("RGB")
    frames = [Image.new("RGB", (64, 48), (shade, 0, 0)) for shade in (0, 99)]
    writers: dict[str, Callable[[], object]] = {
        "sideways": lambda: rgb.save(path, exif=turned(6)),
        "upside down": lambda: rgb.save(path, exif=turned(3)),
        "16 bits": lambda: Image.new("I;16", (64, 48)).save(path, format="PNG"),
        "float": lambda: Image.new("F", (64, 48)).save(path, format="TIFF"),
        "animated": lambda: frames[0].save(
            path, format="GIF", save_all=True, append_images=frames[1:]
        ),
        "CMYK": lambda: rgb.convert("CMYK").save(path),
        "grey": lambda: rgb.convert("L").save(path),
        "two colours": lambda: rgb.convert("1").save(path, format="PNG"),
        "palette": lambda: rgb.convert("P").save(path, format="PNG"),
        "alpha": lambda: rgb.convert("RGBA").save(path, format="PNG"),
        "script": lambda: rgb.save(path, format="EPS"),
        "bomb": lambda: path.write_bytes(huge(rgb)),
        "loop": lambda: path.symlink_to(path.name),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_bytes(b"hello"),
        "header": lambda: path.write_bytes(b"\xff\xd8\xff\xe1\0"),
    }
    writers[kind]()


def huge(image: Image.Image) -> bytes:
    """Return a PNG whose header claims 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sideways", r"size \(48, 64\) as its EXIF orientation 6 shows it, but .* \(64, 48\)"),
        ("16 bits", "mode I;16; a detector reads 8 bits a channel"),
        ("float", "mode F; a detector reads 8 bits"),
        ("animated", "2 frames; wanted a single image"),
        ("script", "not a readable image"),
        ("bomb", "not a readable image .*decompression bomb"),
        ("loop", "not a readable image .*symbolic links"),
        ("pipe", "not a file"),
        ("folder", "not a file"),
        ("empty", "not a readable image"),
        ("text", "not a readable image"),
        ("header", "not a readable image"),
        ("upside down", None), ("CMYK", None), ("grey", None),
        ("two colours", None), ("palette", None),
        ("alpha", None),
    ],
)  # fmt: skip
def test_images_of_every_kind(
    coco: CocoData, voc: VocData, kind: str, expected: str | None, detection_faults: Faults
) -> None:
    for path in (coco.images / "002.jpg", voc.root / "JPEGImages" / "002.jpg"):
        path.unlink()
        write_image(path, kind)
    for data in (coco, voc):
        faults = detection_faults(data)
        assert len(faults) == (expected is not None), faults
        if expected is not None:
            assert re.search(f"002.jpg: {expected}", faults[0]), faults


def test_images_are_decoded_when_asked_in_small_sets_and_where_ap_is_measured(
    coco: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (coco.images / "002.jpg").write_bytes(noise(tmp_path)[:-900])
    for decode, limit, evaluated, decoded in (
        ("auto", 3, False, 2), ("auto", 2, False, 0), ("auto", 2, True, 2),
        ("all", 2, False, 2), ("none", 3, True, 0),
    ):  # fmt: skip
        monkeypatch.setattr("transfer.datasets.check.DECODE_LIMIT", limit)
        report = check_set("", coco, Needs(evaluated, False), decode)  # type: ignore[arg-type]
        assert (report.num_decoded, len(report.faults)) == (
            decoded,
            int(decoded > 0),
        )  # one is damaged


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_not_read(
    coco: CocoData, voc: VocData, make: Callable[[Path], object], detection_faults: Faults
) -> None:
    for data, path in (
        (coco, coco.annotations),
        (voc, voc.root / "Annotations" / "001.xml"),
        (voc, voc.root / "ImageSets" / "Main" / "test.txt"),
    ):
        path.unlink()
        make(path)
        assert any(f"{path}: " in fault for fault in detection_faults(data))


def test_orientation_tags_are_noted_with_what_detectron2_does(coco: CocoData) -> None:
    for index, orientation in enumerate((1, 3, 2)):
        shade = Image.new("RGB", (64, 48), (40 * index, 9, 9))
        shade.save(coco.images / f"00{index}.jpg", exif=turned(orientation))
    report = check_set("", coco, Needs(True, False))
    assert report.faults == []
    assert report.notes == [
        f"{coco.annotations}: 2 of 3 images carry an EXIF orientation tag, by which detectron2 "
        "turns: 1 of orientation 2, mirrored left to right (002.jpg); 1 of orientation 3, turned "
        "by 180 degrees (001.jpg), so boxes and masks must be in the turned frame"
    ]
    Image.new("RGB", (64, 48)).save(coco.images / "002.jpg", exif=turned(6))
    (fault,) = check_set("", coco, Needs(True, False)).faults
    assert fault.endswith(
        "; it is turned by 90 degrees clockwise, so boxes and masks must be in the turned frame"
    )


@pytest.mark.parametrize(("orientation", "words"), TURNS.items())
def test_the_words_for_a_turn_are_what_detectron2_does(orientation: int, words: str) -> None:
    image = Image.new("RGB", (3, 2))
    corners = {(0, 0): 1, (2, 0): 2, (0, 1): 3, (2, 1): 4}  # left to right, then the lower two
    for place, shade in corners.items():
        image.putpixel(place, (shade, 0, 0))
    image.getexif()[0x0112] = orientation
    pixels = numpy.asarray(_apply_exif_orientation(image))[..., 0]
    assert [pixels[y, x] for y in (0, -1) for x in (0, -1)] == {
        "mirrored left to right": [2, 1, 4, 3],
        "turned by 180 degrees": [4, 3, 2, 1],
        "mirrored top to bottom": [3, 4, 1, 2],
        "mirrored along its diagonal": [1, 3, 2, 4],
        "turned by 90 degrees clockwise": [3, 1, 4, 2],
        "mirrored along its other diagonal": [4, 2, 3, 1],
        "turned by 90 degrees counterclockwise": [2, 4, 1, 3],
    }[words]


def test_files_that_are_no_images_are_passed_over_and_counted(coco: CocoData, voc: VocData) -> None:
    for data, folder in ((coco, coco.images), (voc, voc.root / "JPEGImages")):
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / "not listed").mkdir()
        for name in ("._000.jpg", "Thumbs.db", "README", "beside.jpg"):
            (folder / name).write_bytes(b"x")
        report = check_set("", data, Needs(True, False))
        assert report.faults == [] and report.notes == [
            f"{folder}: 4 files passed over (._000.jpg, .ipynb_checkpoints, README and 1 more): "
            "hidden, or without the suffix of an image"
        ]


def test_a_system_file_that_is_listed_as_an_image_is_named_as_one(
    coco: CocoData, detection_faults: Faults
) -> None:
    (coco.images / "000.jpg").unlink()
    (coco.images / "._000.jpg").write_bytes(b"x")
    text = coco.annotations.read_text(encoding="utf-8").replace('"000.jpg"', '"._000.jpg"')
    coco.annotations.write_text(text, encoding="utf-8")
    (fault,) = detection_faults(coco)
    assert fault.endswith("points at it; a system's files begin with a dot: take it out")


def moved(coco: CocoData, place: str, name: str, images: str = "val") -> CocoData:
    """Write other names for the three images (`{}` is the number), and move them."""
    content = json.loads(coco.annotations.read_text(encoding="utf-8"))
    root = coco.annotations.parent
    for index, entry in enumerate(content["images"]):
        target = root / place.format(index)
        target.parent.mkdir(parents=True, exist_ok=True)
        (coco.images / entry["file_name"]).rename(target)
        entry["file_name"] = name.format(index)
    coco.annotations.write_text(json.dumps(content), encoding="utf-8")
    return coco.model_copy(update={"images": root / images})


@pytest.mark.parametrize(
    ("place", "name", "images", "expected"),
    [
        ("val/sub/{}.jpg", "sub\\{}.jpg", "val", "write file_name as 'sub/0.jpg'"),
        ("val/{}.jpg", "train\\{}.jpg", "val", "write file_name as '0.jpg'"),
        ("val/{}.PNG", "{}.jpg", "val", "'0.jpg' is {root}/val/0.PNG; write file_name as '0.PNG'"),
        ("val/A{}.jpg", "a{}.jpg", "val", "write file_name as 'A0.jpg'"),
        ("val/{}.jpg", "val/{}.jpg", "val", "set images: {root}"),
        ("val/deep/{}.jpg", "{}.jpg", "val", "set images: {root}/val/deep"),
        ("val/{}.jpg", "{}.jpg", "images", "{root}/images is no folder; 3 exist elsewhere: "),
        ("val/{}.jpg", "val/{}.jpg", "vall", "{root}/vall is no folder; did you mean {root}/val?"),
        ("val/{}.jpg", "x{}.jpg", "val", "{root}/val holds 0.jpg, 1.jpg, 2.jpg"),
    ],
)
def test_missing_images_are_one_line_with_the_cause(
    coco: CocoData, place: str, name: str, images: str, expected: str, detection_faults: Faults
) -> None:
    (fault,) = detection_faults(moved(coco, place, name, images))
    assert ": no such image; " in fault and "(3 of 3 images are missing); " in fault
    assert expected.replace("{root}", str(coco.annotations.parent)) in fault
    assert check_set("", coco, Needs(True, False)).num_decoded == 0 or images != "val"


@pytest.mark.parametrize("archive", ["val.zip", "val/all.tar.gz"])
def test_an_archive_that_was_never_unpacked_is_named(
    coco: CocoData, archive: str, detection_faults: Faults
) -> None:
    for path in coco.images.iterdir():
        path.unlink()
    other = coco.images.parent / "train"  # another set, whose images have the same names
    other.mkdir()
    (other / "000.jpg").write_bytes(b"")
    path = coco.images.parent / archive
    path.write_bytes(b"")
    (fault,) = detection_faults(coco)
    assert fault.endswith(f"{path} is there: unpack it")


def test_images_of_another_folder_than_vocs(voc: VocData, detection_faults: Faults) -> None:
    (voc.root / "JPEGImages").rename(voc.root / "photos")
    (voc.root / "JPEGImages").mkdir()
    (fault,) = detection_faults(voc)
    assert f"000.jpg' is {voc.root}/photos/000.jpg; move the images into {voc.root}/JPEG" in fault
