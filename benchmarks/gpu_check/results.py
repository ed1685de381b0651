"""The results of a part on disk, the time it has left, and the settings of all parts."""

from __future__ import annotations

import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(os.environ.get("GPU_CHECK_WORK", Path(tempfile.gettempdir()) / "gpu-check-work"))
TINY = bool(os.environ.get("GPU_CHECK_TINY"))
END = float(os.environ.get("GPU_CHECK_PART_END", time.time() + 600))


class Results(dict[str, Any]):
    """What a part knows so far; it saves after each step, so that its limit costs one step."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def save(self) -> None:
        """Write all of it, whole at any moment."""
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self, default=str), encoding="utf-8")
        temporary.replace(self.path)

    def measure(self, title: str, measured: Callable[[], object], seconds: float = 0.0) -> None:
        """Enter what `measured` returns, or how it failed; nothing with less than `seconds` left.

        One case that fails, as of a size that the memory does not hold, leaves the others to come.
        """
        if seconds_left() < seconds:
            self[title] = "no time left"
            return
        try:
            self[title] = measured()
        except Exception as error:  # noqa: BLE001  (told in the results)
            traceback.print_exc()
            self[title] = f"FAILED {type(error).__name__}: {error}"[:300]
        print(title, self[title], flush=True)
        self.save()


def seconds_left() -> float:
    """Return the seconds until this part is ended."""
    return END - time.time()


@contextmanager
def seconds_into(entry: dict[str, Any], name: str) -> Iterator[None]:
    """Enter how many seconds the block takes."""
    begin = time.perf_counter()
    yield
    entry[name] = round(time.perf_counter() - begin, 3)
