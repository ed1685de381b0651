"""Kinds of files, recognised by their bytes: torch's two, safetensors, and others by name."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

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


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def entry(shape: list[int], *offsets: int, dtype: str = "F32") -> dict[str, object]:
    return {"conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "long header": (safetensors({}, length=2**60), "header of 1152921504606846976 bytes"),
    "no json": (safetensors(b"{nonsense"), "header that is not JSON"),
    "deep json": (safetensors(b'{"a":' + b"[" * 100000), "not JSON"),
    "a list": (safetensors(b"{} "), "no tensors"),
    "beyond": (safetensors(entry([4], 0, 16), bytes(8)), "bytes 0-16 of 8"),
    "absurd shape": (safetensors(entry([2**50], 0, 8), bytes(8)), "bad safetensors entry"),
    "negative": (safetensors(entry([-1], 8, 4), bytes(8)), "sizes that are no counts"),
    "unknown dtype": (safetensors(entry([2], 0, 8, dtype="F3"), bytes(8)), "bad safetensors"),
    "not an entry": (safetensors({"a": 3}), "bad safetensors entry 'a'"),
}


@pytest.mark.parametrize("name", sorted(SAFETENSORS))
def test_bad_safetensors_are_refused(name: str, tmp_path: Path) -> None:
    raw, expected = SAFETENSORS[name]
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=expected):
        read_backbone(path)


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
        (b"<html>Not found</html>", "a text file that starts '<html>"),
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


def as_safetensors(state: State, path: Path, metadata: dict[str, str] | None = None) -> Path:
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    body = b""
    for name, value in state.items():
        dtype = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16"}[value.dtype]
        raw = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        place = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": place}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_safetensors_are_told_by_structure_not_by_the_first_byte(tmp_path: Path) -> None:
    state, source = resnet(), tmp_path / "file"
    for pad in range(256):
        as_safetensors({"a": torch.ones(1)}, source, {"n": "x" * pad})
        if source.read_bytes()[0] == 0x80:
            break
    assert source.read_bytes()[0] == 0x80
    with pytest.raises(ValueError, match="no ResNet among its 1 tensors"):
        read_backbone(source)
    strange: Any = {"backbone.conv1.weight": [1], "backbone.bn1.weight": {"a": 1}}
    assert read_backbone(as_safetensors(state, source, strange)).container == "safetensors"


def test_safetensors_with_aliases_and_half_precision(tmp_path: Path) -> None:
    state = resnet()
    kept = published.under("encoder_q.0.", state) | {"neck.mlp.0.weight": torch.ones(2)}
    aliases = {f"backbone.{name}": f"encoder_q.0.{name}" for name in state}
    source = as_safetensors(kept, tmp_path / "file", aliases)
    backbone = read_backbone(source)
    assert (backbone.container, backbone.encoder) == ("safetensors", "backbone.")
    assert all(torch.equal(backbone.state_dict[name], value) for name, value in state.items())
    half = {n: v if v.dtype == torch.int64 else v.bfloat16() for n, v in state.items()}
    backbone = read_backbone(as_safetensors(half, tmp_path / "half"))
    assert backbone.state_dict["conv1.weight"].dtype == torch.float32
    assert "stored as bfloat16" in backbone.notes[0]
