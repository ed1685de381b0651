"""Whether a task's detectron2 config fits a backbone that is still to be pretrained.

Fine-tuning compares the two again, from the converted weights; asked here, a contradiction costs a
second instead of a pretraining.
"""

from __future__ import annotations

import ast
import math
from typing import Any

from pretrain.config.pretrain import PretrainConfig

# detectron2's values where a config is silent (detectron2/config/defaults.py)
DEFAULTS: dict[str, Any] = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.DEPTH": 50,
}


def disagreements(config: PretrainConfig, task: dict[str, Any]) -> list[str]:
    """Return one line for each key of the task that contradicts the backbone."""
    wanted = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [round(255 * value, 6) for value in config.augment.mean],
        "MODEL.PIXEL_STD": [round(255 * value, 6) for value in config.augment.std],
        "MODEL.RESNETS.DEPTH": int(config.model.arch.removeprefix("resnet")),
    }
    faults = []
    for key, value in wanted.items():
        got = _value(task, key)
        if not _equal(got, value):
            faults.append(f"{key} is {got}, wanted {value}")
    return faults


def stem_fault(config: PretrainConfig) -> str | None:
    """Return why no detectron2 task can take this backbone, or None."""
    if config.model.stem == "imagenet":
        return None
    return (
        f"model.stem is {config.model.stem} (a 3x3 first convolution of stride 1), but "
        "detectron2's ResNet has a 7x7 one of stride 2 and a max-pool; use model.stem imagenet, "
        "or pretrain and probe this backbone without tasks (tools/pretrain.py)"
    )


def _value(task: dict[str, Any], key: str) -> Any:
    node: Any = task
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return DEFAULTS[key]
        node = node[part]
    if isinstance(node, str) and node[:1] in "([":
        try:
            return ast.literal_eval(node)
        except (ValueError, SyntaxError):
            return node
    return node


def _equal(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        sequence = isinstance(got, list | tuple) and len(got) == len(wanted)
        return sequence and all(_equal(*pair) for pair in zip(got, wanted, strict=True))
    if isinstance(wanted, float) and isinstance(got, int | float):
        return math.isclose(got, wanted, rel_tol=1e-6, abs_tol=1e-6)
    return bool(got == wanted)
