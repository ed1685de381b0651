"""The words for a loss or gradient that is not finite, and where the step is kept."""

from __future__ import annotations

import math
from pathlib import Path

from pretrain.runtime.checkpoint import LAST, PREVIOUS

DIVERGENCE = "divergence.pth"


def dump_path(output_dir: Path, rank: int) -> Path:
    """Return the file in which a rank keeps the step that went wrong, as plain tensors."""
    return output_dir / (DIVERGENCE if rank == 0 else f"divergence.rank{rank}.pth")


def describe(
    losses: list[float], norms: list[float], step: int, total_steps: int, lr: float, folder: Path
) -> str:
    """Return one line: what, at which step and rate, what was kept, what to try."""
    finite = all(map(math.isfinite, losses))
    what, values = ("norm of the gradient", norms) if finite else ("loss", losses)
    ranks = [str(rank) for rank, value in enumerate(values) if not math.isfinite(value)]
    worst = values[int(ranks[0])]
    among = f" (processes {', '.join(ranks)} of {len(values)})" if len(values) > 1 else ""
    kept = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    good = f"last good state is {kept[0]}" if kept else "nothing was saved before"
    return (
        f"{what} became {worst}{among} at step {step} of {total_steps} with learning rate "
        f"{lr:.3g}; {good}; the batch, embeddings and weights are in "
        f"{dump_path(folder, 0)}; try a smaller learning rate or a longer warm-up"
    )
