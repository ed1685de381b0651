"""Model cards as huggingface_hub reads them, and what they say of what is not known."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from pipeline.config.yaml_files import apply_overrides
from pretrain.config.pretrain import PretrainConfig
from tests.transfer.hub.runs import by_hand, converted, pretrained, reported
from tests.transfer.published import resnet
from transfer.checkpoints.families import UNLISTED
from transfer.checkpoints.read import Backbone
from transfer.export import export_backbone
from transfer.hub.card import Export, card
from transfer.hub.run_facts import RunFacts


def export(facts: RunFacts | None = None, format: str = "timm", **changes: Any) -> Export:
    backbone = Backbone(resnet(), "resnet18", "moco", method="moco")
    made = Export(backbone, format, facts or RunFacts(), "moco.pth", "0f" * 32, ("It is equal.",))
    return replace(made, **changes)


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def recipe_of(text: str) -> dict[str, Any]:
    content = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def of_pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    stage = pretrained(folder / "demo")
    reported(stage, converted(stage), remarks=("one pretraining alone",))
    export_backbone(stage.run_dir, folder / "out", "torchvision")
    return (folder / "out" / "README.md").read_text("utf-8")


def test_the_hub_reads_means_with_their_spread_and_seeds(of_pipeline: str) -> None:
    data = ModelCard(of_pipeline).data
    assert data.library_name == "torchvision" and data.license == "unknown"
    assert data.model_name == "test-resnet18" and "test" in data.tags
    results = {(one.dataset_name, one.metric_type): one for one in data.eval_results}
    box = results["Faster R-CNN on VOC", "bbox/AP"]
    assert (box.task_type, box.dataset_type, box.metric_value) == ("object-detection", "voc", 28.0)
    assert box.metric_name == "Box AP, mean over seeds (n=2)"
    assert box.metric_args == {"std": 1.4142, "n": 2, "seeds": [0, 1]}
    assert ("Mask R-CNN on COCO", "segm/AP") not in results  # it was no number
    probe = results["probe knn", "top1"]
    assert (probe.task_type, probe.metric_value) == ("image-classification", 71.25)
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n").data
    assert again.to_dict()["model-index"] == data.to_dict()["model-index"]


def test_the_card_holds_recipe_numbers_proof_and_what_makes_it_again(of_pipeline: str) -> None:
    made = section(of_pipeline, "How it was made")
    assert "- method: test" in made and "- processes: 2" in made
    assert "digits-unlabeled; images: 6000 files, digest 40ed7fe603cf7493" in made
    assert "- code: commit f64c78d3" in made and "torch 2.14.1" in made
    assert "backbone.pth, sha256 " in made and "secret-host" not in of_pipeline
    numbers = section(of_pipeline, "Numbers")
    assert "| Faster R-CNN on VOC | Box AP | 28.0 ± 1.4 | 0, 1 | +11.5 ± 0.7 |" in numbers
    assert "| Mask R-CNN on COCO | Box AP | 20.0 | 0 (1 of 2) | +10.0 |" in numbers
    assert "| knn | top1 | 71.2 |" in numbers and "- one pretraining alone" in numbers
    assert "| during the pretraining | probe/knn/top1 | 61.2 |" in numbers
    proof = section(of_pipeline, "Proof")
    assert "all 120 tensors are those of the source bit for bit" in proof
    assert "torchvision " in proof and "its own loader fills 120 entries of the FPN model" in proof
    commands = section(of_pipeline, "Reproduce")
    assert "python tools/run_pipeline.py run x.yaml\n" in commands
    assert "export_backbone.py RUNS/demo/pretrain/cw-rgp-SIGNATURE OUT --format torch" in commands
    assert "To be filled in" in section(of_pipeline, "Licence")


def test_the_recipe_in_the_card_is_a_config(of_pipeline: str, tmp_path: Path) -> None:
    content = apply_overrides(recipe_of(of_pipeline), ["data.root=images"])
    assert PretrainConfig.model_validate(content).loss.groups == 2
    export_backbone(by_hand(tmp_path / "run"), tmp_path / "out", "torchvision")
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    (command,) = [line for line in text.splitlines() if "tools/pretrain.py" in line]
    overrides = [word for word in command.split() if word.startswith("data.")]
    assert overrides == ["data.root=FOLDER", "data.name=images"]
    config = PretrainConfig.model_validate(apply_overrides(recipe_of(text), overrides))
    assert (config.method, config.max_steps) == ("test", 200)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    text = card(export(backbone=Backbone(resnet(), "resnet18", "unlisted", method="unlisted")))
    data = ModelCard(text).data
    assert data.to_dict()["model-index"] == [{"name": "moco-resnet18", "results": []}]
    assert "of a method that the checkpoint does not say" in text
    assert "recipe, data and seed of the pretraining: not known" in text
    assert "Detection: not measured here (a checkpoint alone says nothing of them)." in text
    assert "export_backbone.py moco.pth OUT --format timm" in section(text, "Reproduce")


EVIL = "`x`](javascript:1)<script>|\n---\n```\n# head\x85\u2028\ud800"


def test_text_of_a_run_is_shown_and_not_obeyed() -> None:
    row = {"backbone": "a", "task": EVIL, "metric": f"bbox/{EVIL}", "mean": 1.0, "std": "x", "n": 1}
    facts = RunFacts(
        name=EVIL, recipe={"seed": EVIL, "data": {"name": EVIL}}, data=(EVIL,), command=EVIL,
        summary=(row, row | {"mean": True}, row | {"mean": float("inf")}), remarks=(EVIL,),
        probes=({"probe": EVIL, "metrics": {EVIL: 3.0}}, {"probe": 3, "metrics": 4}),
        provenance={"code": {"commit": EVIL}, "packages": {EVIL: EVIL}}, baseline=EVIL,
    )  # fmt: skip
    text = card(export(facts)).encode("utf-8").decode()
    assert ModelCard(text).data.eval_results is not None
    body = text.partition("\n---\n")[2]
    shown = "".join(part for index, part in enumerate(body.split("```")) if index % 2 == 0)
    assert r"\<script\>\|" in shown and not re.search(r"(?<!\\)[<>]", shown)
    fences = [line for line in body.splitlines() if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0 and len(fences) == 6
    titles = [line for line in body.splitlines() if line.startswith("# ")]
    assert titles == ["# moco-resnet18"]


@pytest.mark.parametrize(
    "name", ["-rf", "a--b", "..", "a..b-$c", "été", "x" * 300, "模型", ".", "a b"]
)
def test_the_hub_takes_the_name_of_every_backbone(name: str) -> None:
    for changes in ({"facts": RunFacts(name=name)}, {"source": f"{name}.pth"}):
        backbone = Backbone(resnet(), "resnet18", "unlisted", method=UNLISTED)
        made = export(backbone=backbone, **changes)  # type: ignore[arg-type]
        validate_repo_id(f"ORG/{made.name}")
        assert made.name.isascii() and made.name.endswith("resnet18")
