"""A config of another kind is told as what it is, with what takes it."""

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import get_args

import pytest

from pipeline.commands.simulate import Rates, read_rates
from pipeline.config.kinds import OF_PUBLISHED_ROWS, OF_RATES, TAKEN_BY, Kind, kind_of, load_config
from pipeline.config.references import BUILT_IN, References, load_references
from pipeline.plan.build import load_plan
from pipeline.plan.data_sets import chosen_sets
from tests.pipeline.conftest import write_yaml

ROOT = Path(__file__).resolve().parents[3] / "configs"
CONFIGS: dict[Kind, Path] = {
    "pipeline config": ROOT / "pipeline" / "quick.yaml",
    "pretraining config": ROOT / "pretrain" / "digits_w_mse.yaml",
    "probe config": ROOT / "pretrain" / "probe_digits.yaml",
    "detectron2 config": ROOT / "transfer" / "digits_mask_rcnn_coco.yaml",
    "file of rates": ROOT / "pipeline" / "rates_v100.yaml",
    "file of published rows": BUILT_IN,
}


def test_the_keys_are_those_of_the_models() -> None:
    assert set(get_args(Kind)) == TAKEN_BY.keys() == CONFIGS.keys()
    assert set(Rates.model_fields) >= OF_RATES
    assert set(References.model_fields) == OF_PUBLISHED_ROWS


@pytest.mark.parametrize("folder", ["pipeline", "pretrain", "transfer"])
def test_every_shipped_config_is_of_its_kind(folder: str) -> None:
    kinds: dict[str, Kind] = {"pretrain": "pretraining config", "transfer": "detectron2 config"}
    for path in sorted((ROOT / folder).rglob("*.yaml")):
        kind = kinds.get(folder, "pipeline config")
        kind = "probe config" if path.name.startswith("probe") else kind
        load_config(path, "file of rates" if path.name.startswith("rates") else kind)


@pytest.mark.parametrize(("given", "wanted"), [*permutations(CONFIGS, 2)])
def test_another_kind_is_one_line(given: Kind, wanted: Kind) -> None:
    with pytest.raises(ValueError, match="is a ") as caught:
        load_config(CONFIGS[given], wanted, ["tasks.0.name=x"])  # whatever is to be changed in it
    line = f"{CONFIGS[given]}: is a {given}, wanted a {wanted}; {TAKEN_BY[given]}"
    assert str(caught.value) == line


def test_a_config_with_misspelt_keys_is_of_the_kind_that_was_wanted() -> None:
    for kind in CONFIGS:
        assert kind_of({"a": 1, "b": 2}, kind) == kind == kind_of({}, kind)
    few = {"method": 0, "lossy": 0, "SEED": 0}
    assert kind_of(few, "pretraining config") == "pretraining config"


def in_a_pipeline(change: str) -> Callable[[Path], object]:
    return lambda path: load_plan(Path("configs/tiny.yaml"), [change.format(path.absolute())])


@pytest.mark.parametrize(
    ("wanted", "load"),
    [
        ("pipeline config", lambda path: load_plan(path, ["seeds=[0]"])),
        ("pipeline config", lambda path: chosen_sets([], path)),
        ("pretraining config", in_a_pipeline("backbones.1.pretrain={}")),
        ("detectron2 config", in_a_pipeline("tasks.0.config={}")),
        ("probe config", in_a_pipeline("probes=[{{name: p, config: {}}}]")),
        ("file of published rows", lambda path: load_references([path])),
        ("file of rates", read_rates),
    ],
)
def test_whatever_reads_a_config_says_so(
    project: Path, wanted: Kind, load: Callable[[Path], object]
) -> None:
    other: Kind = "probe config" if wanted != "probe config" else "pretraining config"
    write_yaml(Path("other.yaml"), load_config(CONFIGS[other], other))
    with pytest.raises(
        ValueError, match=f"other.yaml: is a {other}, wanted a {wanted}; "
    ) as caught:
        load(Path("other.yaml"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("num_boxes", [0, 1, 200_000])
def test_coco_annotations_are_no_config_of_whatever_size(tmp_path: Path, num_boxes: int) -> None:
    path = tmp_path / "train.json"
    content = {"images": [{"id": 1}], "annotations": [{"id": 1}] * num_boxes, "categories": []}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    with pytest.raises(ValueError, match="is a COCO annotation file") as caught:
        load_config(path, "pipeline config")
    assert str(caught.value) == (
        f"{path}: is a COCO annotation file, wanted a pipeline config; `annotations:` of a set "
        "under `datasets:` in a pipeline config takes it"
    )
    path.write_text('{"name": "x"}', encoding="utf-8")  # JSON is YAML
    assert load_config(path, "pipeline config") == {"name": "x"}
