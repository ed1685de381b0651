"""Files that tests write, and folders that look as if they were old."""

import os
import time
from pathlib import Path


def write(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def age(root: Path) -> None:
    """Make everything below `root` look as if it had been there for an hour."""
    before = time.time() - 3600
    for path in [root, *root.rglob("*")]:
        os.utime(path, (before, before))
