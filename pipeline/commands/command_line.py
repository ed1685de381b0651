"""Command lines of `tools/`: the config among their words, and packages that are not installed.

Only the standard library is imported, so that this can be where nothing else is.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

CODE = ("pipeline", "pretrain", "transfer", "benchmarks", "examples")
PYTHON = (3, 11)
REMEDY = (
    "`make env` makes the environment, once, and `. .venv/bin/activate` enters it, in every new "
    "terminal"
)


def need_packages() -> None:
    """From here on an error of an import ends the program in one line that says what to do.

    All scripts begin with this, since most import their packages before anything else. What is
    imported later, for one command alone, is told in the same words.
    """
    sys.excepthook = _tell
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else it reads all distributions
    if sys.version_info < PYTHON:
        _leave(f"Python {sys.version_info[0]}.{sys.version_info[1]}, wanted 3.11 or newer")


def _tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print an error that nobody caught: a package's in one line, a bug of ours as Python does."""
    leave_if_missing(error)
    sys.__excepthook__(kind, error, traceback)


def leave_if_missing(error: BaseException) -> None:
    """End the program with exit code 2 if an error is that of a package which is not installed."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if name and name not in CODE:
        _leave(" ".join(str(error).split()))


def answered(script: str, place: object, error: BaseException) -> int:
    """Print in one line why a script that reads an untrusted file ends; return its exit code.

    What is no refusal of ours is a gap that the file at `place` found, and is told as unexpected.
    """
    leave_if_missing(error)
    from pipeline.stages.files import one_line  # noqa: PLC0415  (needs packages)

    is_refusal = isinstance(error, ValueError | OSError)
    line, code = one_line(error if is_refusal else f"{place}: unexpected {error!r}"), 2
    if isinstance(error, KeyboardInterrupt):
        line, code = "stopped by Ctrl-C", 130
    print(f"{script}: {line[:370]}", file=sys.stderr)
    return code


def _leave(why: str) -> None:
    script = Path(sys.argv[0]).stem
    print(f"{script}: {why} (by {sys.executable}); {REMEDY}", file=sys.stderr, flush=True)
    sys.exit(2)


def leave_on_signals() -> None:
    """From here on SIGTERM and SIGHUP end the program as an exit does: what was begun is cleared.

    One that is ignored, as under nohup, stays so.
    """
    for one in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) != signal.SIG_IGN:
            signal.signal(one, lambda number, _: sys.exit(128 + number))


def add_config(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the config and the changes to it to a command line."""
    parser.add_argument(
        "--config-file", type=Path, help=f"{kind} config (YAML); the flag is optional"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to the config, such as seed=1; key+=value adds to a list",
    )


def parsed(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, *, optional: bool = False
) -> argparse.Namespace:
    """Return the options; a config is taken without its flag, where it stands first of the words.

    With `report` a JSON file is a run's results and stays among the words. Changes may stand behind
    an option with several values, none of which has a `=`.

    Ends the program with exit code 2, as argparse does, without a config that is not `optional`.
    """
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_intermixed_args(_before_several(parser, words))
    if options.config_file is None:
        is_report = vars(options).get("command") == "report"
        among = config_among(options.overrides, but=".json" if is_report else None)
        options.config_file, options.overrides = among
    if options.config_file is None and not optional:
        parser.error("the config is missing: --config-file FILE.yaml")
    return options


def _before_several(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Return the words, those with `=` before the option with several values that takes them."""
    several = [name for each in parser._actions if each.nargs in ("+", "*")
               for name in each.option_strings]  # fmt: skip
    ordered: list[str] = []
    place = None  # that of the option whose values are being read
    for word in words:
        if word.startswith("-"):
            is_several = any(name.startswith(word.partition("=")[0]) for name in several)
            place = len(ordered) if is_several else None
        if place is not None and "=" in word and not word.startswith("-"):
            ordered.insert(place, word)
            place += 1
        else:
            ordered.append(word)
    return ordered


def config_among(words: Sequence[str], but: str | None = None) -> tuple[Path | None, list[str]]:
    """Return the config among words, the first that is the name of a file, and the other words.

    A file whose name ends with `but` is none.

    Example:
        >>> config_among(["seeds=[0]", "tasks.0.config=a.yaml", "my/plan.yaml"])
        (PosixPath('my/plan.yaml'), ['seeds=[0]', 'tasks.0.config=a.yaml'])
    """
    for place, word in enumerate(words):
        is_yaml = word.endswith((".yaml", ".yml")) and "=" not in word
        if is_yaml or (Path(word).is_file() and not (but and word.endswith(but))):
            return Path(word), [*words[:place], *words[place + 1 :]]
    return None, list(words)
