"""The state that a run goes on from: read by the first process, sent to all, of this run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.runtime.checkpoint import drop_unfinished, newest_state
from pretrain.runtime.distributed import Processes

State = dict[str, Any]
LABELS = ("data.name", "method")  # which states of earlier versions hold too


def state_to_resume(
    folder: Path,
    processes: Processes,
    config: dict[str, Any],
    num_images: int,
    probe: dict[str, Any] | None = None,
) -> State | None:
    """Return the newest whole state in `folder`, on every rank; None without one.

    What rank 0 reads has to reach all ranks: file system caches differ. A `probe` may come later.

    Raises:
        ValueError: it belongs to another config, number of images or number of processes, its
            scores are of another probe, or all states are damaged.
    """
    fault, newest = None, None
    if processes.is_main:
        drop_unfinished(folder)
        try:
            newest = newest_state(folder)
        except ValueError as error:
            fault = str(error)
    fault, newest = processes.broadcast((fault, newest))
    if fault is not None:
        raise ValueError(fault)
    if newest is None:
        return None
    path: Path = newest[0]
    state: State = newest[1]
    missing = {"config", "num_images", "ranks", "scaler"} - state.keys()
    missing |= {"loss"} - next(iter(state.get("ranks", [])), {}).keys()
    if missing:
        raise ValueError(
            f"{path}: has no {', '.join(sorted(missing))}; it was written by another version of "
            "this program; use another output folder"
        )
    keys = [key for key in _differing(state["config"], config) if key not in LABELS]
    if keys:
        raise ValueError(
            f"{path}: was written by a run with another config ({', '.join(keys)}); "
            "use another output folder"
        )
    if probe and (before := state.get("probe")) and (others := _differing(before, probe)):
        raise ValueError(
            f"{path}: its k-NN scores are of another probe ({', '.join(others)} was otherwise); "
            "put that back, leave `probe` out, or use another output folder"
        )
    for what, stored, actual in (
        ("images", state["num_images"], num_images),
        ("processes", len(state["ranks"]), processes.size),
    ):
        if stored != actual:
            raise ValueError(
                f"{path}: was written by a run over {stored} {what}, this one has {actual}; "
                f"give it {stored} {what} or use another output folder"
            )
    return state


def _differing(stored: Any, actual: Any, place: str = "") -> list[str]:
    """Return the keys at which two configs differ."""
    if not (isinstance(stored, dict) and isinstance(actual, dict)):
        return [] if stored == actual else [place]
    keys: list[str] = []
    for key in sorted(stored.keys() | actual.keys()):
        keys += _differing(stored.get(key), actual.get(key), f"{place}.{key}".lstrip("."))
    return keys
