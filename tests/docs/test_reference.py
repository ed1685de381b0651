"""docs/reference.md tells of every key that the config models have."""

import re

from pydantic import BaseModel

from pipeline.config.json_schema import json_schema
from tests.docs.reference import MODELS, PAGE, anchor, page
from transfer.config.finetune import FinetuneConfig


def properties(model: type[BaseModel]) -> dict[str, str]:
    """The description of every property of a model and of all sections below it."""
    schema = json_schema(model)
    sections = {model.__name__: schema} | schema.get("$defs", {})
    return {
        f"{name}.{key}": value.get("description", "")
        for name, part in sections.items()
        for key, value in part.get("properties", {}).items()
    }


def test_every_key_has_a_description() -> None:
    models = [*(model for model, _ in MODELS.values()), FinetuneConfig]
    described = {key: text for model in models for key, text in properties(model).items()}
    assert len(described) > 100
    assert [key for key, text in described.items() if not text] == []


def test_the_page_is_what_the_models_say() -> None:
    assert PAGE.read_text("utf-8") == page(), "python -m tests.docs.reference writes it anew"


def test_links_lead_to_headings() -> None:
    text = page()
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    assert {"Loss moco-v2", "Loss, whitening", "Training probe"} <= {*titles}
    assert {*re.findall(r"\]\(#([^)]*)\)", text)} <= {anchor(title) for title in titles}
    assert [anchor(title) for title in ("Loss moco-v3", "Weights & Biases", "k-NN 5")] == [
        "loss-moco-v3", "weights--biases", "k-nn-5",
    ]  # fmt: skip
