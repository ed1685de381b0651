"""The dicts of tensors in a file, whatever their keys."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.transfer.checkpoints.reading import read, same
from tests.transfer.published import resnet
from transfer.checkpoints.read import read_backbone
from transfer.checkpoints.state_dicts import (
    Instance,
    Reference,
    Storage,
    TensorView,
    as_tensor,
    find_state_dicts,
)


def test_names_as_bytes(tmp_path: Path) -> None:
    state, path = resnet(), tmp_path / "file"
    for legacy in (False, True):
        content = {b"state_dict": {b"module." + name.encode(): v for name, v in state.items()}}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert same(read_backbone(path).state_dict, state)
    arrays = {name.encode(): value.numpy() for name, value in state.items()}
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps(arrays, protocol))
        assert same(read_backbone(path).state_dict, state)
    with pytest.raises(ValueError, match=r"two tensors of the name conv1\.weight, one as bytes"):
        read(state | {b"conv1.weight": torch.ones(2)}, path)


def view(count: int, *, offset: int = 0, stride: int = 1) -> TensorView:
    raw = np.arange(6, dtype="f4").tobytes()
    return TensorView(Storage("0", "float32", 24, raw), "float32", offset, (count,), (stride,))


def test_a_view_reads_its_part_of_the_storage() -> None:
    assert view(2, offset=1, stride=3).read().tolist() == [1, 4]
    with pytest.raises(ValueError, match="reaches byte 28 of a storage of 24 bytes"):
        view(3, stride=3).read()


def test_paths_go_through_lists_and_instances() -> None:
    inner = {"weight": view(1), "epoch": 3}
    made = Instance(Reference("a", "Model"), items={"net": inner})
    content = {"runs": [{}, made], "again": inner, b"bias": view(2), 7: {"weight": view(1)}}
    assert {path: list(d) for path, d in find_state_dicts(content).items()} == {
        "": ["bias"], "runs.1.net": ["weight"]}  # fmt: skip


def test_parameters_as_torch_wrote_them_before_0_4() -> None:
    kind, inner = Reference("torch.nn.parameter", "Parameter"), view(2)
    for args, state in (
        ((inner,), (True, False, None)),
        ((), (inner, None, None, True, False)),
        ((), {"data": inner, "requires_grad": True}),
    ):
        assert as_tensor(Instance(kind, args, state)) is inner
    assert as_tensor(Instance(kind, (), None)) is None
    assert as_tensor(Instance(kind, (), Instance(kind))) is None
