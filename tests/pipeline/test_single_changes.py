"""Single changes of files and configs: which kinds of stages get another signature, or none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.plan.build import load_plan
from tests.pipeline.edits import CONFIG, edit, faults

ALL = {"pretrain", "convert", "finetune", "probe"}
IMAGES, COCO, VOC = Path("data/images"), Path("data/coco"), Path("data/voc")
LABELLED, GIVEN = Path("data/labelled"), Path("given.pth")
SAME_RECIPE = {"name": "A", "pretrain": "a.yaml"}
SPLIT = VOC / "ImageSets" / "Main" / "all.txt"


@pytest.fixture
def plan(project: Path) -> None:
    """Give the small project a checkpoint and a probe of labelled images."""
    GIVEN.write_bytes(b"weights")
    for split in ("train", "val"):
        shutil.copytree(IMAGES, LABELLED / split / "one")
        shutil.copytree(IMAGES, LABELLED / split / "two")
    data = {"name": "labelled", "root": str(LABELLED), "format": "imagefolder"}
    content = {"data": data, "random_arch": "resnet18", "knn": {}}
    Path("configs/probe.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    edit(str(CONFIG), lambda c: c.update(probes=[{"name": "p", "config": "probe.yaml"}]))
    edit(str(CONFIG), lambda c: c["backbones"].append({"name": "given", "checkpoint": str(GIVEN)}))


def signatures() -> dict[str, set[str]]:
    by_kind: dict[str, set[str]] = {}
    for stage in load_plan(CONFIG, []).stages:
        by_kind.setdefault(stage.kind, set()).add(stage.signature)
    return by_kind


def overwrite(path: Path, content: bytes | None = None) -> None:
    """Put other bytes of the same size and modification time in a file's place, as rsync does."""
    status = path.stat()
    before = path.read_bytes()
    content = content or before[:-4] + bytes([before[-4] ^ 1]) + before[-3:]
    assert content != before and len(content) == len(before)
    copy = path.with_name("copy.tmp")
    copy.write_bytes(content)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(path)


def exchange(one: Path, other: Path) -> None:
    one.rename("moved")
    other.rename(one)
    Path("moved").rename(other)


def behind_a_link(path: Path, change: Callable[[Path], object] = lambda _: None) -> None:
    target = Path("elsewhere", path.name).absolute()
    target.parent.mkdir()
    path.rename(target)
    path.symlink_to(target)
    change(target)


def beside(*names: str) -> None:
    """Put files that nothing reads into every folder of the data."""
    for folder in [each for each in Path("data").rglob("*") if each.is_dir()]:
        for name in names:
            (folder / name).write_text("x", encoding="utf-8")


def replace(path: Path, before: bytes, after: bytes) -> None:
    overwrite(path, path.read_bytes().replace(before, after))


def of_sets(name: str, **values: object) -> None:
    edit(str(CONFIG), lambda c: c["datasets"][name].update(values))


def train_on_a_part() -> None:
    part = {"fraction": 0.5}
    edit(str(CONFIG), lambda c: c["datasets"].update(part=c["datasets"]["my_coco"] | part))
    edit("configs/coco.yaml", lambda task: task["DATASETS"].update(TRAIN=["part"]))


