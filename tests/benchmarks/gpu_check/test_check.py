"""The runner of the GPU check: limits, failures and summary. No part of it runs here."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import check, commands, smoke
from benchmarks.gpu_check.check import Part, lines_of, main, summary
from benchmarks.gpu_check.commands import (
    GPU_MARKED,
    NUMERIC_TESTS,
    PYTEST,
    command,
    numeric_tests,
)
from benchmarks.gpu_check.part import PARTS, part_function
from benchmarks.gpu_check.part import main as run_part
from benchmarks.gpu_check.results import ROOT, Results
from benchmarks.gpu_check.timing import TimedViews

RIGHT = "import json, sys; open(sys.argv[2], 'w').write(json.dumps({'ms': 1.5})); print('said')"
WRONG = "import sys; sys.exit(3)"
# a child in a session of its own that writes its number, ignores SIGTERM, and outlives its parent
ENDLESS = """
import json, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
words = [sys.executable, "-c", deaf + "; time.sleep(99)"]
child = subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[2], "w").write(json.dumps({"child": child.pid}))
time.sleep(99)
"""


def part(name: str, code: str, limit: float = 60.0) -> Part:
    return Part(name, limit, program=("-c", code))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(check, "WORK", tmp_path / "work")
    monkeypatch.setattr(check, "OUT", tmp_path / "out")
    monkeypatch.setattr(check, "TINY", True)
    return tmp_path


def results_in(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())
    return content


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_failed_part_is_told_and_the_others_run(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "BEGIN", check.time.time())
    groups = ((part("first", RIGHT), part("second", WRONG)), (part("third", RIGHT),))
    monkeypatch.setattr(check, "GROUPS", groups)
    assert main([]) == 1
    statuses = {name: row["status"] for name, row in results_in(folders).items()}
    assert statuses == {"first": "ok", "second": "exit 3", "third": "ok"}
    assert results_in(folders)["third"]["result"] == {"ms": 1.5}
    assert "== second: exit 3" in (folders / "out" / "summary.txt").read_text()
    assert "== second: exit 3" in capsys.readouterr().out
    with tarfile.open(folders / "out" / "logs.tar.gz") as archive:
        assert {"first.log", "second.log", "third.json"} <= set(archive.getnames())


def test_without_a_gpu_it_says_so(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "TINY", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "gpu-check: torch sees no GPU; GPU_CHECK_TINY=1 makes a dry run"
    assert not (folders / "out").exists()


def test_what_is_printed_is_a_page(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "BEGIN", check.time.time())
    content = {str(number): [{"a": "b" * 299}, number] for number in range(99)}
    many = f"import sys; open(sys.argv[2], 'w').write({json.dumps(content)!r})"
    monkeypatch.setattr(check, "GROUPS", ((part("long", many),),))
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "1 of 1 parts right" and len(lines) == 1 + 1 + 1 + 5 + 1
    assert max(map(len, lines[:-1])) == 160
    assert len((folders / "out" / "summary.txt").read_text().splitlines()) == 62


def test_chosen_parts_run_after_the_first(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "BEGIN", check.time.time())
    groups = ((part("data", RIGHT), part("wrong", WRONG)), (part("chosen", RIGHT),))
    monkeypatch.setattr(check, "GROUPS", groups)
    assert main(["--parts", "chosen", "--serial"]) == 0
    assert list(results_in(folders)) == ["data", "chosen"]
    with pytest.raises(SystemExit):
        main(["--parts", "unknown"])


def test_a_part_at_its_limit_is_stopped_with_its_children(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "GRACE", 0.2)
    for name in ("work", "out"):
        (folders / name).mkdir()
    endless = part("endless", ENDLESS)
    endless.start(600.0)
    while not (endless.result.exists() and endless.result.read_text()):
        check.time.sleep(0.02)
    child = json.loads(endless.result.read_text())["child"]
    assert not endless.is_over() and is_running(child) and os.getpgid(child) == child
    endless.limit = 0.0
    assert endless.is_over() and endless.status == "stopped at 0 s"
    deadline = check.time.monotonic() + 60
    while is_running(child):  # a killed process takes a moment to be gone
        assert check.time.monotonic() < deadline
        check.time.sleep(0.02)
    assert endless.pids() == []
    check.write([endless])
    assert results_in(folders)["endless"]["result"] == {"child": child}


def test_no_part_begins_without_time(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "GROUPS", ((part("late", RIGHT),),))
    assert main(["--minutes", "-100000000"]) == 1
    assert results_in(folders)["late"] == {"status": "no time left", "seconds": 0.0}


def test_nested_results_as_text() -> None:
    flat = {"ms": 1.23456, "ok": True}
    assert lines_of(flat) == ["ms 1.235, ok True"]
    assert lines_of({"a": flat, "b": "text", "c": [1, 2], "d": {}, "e": []}) == [
        "a: ms 1.235, ok True",
        "b text",
        "c: 1 | 2",
        "d: none",
        "e: none",
    ]
    assert lines_of({"outer": {"x": flat, "y": flat}}) == [
        "outer:",
        "  x: ms 1.235, ok True",
        "  y: ms 1.235, ok True",
    ]
    assert lines_of([flat, "text"]) == ["ms 1.235, ok True", "text"]
    entry = {"status": "ok", "seconds": 2.0, "result": {str(n): [flat] for n in range(99)}}
    assert len(summary({"long": entry}).splitlines()) == 62
    assert summary({"new": {"status": "ok", "seconds": 0.1}}) == (
        "1 of 1 parts right\n== new: ok, 0.1 s\n  none\n"
    )
    late = {"new": {"status": "ok", "seconds": 1}, "old": {"status": "exit 1", "seconds": 2}}
    assert summary(late).startswith("1 of 2 parts right; not: old\n")


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_its_function(name: str) -> None:
    assert part_function(name).__doc__


def test_the_runner_knows_the_parts() -> None:
    assert [p.name for group in check.GROUPS for p in group] == [
        *("data", "env", "tests", "smoke", "digits", "pipeline", "amp"),
        *("whitening", "step", "loader", "detection", "compile"),
    ]
    assert {p.name for group in check.GROUPS for p in group} == set(PARTS)


def test_the_paths_it_names_exist() -> None:
    for path in NUMERIC_TESTS:
        assert (ROOT / path).exists(), path


def test_a_failing_check_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad() -> dict[str, Any]:
        raise ValueError("too far")

    def good() -> dict[str, Any]:
        return {"off by": 0.0}

    monkeypatch.setattr(smoke, "CHECKS", (bad, good))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    assert run_part("smoke", tmp_path / "smoke.json") == 1
    content = json.loads((tmp_path / "smoke.json").read_text())
    assert content["failed"] == ["bad"] and content["good"] == {"off by": 0.0}
    assert content["bad"]["FAILED"] == "ValueError: too far"
    assert content["bad"]["at"].startswith("test_check.py:")


def test_a_case_that_fails_leaves_the_others(tmp_path: Path) -> None:
    results = Results(tmp_path / "step.json")
    results.measure("wrong", lambda: 1 / 0)
    results.measure("late", lambda: 1, seconds=1e9)
    results.measure("right", lambda: {"ms": 2.0})
    assert json.loads((tmp_path / "step.json").read_text()) == {
        "wrong": "FAILED ZeroDivisionError: division by zero",
        "late": "no time left",
        "right": {"ms": 2.0},
    }


def test_a_command_at_its_limit_keeps_what_it_said() -> None:
    code = "import time; print('said', flush=True); time.sleep(99)"
    done = command("-c", code, limit=2.0)
    assert (done.exit, done.out) == ("stopped", "said\n")
    assert command("-c", "import sys; sys.exit('bad')").row()["err"] == "bad"


def test_views_tell_the_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # asked and got in turns: steps of 10, 2 and 4 s, of which 1 s is the wait for the views
    times = iter([0.0, 1.0, 10.0, 11.0, 12.0, 13.0, 16.0, 17.0])
    monkeypatch.setattr("benchmarks.gpu_check.timing.time.perf_counter", lambda: next(times))
    views = TimedViews(iter([torch.zeros(1)] * 4))
    batches = views.batches(0, 0)
    for _ in range(4):  # as in the training loop, which asks for no batch after the last
        next(batches)
    assert views.step_ms(1) == 3000 and views.wait_ms(1) == 1000
    with pytest.raises(ValueError, match="the source has ended"):
        monkeypatch.undo()
        next(batches)


# none of them is on a GPU machine that has torch and .whl
WITHOUT_PEERS = """
import sys
sys.modules.update(dict.fromkeys(("lightly", "timm", "transformers", "huggingface_hub")))
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_its_tests_are_collected_without_what_others_are_compared_with() -> None:
    folder = GPU_MARKED[-1]
    assert all(path.startswith(folder + "/") for path in NUMERIC_TESTS)
    done = command("-c", WITHOUT_PEERS, "--collect-only", *GPU_MARKED[2:])
    assert done.exit == 0, done.out[-900:]
    assert "test_equals_the_published_loss_and_gradient_on_a_gpu" in done.out


def test_what_its_tests_did_not_pass_is_told_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.gpu\n"
        "def test_marked(): pytest.importorskip('no_such_package')\n"
        "def test_hidden(): assert os.environ.get('CUDA_VISIBLE_DEVICES') == ''\n"
        "def test_wrong(): assert 1 == 2\n"
    )
    options = (*PYTEST, "-c", "pyproject.toml", str(tmp_path))
    monkeypatch.setattr(commands, "GPU_MARKED", (*options, "-m", "gpu"))
    monkeypatch.setattr(commands, "NUMERIC", (*options, "-m", "not gpu"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(commands, "TINY", False)
    results = Results(tmp_path / "tests.json")
    numeric_tests(results)
    assert results["gpu-marked"]["exit"] == 0
    assert results["gpu-marked"]["said"].startswith("1 skipped, 2 deselected in")
    assert results["numeric"]["said"].startswith("1 failed, 1 passed, 1 deselected in")
    skipped, failed = results["not passed"]
    assert "test_some.py:3: could not import 'no_such_package'" in skipped
    assert failed.startswith("FAILED") and failed.endswith("test_wrong - assert 1 == 2")
    assert results["failed"] == ["numeric"]
