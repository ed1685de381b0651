"""Safetensors: what the library refuses, headers without measure, shards and folders."""

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.transfer import published
from transfer.checkpoints.read import read_backbone
from transfer.checkpoints.safetensors_file import read_safetensors
from transfer.resnet import SPELT_OTHERWISE

resnet = published.resnet
State = dict[str, Tensor]


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def entry(shape: list[int], *offsets: int, dtype: str = "F32") -> dict[str, object]:
    return {"conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}


LONG = {"x" * 600: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
REFUSED: dict[str, tuple[bytes, str]] = {
    "cut off": (safetensors({}, length=2**60), "header of 1152921504606846976 bytes in a file"),
    "long header": (safetensors(b'{"a":' + b" " * 2**24), "wanted at most 16777216"),
    "no json": (safetensors(b"{nonsense"), "header that is not JSON"),
    "deep json": (safetensors(b'{"a":' + b"[" * 100000), "not JSON"),
    "a list": (safetensors(b"{} "), "no tensors"),
    "beyond": (safetensors(entry([4], 0, 16), bytes(8)), "library refuses it: .*not fully covered"),
    "absurd shape": (safetensors(entry([2**50], 0, 8), bytes(8)), "library refuses it: .*shape"),
    "negative": (safetensors(entry([-1], 8, 4), bytes(8)), "expected usize"),
    "unknown dtype": (safetensors(entry([2], 0, 8, dtype="F3"), bytes(8)), "unknown variant `F3`"),
    "not an entry": (safetensors({"a": 3}), "expected struct TensorInfo"),
    "strange metadata": (safetensors({"__metadata__": {"a": [1]}}), "expected a string"),
    "overlap": (safetensors({**entry([2], 0, 8), "a": entry([2], 0, 8)["conv1.weight"]}, bytes(8)),
                "library refuses it: .*offset"),
    "a gap": (safetensors(entry([1], 4, 8), bytes(8)), "library refuses it: .*offset"),
    "a long name": (safetensors(LONG, bytes(4)), "a name or shape without measure"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_bad_safetensors_are_refused(name: str, tmp_path: Path) -> None:
    raw, expected = REFUSED[name]
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=expected) as caught:
        read_backbone(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 400


def test_the_tensors_lie_in_the_file_as_the_library_reads_them(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2).half(), "c": torch.tensor(7)}
    save_file(state, tmp_path / "file")
    with (tmp_path / "file").open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    views, _ = read_safetensors(tmp_path / "file", data)
    assert views.keys() == state.keys()
    assert all(torch.equal(views[name].read(), value) for name, value in state.items())


def test_they_are_told_by_structure_not_by_the_first_byte(tmp_path: Path) -> None:
    source = tmp_path / "file"
    for pad in range(256):
        save_file({"a": torch.ones(1)}, source, {"n": "x" * pad})
        if source.read_bytes()[0] == 0x80:
            break
    assert source.read_bytes()[0] == 0x80
    with pytest.raises(ValueError, match=f"no ResNet among its 1 tensors, or {SPELT_OTHERWISE}"):
        read_backbone(source)


def test_the_metadata_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for metadata in ({"arch": "resnetblur50"}, {"config": '{"architecture": "resnet50d"}'}):
        save_file(resnet(), path, metadata=metadata)
        with pytest.raises(ValueError, match=r"metadata.*says that it is resnet"):
            read_backbone(path)
    save_file(resnet(), path, metadata={"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"})
    assert read_backbone(path).input["pixel_std"] == [127.5] * 3


def test_aliases_and_half_precision(tmp_path: Path) -> None:
    state = resnet()
    kept = published.under("encoder_q.0.", state) | {"neck.mlp.0.weight": torch.ones(2)}
    aliases = {f"backbone.{name}": f"encoder_q.0.{name}" for name in state}
    save_file(kept, tmp_path / "file", aliases)
    backbone = read_backbone(tmp_path / "file")
    assert (backbone.container, backbone.encoder) == ("safetensors", "backbone.")
    assert all(torch.equal(backbone.state_dict[name], value) for name, value in state.items())
    half = {n: v if v.dtype == torch.int64 else v.bfloat16() for n, v in state.items()}
    save_file(half, tmp_path / "half")
    backbone = read_backbone(tmp_path / "half")
    assert backbone.state_dict["conv1.weight"].dtype == torch.float32
    assert "stored as bfloat16" in backbone.notes[0]


def shards(state: State, folder: Path) -> Path:
    """Write a network as transformers does where it is large: two files and an index of them."""
    folder.mkdir()
    where = {name: f"model-0000{1 + index % 2}-of-00002.safetensors"
             for index, name in enumerate(state)}  # fmt: skip
    for file in set(where.values()):
        save_file({name: state[name] for name in state if where[name] == file}, folder / file)
    index: dict[str, Any] = {"metadata": {"total_size": 9}, "weight_map": where}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2), encoding="utf-8")
    return path


def test_shards_and_a_transformers_folder_are_read(tmp_path: Path) -> None:
    plain = resnet()
    state = published.hugging_face(plain)
    index = shards(state, tmp_path / "sharded")
    (tmp_path / "whole").mkdir()
    save_file(state, tmp_path / "whole" / "model.safetensors")
    (tmp_path / "whole" / "config.json").write_text('{"model_type": "resnet"}', encoding="utf-8")
    for path in (index, index.parent, tmp_path / "whole", tmp_path / "whole" / "model.safetensors"):
        backbone = read_backbone(path)
        assert backbone.arch == "resnet18" and backbone.container.startswith("safetensors")
        assert all(torch.equal(backbone.state_dict[name], value) for name, value in plain.items())


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    index = shards(published.hugging_face(resnet()), tmp_path / "sharded")
    first, second = sorted(index.parent.glob("*.safetensors"))
    with pytest.raises(ValueError, match=r"one shard of 2 \(give their index\): .*not a complete"):
        read_backbone(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"no shard of model\.safetensors\.index\.json"):
        read_backbone(index)
    second.unlink()
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors is not beside"):
        read_backbone(index)
    for shard in ("../x.safetensors", "/etc/passwd", ""):
        index.write_text(json.dumps({"weight_map": {"a": shard}}), encoding="utf-8")
        with pytest.raises(ValueError, match="is not beside it"):
            read_backbone(index)
    for wrong in ({}, {"a": 3}):
        index.write_text(json.dumps({"weight_map": wrong}), encoding="utf-8")
        with pytest.raises(ValueError, match="index of shards without names"):
            read_backbone(index)
