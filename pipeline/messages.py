"""Words of messages: text that a terminal can print, and the known name that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 12


def printable(text: object, instead: str = "?") -> str:
    """Return text without line breaks and what a terminal would obey."""
    return "".join(character if character.isprintable() else instead for character in str(text))


def one_line(text: object) -> str:
    """Return text on one line, white space and what cannot be printed made one space."""
    return " ".join(printable(text, " ").split())


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return `unknown task 'voz'; did you mean 'voc'? known: ...`, a long list cut short."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names[:MAX_LISTED]) or "none"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"unknown {what} {name!r};{hint} known: {listed}{more}"
