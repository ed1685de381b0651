"""Plans of a small project: stages, needs, signatures, and every fault at once."""

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.plan import build
from pipeline.plan.build import load_plan
from pipeline.plan.plan import Plan
from tests.pipeline.edits import CONFIG, edit, faults
from transfer.checkpoints import other_files


def signatures(overrides: list[str] | None = None) -> dict[str, str]:
    return {stage.name: stage.signature for stage in load_plan(CONFIG, overrides or []).stages}


def test_stages_in_order_with_their_inputs(project: Path) -> None:
    plan = load_plan(CONFIG, [])
    assert len(plan.stages) == 2 + 2 + 3 * 2 * 2
    seen: set[str] = set()
    for stage in plan.stages:
        assert all(source.name in seen for source in stage.inputs.values())
        seen.add(stage.name)
    by_name = {stage.name: stage for stage in plan.stages}
    tuned = by_name["finetune/a--voc--seed1"]
    assert tuned.inputs["weights"].name == "convert/a"
    assert tuned.inputs["weights"].inputs["checkpoint"].name == "pretrain/a"
    assert tuned.seed == 1 and tuned.task == "voc" and tuned.backbone == "a"
    assert by_name["finetune/random--coco--seed0"].inputs == {}
    assert tuned.run_dir == Path("runs/tiny/finetune") / f"a--voc--seed1-{tuned.signature}"


def test_signatures_are_pinned(project: Path) -> None:
    # A change here means that every finished run of every user will be run again.
    found = signatures()
    assert found["pretrain/a"] == "bba845f058061df4"
    assert found["convert/a"] == "22c879290ece9c44"
    assert found["finetune/a--coco--seed0"] == "bf7e793dc4fb1cc1"


def test_a_stated_input_is_another_conversion_and_one_not_stated_none(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_files, "FAMILY_TABLES", ())  # whatever stands in them
    Path("theirs.pth").write_bytes(b"weights")
    entry = "backbones=[{name: theirs, checkpoint: theirs.pth%s}]"
    before = signatures([entry % ""])
    assert before["convert/theirs"] == "ee2e4c8e90e20af8"
    stated = signatures([entry % ", input: {order: BGR}"])
    assert stated["convert/theirs"] != before["convert/theirs"]
    assert stated["finetune/theirs--voc--seed0"] != before["finetune/theirs--voc--seed0"]
    for other in ("random: true", "pretrain: a.yaml"):
        with pytest.raises(ValueError, match="format, encoder and input go with checkpoint"):
            signatures([f"backbones=[{{name: a, {other}, input: {{order: BGR}}}}]"])


def test_editing_one_recipe_changes_only_what_depends_on_it(project: Path) -> None:
    before = signatures()
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=0.002))
    after = signatures()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "pretrain/a",
        "convert/a",
        *(f"finetune/a--{task}--seed{seed}" for task in ("coco", "voc") for seed in (0, 1)),
    }


def test_the_name_of_a_set_of_images_and_files_beside_them_change_nothing(project: Path) -> None:
    before = signatures()
    edit("configs/a.yaml", lambda content: content["data"].update(name="another"))
    for path in ("data/images/.DS_Store", "data/voc/README", "data/coco/val/more.jpg"):
        Path(path).write_bytes(b"nothing reads it")
    assert signatures() == before


def test_editing_one_task_changes_only_its_fine_tunings(project: Path) -> None:
    before = signatures()
    edit("configs/voc.yaml", lambda content: content.update(SOLVER={"MAX_ITER": 7}))
    after = signatures()
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if "--voc--" in name
    }


def test_moving_data_changes_nothing_and_changing_it_does(project: Path) -> None:
    before = signatures()
    Path("data/coco").rename("data/elsewhere")

    def move(content: dict[str, Any]) -> None:
        content["datasets"]["my_coco"] |= {
            "annotations": "data/elsewhere/annotations.json",
            "images": "data/elsewhere/val",
        }

    edit("configs/tiny.yaml", move)
    assert signatures() == before
    (Path("data/elsewhere/val") / "000.jpg").write_bytes(b"shorter")
    after = signatures()
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if "--coco--" in name
    }


def test_overrides_reach_the_plan(project: Path) -> None:
    assert not any("seed1" in name for name in signatures(["seeds=[0]"]))


