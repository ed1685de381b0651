"""An archive fetched over HTTP, which goes on where it stopped, and its checksum."""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from pipeline.downloads.published_sets import Archive
from pipeline.stages.files import one_line

BLOCK = 1 << 20
TIMEOUT_S = 60
MAX_IDLE = 5  # attempts in a row that bring nothing new
MAY_PASS = (408, 425, 429)  # of the answers that blame the client


class ConnectionLostError(Exception):
    """The server cannot be reached or stopped in the middle; it may be asked again."""


def download(
    archive: Archive,
    url: str,
    path: Path,
    progress: Callable[[int], object],
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Bring `path` to the archive's size and compare its checksum; what is there is gone on with.

    Args:
        archive: size and checksum.
        url: where it is.
        path: the file, which is a part of the archive until it has its size.
        progress: is told the bytes that are there.
        pause: waits so many seconds before another attempt.

    Raises:
        ValueError: it is not to be had there, or is another file; the text says what to do.
        OSError: it cannot be written.
    """
    longest = num_idle = 0
    while (size := path.stat().st_size if path.exists() else 0) != archive.num_bytes:
        if size > archive.num_bytes:
            text = f"{size:,} bytes, wanted {archive.num_bytes:,}"
            raise ValueError(f"{path}: {text}: another file; move it away and run this again")
        try:
            _go_on(archive, url, path, size, progress)
        except ConnectionLostError as error:
            size = path.stat().st_size if path.exists() else 0
            num_idle = 0 if size > longest else num_idle + 1
            longest = max(longest, size)
            if num_idle == MAX_IDLE:
                text = f"{size:,} of {archive.num_bytes:,} bytes are here, and no more come"
                remedy = "the same command goes on from here, --mirror URL takes another server"
                raise ValueError(f"{url}: {text} ({error}); {remedy}") from None
            pause(2.0 ** (num_idle - 1))
    _compare(archive, path)


def _go_on(
    archive: Archive, url: str, path: Path, size: int, progress: Callable[[int], object]
) -> None:
    """Append what the server has behind the first `size` bytes; begin anew where it cannot."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        error.close()
        text = f"{url}: HTTP {error.code} {one_line(error.reason)}"
        if error.code == 416:
            raise ValueError(f"{text}: not the file that {path} began; remove it") from None
        if 400 <= error.code < 500 and error.code not in MAY_PASS:
            raise ValueError(f"{text}; --mirror URL takes another server") from None
        raise ConnectionLostError(text) from None
    except (OSError, HTTPException) as error:
        raise ConnectionLostError(one_line(getattr(error, "reason", error))) from None
    with answer:
        start, total = _place(answer)
        if total not in (None, archive.num_bytes) or start not in (0, size):
            text = f"{total or 0:,} bytes from byte {start:,}"
            wanted = f"{archive.num_bytes:,} from byte {size:,}"
            raise ValueError(f"{url}: {text}, wanted {wanted}: the file there is another one")
        with path.open("ab" if start else "wb") as file:
            for block in _blocks(answer):
                start += len(block)
                if start > archive.num_bytes:
                    text = f"more than {archive.num_bytes:,} bytes"
                    raise ValueError(f"{url}: {text}: the file there is another one")
                file.write(block)
                file.flush()  # a kill loses what is not in the file
                progress(start)
    if start < archive.num_bytes:
        raise ConnectionLostError("the connection was closed")


def _place(answer: HTTPResponse) -> tuple[int, int | None]:
    """Return the byte at which an answer begins, and the size of the whole file where it says so.

    A server that knows no ranges sends the whole file.
    """
    if answer.status == 206:
        place, _, total = answer.headers.get("Content-Range", "").partition("/")
        start = place.removeprefix("bytes").strip().partition("-")[0]
        if not start.isdecimal():
            raise ConnectionLostError("a part of the file that does not say which")
        return int(start), int(total) if total.isdecimal() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _blocks(answer: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read(BLOCK)
        except (OSError, HTTPException) as error:
            raise ConnectionLostError(one_line(error) or type(error).__name__) from None
        if not block:
            return
        yield block


def _compare(archive: Archive, path: Path) -> None:
    """Remove a file of another checksum, from which nothing could go on.

    Raises:
        ValueError: it has another one.
    """
    algorithm, _, checksum = archive.checksum.partition(":")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    if digest.hexdigest() != checksum:
        path.unlink()
        text = f"{algorithm} {digest.hexdigest()}, wanted {checksum}"
        raise ValueError(
            f"{path}: {text}: damaged on the way, or another file; removed, run this again"
        )
