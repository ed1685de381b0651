"""An archive by HTTP: in one piece, in several, and what can be wrong with a server."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.downloads.download import download
from pipeline.downloads.published_sets import SETS, Archive
from tests.pipeline.archive_server import Server, checksum, serve

CONTENT = bytes(range(256)) * 40
NUM = len(CONTENT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/a.tar").write_bytes(CONTENT)
    with serve(tmp_path / "home") as server:
        yield server


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., list[float]]:
    """Return a call that fetches `a.tar` and returns the pauses it made."""

    def call(archive: Archive | None = None, name: str = "a.tar") -> list[float]:
        archive = archive or published(server)
        pauses: list[float] = []
        download(archive, f"{server.url}/{name}", tmp_path / "here", int, pauses.append)
        return pauses

    return call


def published(server: Server, num_bytes: int = NUM) -> Archive:
    return Archive("x/a.tar", num_bytes, checksum(server.folder / "a.tar", "sha256"))


def test_in_one_piece_and_then_not_at_all(server: Server, fetch, tmp_path: Path) -> None:
    shown: list[int] = []
    download(published(server), f"{server.url}/a.tar", tmp_path / "here", shown.append)
    assert (tmp_path / "here").read_bytes() == CONTENT and shown[-1] == NUM
    assert fetch() == [] and server.log == [("a.tar", 0, 200)]


@pytest.mark.parametrize("says_length", [True, False])
def test_what_breaks_off_goes_on_where_it_stopped(
    server: Server, fetch, tmp_path: Path, says_length: bool
) -> None:
    server.cuts, server.says_length = [1000, 1, 500], says_length
    fetch()
    assert (tmp_path / "here").read_bytes() == CONTENT
    assert server.log == [
        ("a.tar", 0, 200), ("a.tar", 1000, 206), ("a.tar", 1001, 206), ("a.tar", 1501, 206)
    ]  # fmt: skip


def test_a_server_without_ranges_begins_anew(server: Server, fetch, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "here").write_bytes(b"other bytes of before")
    server.cuts = [1000]
    fetch()
    assert (tmp_path / "here").read_bytes() == CONTENT
    assert [code for _, _, code in server.log] == [200, 200]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_server_that_brings_nothing_new_is_given_up(
    server: Server, fetch, tmp_path: Path, knows_ranges: bool
) -> None:
    server.knows_ranges = knows_ranges
    server.cuts = [1000, *[0] * 5] if knows_ranges else [1000] * 6
    with pytest.raises(ValueError, match=r"1,000 of 10,240 bytes are here.*--mirror URL") as error:
        fetch()
    assert "\n" not in str(error.value) and (tmp_path / "here").stat().st_size == 1000
    fetch()
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_later(server: Server, fetch) -> None:
    server.codes = [503, 429, 500]
    assert fetch() == [1, 2, 4]


@pytest.mark.parametrize(
    ("name", "num_bytes", "here", "words"),
    [
        ("b.tar", NUM, b"", "HTTP 404 Not Found; --mirror URL"),
        ("a.tar", NUM + 1, b"", "10,240 bytes from byte 0, wanted 10,241 from byte 0"),
        ("a.tar", NUM - 1, b"x", "10,240 bytes from byte 1, wanted 10,239 from byte 1"),
        ("a.tar", NUM + 9, bytes(NUM + 1), "HTTP 416 .*remove it"),
        ("a.tar", NUM, bytes(NUM + 1), "10,241 bytes, wanted 10,240: another file; move it away"),
    ],
)
def test_another_file_is_refused_and_nothing_is_lost(
    server: Server, fetch, name: str, num_bytes: int, here: bytes, words: str
) -> None:
    path = server.folder.with_name("here")
    path.write_bytes(here)
    with pytest.raises(ValueError, match=words):
        fetch(published(server, num_bytes), name)
    assert path.read_bytes() == here


def test_more_than_was_said_is_refused(server: Server, fetch, tmp_path: Path) -> None:
    server.says_length = False
    with pytest.raises(ValueError, match="more than 10,239 bytes"):
        fetch(published(server, NUM - 1))
    assert (tmp_path / "here").stat().st_size < NUM


def test_a_file_of_another_checksum_is_removed_and_fetched_anew(
    server: Server, fetch, tmp_path: Path
) -> None:
    (tmp_path / "here").write_bytes(b"not what the server has")
    with pytest.raises(ValueError, match=r"here: sha256 .*, wanted .*removed, run this again"):
        fetch()
    assert not (tmp_path / "here").exists()
    fetch()
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.tar"
        pauses: list[float] = []
        with pytest.raises(ValueError, match=r"0 of 5 bytes are here.*refused"):
            download(Archive("a", 5, "md5:0"), url, tmp_path / "here", int, pauses.append)
    assert pauses == [1, 2, 4, 8] and not (tmp_path / "here").exists()


def test_every_published_archive_can_be_checked() -> None:
    archives = [each for parts in SETS.values() for part in parts for each in part.archives]
    assert len({archive.name for archive in archives}) == len(archives) == 10
    for archive in archives:
        algorithm, _, digits = archive.checksum.partition(":")
        assert (algorithm, len(digits)) in (("sha256", 64), ("md5", 32)) and int(digits, 16)
        assert archive.url.startswith("http")