def test_all_faults_of_all_files_are_listed_at_once(project: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content.update(sedes=[1]))
    edit("configs/tiny.yaml", lambda content: content["backbones"].append({"name": "x"}))
    edit("configs/a.yaml", lambda content: content["optimizer"].update(lr=-1, momentun=0.9))
    edit("configs/b.yaml", lambda content: content["loss"].update(sub_batch=3))
    edit("configs/voc.yaml", lambda content: content["DATASETS"].update(TRAIN=["unheard_of"]))
    lines = faults()
    for expected in (
        "configs/tiny.yaml: sedes:",
        "configs/tiny.yaml: backbones.3: give exactly one of pretrain, checkpoint and random",
        "configs/a.yaml: optimizer.lr:",
        "configs/a.yaml: optimizer.momentun:",
        "configs/b.yaml: (whole file): loss: batch of 8 images is not divisible by sub_batch 3",
        "configs/voc.yaml: unknown data set 'unheard_of'",
    ):
        assert sum(expected in line for line in lines) == 1, (expected, lines)


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda: Path("data/images").rename("gone"), "data/images: no such folder"),
        (lambda: Path("data/coco/annotations.json").unlink(), "annotations.json: no such file"),
        (lambda: Path("data/voc/ImageSets/Main/all.txt").unlink(), "all.txt: no such file"),
        (lambda: Path("data/voc/Annotations/001.xml").unlink(), "001.xml: no such file"),
        (lambda: Path("configs/b.yaml").unlink(), "b.yaml: no such config file"),
    ],
)
def test_missing_files_are_named_once(
    project: Path, break_it: Callable[[], object], expected: str
) -> None:
    break_it()
    lines = faults()
    assert len(lines) == 1 and expected in lines[0], lines


def test_an_empty_data_folder_is_a_fault(project: Path) -> None:
    for path in Path("data/images").iterdir():
        path.unlink()
    (fault,) = faults()
    assert fault.startswith("data/images: no image found among 0 files; wanted names that")


def test_only_the_training_images_of_class_folders_identify_a_pretraining(project: Path) -> None:
    Path("data/train").mkdir()
    Path("data/images").rename("data/train/one")
    Path("data/val/one").mkdir(parents=True)
    picture = next(Path("data/train/one").iterdir()).read_bytes()
    for name in ("a", "b"):
        edit(
            f"configs/{name}.yaml",
            lambda content: content["data"].update(root="data", format="imagefolder"),
        )
    before = signatures()
    Path("data/val/one/new.png").write_bytes(picture)
    assert signatures() == before
    Path("data/train/one/new.png").write_bytes(picture)
    after = signatures()
    assert after["pretrain/a"] != before["pretrain/a"]


def test_an_existing_checkpoint_enters_by_its_content(project: Path) -> None:
    Path("weights.pth").write_bytes(b"one")

    def add(content: dict[str, Any]) -> None:
        content["backbones"].append({"name": "given", "checkpoint": "weights.pth"})

    edit("configs/tiny.yaml", add)
    plan: Plan = load_plan(CONFIG, [])
    convert = next(stage for stage in plan.stages if stage.name == "convert/given")
    assert convert.inputs == {}
    before = convert.signature
    Path("weights.pth").write_bytes(b"two")
    assert signatures()["convert/given"] != before
    Path("weights.pth").unlink()
    assert faults() == ["weights.pth: no such checkpoint file (backbone given)"]


def test_a_batch_that_cannot_be_cut_over_the_gpus_is_refused(project: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content.update(resources={"pretrain": {"gpus": 3}}))
    lines = faults()
    assert len(lines) == 2
    assert lines[0].startswith(
        "configs/a.yaml: backbone a on 3 GPUs (resources.pretrain): batch_size 8 is not divisible"
    )


def test_sets_that_a_broken_config_declares_are_not_unknown(project: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content.update(seeds=[-1]))
    edit("configs/tiny.yaml", lambda content: content["datasets"]["my_voc"].update(year=1999))
    edit("configs/coco.yaml", lambda content: content["DATASETS"].update(TEST=["my_coca"]))
    lines = faults()
    assert [line.partition(";")[0] for line in lines if "unknown" in line] == [
        "configs/coco.yaml: unknown data set 'my_coca'"
    ]
    assert "did you mean 'my_coco'? known: " in lines[-1]
    assert sum("seeds.0" in line for line in lines) == 1
    assert sum("datasets.my_voc.voc.year" in line for line in lines) == 1
    assert len(lines) == 3


def test_the_example_of_the_docstring_runs_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(build) == (0, 5)
    assert not list(tmp_path.iterdir())
