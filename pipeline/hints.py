"""Words for a name that is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 12


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return `unknown task 'voz'; did you mean 'voc'? known: ...`, a long list cut short."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names[:MAX_LISTED]) or "none"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"unknown {what} {name!r};{hint} known: {listed}{more}"
