"""What a pipeline config may say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.plan.build import load_plan

CONFIG = Path("configs/tiny.yaml")


def edit(path: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    change(content)
    Path(path).write_text(yaml.safe_dump(content), encoding="utf-8")


def faults() -> list[str]:
    with pytest.raises(ValueError, match=r"^\S") as caught:
        load_plan(CONFIG, [])
    return str(caught.value).splitlines()


def test_names_must_be_unique_and_plain(project: Path) -> None:
    edit("configs/tiny.yaml", lambda content: content["backbones"][2].update(name="a"))
    assert "backbones: named twice: a" in faults()[0]
    edit("configs/tiny.yaml", lambda content: content["backbones"][2].update(name="../../etc"))
    assert "backbones.2.name" in faults()[0]
