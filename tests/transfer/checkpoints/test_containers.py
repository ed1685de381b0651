"""Kinds of files, recognised by their bytes: torch's two, safetensors, and others by name."""

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.transfer import published
from tests.transfer.checkpoints.reading import State
from tests.transfer.opcodes import text, torch_legacy, torch_zip
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


def tar_of_2016(state: State, views: bool = False) -> bytes:
    """Return what torch before 0.1.10 wrote; with `views`, of parts of one storage."""
    names = [name for name in state if not name.endswith("tracked")]
    whole = torch.cat([state[name].reshape(-1) for name in names]).numpy().tobytes()
    first = 1000 if views else 0
    storages, tensors = pickle.dumps(1 if views else len(names), 2), pickle.dumps(len(names), 2)
    kind, tensor = b"ctorch\nFloatStorage\n", b"ctorch\nFloatTensor\n"
    parts, offset, main = [], 0, b"\x80\x02ccollections\nOrderedDict\n]\x85R("

    def stored(key: int, raw: bytes) -> bytes:
        head = b"\x80\x02M" + struct.pack("<H", key) + text(b"cpu") + kind + b"\x87."
        return head + struct.pack("<q", len(raw) // 4) + raw

    if views:
        storages += stored(999, whole)
    for index, name in enumerate(names):
        value, key = state[name], index + first
        if views:
            parts.append((key, 999, offset, value.numel()))
        else:
            storages += stored(key, value.numpy().tobytes())
        number = b"M" + struct.pack("<H", key)
        tensors += b"\x80\x02M" + struct.pack("<H", 5000 + index) + number + tensor + b"\x87."
        tensors += struct.pack("<q", value.ndim) + struct.pack(
            f"<{2 * value.ndim + 1}q", *value.shape, *value.stride(), 0)  # fmt: skip
        main += text(name.encode()) + text(str(5000 + index).encode()) + b"Q"
        offset += value.numel()
    storages += pickle.dumps(parts, 2)
    system = {"protocol_version": 1000, "little_endian": True, "type_sizes": {"short": 2}}
    records = {"sys_info": pickle.dumps(system, 2), "pickle": main + b"u.", "tensors": tensors,
               "storages": storages}  # fmt: skip
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, raw in records.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(raw), 1.5  # a time with a fraction makes a PAX header
            archive.addfile(info, io.BytesIO(raw))
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter")  # torch's reading
@pytest.mark.parametrize("views", [False, True])
def test_the_tar_of_torch_before_0_1_10_is_read(views: bool, tmp_path: Path) -> None:
    state, path = resnet(), tmp_path / "resnet18-5c106cde.pth"
    path.write_bytes(tar_of_2016(state, views))
    told = torch.load(path, weights_only=False)  # torch itself still reads it
    backbone = read_backbone(path)
    assert backbone.container == "torch tar" and backbone.arch == "resnet18"
    assert set(backbone.state_dict) == set(told) and len(told) == 100
    for name, value in told.items():
        assert torch.equal(backbone.state_dict[name], value)
        assert torch.equal(value, state[name])


def test_a_damaged_or_hostile_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = tar_of_2016({"weight": torch.ones(3)})
    for size in (*range(600, len(whole) - 10240, 97), len(whole) - 9000):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"safely: |no ResNet"):
            read_backbone(path)
    change = {
        b"FloatStorage\n": (b"WeirdStorage\n", "unknown kind"),
        b"ccollections\nOrderedDict\n": (b"cposix\nsystem_in_the_tar\n", "would run posix.system"),
        struct.pack("<q", 3): (struct.pack("<q", 2**40), "not all in the file|reaches byte|absurd"),
    }
    for old, (new, expected) in change.items():
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ValueError, match=expected):
            read_backbone(path)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    with pytest.raises(ValueError, match=r"a tar archive of model\.pth without torch's pickle"):
        read_backbone(path)
