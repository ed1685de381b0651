"""Facts of run folders: of a pipeline, by hand, changed, unfinished, and damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.transfer.hub.runs import by_hand, converted, pretrained, recipe, reported
from tests.transfer.published import resnet, save_backbone
from transfer.checkpoints.read import read_backbone
from transfer.hub.run_facts import RunFacts, weights_and_facts


def test_a_pipeline_says_recipe_data_code_and_numbers(tmp_path: Path) -> None:
    stage = pretrained(tmp_path / "demo")
    conversion = converted(stage)
    reported(stage, conversion)
    wanted = json.loads(json.dumps(recipe().identity()))
    wanted["data"]["name"] = "digits-unlabeled"
    for folder in (stage.run_dir, conversion.run_dir):
        weights, facts = weights_and_facts(folder)
        assert weights == folder / "backbone.pth"
        assert facts.recipe == wanted
        assert facts.data == ("digits-unlabeled", "images: 6000 files, digest 40ed7fe603cf7493")
        assert facts.num_processes == 2
        assert facts.provenance["code"] == {"commit": "f64c78d3", "dirty": False}
        assert (facts.name, facts.pipeline, facts.baseline) == ("cw-rgp", "demo", "random")
        assert facts.command == "python tools/run_pipeline.py run x.yaml"
        by_metric = {(row["task"], row["metric"]): row for row in facts.summary}
        box = by_metric["voc", "bbox/AP"]
        assert (box["mean"], box["std"], box["n"]) == (28.0, pytest.approx(2**0.5), 2)
        assert facts.seeds == {"voc": [0, 1], "coco": [0]}
        assert facts.tasks == {"voc": "Faster R-CNN on VOC", "coco": "Mask R-CNN on COCO"}
        assert [row["metrics"] for row in facts.probes] == [{"probe/knn/top1": 61.25},
                                                            {"top1": 71.25}]  # fmt: skip
        assert "fills 120 entries of the FPN model" in facts.in_detectron2[0]
        assert "2.0e-07" in facts.in_detectron2[0]
    assert (
        weights_and_facts(stage.run_dir / "backbone.pth")[1] == weights_and_facts(stage.run_dir)[1]
    )


def test_a_report_of_another_run_is_not_taken(tmp_path: Path) -> None:
    stage = pretrained(tmp_path / "demo")
    reported(stage)
    path = stage.run_dir / "manifest.json"
    path.write_text(path.read_text("utf-8").replace("0.5", "0.25"), encoding="utf-8")
    _, facts = weights_and_facts(stage.run_dir)
    assert facts.summary == () and facts.recipe
    assert facts.no_numbers.startswith("no report in demo is made from this run; run_pipeline.py")


def test_a_pretraining_by_hand_has_its_recipe_in_its_last_state(tmp_path: Path) -> None:
    weights, facts = weights_and_facts(by_hand(tmp_path / "run"))
    assert weights == tmp_path / "run" / "backbone.pth"
    assert facts.recipe == recipe().identity() and facts.num_processes == 2
    assert facts.data == ("images: 6000 files",)
    assert read_backbone(weights.parent).method == "test"  # such a folder is the converter's INPUT
    assert facts.summary == () and facts.no_numbers.startswith("a pretraining alone has none")


def test_the_state_of_a_pretraining_says_its_recipe_and_how_far_it_was(tmp_path: Path) -> None:
    state = by_hand(tmp_path / "run") / "last.pth"
    content = torch.load(state) | {"model": {f"encoder.{k}": v for k, v in resnet().items()}}
    torch.save(content | {"step": 7, "epoch": 0}, state)
    (state.parent / "metrics.jsonl").write_text('{"step": 9, "probe/knn/top1": 61.25}\n', "utf-8")
    weights, facts = weights_and_facts(state)
    assert (weights, facts.recipe, facts.of_run) == (state, recipe().identity(), True)
    assert facts.probes == ()  # of a later step, perhaps
    backbone = read_backbone(state)
    assert backbone.method == "cw-rgp"
    steps = recipe().max_steps
    assert f"the state of a pretraining of {steps} steps after step 7" in backbone.notes


def test_a_checkpoint_alone_says_nothing(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "backbone.pth", "resnet18")
    (tmp_path / "manifest.txt").write_text("of something else", encoding="utf-8")
    assert weights_and_facts(source) == (source, RunFacts())
    assert weights_and_facts(tmp_path / "none.pth") == (tmp_path / "none.pth", RunFacts())


def test_files_of_another_program_beside_a_checkpoint_say_nothing(tmp_path: Path) -> None:
    source = save_backbone(tmp_path / "backbone.pth", "resnet18")
    (tmp_path / "manifest.json").write_text('{"name": "an app"}', encoding="utf-8")
    assert weights_and_facts(source) == (source, RunFacts())
    for state in ({"config": {"seed": 1}}, {"config": {"a": torch.ones(2)}, "num_images": 3,
                  "ranks": []}, [1]):  # fmt: skip
        torch.save(state, tmp_path / "last.pth")
        assert weights_and_facts(source)[1].recipe == {}


def test_a_converted_checkpoint_says_where_it_came_from(tmp_path: Path) -> None:
    stage = pretrained(tmp_path / "demo")
    folder = converted(stage).run_dir
    shutil.rmtree(stage.run_dir)
    companion = {"source": "moco.pth", "sha256": "0f", "family": "moco", "verification": 3}
    (folder / "backbone.json").write_text(json.dumps(companion), encoding="utf-8")
    _, facts = weights_and_facts(folder)
    assert facts.origin == "source moco.pth, sha256 0f, family moco"
    assert (facts.recipe, facts.in_detectron2) == ({}, ())


def test_what_is_no_finished_backbone_is_refused(tmp_path: Path) -> None:
    stage = pretrained(tmp_path / "demo")
    with pytest.raises(ValueError, match=r"demo: is a pipeline's; .* pretrain/cw-rgp-[0-9a-f]{16}"):
        weights_and_facts(tmp_path / "demo")
    manifest = stage.run_dir / "manifest.json"
    text = manifest.read_text("utf-8")
    manifest.unlink()
    with pytest.raises(ValueError, match=r"this stage is not finished \(no manifest.json\)"):
        weights_and_facts(stage.run_dir)
    manifest.write_text(text, encoding="utf-8")
    (stage.run_dir / "backbone.pth").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"backbone.pth: is not what manifest.json .*sha256"):
        weights_and_facts(stage.run_dir / "backbone.pth")
    (stage.run_dir / "backbone.pth").unlink()
    with pytest.raises(ValueError, match="no backbone comes of this stage; wanted the folder of"):
        weights_and_facts(stage.run_dir)
    folder = by_hand(tmp_path / "run")
    (folder / "backbone.pth").unlink()
    with pytest.raises(ValueError, match=r"this pretraining is not finished \(no backbone.pth\)"):
        weights_and_facts(folder)


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '{"config": 3}', "[" * 100_000, '"\\ud800"'])
@pytest.mark.parametrize("name", ["config.json", "report/results.json", "report/made_from.json"])
def test_damaged_files_are_facts_that_are_not_known(tmp_path: Path, name: str, text: str) -> None:
    stage = pretrained(tmp_path / "demo")
    reported(stage)
    place = stage.root / name if name.startswith("report") else stage.run_dir / name
    place.write_text(text, encoding="utf-8")
    _, facts = weights_and_facts(stage.run_dir)
    assert facts.of_run and (not facts.recipe or not facts.summary)
