"""Configs of the small project, changed, and what its plan says of them."""

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
