"""A copy of the code as it is at submission: people go on editing while jobs wait."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

from pipeline.stages.files import write_json
from pipeline.stages.provenance import CODE_STATE, code_state

FOLDERS = ("pipeline", "pretrain", "transfer", "tools", "configs")
SUFFIXES = (".py", ".yaml", ".yml", ".json", ".j2", ".toml", ".txt")


def take_snapshot(target: Path, source: Path | None = None) -> Path:
    """Copy the code below `target` under its content's digest, once; return the copy's folder."""
    source = source or Path(__file__).resolve().parents[3]
    files = code_files(source)
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    made = code_state()
    digest.update(repr(sorted(made.items())).encode())
    folder = target / digest.hexdigest()[:16]
    if folder.exists():
        return folder
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f".code-{secrets.token_hex(6)}"
    temporary.mkdir()
    try:
        for name, path in files.items():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)  # not its mode: that follows the umask
        write_json(temporary / CODE_STATE, made)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # somebody else was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def code_files(source: Path) -> dict[str, Path]:
    """Return the code and configs below a checkout by relative name, tracked by git or not."""
    paths = [path for top in FOLDERS for path in (source / top).rglob("*")]
    names = {path.relative_to(source).as_posix(): path for path in paths if path.is_file()}
    return {
        name: path
        for name, path in sorted(names.items())
        if path.suffix in SUFFIXES and not name.startswith(".") and "/." not in name
    }
