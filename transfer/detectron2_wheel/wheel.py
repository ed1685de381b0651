"""A pure-Python detectron2 wheel from the one source archive of v0.6 that PyPI has.

Standard library only: it must run before torch or detectron2 can be imported.
"""

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from transfer.detectron2_wheel.edits import ADDED, EDITS, EXTRAS, REQUIRES, Edit
from transfer.files import whole_file

PROJECT = "pb1-detectron2==0.6"
ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
VERSION = "0.6+pure.1"
WHEEL_NAME = f"detectron2-{VERSION}-py3-none-any.whl"
DIST_INFO = f"detectron2-{VERSION}.dist-info"
KEPT_SUFFIXES = (".py", ".yaml")
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
SUMMARY = (
    "detectron2 v0.6, its Python code without the C++ part, "
    "edited to run on current Python, numpy and Pillow"
)

Files = dict[str, bytes]


def read_archive(path: Path, sha256: str = ARCHIVE_SHA256) -> Files:
    """Return the package files and the licence of a source archive, by name in the wheel.

    The archive is read into memory and nothing of it is run.

    Raises:
        ValueError: wrong checksum, not a gzipped tar, a member that points out of the archive or
            is neither file nor folder, or no package inside.
        OSError: the archive cannot be read.
    """
    data = path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{path}: sha256 is {digest}, wanted {sha256}; fetch the archive again")
    files: Files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                name = _wheel_name(path, member)
                stream = archive.extractfile(member) if name else None
                if name and stream:
                    files[name] = stream.read()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: not a gzipped tar archive ({error})") from error
    if missing := [name for name in ("detectron2/__init__.py", "LICENSE") if name not in files]:
        raise ValueError(f"{path}: no {', '.join(missing)} in it; wanted the archive of {PROJECT}")
    return files


def _wheel_name(path: Path, member: tarfile.TarInfo) -> str | None:
    """Return where a member goes in the wheel, None where it does not go there."""
    parts = PurePosixPath(member.name).parts
    if member.name.startswith("/") or ".." in parts or "\\" in member.name:
        raise ValueError(f"{path}: member {member.name!r} points out of the archive; not used")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{path}: member {member.name!r} is a link or a device; not used")
    inside = parts[1:]
    if member.isdir() or not inside:
        return None
    kept = inside == ("LICENSE",) or (
        inside[0] == "detectron2" and inside[-1].endswith(KEPT_SUFFIXES)
    )
    return "/".join(inside) if kept else None


def apply_edits(
    files: Files, edits: Iterable[Edit] = EDITS, added: dict[str, str] | None = None
) -> Files:
    """Return the files after every edit, plus the added ones; changed files end with a notice.

    Raises:
        ValueError: a file to edit is missing, an edit matches more or less often than it states,
            or a file to add is already there.
    """
    added = ADDED if added is None else added
    result = dict(files)
    reasons: dict[str, list[str]] = {}
    for edit in edits:
        if edit.file not in result:
            raise ValueError(f"{edit.file}: not in the archive, wanted for an edit ({edit.why})")
        result[edit.file] = edit.apply(result[edit.file].decode("utf-8")).encode("utf-8")
        if edit.why not in reasons.setdefault(edit.file, []):
            reasons[edit.file].append(edit.why)
    for file, whys in reasons.items():  # the licence asks for a notice in changed files
        notice = f"\n# Changed from detectron2 v0.6: {'; '.join(whys)}.\n"
        result[file] = result[file].rstrip(b"\n") + b"\n" + notice.encode("utf-8")
    for file, text in added.items():
        if file in result:
            raise ValueError(f"{file}: already in the archive, and one to add")
        result[file] = text.encode("utf-8")
    return result


def edits_table(edits: Iterable[Edit] = EDITS) -> str:
    """Return one line per edit and per added file."""
    lines = [f"{edit.file} ({edit.places}x): {edit.why}" for edit in edits]
    return "\n".join([*lines, *(f"{file} (added): stands in for the C++ part" for file in ADDED)])


def metadata() -> str:
    """Return the METADATA text of the wheel."""
    head = [
        "Metadata-Version: 2.4",
        "Name: detectron2",
        f"Version: {VERSION}",
        f"Summary: {SUMMARY}",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.9",
        *(f"Requires-Dist: {name}>={version}" for name, version in REQUIRES.items()),
    ]
    for extra, packages in EXTRAS.items():
        head.append(f"Provides-Extra: {extra}")
        head += [f'Requires-Dist: {package}; extra == "{extra}"' for package in packages]
    body = (
        f"The Python files of detectron2 v0.6 (from the source archive of {PROJECT}, sha256 "
        f"{ARCHIVE_SHA256}) without its C++ part and without its projects.\n"
        "Not made by its authors. Changed:\n\n"
    )
    return "\n".join([*head, "", body + edits_table(), ""])


def write_wheel(files: Files, folder: Path) -> Path:
    """Write the wheel into `folder` and returns its path.

    The same files give the same bytes. The wheel appears whole or not at all.
    """
    contents = {name: data for name, data in files.items() if name != "LICENSE"}
    contents[f"{DIST_INFO}/METADATA"] = metadata().encode("utf-8")
    contents[f"{DIST_INFO}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: install_detectron2\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n"
    )
    contents[f"{DIST_INFO}/licenses/LICENSE"] = files["LICENSE"]
    record = f"{DIST_INFO}/RECORD"
    lines = ""
    for name, data in sorted(contents.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        lines += f"{name},sha256={digest},{len(data)}\n"
    contents[record] = f"{lines}{record},,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / WHEEL_NAME
    try:
        with whole_file(wheel) as partial, zipfile.ZipFile(partial, "w") as archive:
            # dist-info last, as wheels have it
            for name in sorted(contents, key=lambda name: (name.startswith(DIST_INFO), name)):
                info = zipfile.ZipInfo(name, ZIP_EPOCH)
                info.external_attr = 0o644 << 16
                info.create_system = 3  # the same bytes on every platform
                archive.writestr(info, contents[name], zipfile.ZIP_DEFLATED)
    except OSError as error:  # a full disk does not say where it is full
        raise OSError(error.errno, error.strerror, str(wheel)) from error
    return wheel


def build_wheel(archive: Path, folder: Path) -> Path:
    """Write the pure-Python wheel of a source archive into `folder` and returns its path.

    Raises:
        ValueError: as `read_archive` and `apply_edits`.
        OSError: the archive cannot be read or the wheel not written.
    """
    return write_wheel(apply_edits(read_archive(archive)), folder)
