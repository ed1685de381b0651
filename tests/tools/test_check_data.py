"""tools/check_data.py as a person runs it: sound, broken and unknown sets."""

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from tests.tools.conftest import Run


@pytest.fixture
def run(run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs the script in the folder of `own`, with no other sets around."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    return partial(run_here, "check_data.py")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Write a set in each layout with names and folders of its own, and a config that names them.

    The COCO set `garden` is measured on by a task with masks, the VOC set `yard` is trained on.
    """
    (tmp_path / "photos").mkdir()
    yard = tmp_path / "my yard"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (yard / folder).mkdir(parents=True)
    for index in range(3):
        image = Image.new("RGB", (40, 30), (40 * index, 0, 0))
        image.save(tmp_path / "photos" / f"p{index}.png")
        image.save(yard / "JPEGImages" / f"y{index}.jpg")
        (yard / "Annotations" / f"y{index}.xml").write_text(
            "<annotation><size><width>40</width><height>30</height></size><object><name>rake</name>"
            "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9.5</xmax><ymax>9</ymax></bndbox></object>"
            "</annotation>",
            encoding="utf-8",
        )
    (yard / "ImageSets/Main/all.txt").write_text("y0\ny1\ny2\n", encoding="utf-8")
    garden = {
        "images": [
            {"id": i, "file_name": f"p{i}.png", "width": 40, "height": 30} for i in range(3)
        ],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 3, "bbox": [1, 1, 8, 8], "area": 64,
             "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
            for i in range(3)
        ],
        "categories": [{"id": 3, "name": "rose"}],
    }  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(garden), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        "DATASETS: {TRAIN: [yard], TEST: [garden]}\nMODEL: {MASK_ON: true}\n", encoding="utf-8"
    )
    (tmp_path / "plan.yaml").write_text(
        "name: mine\nbackbones: [{name: none, random: true}]\nseeds: [0]\n"
        "tasks: [{name: t, config: task.yaml}]\n"
        "datasets:\n"
        f"  garden: {{format: coco, annotations: {tmp_path}/labels.json, "
        f"images: {tmp_path}/photos}}\n"
        f"  yard: {{format: voc, root: {tmp_path}/my yard, split: all, class_names: [rake]}}\n",
        encoding="utf-8",
    )
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "labels.json").read_text(encoding="utf-8")
    (folder / "labels.json").write_text(text.replace(old, new, 1), encoding="utf-8")


def test_sets_of_ones_own_by_paths_and_class_names(own: Path, run: Run) -> None:
    answer = run("--config-file", "plan.yaml", "--decode", "all")
    assert answer.returncode == 2
    # yard is trained on, so half a pixel is fine there; but it has no masks
    assert "garden: 3 images (3 decoded), 3 objects: sound" in answer.stdout
    assert "yard: 3 images (3 decoded), 3 objects: NOT sound" in answer.stdout
    assert answer.stderr.count("\n") == 1 and "MODEL.MASK_ON asks for them" in answer.stderr
    sound = run("garden", "--config-file", "plan.yaml", "--decode", "none")
    assert (sound.returncode, sound.stderr) == (0, "") and "(0 decoded)" in sound.stdout


def test_faults_and_notes_of_a_set(own: Path, run: Run) -> None:
    change(own, '"bbox": [1, 1, 8, 8]', '"bbox": [1, 1, 0, 8]')
    answer = run("garden", "--config-file", "plan.yaml")
    assert answer.returncode == 2 and "annotation 1: bbox [1, 1, 0, 8]" in answer.stderr
    text = (own / "task.yaml").read_text("utf-8")
    text = text.replace("TRAIN: [yard], TEST: [garden]", "TRAIN: [garden], TEST: [yard]")
    (own / "task.yaml").write_text(text, encoding="utf-8")
    answer = run("garden", "--config-file", "plan.yaml")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "garden: note: " in answer.stdout and "bbox [1, 1, 0, 8]" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "check_data: "),
        (("nothing",), "unknown data set 'nothing'; known: coco_2017_"),
        (("coco_2017_val",), "instances_val2017.json: no such file"),
        (("voc_2007_test",), "test.txt: cannot be read"),
        (("--config-file", "absent.yaml"), "absent.yaml"),
        (("--config-file", "task.yaml"), "task.yaml"),
        (("--config-file", "labels.json/x"), "labels.json/x"),
        (("other", "--config-file", "plan.yaml"), "unknown data set 'other'; known: "),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_2(
    own: Path, run: Run, arguments: tuple[str, ...], expected: str
) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2 and expected in answer.stderr, answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_task_that_names_an_unknown_set(own: Path, run: Run) -> None:
    (own / "task.yaml").write_text("DATASETS: {TRAIN: [x], TEST: 3}\n", encoding="utf-8")
    answer = run("--config-file", "plan.yaml")
    assert answer.returncode == 2
    assert "unknown data set 'x'" in answer.stderr and "DATASETS.TEST: wanted" in answer.stderr


def test_splits_of_vocs_layout_are_made_once(own: Path, run: Run) -> None:
    text = (own / "my yard" / "Annotations" / "y0.xml").read_text(encoding="utf-8")
    for index in range(3, 10):
        path = own / "my yard" / "Annotations" / f"y{index}.xml"
        path.write_text(text, encoding="utf-8")
    answer = run("--make-splits", "0", "my yard")
    assert answer.returncode == 0
    assert answer.stdout == (
        "my yard/ImageSets/Main/trainval.txt: 8 images\nmy yard/ImageSets/Main/test.txt: 2 images\n"
    )
    again = run("--make-splits", "0", "my yard")
    assert again.returncode == 2 and "already there; nothing is overwritten" in again.stderr


def test_a_task_that_trains_on_its_test_images(own: Path, run: Run) -> None:
    (own / "task.yaml").write_text("DATASETS: {TRAIN: [garden], TEST: [garden]}\n", "utf-8")
    answer = run("--config-file", "plan.yaml")
    assert answer.returncode == 2
    assert "garden: 3 images (3 decoded), 3 objects: NOT sound" in answer.stdout
    assert "3 of 3 images are trained on too, in garden (" in answer.stderr


def test_a_leak_from_a_set_that_is_not_named(own: Path, run: Run) -> None:
    for index in range(3):  # the same images, in yard under another name
        path = own / "my yard" / "JPEGImages" / f"y{index}.jpg"
        path.unlink()
        path.with_suffix(".png").symlink_to(own / "photos" / f"p{index}.png")
    for name in ("garden", "yard"):
        answer = run(name, "--config-file", "plan.yaml")
        assert answer.returncode == 2 and answer.stdout.startswith(f"{name}: 3 images")
        assert f"{name}: {own}/labels.json: 3 of 3 images are trained on too, in yard (photos" in (
            answer.stderr
        )


def test_a_configs_recipes_are_asked_what_plan_asks(own: Path, run: Run) -> None:
    text = "DATASETS: {TRAIN: [yard, yard], TEST: [garden]}\nTEST: {DETECTIONS_PER_IMAGE: 300}\n"
    (own / "task.yaml").write_text(text + "SOLVER: {IMS_PER_BATCH: 2, REFERENCE_WORLD_SIZE: 8}\n")
    answer = run("--config-file", "plan.yaml")
    assert answer.returncode == 2 and "NOT sound" not in answer.stdout
    batch, twice, detections = answer.stderr.splitlines()
    assert "task.yaml: task t: SOLVER.IMS_PER_BATCH is 2, wanted a multiple of 8" in batch
    assert "task.yaml: task t: DATASETS.TRAIN lists yard 2 times" in twice
    assert (
        "task.yaml: task t: TEST.DETECTIONS_PER_IMAGE is 300, but garden is measured" in detections
    )
    (own / "task.yaml").write_text("DATASETS: {TRAIN: [yard], TEST: [garden]}\n", "utf-8")
    answer = run("--config-file", "plan.yaml")
    classes, order = answer.stderr.splitlines()
    assert "task.yaml: task t: MODEL.ROI_HEADS.NUM_CLASSES is 80, but garden has 1" in classes
    assert "yard and garden do not have the same classes in one order" in order


def test_the_seed_of_splits_is_a_number(own: Path, run: Run) -> None:
    answer = run("--make-splits", "x", "my yard")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "check_data: the seed of --make-splits is 'x', wanted a whole number\n"
