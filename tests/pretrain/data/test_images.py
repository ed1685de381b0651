"""Every data format as it lies on disk: pixels, labels, splits, and what is refused."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from pretrain.data import images as images_module
from pretrain.data.images import Images, decode_image, open_images, read_image, unreadable
from tests.pretrain import image_sets
from tests.pretrain.image_sets import data


def labels(images: Images) -> list[int]:
    assert images.labels is not None and images.labels.dtype == torch.int64
    found: list[int] = images.labels.tolist()
    return found


@pytest.mark.parametrize("test_folder", ["val", "test"])
def test_class_folders_are_numbered_as_torchvisions(tmp_path: Path, test_folder: str) -> None:
    for name in ("train/b/x.png", "train/b/sub/a.png", "train/a-1/2.png", "train/a/9.png"):
        image_sets.save_png(tmp_path / name, image_sets.some_pixels(1, 8, seed=len(name))[0])
    (tmp_path / "train" / "a" / "readme.txt").write_text("no image", encoding="utf-8")
    image_sets.save_png(tmp_path / test_folder / "b" / "1.png", image_sets.some_pixels(1, 8)[0])
    config = data(tmp_path, "imagefolder")
    theirs = datasets.ImageFolder(str(tmp_path / "train"))
    images = open_images(config, "train")
    ours = [str(images.path(index)) for index in range(len(images))]  # type: ignore[attr-defined]
    assert dict(zip(ours, labels(images), strict=True)) == dict(theirs.samples)
    for index, path in enumerate(ours):
        assert np.array_equal(
            images.read(index).numpy(), np.asarray(theirs.loader(path)).transpose(2, 0, 1)
        )
    assert labels(open_images(config, "test")) == [2]  # class b, though alone there


def test_tiny_imagenets_own_layout_of_val(tmp_path: Path) -> None:
    for wnid in ("n01", "n02"):
        image_sets.save_png(
            tmp_path / "train" / wnid / "images" / "0.png", image_sets.some_pixels(1, 8)[0]
        )
    for name in ("val_0.png", "val_1.png"):
        image_sets.save_png(tmp_path / "val" / "images" / name, image_sets.some_pixels(1, 8)[0])
    image_sets.save_png(
        tmp_path / "test" / "images" / "test_0.png", image_sets.some_pixels(1, 8)[0]
    )
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text(
        "val_1.png\tn01\t0\t0\t7\t7\nval_0.png\tn02\t1\t1\t5\t5\n", encoding="utf-8"
    )
    config = data(tmp_path, "imagefolder")
    assert labels(open_images(config, "train")) == [0, 1]
    assert labels(open_images(config, "test")) == [1, 0]
    annotations.write_text("val_1.png\tn01\t0\t0\t7\t7\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 classes are not among the 2 .*images/val_0.png"):
        open_images(config, "test")
    annotations.write_text("val_1.png n01\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: wanted file name, tab, class"):
        open_images(config, "test")


SYSTEM_FILES = (
    "._a.png", ".DS_Store", ".hidden/a.png", "a/.ipynb_checkpoints/1-checkpoint.png",
    "a/._1.png", "a/Thumbs.db", "a/README", "__MACOSX/a/._1.png",
    "notes.txt", "a/png", "b/2.png.part",
)  # fmt: skip


@pytest.mark.parametrize("data_format", ["folder", "imagefolder"])
def test_hidden_and_system_files_are_no_images_and_no_classes(
    tmp_path: Path, data_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / ".cache" / "set"  # what lies above the folder does not matter
    for name in ("train/b/2.PNG", "train/a/1.png", "train/a/sub.d/3.png"):
        image_sets.save_png(root / name, image_sets.some_pixels(1, 8)[0])
    clean = open_images(data(root, data_format))
    assert not caplog.messages
    for name in SYSTEM_FILES:
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    for _ in range(2):
        images = open_images(data(root, data_format))
        assert images.names.tolist() == clean.names.tolist()  # type: ignore[union-attr]
        assert data_format == "folder" or labels(images) == labels(clean) == [0, 0, 1]
        assert unreadable(images) == []
    where = root if data_format == "folder" else root / "train"
    (line,) = caplog.messages
    assert line == (
        f"{where}: 11 of 14 files passed over, such as {'train/' * (data_format == 'folder')}"
        ".DS_Store: hidden, or without the suffix of an image (bmp, jpeg, jpg, png, webp)"
    )


def test_a_class_whose_images_are_all_of_a_kind_that_is_not_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        image_sets.save_png(tmp_path / split / "a" / "1.png", image_sets.some_pixels(1, 8)[0])
        (tmp_path / split / "b").mkdir()
        (tmp_path / split / "b" / "1.tif").write_bytes(b"another kind")
    open_images(data(tmp_path, "imagefolder"), "train")
    (line,) = caplog.messages
    assert line.endswith("; no file is an image in: b: convert them, else it is no class")


def test_a_folder_of_system_files_alone_says_what_it_wants(tmp_path: Path) -> None:
    for name in SYSTEM_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"no image found among 11 files; wanted names that do not "
    ):
        open_images(data(tmp_path, "folder"))


def png_with_text(text: bytes) -> bytes:
    """A whole 10x10 PNG with a compressed comment."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0))
    comment = chunk(b"zTXt", b"a\0\0" + zlib.compress(text))
    pixels = chunk(b"IDAT", zlib.compress(bytes(31 * 10)))
    return b"\x89PNG\r\n\x1a\n" + header + comment + pixels + chunk(b"IEND", b"")


