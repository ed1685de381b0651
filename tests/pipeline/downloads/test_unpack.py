"""Archives of strangers: what is refused, and that nothing is written outside."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.downloads.unpack import unpack

TAR_TYPES = {
    "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE,
    "disk": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE,
}  # fmt: skip


def tar_of(path: Path, *entries: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o6755
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            tar.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, name: str, mode: int = 0, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        zipped.writestr(info, content)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_file(tmp_path: Path, suffix: str) -> None:
    archive = tar_of(tmp_path / f"a.{suffix}", ("./a/b", b"1"), ("a/c", b"22"), ("a/b", b"new"))
    unpack(archive, tmp_path / "to", 6)
    assert files(tmp_path / "to") == {"a/b": b"new", "a/c": b"22"}
    assert not (tmp_path / "to/a/b").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


def test_a_zip_file_of_folders_and_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("a/", b"")
        zipped.writestr("a/b", b"1")
    unpack(tmp_path / "a.zip", tmp_path / "to", 1)
    assert files(tmp_path / "to") == {"a/b": b"1"}


@pytest.mark.parametrize("name", ["../b", "a/../../b", "/tmp/b-of-a-tar"])
def test_nothing_outside(tmp_path: Path, name: str) -> None:
    for archive in (tar_of(tmp_path / "a.tar", (name, b"x")), zip_of(tmp_path / "a.zip", name)):
        with pytest.raises(ValueError, match="outside the folder; refused"):
            unpack(archive, tmp_path / "to", 100)
    assert files(tmp_path).keys() == {"a.tar", "a.zip"} and not Path(name).exists()


@pytest.mark.parametrize("kind", TAR_TYPES)
def test_no_links_and_no_devices_of_a_tar(tmp_path: Path, kind: str) -> None:
    archive = tar_of(tmp_path / "a.tar", ("a/b", b""), kind=TAR_TYPES[kind])
    with pytest.raises(ValueError, match="'a/b', a link or a device; refused"):
        unpack(archive, tmp_path / "to", 100)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_no_links_and_no_devices_of_a_zip(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ValueError, match="a link or a device; refused"):
        unpack(zip_of(tmp_path / "a.zip", "b", mode | 0o777), tmp_path / "to", 100)
    unpack(zip_of(tmp_path / "b.zip", "b", stat.S_IFREG | 0o777), tmp_path / "to", 100)
    assert files(tmp_path / "to") == {"b": b"x"}


def test_no_more_than_the_set_has(tmp_path: Path) -> None:
    zeros = bytes(5_000_000)
    for archive in (
        tar_of(tmp_path / "a.tar.gz", ("b", zeros)), zip_of(tmp_path / "a.zip", "b", 0, zeros)
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"holds more than 3.0 MB; refused"):
            unpack(archive, tmp_path / "to", 3_000_000)
        assert (tmp_path / "to/b").stat().st_size <= 3_000_000


def test_damage_is_one_line(tmp_path: Path) -> None:
    content = bytes(range(256)) * 99
    for name, build in (("a.tar.gz", tar_of), ("b.zip", None)):
        path = tmp_path / name
        if build:
            build(path, ("b", content))
        else:
            zip_of(path, "b", 0, content)
        whole = path.read_bytes()
        for damaged in (whole[:100], whole[:60] + b"?" * 40 + whole[100:], b"", b"<html>"):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"damaged .*; remove it") as error:
                unpack(path, tmp_path / "to", 10**6)
            assert "\n" not in str(error.value)
    path = zip_of(tmp_path / "c.zip", "b", 0, content)
    plain = path.read_bytes()
    directory = plain.index(b"PK\x01\x02")
    for place, value, said in ((6, 1, "encrypted"), (8, 99, "compression method")):
        whole = bytearray(plain)
        whole[place] = whole[directory + 2 + place] = value  # in the entry, and where it is listed
        path.write_bytes(whole)
        with pytest.raises(ValueError, match=rf"damaged .*{said}"):
            unpack(path, tmp_path / "to", 10**6)
