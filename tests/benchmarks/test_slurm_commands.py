"""The large plan of the benchmark of SLURM's commands: grouping it does not grow as its square."""

import sys

import pytest

from benchmarks.slurm_commands import pretended_plan
from pipeline.executors.slurm.arrays import plan_groups
from pipeline.stages import stage


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in list(stage.STAGE_KINDS.items()):
        monkeypatch.setitem(stage.STAGE_KINDS, name, kind)


def test_grouping_does_not_grow_as_the_square(kinds) -> None:
    """Lines of arrays.py that run for 20 and for 40 backbones, counted, not timed."""
    counts = []
    for num_stages in (220, 440):
        plan = pretended_plan(num_stages)
        lines = 0

        def traced(frame, event, argument):
            nonlocal lines
            lines += frame.f_code.co_filename.endswith("arrays.py")
            return traced

        sys.settrace(traced)
        try:
            groups = plan_groups(plan)
        finally:
            sys.settrace(None)
        counts.append(lines)
        assert len(groups) == num_stages // 11 + 3
    assert counts[1] < 2.2 * counts[0]
