"""A loss or gradient that is not finite: what is kept of it, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.runtime.checkpoint import LAST, PREVIOUS, save_atomically

DIVERGENCE = "divergence.pth"


class DivergedError(ArithmeticError):
    """The run cannot go on; its words are for the user."""


def dump_path(output_dir: Path, rank: int) -> Path:
    """Return where a rank keeps the step that went wrong."""
    return output_dir / (DIVERGENCE if rank == 0 else f"divergence.rank{rank}.pth")


def save_dump(content: dict[str, Any], output_dir: Path, rank: int) -> None:
    """Write the step that went wrong: tensors and plain values only, read by `torch.load`."""
    save_atomically(content, dump_path(output_dir, rank))


def describe(
    losses: list[float], norms: list[float], step: int, total_steps: int, lr: float, folder: Path
) -> str:
    """Return one line: what, at which step and rate, what was kept, what to try."""
    what, values = ("loss", losses) if any(map(_bad, losses)) else ("norm of the gradient", norms)
    ranks = [str(rank) for rank, value in enumerate(values) if _bad(value)]
    worst = next(value for value in values if _bad(value))
    among = f" (processes {', '.join(ranks)} of {len(values)})" if len(values) > 1 else ""
    kept = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    good = f"last good state is {kept[0]}" if kept else "nothing was saved before"
    return (
        f"{what} became {worst}{among} at step {step} of {total_steps} with learning rate "
        f"{lr:.3g}; {good}; the batch, embeddings and weights are in "
        f"{dump_path(folder, 0)}; try a smaller learning rate or a longer warm-up"
    )


def _bad(value: float) -> bool:
    return not abs(value) < float("inf")
