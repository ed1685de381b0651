"""The config among words, and what an error of an import becomes; the scripts: tests/tools."""

import argparse
import signal
import sys
from pathlib import Path

import pytest

from pipeline.commands import command_line
from pipeline.commands.command_line import (
    add_config,
    config_among,
    leave_on_signals,
    need_packages,
    parsed,
)


@pytest.mark.parametrize(
    ("words", "config", "others"),
    [
        (["a.yaml", "seeds=[0]"], "a.yaml", ["seeds=[0]"]),
        (["seeds=[0]", "no/such.yml"], "no/such.yml", ["seeds=[0]"]),
        (["tasks.0.config=a.yaml"], None, ["tasks.0.config=a.yaml"]),
        (["lr=0.1.yaml"], "lr=0.1.yaml", []),
        (["plan", "x=1"], "plan", ["x=1"]),
        (["runs/a", "runs/b"], None, ["runs/a", "runs/b"]),
        (["a.yaml", "b.yaml"], "a.yaml", ["b.yaml"]),
        ([], None, []),
    ],
)
def test_the_first_word_that_names_a_file_is_the_config(
    words: list[str], config: str | None, others: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for name in ("lr=0.1.yaml", "plan"):
        (tmp_path / name).touch()
    assert config_among(words) == (None if config is None else Path(config), others)


def test_a_flag_counts_before_a_word() -> None:
    parser = argparse.ArgumentParser()
    add_config(parser, "pipeline")
    options = parsed(parser, ["a.yaml", "--config-file", "b.yaml"])
    assert (options.config_file, options.overrides) == (Path("b.yaml"), ["a.yaml"])
    assert parsed(parser, ["x=1"], optional=True).config_file is None
    with pytest.raises(SystemExit) as left:
        parsed(parser, ["x=1"])
    assert left.value.code == 2


@pytest.mark.parametrize("flag", ["--gpus", "--gpu"])
def test_changes_stand_behind_an_option_with_several_values_too(flag: str) -> None:
    parser = argparse.ArgumentParser()
    add_config(parser, "pipeline")
    parser.add_argument("--gpus", type=int, nargs="+")
    parser.add_argument("--rates", type=Path)
    words = ["--rates", "r=1.yaml", "--config-file", "a.yaml", "z=0", flag, "8", "x+=[a=1]", "64"]
    options = parsed(parser, [*words, "y=2"])
    assert (options.gpus, options.overrides) == ([8, 64], ["z=0", "x+=[a=1]", "y=2"])
    assert (options.rates, options.config_file) == (Path("r=1.yaml"), Path("a.yaml"))
    with pytest.raises(SystemExit):
        parsed(parser, ["a.yaml", "--gpus", "x=1"])  # none of its values is left


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "No module named 'torch' ("),
        (
            ImportError("cannot import\n x from 'yaml'", name="yaml.nodes"),
            "cannot import x from 'y",
        ),
        (ModuleNotFoundError("No module named 'pretrain.x'", name="pretrain.x"), None),
        (ImportError("of a loader of plugins"), None),
        (KeyError("a"), None),
    ],
)
def test_only_a_package_of_others_is_told_in_one_line(
    error: Exception, expected: str | None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["tools/probe.py"])
    need_packages()
    if expected is None:
        sys.excepthook(type(error), error, None)
        assert type(error).__name__ in capsys.readouterr().err
        return
    with pytest.raises(SystemExit) as left:
        sys.excepthook(type(error), error, None)
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.count("\n") == 1
    assert told.startswith(f"probe: {expected}") and "`make env`" in told


def test_an_older_python_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(command_line, "PYTHON", (99, 0))
    with pytest.raises(SystemExit) as left:
        need_packages()
    assert left.value.code == 2 and "wanted 3.11 or newer" in capsys.readouterr().err


def test_signals_end_a_script_as_an_exit_does_unless_they_are_ignored() -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        leave_on_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(signal.SIGTERM)
        assert left.value.code == 128 + signal.SIGTERM
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
