"""Kinds of files, recognised by their bytes: torch's two, safetensors, and others by name."""

import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from tests.transfer import published
from tests.transfer.checkpoints.reading import State
from tests.transfer.opcodes import torch_legacy, torch_zip
from transfer.checkpoints.containers import read_content
from transfer.checkpoints.read import read_backbone

resnet = published.resnet


def test_the_kind_of_a_file_and_its_values(tmp_path: Path) -> None:
    content = {"epoch": 3, "state_dict": {"weight": torch.arange(6.0).view(2, 3)}}
    for new in (True, False):
        path = tmp_path / f"{new}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=new)
        read = read_content(path)
        assert read.value["epoch"] == 3 and read.unknown == set()
        assert tuple(read.value["state_dict"]["weight"].shape) == (2, 3)
    with pytest.raises(ValueError, match="no such checkpoint file"):
        read_content(tmp_path / "absent.pth")


def test_a_zip_bomb_and_overlapping_records_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(
        ValueError, match=r"compressed \(\d+ to \d+ bytes\), which torch.save never"
    ):
        read_backbone(bomb)
    raw = bytearray(torch_zip(pickle.dumps({}, 2), {"data/0": b"x" * 5000, "data/1": b"y"}))
    place = raw.rindex(b"archive/data/1") - 46
    raw[place + 20 : place + 28] = struct.pack("<II", 5000, 5000)
    bomb.write_bytes(raw)
    with pytest.raises(ValueError, match=r"overlap|beyond the end"):
        read_backbone(bomb)


def test_every_truncation_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for new in (True, False):
        torch.save({"a": torch.ones(300)}, path, _use_new_zipfile_serialization=new)
        whole = path.read_bytes()
        for size in range(0, len(whole), 37):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="can be read safely") as caught:
                read_backbone(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "is empty"),
        (b"<html>Not found</html>", "a web page or XML in place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\xff\xfe\x00\x01" * 9, "no known kind"),
        (torch_zip(b"\x80\x02]."), "holds a list"),
        (b"\x80\x02K\x05.", "pickle of the number 5"),
    ],
)
def test_other_files_are_named(raw: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=expected):
        read_backbone(path)


def test_keys_of_storages_that_cannot_be_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    end = len(pickle.dumps([], 2))
    path.write_bytes(torch_legacy(pickle.dumps({}, 2))[:-end] + pickle.dumps([[1]], 2))
    with pytest.raises(ValueError, match="a storage whose key is a list"):
        read_backbone(path)
