"""The benchmark of command lines knows every script, pretends a finished plan, and prints."""

from pathlib import Path

import pytest

from benchmarks import command_lines
from benchmarks.command_lines import REFUSED, benchmark_commands, cpu_s, finished_plan
from pipeline.plan.build import load_plan
from pipeline.stages.run_folder import read_states

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def test_every_script_has_its_refusals() -> None:
    assert sorted(REFUSED) == sorted(path.name for path in TOOLS.glob("*.py"))


def test_every_stage_of_the_pretended_plan_is_done(tmp_path: Path) -> None:
    plan = load_plan(finished_plan(tmp_path, 3), [])
    assert [state.status for state in read_states(plan.stages).values()] == ["done"] * 3


def test_the_dearest_answer_of_a_script_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cpu_s(tmp_path, ("benchmark.py", "--help")) > 0
    cpu = {"--help": 0.25, "cheap": 0.5, "dear": 0.75, "status": 1.0}
    monkeypatch.setattr(command_lines, "REFUSED", {"one.py": (("cheap",), ("dear",))})
    monkeypatch.setattr(command_lines, "cpu_s", lambda folder, words: cpu[words[1]])
    benchmark_commands(stages=1, rounds=1)
    rows = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[0].isdigit()] == ["0.25", "0.75", "1.00"]
