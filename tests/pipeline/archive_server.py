"""Small archives of the shapes that are published, and a server that gives them out by parts."""

import hashlib
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from pipeline.downloads.published_sets import SETS, Part
from tests.pretrain.image_sets import save_png, some_pixels, write_cifar_python, write_stl10

XML = """<annotation><size><width>40</width><height>30</height></size><object><name>cat</name>
<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


@dataclass
class Server:
    """The files of a folder by HTTP. `cuts` are the bytes after which the next answers break off.

    `log` holds name and first byte of each request, with what was answered.
    """

    folder: Path
    url: str = ""
    knows_ranges: bool = True
    says_length: bool = True
    cuts: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)  # of the next answers, instead of files
    log: list[tuple[str, int, int]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = self.folder / request.path.strip("/")
        start = int(request.headers.get("Range", "bytes=0-").strip("bytes=-"))
        code = 404
        if path.is_file():
            code = 206 if start and self.knows_ranges else 200
            code = 416 if code == 206 and start >= path.stat().st_size else code
        if self.codes:
            code = self.codes.pop(0)
        self.log.append((path.name, start, code))
        if code >= 400:
            request.send_error(code)
            return
        content = path.read_bytes()
        request.send_response(code)
        if code == 206:
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            request.send_header("Content-Range", place)
            content = content[start:]
        if self.says_length:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: self.cuts.pop(0)] if self.cuts else content)


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder while the block runs."""
    server = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def published_here(folder: Path) -> dict[str, tuple[Part, ...]]:
    """Return the table of sets with sizes and checksums of the archives of a folder."""
    return {
        name: tuple(
            replace(
                part,
                num_bytes=1_000_000,
                archives=tuple(
                    replace(
                        archive,
                        num_bytes=(folder / archive.name).stat().st_size,
                        checksum=checksum(folder / archive.name, archive.checksum.split(":")[0]),
                    )
                    for archive in part.archives
                ),
            )
            for part in parts
        )
        for name, parts in SETS.items()
    }


def checksum(path: Path, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, path.read_bytes()).hexdigest()}"


def write_archives(folder: Path) -> None:
    """Write an archive of every published name into `folder`."""
    folder.mkdir()
    tree = folder.with_name("trees")
    voc(
        tree / "trainval" / "VOCdevkit/VOC2007",
        {"train": ["000001"], "val": ["000002"]},
        "trainval",
    )
    voc(tree / "test" / "VOCdevkit/VOC2007", {"test": ["000003", "000004"]}, "test")
    voc(tree / "12" / "VOCdevkit/VOC2012", {"train": ["2008_1"], "val": ["2008_2"]}, "trainval")
    pack_tar(tree / "trainval", folder / "VOCtrainval_06-Nov-2007.tar")
    pack_tar(tree / "test", folder / "VOCtest_06-Nov-2007.tar")
    pack_tar(tree / "12", folder / "VOCtrainval_11-May-2012.tar")
    for split, seed in (("train2017", 1), ("val2017", 2)):
        coco(tree / "coco", split, seed)
        pack_zip(tree / "coco", split, folder / f"{split}.zip")
    pack_zip(tree / "coco", "annotations", folder / "annotations_trainval2017.zip")
    for classes, name in ((10, "cifar-10-python"), (100, "cifar-100-python")):
        write_cifar_python(tree / name, classes, some_pixels(5, 32), some_pixels(2, 32, 1))
        pack_tar(tree / name, folder / f"{name}.tar.gz")
    stl = (some_pixels(4, 96), some_pixels(3, 96, 1), some_pixels(2, 96, 2))
    write_stl10(tree / "stl", *stl)
    pack_tar(tree / "stl", folder / "stl10_binary.tar.gz")
    tiny = tree / "tiny" / "tiny-imagenet-200"
    for number, name in enumerate(("n01443537", "n01629819")):
        save_png(tiny / "train" / name / "images" / f"{name}_0.png", some_pixels(1, 64, number)[0])
        save_png(tiny / "val" / "images" / f"val_{number}.png", some_pixels(1, 64, 5 + number)[0])
    lines = "val_0.png\tn01443537\t0\t0\t9\t9\nval_1.png\tn01629819\t0\t0\t9\t9\n"
    (tiny / "val" / "val_annotations.txt").write_text(lines, encoding="utf-8")
    save_png(tiny / "test" / "images" / "test_0.png", some_pixels(1, 64, 9)[0])
    pack_zip(tree / "tiny", "tiny-imagenet-200", folder / "tiny-imagenet-200.zip")


def voc(root: Path, splits: dict[str, list[str]], whole: str) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = [name for split in splits.values() for name in split]
    for number, name in enumerate(names):
        colour = (60 * number, 10 * len(whole), 0)
        Image.new("RGB", (40, 30), colour).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(XML, encoding="utf-8")
    for split, listed in ({whole: names} | splits).items():
        text = "".join(f"{name}\n" for name in listed)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")


def coco(root: Path, split: str, seed: int) -> None:
    for folder in (split, "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{seed:06}{number:06}.jpg" for number in range(2)]
    for number, name in enumerate(names):
        Image.new("RGB", (40, 30), (100 * seed, 60 * number, 0)).save(root / split / name)
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 18, "bbox": [1, 1, 8, 8], "area": 64,
             "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
            for i in range(2)
        ],
        "categories": [{"id": 18, "name": "dog"}],
    }  # fmt: skip
    text = json.dumps(content)
    (root / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")


def pack_tar(folder: Path, path: Path) -> None:
    mode = "w:gz" if path.suffix == ".gz" else "w"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for entry in sorted(folder.iterdir()):
            tar.add(entry, entry.name)


def pack_zip(root: Path, inside: str, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for entry in [root / inside, *sorted((root / inside).rglob("*"))]:
            zipped.write(entry, entry.relative_to(root))