def test_hostile_files_are_named_and_start_no_program(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_with_text(b"a comment"))
    assert read_image(path).shape == (3, 10, 10)
    path.write_bytes(png_with_text(bytes(5_000_000)))
    with pytest.raises(ValueError, match=r"a\.png: not a readable image \(Decompressed data too"):
        read_image(path)
    path = tmp_path / "b.jpg"  # Pillow would hand its content to Ghostscript
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(ValueError, match=r"b\.jpg: not a readable image \(cannot identify"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_decoded_at_a_part_of_its_sides(
    tmp_path: Path, mode: str, progressive: bool
) -> None:
    ramp = np.linspace(0, 255, 203)[:, None, None] * np.ones((1, 101, 3))
    path = tmp_path / "a.jpg"
    Image.fromarray(ramp.astype(np.uint8)).convert(mode).save(path, progressive=progressive)
    whole = read_image(path)
    for factor, shape in ((1, (203, 101)), (2, (102, 51)), (4, (51, 26)), (8, (26, 13))):
        asked = []
        pixels, applied = decode_image(path, lambda *size, f=factor, a=asked: a.append(size) or f)
        assert asked == [(203, 101)] and applied == factor and pixels.shape == (3, *shape)
        height, width = (side // factor * factor for side in whole.shape[1:])
        blocks = whole[:, :height, :width].double().unfold(1, factor, factor)
        means = blocks.unfold(2, factor, factor).mean((3, 4))
        same = pixels[:, : means.shape[1], : means.shape[2]]
        assert float((same - means).abs().max()) < 3  # a pixel is the mean of those it stands for


def test_other_images_are_decoded_in_full_and_damage_is_told_as_ever(tmp_path: Path) -> None:
    pixels = image_sets.some_pixels(1, 40)[0]
    for suffix in ("png", "bmp", "gif", "webp"):
        image_sets.save_png(tmp_path / "a.png", pixels)
        path = tmp_path / f"b.{suffix}"
        with Image.open(tmp_path / "a.png") as image:
            image.save(path)
        decoded, factor = decode_image(path, lambda height, width: 4)
        assert factor == 1 and np.array_equal(decoded, read_image(path))
    with Image.open(tmp_path / "a.png") as image:
        image.resize((400, 400)).save(tmp_path / "c.jpg")
    whole = (tmp_path / "c.jpg").read_bytes()
    (tmp_path / "c.jpg").write_bytes(whole[: len(whole) // 2])
    for factor in (1, 2, 8):
        with pytest.raises(ValueError, match=r"c\.jpg: not a readable image \(.*truncated"):
            decode_image(tmp_path / "c.jpg", lambda height, width, f=factor: f)


JPEG_KINDS: tuple[dict[str, Any], ...] = (
    {"subsampling": 2}, {"subsampling": 1}, {"subsampling": 0}, {"subsampling": "4:1:1"},
    {"progressive": True}, {"restart_marker_blocks": 3}, {"keep_rgb": True, "subsampling": 0},
)  # fmt: skip


@pytest.mark.parametrize("kind", JPEG_KINDS, ids=str)
def test_simplejpeg_gives_the_bytes_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any]
) -> None:
    pytest.importorskip("simplejpeg")
    path = tmp_path / "a.jpg"
    for width, height in ((1, 1), (33, 17), (101, 203)):
        pixels = image_sets.some_pixels(1, 32)[0].transpose(1, 2, 0)
        Image.fromarray(pixels).resize((width, height)).save(path, **kind)
        monkeypatch.undo()
        image = read_image(path)
        monkeypatch.setattr(images_module, "decode_jpeg", None)
        assert torch.equal(image, read_image(path)) and image.stride() == (1, 3 * width, 3)


def test_simplejpeg_decodes_whole_jpegs_in_colour_and_pillow_what_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(content: bytes) -> None:
        asked.append(content)
        raise ValueError("Corrupt JPEG data")

    asked: list[bytes] = []
    pixels = Image.fromarray(image_sets.some_pixels(1, 32)[0].transpose(1, 2, 0))
    names = ("RGB.jpg", "L.jpg", "CMYK.jpg", "RGB.png")
    for name in names:
        pixels.convert(name.partition(".")[0]).save(tmp_path / name)
    monkeypatch.setattr(images_module, "decode_jpeg", None)
    pillows = [read_image(tmp_path / name) for name in names]
    monkeypatch.setattr(images_module, "decode_jpeg", lambda _: np.full((32, 32, 3), 7, np.uint8))
    assert set(read_image(tmp_path / "RGB.jpg").flatten().tolist()) == {7}
    monkeypatch.setattr(images_module, "decode_jpeg", refuse)
    for name, image in zip(names, pillows, strict=True):
        assert torch.equal(read_image(tmp_path / name), image)
    assert decode_image(tmp_path / "RGB.jpg", lambda height, width: 2)[0].shape == (3, 16, 16)
    assert asked == [(tmp_path / "RGB.jpg").read_bytes()]
