"""Resuming by hand: the settings asked for against those that a folder was trained with.

The training goes on in `transfer.detection.trainer` (`resume_or_load`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler

from transfer.config.data import DetectionData
from transfer.config.finetune import OWN_KEYS, PERIODS, WORKERS, Optimizer, flat
from transfer.detection.run import EFFECTIVE, INPUTS, input_digests
from transfer.files import one_line

FREE = ("OUTPUT_DIR", *WORKERS, *PERIODS)  # what changes no weight and no AP
# what may differ in the iterations ahead, so that a run can be made longer
AHEAD = ("SOLVER.MAX_ITER", "SOLVER.STEPS")
# what an evaluation must have as the training had it, and no shape of a weight shows
TRAINED_WITH = (
    "INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.ANCHOR_GENERATOR.", "MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
)  # fmt: skip
REMEDY = "a resumed run keeps its settings: ask for what it was, or train anew in another folder"


def resume_faults(
    cfg: CfgNode, folder: Path, optimizer: Optimizer, datasets: Mapping[str, DetectionData]
) -> list[str]:
    """Return a line for each setting and input that is not what the last checkpoint had.

    `cfg` is the effective config asked for. A longer run is the same experiment as long as no
    iteration that is done had another learning rate. Weights and sets are the same by content.
    """
    try:
        stored = flat(yaml.safe_load((folder / EFFECTIVE).read_text(encoding="utf-8")))
        stored_inputs = flat(yaml.safe_load((folder / INPUTS).read_text(encoding="utf-8")))
        num_done, trained_by = _last_checkpoint(folder)
    except (yaml.YAMLError, OSError, AttributeError) as error:
        reason = one_line(error)[:200]
        return [f"{folder / EFFECTIVE}: cannot be compared with the config ({reason}); {REMEDY}"]
    except ValueError as error:
        return [str(error)]
    asked = flat(yaml.safe_load(cfg.dump()))
    changed = {
        key: (repr(stored.get(key)), repr(asked.get(key)))
        for key in sorted(stored.keys() | asked.keys())
        if key not in FREE and stored.get(key, OWN_KEYS.get(key)) != asked.get(key)
    }
    changed.pop("SOLVER.OPTIMIZER", None)  # the checkpoint says which it was
    if trained_by != optimizer:
        changed["SOLVER.OPTIMIZER"] = repr(trained_by), repr(optimizer)
    inputs = input_digests(cfg, datasets)
    for key in stored_inputs.keys() & inputs.keys():
        changed.pop(key, None)
        if stored_inputs[key] != inputs[key]:
            was, now = (
                f"{repr(values[key]) + ' ' if key in values else ''}sha256 {digests[key][:16]}"
                for values, digests in ((stored, stored_inputs), (asked, inputs))
            )
            changed[key] = was, now
    if changed.keys() <= set(AHEAD) and changed:
        past = _changed_past(cfg, stored, num_done)
        return [
            f"{folder}: {key} was {was}, asked {now}, but {past}; {REMEDY}"
            for key, (was, now) in changed.items()
            if past
        ]
    return [
        f"{folder}: {key} was {was}, asked {now}; {REMEDY}"
        for key, (was, now) in changed.items()
        if key not in AHEAD
    ]


def evaluation_faults(cfg: CfgNode, folder: Path) -> list[str]:
    """Return a line for each setting under which a folder's weights would be other ones."""
    path = folder / EFFECTIVE
    stored = _stored(path)
    asked = flat(yaml.safe_load(cfg.dump()))
    return [
        f"{path}: the weights were trained with {key} {stored[key]!r}, asked {value!r}; evaluate "
        "them with what they were trained with"
        for key, value in asked.items()
        if key.startswith(TRAINED_WITH) and key in stored and stored[key] != value
    ]


def _stored(path: Path) -> dict[str, Any]:
    """Return the keys of an effective config; none of one that is not there or cannot be read."""
    try:
        return flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, OSError, ValueError, AttributeError):
        return {}


def weights_ignored(cfg: CfgNode, folder: Path) -> str | None:
    """Return that MODEL.WEIGHTS would be ignored: a checkpoint of the folder is evaluated."""
    path = folder / EFFECTIVE
    if not cfg.MODEL.WEIGHTS or not path.is_file():
        return None
    stored = _stored(path).get("MODEL.WEIGHTS")
    if stored and Path(str(stored)).resolve() == Path(cfg.MODEL.WEIGHTS).resolve():
        return None
    return (
        f"{folder}: --eval-only --resume evaluates its last checkpoint, but MODEL.WEIGHTS is "
        f"{cfg.MODEL.WEIGHTS}; leave out one of --resume and MODEL.WEIGHTS"
    )


def _last_checkpoint(folder: Path) -> tuple[int, Optimizer]:
    """Return how many iterations the last checkpoint has behind it, and with which optimiser.

    Raises:
        ValueError: it is no checkpoint of a run.
    """
    path = folder / (folder / "last_checkpoint").read_text(encoding="utf-8").strip()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if "optimizer" not in content:
            raise ValueError("its optimiser's state was removed, as `run_pipeline.py clean` does")
        is_adamw = "betas" in content["optimizer"]["param_groups"][0]
        return int(content["iteration"]) + 1, "adamw" if is_adamw else "sgd"
    except Exception as error:  # noqa: BLE001  (damage shows in many types)
        why = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{path}: not a checkpoint to resume from ({why}); {REMEDY}") from None


def _changed_past(cfg: CfgNode, stored: dict[str, Any], num_done: int) -> str | None:
    """Return why the run asked for is not a longer or shorter one of the same experiment."""
    if num_done > cfg.SOLVER.MAX_ITER:
        return f"{num_done} iterations are done"
    before = cfg.clone()
    before.defrost()
    try:
        before.merge_from_list([part for key in AHEAD for part in (key, stored.get(key))])
        was, now = (_learning_rates(config, num_done) for config in (before, cfg))
    except (ValueError, TypeError, AssertionError, ZeroDivisionError) as error:
        return f"the learning rate of what is done is not known ({one_line(error)[:200]})"
    for iteration, (one, other) in enumerate(zip(was, now, strict=True)):
        if not math.isclose(one, other, rel_tol=1e-6):
            rates = f"had learning rate {one:g} and would have {other:g}"
            return f"iteration {iteration} of the {num_done} that are done {rates}"
    return None


def _learning_rates(cfg: CfgNode, count: int) -> list[float]:
    """Return the learning rates of the first iterations."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler, rates = build_lr_scheduler(cfg, optimizer), []
    for _ in range(count):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates
