"""Malformed configs, annotations and images, from a generator: what is written over a sound file.

A text case replaces a whole config file; a value case sets one key; the others are of data files.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

CONFIGS = ("tiny.yaml", "ours.yaml", "probe.yaml", "boxes.yaml")
BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
# what is wrong with a YAML file as such: name -> content, and a word of the message
TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ""),
    "only a comment": (b"# nothing\n", ""),
    "a list": (b"- 1\n- 2\n", "wanted a mapping"),
    "a word": (b"hello\n", "wanted a mapping"),
    "a number": (b"3\n", "wanted a mapping"),
    "an open bracket": (b"a: [1, 2\n", "not YAML"),
    "a tab for spaces": (b"a:\n\tb: 1\n", "not YAML"),
    "binary": (bytes(range(256)), "cannot be read as text"),
    "zeros": (bytes(64), "not YAML"),
    "a png": (b"\x89PNG\r\n\x1a\n" + bytes(20), "cannot be read as text"),
    "latin-1": ("name: gr\u00fcn\n".encode("latin-1"), "cannot be read as text"),
    "utf-16": ("name: x\n".encode("utf-16"), "cannot be read as text"),
    "two documents": (b"a: 1\n---\nb: 2\n", "not YAML"),
    "python object": (b"a: !!python/object/apply:os.system ['touch hacked']\n", "not YAML"),
    "python name": (b"a: !!python/name:os.system\n", "not YAML"),
    "own tag": (b"a: !mine {x: 1}\n", "not YAML"),
    "no such alias": (b"a: *nowhere\n", "not YAML"),
    "bad bool": (b"a: !!bool nope\n", "not YAML"),
    "bad timestamp": (b"a: !!timestamp nope\n", "not YAML"),
    "impossible date": (b"a: 2024-99-99\n", "not YAML"),
    "a date": (b"a: 2024-01-01\n", "a: "),
    "a set": (b"a: !!set {x, y}\n", "a: "),
    "bytes": (b"a: !!binary aGVsbG8=\n", "a: "),
    "5,000 digits": (b"a: " + b"9" * 5000 + b"\n", "not YAML"),
    "a key twice": (b"seed: 1\nseed: 2\n", "seed"),
    "a deep key twice": (b"model:\n  x: 1\n  y: 2\n  x: 3\n", "x"),
    "a list as key": (b"? [1, 2]\n: 3\n", "not YAML"),
    "a number as key": (b"1: 2\n", "1"),
    "null as key": (b"~: 2\n", ""),
    "anchor bomb": (BOMB.encode(), "aliases"),
    "contains itself": (b"a: &a [1, *a]\n", "contains itself"),
    "nested 900 deep": (b"a: " + b"[" * 900 + b"]" * 900 + b"\n", "deep"),
    "nested 100,000 deep": (b"a: " + b"[" * 100_000 + b"]" * 100_000 + b"\n", ""),
    "base is itself": (b"_BASE_: {file}\n", "leads back"),
    "base in a circle": (b"_BASE_: other.yaml\n", "leads back"),
    "base is absent": (b"_BASE_: absent.yaml\n", "absent.yaml: no such config file"),
    "base is a list": (b"_BASE_: [a, b]\n", "wanted a path"),
    "base is a folder": (b"_BASE_: data\n", "data"),
    "base is elsewhere": (b"_BASE_: ../../../../../../../etc/hostname\n", "wanted a mapping"),
    "unknown key": (b"nonsense: 1\n", "nonsense"),
    "a unicode key": ("größe: 1\n".encode(), "größe"),
    "a control character": (b'"a\\ab": 1\n', ""),
}
# one key of a sound config set to what it must not be
VALUES: dict[str, list[tuple[str, Any]]] = {
    "tiny.yaml": [
        ("name", "../elsewhere"), ("name", ""), ("name", "a/b"), ("name", "x" * 500),
        ("name", ["a"]), ("name", "line\nbreak"), ("backbones", []), ("backbones", {}),
        ("backbones", "ours.yaml"), ("backbones.0", None), ("backbones.0.random", "perhaps"),
        ("backbones.1.pretrain", "absent.yaml"), ("backbones.1.pretrain", "data"),
        ("backbones.1.pretrain", 7), ("backbones.1.overrides", ["nonsense"]),
        ("backbones.1.overrides", ["seed.x.y=1"]), ("backbones.1.overrides", ["seed=[1"]),
        ("backbones.1.overrides", ["optimizer.lr=.nan"]), ("backbones.1.overrides", ["=3"]),
        ("backbones.1.overrides", ["seed=2024-99-99"]), ("backbones.1.name", "random"),
        ("backbones.1.random", True), ("tasks.0.config", "absent.yaml"),
        ("tasks.0.config", "data/tiny_val.json"), ("tasks.0.optimizer", "lion"),
        ("tasks.0.num_gpus", 0), ("tasks.0.seeds", [-1]), ("tasks.0.reference", "nothing"),
        ("tasks.0.overrides", {"a": 1}), ("tasks.0.overrides", ["SOLVER.BASE_LR=.inf"]),
        ("seeds", []), ("seeds", [0, 0]), ("seeds", [-1]), ("seeds", [0.5]), ("seeds", [10**30]),
        ("seeds", ["one"]), ("seeds", 3), ("datasets.tiny_val.format", "yolo"),
        ("datasets.tiny_val.annotations", "absent.json"), ("datasets.tiny_val.images", "absent"),
        ("datasets.tiny_val.images", "data/tiny_val.json"), ("datasets.tiny_val.fraction", 0.5),
        ("datasets.tiny_train.fraction", 2), ("datasets", []), ("num_parallel", 0),
        ("num_pictures", -1), ("num_pictures", float("inf")), ("probes.0.config", "absent.yaml"),
        ("resources", {"finetune": {"gpus": -1}}), ("resources", {"training": {"gpus": 1}}),
        ("resources", {"finetune": {"mem_gb": float("nan")}}),
        ("resources", {"finetune": {"mem_gb": float("inf")}}),
    ],
    "ours.yaml": [
        ("data.root", "absent"), ("data.root", "data/tiny_val.json"), ("data.format", "lmdb"),
        ("data.format", "cifar10"), ("data.format", "stl10"), ("data.num_workers", -1),
        ("augment.size", 0), ("augment.size", -32), ("augment.size", 10**9),
        ("augment.crop_scale", [1.0, 0.2]), ("augment.crop_scale", [0.0, 0.0]),
        ("augment.crop_scale", [0.1]), ("augment.crop_ratio", [0, 0]),
        ("augment.jitter", [0.4, 0.4, 0.4, 0.9]), ("augment.jitter", "much"),
        ("augment.flip", 1.5), ("augment.flip", float("nan")),
        ("augment.noise_std", float("inf")), ("augment.mean", [float("nan")] * 3),
        ("augment.std", [0, 1, 1]), ("augment.std", [float("inf")] * 3), ("model", []),
        ("augment.solarize", 1.5), ("augment.solarize_threshold", -1), ("augment.views", {}),
        ("augment.views", [{}]), ("augment.views", ["x", "y"]), ("augment.views", None),
        ("augment.views", [{"size": 0}, {}]), ("augment.views", [{"count": 10**12}]),
        ("augment.views", [{"colours": "by_view"}, {}]), ("augment.views", [{"count": 0}, {}]),
        ("augment.views", [{"crop_scale": [1.0, 0.2]}, {}]),
        ("model.arch", "vit"), ("model.embedding_dim", 0), ("model.embedding_dim", 10**12),
        ("model.projector_hidden", 10**12), ("model.projector_layers", 10**9),
        ("loss.name", "w-mse2"), ("loss.sub_batch", 7), ("loss.sub_batch", -8), ("loss", None),
        ("loss.eps", float("nan")), ("loss.eps", -1), ("optimizer.lr", float("nan")),
        ("optimizer.lr", float("inf")), ("optimizer.lr", 0), ("optimizer.lr", -1),
        ("optimizer.lr", "fast"), ("optimizer.lr", True), ("optimizer.lr_per_256", 0.1),
        ("optimizer.weight_decay", float("inf")), ("optimizer.momentum", 2),
        ("optimizer.name", "lion"), ("optimizer.warmup_steps", -1), ("batch_size", 1),
        ("batch_size", 9), ("batch_size", 10**15), ("batch_size", 1e400), ("max_steps", 0),
        ("max_steps", 2.5), ("epochs", 3), ("seed", -1), ("seed", 10**30), ("num_views", 1),
        ("num_views", 10**9), ("checkpoint_every", 0), ("method", None), ("method", ["w-mse"]),
        ("probe", {"every_epochs": 0}), ("probe", {"every_epochs": 1}),
        ("compute.precision", "int8"), ("compute.accumulate", 0),
    ],
    "probe.yaml": [
        ("data.root", "absent"), ("data.root", "data/crops"), ("data.format", "folder"),
        ("image.size", 0), ("image.size", 10**9), ("image.resize", 8), ("knn.k", 0),
        ("knn.k", "five"), ("knn.distance", "manhattan"), ("knn", None), ("knn", []),
        ("batch_size", 0), ("seed", -1), ("seed", 10**30), ("random_arch", "vit"),
        ("random_arch", None), ("weighted_knn", {"temperature": 0}),
        ("weighted_knn", {"temperature": float("inf")}), ("linear", {"lr": float("nan")}),
        ("linear", {"lr": float("inf")}), ("augmented_linear", {"crop_scale": [1, 0.1]}),
    ],
    "boxes.yaml": [
        ("SOLVER.BASE_LR", float("nan")), ("SOLVER.BASE_LR", float("inf")),
        ("SOLVER.BASE_LR", -0.1), ("SOLVER.BASE_LR", "fast"), ("SOLVER.MAX_ITER", 0),
        ("SOLVER.MAX_ITER", -5), ("SOLVER.MAX_ITER", "many"), ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.IMS_PER_BATCH", -2), ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("SOLVER.CHECKPOINT_PERIOD", -1), ("SOLVER.STEPS", [5, 3]), ("SOLVER.STEPS", [-1]),
        ("SOLVER.STEPS", 3), ("SOLVER.WARMUP_ITERS", -1), ("SOLVER.GAMMA", "x"),
        ("SOLVER.MOMENTUM", 7.0), ("SOLVER.WEIGHT_DECAY", -1.0),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupNothing"), ("SOLVER", []), ("SOLVR", {"x": 1}),
        ("SEED", 3), ("OUTPUT_DIR", "elsewhere"), ("DATASETS.TRAIN", []),
        ("DATASETS.TRAIN", "tiny_train"), ("DATASETS.TRAIN", ["absent"]), ("DATASETS.TRAIN", [7]),
        ("DATASETS.TEST", ["tiny_val", "tiny_train"]), ("DATASETS.TEST", None), ("DATASETS", []),
        ("MODEL", 3), ("MODEL.WEIGHTS", "x.pkl"), ("MODEL.META_ARCHITECTURE", "YOLO"),
        ("MODEL.MASK_ON", "perhaps"), ("MODEL.MASK_ON", True), ("MODEL.KEYPOINT_ON", True),
        ("MODEL.PIXEL_STD", [0.0, 0.0, 0.0]), ("MODEL.PIXEL_MEAN", [1.0]),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 3), ("MODEL.ROI_HEADS.NUM_CLASSES", -1),
        ("MODEL.ROI_HEADS.NAME", "Nothing"), ("MODEL.BACKBONE.NAME", "nothing"),
        ("MODEL.RESNETS.DEPTH", 19), ("MODEL.RESNETS.NORM", "XN"),
        ("MODEL.FPN.OUT_CHANNELS", -1), ("MODEL.ANCHOR_GENERATOR.SIZES", []),
        ("INPUT.MIN_SIZE_TRAIN", [0]), ("INPUT.MIN_SIZE_TRAIN", []), ("INPUT.MIN_SIZE_TEST", -1),
        ("INPUT.FORMAT", "CMYK"), ("DATALOADER.NUM_WORKERS", -1), ("TEST.EVAL_PERIOD", "never"),
        ("TEST.DETECTIONS_PER_IMAGE", 0), ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 0),
    ],
}  # fmt: skip


class Case(NamedTuple):
    """One malformation: the file that messages must name, and how it is spoilt."""

    name: str
    file: str
    spoil: Callable[[Path], None]
    word: str = ""
    also: str = ""  # may be named in place of the file

    def __str__(self) -> str:
        return f"{Path(self.file).name}: {self.name}"


def text_cases() -> Iterator[Case]:
    for file in CONFIGS:
        for name, (content, expected) in TEXTS.items():
            word = expected
            if file == "boxes.yaml" and "key" in name and "twice" not in name:
                word = ""  # what the file lacks is missed first
            yield Case(name, file, _writer(file, content), word)


def value_cases() -> Iterator[Case]:
    for file, changes in VALUES.items():
        for key, value in changes:
            also = {
                "backbones.1.overrides": "ours.yaml",
                "tasks.0.overrides": "boxes.yaml",
                "datasets.tiny_val.fraction": "boxes.yaml",
                "data.root": str(value),
                "data.format": "data/",
                "MODEL.MASK_ON": "tiny_train.json",
            }
            spoil = _setter(file, key, value)
            name = f"{key}={str(value)[:30]}"
            yield Case(name, file, spoil, also=also.get(key, str(value)))


def _writer(file: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "other.yaml").write_text(f"_BASE_: {file}\n", encoding="utf-8")
        (folder / file).write_bytes(content.replace(b"{file}", file.encode()))

    return spoil


def _setter(file: str, key: str, value: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = yaml.safe_load((folder / file).read_text("utf-8"))
        node = content
        *parents, last = key.split(".")
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value
        (folder / file).write_text(yaml.safe_dump(content), encoding="utf-8")

    return spoil


def annotation_cases() -> Iterator[Case]:  # noqa: C901  (one list of faults)
    """Spoil the annotation file of the evaluated set."""
    file = "data/tiny_val.json"

    def text(content: bytes) -> Callable[[Path], None]:
        return lambda folder: (folder / file).write_bytes(content) and None

    def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            content = json.loads((folder / file).read_text("utf-8"))
            change(content)
            (folder / file).write_text(json.dumps(content), encoding="utf-8")

        return spoil

    def box(key: str, value: Any) -> Callable[[Path], None]:
        return edit(lambda content: content["annotations"][0].update({key: value}))

    def image(key: str, value: Any) -> Callable[[Path], None]:
        return edit(lambda content: content["images"][0].update({key: value}))

    yield Case("empty", file, text(b""))
    yield Case("half of it", file, lambda folder: _halve(folder / file))
    yield Case("binary", file, text(bytes(range(256))))
    yield Case("a list", file, text(b"[]"))
    yield Case("null", file, text(b"null"))
    yield Case("nested deeply", file, text(b"[" * 200_000))
    yield Case("without keys", file, text(b"{}"))
    yield Case("lists for dicts", file, text(b'{"images": {}, "annotations": 1, "categories": ""}'))
    yield Case("5,000 digits", file, text(b'{"images": [' + b"9" * 5000 + b"]}"))
    nan, inf = float("nan"), float("inf")
    for value in ([nan, 1, 5, 5], [1, 1, inf, 5], [1, 1, -5, 5], [1, 1, 0, 0], [1, 1, 5], "box",
                  None, [1, 1, 1e300, 5], ["1", 1, 5, 5], [500, 500, 9, 9], {},
                  [True] * 4):  # fmt: skip
        yield Case(f"bbox {str(value)[:20]}", file, box("bbox", value))
    for key in ("image_id", "category_id", "id"):
        for value in (99, None, "0", -1, 1.5, [], nan):
            if (key, value) not in (("id", 99), ("id", -1)):  # any number not used yet will do
                yield Case(f"{key} {value}", file, box(key, value))
    yield Case("id twice", file, edit(lambda held: held["annotations"][1].update({"id": 1})))
    yield Case("iscrowd 7", file, box("iscrowd", 7))
    yield Case("area nan", file, box("area", nan))
    for name in ("absent.png", "", None, 3, "../tiny_val.json", "/etc/passwd", "a\0b"):
        yield Case(f"file_name {name!r}", file, image("file_name", name))
    for width in (63, 0, -1, "64", None, nan, 10**12):
        yield Case(f"width {width}", file, image("width", width))
    yield Case("image twice", file, edit(lambda held: held["images"].append(held["images"][0])))
    yield Case("no images", file, edit(lambda held: held.update(images=[])))
    yield Case("no objects", file, edit(lambda held: held.update(annotations=[])))
    yield Case("no classes", file, edit(lambda held: held.update(categories=[])))
    yield Case("class twice", file, edit(lambda held: held["categories"][1].update(id=1)))
    yield Case("other classes", file, edit(lambda held: held["categories"].pop()))


def image_cases() -> Iterator[Case]:
    """Spoil an image that training or an evaluation reads."""
    for file in ("data/tiny_val/0.png", "data/crops/000.png", "data/labelled/train/a/0.png"):
        for name, content in (
            ("empty", b""), ("text", b"not an image\n"), ("zeros", bytes(500)), ("bomb", bomb()),
            ("html", b"<html><body>404</body></html>"), ("only a header", bomb()[:33]),
        ):  # fmt: skip
            yield Case(name, file, lambda folder, f=file, c=content: _overwrite(folder / f, c))
        yield Case("half of it", file, lambda folder, f=file: _halve(folder / f))
    file = "data/tiny_val/0.png"
    yield Case("of another size", file, lambda folder: _picture(folder / file, (63, 64)))
    yield Case("a folder", file, lambda folder: _folder(folder / file))
    yield Case("gone", file, lambda folder: (folder / file).unlink())
    yield Case("of 16 bits", file, lambda folder: _picture(folder / file, (64, 64), "I;16"))


def voc_cases() -> Iterator[Case]:
    """Spoil a set in VOC's layout."""
    file = "data/voc/Annotations/0.xml"
    sound = VOC.encode()
    entities = b"".join(
        b'<!ENTITY a%d "%s">' % (level, b"&a%d;" % (level - 1) * 10) for level in range(1, 9)
    )
    laughs = b'<!DOCTYPE x [<!ENTITY a0 "ha">' + entities + b"]><annotation>&a8;</annotation>"
    outside = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'
    for name, content in (
        ("empty", b""), ("half of it", sound[: len(sound) // 2]), ("entities", laughs),
        ("a file of the machine", outside), ("binary", bytes(range(256))), ("json", b"{}"),
        ("box of nan", sound.replace(b">5<", b">nan<")),
        ("box of 1e999", sound.replace(b">5<", b">1e999<")),
        ("box of words", sound.replace(b">5<", b">left<")),
        ("inverted box", sound.replace(b">5<", b">60<")),
        ("unknown class", sound.replace(b">one<", b">two<")),
        ("no size", sound.replace(b"size", b"sise")),
        ("nested deeply", b"<annotation>" + b"<x>" * 100_000),
    ):  # fmt: skip
        yield Case(name, file, lambda folder, c=content: _overwrite(folder / file, c))
    split = "data/voc/ImageSets/Main/all.txt"
    for name, content in (
        ("empty", b""), ("binary", bytes(range(128, 256))), ("an absent name", b"0\n1\n2\n9\n"),
        ("a path", b"0\n1\n../Annotations/2\n"), ("a name twice", b"0\n1\n1\n"),
    ):  # fmt: skip
        yield Case(name, split, lambda folder, c=content: _overwrite(folder / split, c))


VOC = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>one</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""


def write_voc(root: Path) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for index in range(6):
        (root / "Annotations" / f"{index}.xml").write_text(VOC, encoding="utf-8")
        Image.new("RGB", (64, 48), (40 * index, 0, 0)).save(root / "JPEGImages" / f"{index}.jpg")
    (root / "ImageSets" / "Main" / "all.txt").write_text("0\n1\n2\n", encoding="utf-8")
    (root / "ImageSets" / "Main" / "rest.txt").write_text("3\n4\n5\n", encoding="utf-8")


def bomb() -> bytes:
    """Return a PNG that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def _picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    Image.new(mode, size).save(path)


def _overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
