"""The order of the suite and its shares among processes (`pytest -n`)."""

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests, and all that share the one SLURM, in one process; SLURM's go first."""
    items.sort(key=lambda item: not _needs_slurm(item))
    for item in items:
        group = "slurm" if _needs_slurm(item) else str(item.path.relative_to(HERE))
        item.add_marker(pytest.mark.xdist_group(group))


def _needs_slurm(item: pytest.Item) -> bool:
    return item.path.is_relative_to(HERE / "slurm")
