"""Words of messages: text that a terminal can print, and the known name that was meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

MAX_LINE, MAX_PLACE = 370, 150  # characters of a refusal, and of the path in it


def printable(text: object, instead: str = "?") -> str:
    """Return text from a file without line breaks and what a terminal would obey."""
    return "".join(character if character.isprintable() else instead for character in str(text))


def one_line(error: object) -> str:
    """Return a message on one line, white space and what cannot be printed made one space."""
    return " ".join(printable(error, " ").split())


def refusal(path: Path, reason: object) -> str:
    """Return why a file is refused, on one line that is no longer than a terminal shows at once."""
    place = printable(path)
    place = place if len(place) <= MAX_PLACE else f"...{place[-MAX_PLACE:]}"
    line = f"{place}: {printable(reason)}"
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return ` did you mean voc_2007_test?`, nothing where no known name is close."""
    close = get_close_matches(name, list(known), n=1)
    return "".join(f" did you mean {show(match)}?" for match in close)