def of_backbone(number: int, **values: object) -> None:
    edit(str(CONFIG), lambda c: c["backbones"][number].update(values))


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda: replace(VOC / "Annotations/001.xml", b"<xmin>5", b"<xmin>6"), {"finetune"}),
        (lambda: behind_a_link(VOC / "Annotations/001.xml", overwrite), {"finetune"}),
        (lambda: replace(COCO / "annotations.json", b"34", b"35"), {"finetune"}),
        (lambda: overwrite(COCO / "val/001.jpg"), {"finetune"}),
        ((COCO / "val/001.jpg").unlink, {"finetune"}),
        (lambda: exchange(VOC / "JPEGImages/000.jpg", VOC / "JPEGImages/001.jpg"), {"finetune"}),
        (lambda: SPLIT.write_text("001\n000\n002\n", "utf-8"), {"finetune"}),
        (lambda: of_sets("my_voc", year=2012), {"finetune"}),
        (lambda: of_sets("my_voc", class_names=["two"]), {"finetune"}),
        (train_on_a_part, {"finetune"}),
        (lambda: overwrite(IMAGES / "003.png"), ALL),
        (lambda: exchange(IMAGES / "000.png", IMAGES / "001.png"), ALL),
        (lambda: behind_a_link(IMAGES / "003.png", overwrite), ALL),
        (lambda: behind_a_link(IMAGES, lambda to: overwrite(to / "000.png")), ALL),
        (lambda: shutil.copy(IMAGES / "000.png", IMAGES / "more.png"), ALL),
        (lambda: of_backbone(1, overrides=["seed=9"]), ALL),
        (lambda: edit(str(CONFIG), lambda c: c.update(resources={"default": {"gpus": 2}})), ALL),
        (lambda: overwrite(LABELLED / "val/one/001.png"), {"probe"}),
        (lambda: (LABELLED / "train/one/001.png").rename(LABELLED / "train/two/x.png"), {"probe"}),
        (lambda: overwrite(GIVEN), ALL - {"pretrain"}),
        (lambda: of_backbone(3, input={"order": "BGR"}), ALL - {"pretrain"}),
    ],
)
def test_what_changes_a_result_is_another_signature(
    plan: None, change: Callable[[], object], kinds: set[str]
) -> None:
    before = signatures()
    change()
    after = signatures()
    assert {kind for kind in before if after[kind] != before[kind]} == kinds


@pytest.mark.parametrize(
    "change",
    [
        lambda: [os.utime(path) for path in Path("data").rglob("*")],
        lambda: beside(".DS_Store", "Thumbs.db", ".nfs0001", "README.md", ".hidden.png"),
        lambda: behind_a_link(IMAGES / "003.png"),
        lambda: behind_a_link(COCO / "val"),
        lambda: behind_a_link(SPLIT),
        lambda: SPLIT.write_bytes(b"000  \r\n001\t\n\n002"),
        lambda: (SPLIT.parent / "other.txt").write_text("000\n", "utf-8"),
        lambda: shutil.copy(COCO / "val/000.jpg", COCO / "val/999.jpg"),
        lambda: shutil.copytree(LABELLED / "val", LABELLED / "test"),
        lambda: (GIVEN.rename("x.pth"), of_backbone(3, checkpoint="x.pth")),
        lambda: (VOC.rename("data/moved"), of_sets("my_voc", root="data/moved")),
        lambda: of_backbone(1, name="other"),
        lambda: of_backbone(1, overrides=["log_every=3", "batch_size=8"]),
        lambda: edit("configs/a.yaml", lambda c: c.update(method="x", batch_size=8.0)),
        lambda: edit("configs/a.yaml", lambda c: c["optimizer"].update(lr="1e-3")),
        lambda: edit("configs/voc.yaml", lambda c: c["INPUT"].update(MIN_SIZE_TRAIN="(800,)")),
        lambda: edit("configs/voc.yaml", lambda c: c.update(DATALOADER={"NUM_WORKERS": 1})),
        lambda: edit(str(CONFIG), lambda c: c["tasks"][0].update(name="x", optimizer="sgd")),
        lambda: edit(str(CONFIG), lambda c: c["tasks"].append({"name": "x", "config": "voc.yaml"})),
        lambda: edit(str(CONFIG), lambda c: c["probes"][0].update(name="coco")),
        lambda: edit(str(CONFIG), lambda c: c["backbones"].append(SAME_RECIPE)),
    ],
)
def test_what_changes_none_is_the_same_signature(plan: None, change: Callable[[], object]) -> None:
    before = signatures()
    change()
    assert signatures() == before


@pytest.mark.parametrize("name", ["a--b", "b", "-a", "..", "a/b", "a b", "a\n", "é", ""])
def test_names_that_could_share_a_folder_are_refused(plan: None, name: str) -> None:
    of_backbone(1, name=name)
    assert faults()
