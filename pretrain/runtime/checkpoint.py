"""Training state on disk: whole or absent, checked, read back without executing anything."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from pretrain.runtime.files import whole_file

LAST = "last.pth"
PREVIOUS = "previous.pth"
DAMAGED = "damaged.pth"
BEYOND_ANY_REST = 2**20  # bytes: more than a disk has left that had no room for a record
logger = logging.getLogger(__name__)


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write with `torch.save` under a temporary name in the same folder, then rename.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    with whole_file(path) as temporary:
        try:
            with temporary.open("wb") as file:
                try:
                    torch.save(content, file)
                except RuntimeError:
                    # torch does not tell what its file said; a full disk says it again
                    file.write(bytes(BEYOND_ANY_REST))
                    raise
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))


def drop_unfinished(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.(pth|jsonl)\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def newest_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the last state in `folder` that is whole, and its file; None where there is none yet.

    A damaged or missing last file is named in a warning and the previous one taken; the damaged
    one is renamed, so that the next state does not push out the whole one for it.

    Raises:
        ValueError: there are states, and none is whole.
    """
    faults = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = load_state(path)
        except ValueError as error:
            faults.append(str(error))
            continue
        if faults:
            (folder / LAST).replace(folder / DAMAGED)
            logger.warning(
                "%s, now named %s; taking %s, which is whole", faults[0], DAMAGED, path.name
            )
        elif path.name == PREVIOUS:
            logger.warning("%s is missing; taking %s", folder / LAST, path.name)
        return path, state
    if faults:
        raise ValueError(f"{'; '.join(faults)}; remove them to start this run over")
    return None


def load_state(path: Path) -> dict[str, Any]:
    """Return the checkpoint at `path`, every byte of its records checked.

    Raises:
        ValueError: the file is damaged, or no checkpoint.
    """
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                if (broken := archive.testzip()) is not None:
                    raise ValueError(f"checksum of {broken} does not match")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # noqa: BLE001  (torch and zipfile raise many types for damage)
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"{path}: damaged checkpoint ({first_line})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, wanted a checkpoint")
    return content
