"""The order of the suite and its shares among processes (`pytest -n`)."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).resolve().parent
FIRST = (HERE / "slurm", HERE / "docs" / "test_docs.py")
SLURM = "tests/slurm/"
LONGEST = "tests/slurm/test_survival.py"  # it takes as long as SLURM's other files together


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what takes longest: the tests on SLURM, then the documents' commands."""
    items.sort(key=lambda item: [not item.path.is_relative_to(place) for place in FIRST])


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going through modules and tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return a process for each core and two for SLURM's tests, which mostly wait."""
    return len(os.sched_getaffinity(0)) + 2


class _ByFile(LoadScopeScheduling):
    """Keeps a file's tests in one process, and SLURM's in two, each of which starts one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SLURM if file.startswith(SLURM) and file != LONGEST else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Callable[..., None]) -> _ByFile:
    """Return who shares the tests out; xdist's own groups do nothing under pytest 9."""
    return _ByFile(config, log)
