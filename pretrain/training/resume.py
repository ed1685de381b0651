"""Everything a resumed run needs to go on bit by bit, as one checkpoint of all processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.runtime.checkpoint import LAST, drop_unfinished, newest_state, save_atomically
from pretrain.runtime.random_state import random_states, restore_random_states

if TYPE_CHECKING:
    from pretrain.training.trainer import Trainer

logger = logging.getLogger(__name__)


def save(trainer: Trainer, name: str = LAST) -> None:
    """Write the state of all ranks under `name`; every rank has to call this.

    The schedule has no state: it follows from the step.
    """
    own = {
        "random": random_states(),
        "loss_generator": trainer.generator.get_state(),
        "loss": {name: value.cpu() for name, value in trainer.loss.state_dict().items()},
    }
    ranks = trainer.processes.collect(own)
    if not trainer.processes.is_first:
        return
    content = {
        "step": trainer.step,
        "epoch": trainer.epoch,
        "step_in_epoch": trainer.step_in_epoch,
        "num_images": trainer.views.num_images,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "ranks": ranks,
        "config": trainer.config.identity(),
    }
    save_atomically(content, trainer.output_dir / name)


def resume(trainer: Trainer) -> None:
    """Take up the newest whole state in the output folder, if there is one.

    Raises:
        ValueError: it belongs to another config, number of images or number of processes, or
            all states are damaged.
    """
    found = _found_by_first(trainer)
    if found is None:
        return
    path, state = found
    _refuse_another_run(trainer, path, state)
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    own = state["ranks"][trainer.processes.rank]
    trainer.loss.load_state_dict(own["loss"])
    trainer.generator.set_state(own["loss_generator"])
    restore_random_states(own["random"])
    trainer.step = state["step"]
    if trainer.processes.is_first:
        logger.info("resumed at step %d of %d", trainer.step, trainer.length.total_steps)


def _found_by_first(trainer: Trainer) -> tuple[Path, dict[str, Any]] | None:
    """Return what rank 0 found, which has to reach all ranks: file system caches differ."""
    fault, found = None, None
    if trainer.processes.is_first:
        drop_unfinished(trainer.output_dir)
        try:
            found = newest_state(trainer.output_dir)
        except ValueError as error:
            fault = str(error)
    fault, found = trainer.processes.from_first((fault, found))
    if fault is not None:
        raise ValueError(fault)
    return found  # type: ignore[no-any-return]


def _refuse_another_run(trainer: Trainer, path: Path, state: dict[str, Any]) -> None:
    missing = {"config", "num_images", "ranks", "scaler"} - state.keys()
    missing |= {"loss"} - next(iter(state.get("ranks", [])), {}).keys()
    if missing:
        raise ValueError(
            f"{path}: has no {', '.join(sorted(missing))}; it was written by another version of "
            "this program; use another output folder"
        )
    if state["config"] != trainer.config.identity():
        keys = _differing(state["config"], trainer.config.identity())
        raise ValueError(
            f"{path}: was written by a run with another config ({', '.join(keys)}); "
            "use another output folder"
        )
    for what, stored, wanted in (
        ("images", state["num_images"], trainer.views.num_images),
        ("processes", len(state["ranks"]), trainer.processes.size),
    ):
        if stored != wanted:
            raise ValueError(
                f"{path}: was written by a run over {stored} {what}, this one has {wanted}; "
                f"give it {stored} {what} or use another output folder"
            )


def _differing(stored: Any, wanted: Any, place: str = "") -> list[str]:
    """Return the keys at which two configs differ."""
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        return [] if stored == wanted else [place]
    keys: list[str] = []
    for key in sorted(stored.keys() | wanted.keys()):
        keys += _differing(stored.get(key), wanted.get(key), f"{place}.{key}".lstrip("."))
    return keys
