"""Small sound sets in COCO's and VOC's layout, and a small drawing of the digits."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from examples.digits.build import Sizes, build_digits
from transfer.checkpoints import read
from transfer.config.data import KNOWN_DATASETS, CocoData, VocData
from transfer.datasets.check import task_faults
from transfer.datasets.findings import Needs

VOC_XML = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>one</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (64, 48), (40 * index, 99, 0)).save(folder / f"{index:03d}.jpg")


@pytest.fixture(autouse=True)
def no_left_handlers() -> Iterator[None]:
    """Take away log handlers that a test has left: they write to a stream that is closed then."""
    yield
    for name in ("", "detectron2", "fvcore", "transfer"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)


@pytest.fixture
def windows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors lie on top of each other, as those of `published.windows` do."""
    monkeypatch.setattr(read, "SHARED_BYTES", 2**29)


@pytest.fixture
def coco(tmp_path: Path) -> CocoData:
    """Return a sound set of three images with one box each."""
    write_images(tmp_path / "coco" / "val", 3)
    content = {
        "images": [
            {"id": i, "file_name": f"{i:03d}.jpg", "width": 64, "height": 48} for i in range(3)
        ],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 7, "bbox": [4, 5, 25, 34], "iscrowd": 0,
             "area": 850, "segmentation": [[4, 5, 29, 5, 29, 39, 4, 39]]}
            for i in range(3)
        ],
        "categories": [{"id": 7, "name": "one"}],
    }  # fmt: skip
    path = tmp_path / "coco" / "val.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return CocoData(annotations=path, images=tmp_path / "coco" / "val")


@pytest.fixture
def voc(tmp_path: Path) -> VocData:
    """Return the same set in VOC's layout."""
    root = tmp_path / "voc"
    write_images(root / "JPEGImages", 3)
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for index in range(3):
        (root / "Annotations" / f"{index:03d}.xml").write_text(VOC_XML, encoding="utf-8")
    names = "".join(f"{index:03d}\n" for index in range(3))
    (root / "ImageSets" / "Main" / "test.txt").write_text(names, encoding="utf-8")
    return VocData(root=root, split="test", class_names=("one",))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 4 training and 20 validation scenes; return the folder of all data sets."""
    root = tmp_path_factory.mktemp("drawn")
    build_digits(root / "digits", sizes=Sizes(4, 20, 2, 20, 20))
    return root


@pytest.fixture(scope="module")
def digits(drawn: Path) -> dict[str, CocoData | VocData]:
    """Register the drawn validation scenes in both layouts."""
    from transfer.detection.loader import register  # needs detectron2, which not all tests do

    names = ("digits_voc_test", "digits_coco_val")
    sets = {name: KNOWN_DATASETS[name].under(drawn) for name in names}
    register(sets)
    return sets


@pytest.fixture
def detection_faults() -> Callable[..., list[str]]:
    """Return the faults of one set by itself, as a task with these needs sees them."""

    def faults(
        data: CocoData | VocData, evaluated: bool = True, masks: bool = False, name: str = ""
    ) -> list[str]:
        return task_faults({name: (data, Needs(evaluated, masks))})

    return faults
