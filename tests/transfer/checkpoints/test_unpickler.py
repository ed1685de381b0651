"""Pickles: what is taken apart, what stays a name, and what is answered here."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import logging
import operator
import pickle
import pickletools
import random
import re
import signal
import struct
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from omegaconf import OmegaConf
from torch import nn

from tests.transfer.opcodes import storage, text, torch_zip
from transfer.checkpoints.containers import read_content
from transfer.checkpoints.read import read_backbone
from transfer.checkpoints.state_dicts import Instance, as_tensor
from transfer.checkpoints.unpickler import SafeUnpickler


def test_unknown_classes_stay_names_and_are_listed(tmp_path: Path) -> None:
    body = (b"\x80\x02}(" + text(b"a") + b"c__main__\nexclude_bias_and_norm\n" + text(b"b")
            + b"cmmengine.logging\nHistoryBuffer\n)\x81}" + text(b"max") + b"K\x05sb"
            + b"cpytorch_lightning.callbacks\nModelCheckpoint\nNu.")  # fmt: skip
    path = tmp_path / "file"
    path.write_bytes(body)
    content = read_content(path)
    assert content.unknown == {
        "__main__.exclude_bias_and_norm",
        "mmengine.logging.HistoryBuffer",
        "pytorch_lightning.callbacks.ModelCheckpoint",
    }
    assert content.value["b"].state == {"max": 5}
    made = b"cbuiltins\ngetattr\n(cevil\nmod\n" + text(b"Thing") + b"tR)\x81"
    path.write_bytes(b"\x80\x02(" + made + b"cnumpy\nsave\nl.")
    assert read_content(path).unknown == {"evil.mod", "evil.mod.Thing", "numpy.save"}


def test_a_pickle_that_unfolds_is_stopped(tmp_path: Path) -> None:
    many = b"(" + b"N" * 100_000 + b"lq\x00"
    copies = b"cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85R" * 2000
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02(" + many + copies + b"l.")
    new = b"cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85\x81" * 2000
    for unfolding in (copies, new):
        path.write_bytes(b"\x80\x02(" + many + unfolding + b"l.")
        with pytest.raises(ValueError, match="unfold to more than the file holds"):
            read_backbone(path)


@pytest.mark.parametrize("protocol", range(6))
def test_what_honest_checkpoints_hold_is_read(protocol: int, tmp_path: Path) -> None:
    values = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs/1")),
        "lr": np.float64(0.25),
        "step": np.int64(7),
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "hparams": OmegaConf.create({"a": [1, {"b": 2.5}], "c": "text"}),
        "lists": collections.defaultdict(list, {1: [2]}),
        "counts": collections.Counter("aab"),
        "queue": collections.deque([1, 2]),
        "weights": collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3).t()),
        "parameter": torch.nn.Parameter(torch.ones(3).bfloat16()),
        "random": [np.random.RandomState(0), np.random.default_rng(0)],
        "numbers": [decimal.Decimal(1), fractions.Fraction(1, 2), types.SimpleNamespace(a=1)],
        "date": datetime.datetime.now(datetime.UTC),
        "things": [{1, 2}, frozenset({3}), torch.Size([4]), torch.device("cpu"), torch.float16],
    }
    plain, wrapped, legacy = (tmp_path / name for name in ("plain", "zip", "legacy"))
    plain.write_bytes(pickle.dumps(values, protocol))
    torch.save(values, wrapped, pickle_protocol=max(protocol, 2))
    torch.save(values, legacy, pickle, max(protocol, 2), _use_new_zipfile_serialization=False)
    for path in (plain, wrapped, legacy):
        content = read_content(path)
        got = content.value
        assert not content.unknown
        assert (got["lr"], got["step"]) == (0.25, 7)
        for name in ("array", "fortran"):
            tensor = as_tensor(got[name])
            assert tensor is not None and np.array_equal(tensor.read().numpy(), values[name])
        assert torch.equal(got["weights"]["a"].read(), torch.arange(6.0).reshape(2, 3).t())
        assert torch.equal(got["parameter"].read(), torch.ones(3).bfloat16())
        assert got["lists"] == {1: [2]} and got["counts"] == {"a": 2, "b": 1}
        assert got["queue"] == [1, 2] and got["things"][:3] == [{1, 2}, frozenset({3}), (4,)]


HARMLESS = (  # they push, pop and remember, or end in one of the methods that are answered here
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 "
    "FLOAT BINFLOAT EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT EMPTY_SET PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET "
    "LONG_BINGET GLOBAL STACK_GLOBAL INST OBJ PERSID BINPERSID EXT1 EXT2 EXT4"
)
ANSWERED = (
    "REDUCE NEWOBJ NEWOBJ_EX BUILD DICT SETITEM SETITEMS ADDITEMS FROZENSET BYTEARRAY8 "
    "LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINUNICODE BINBYTES BINBYTES8 SHORT_BINBYTES"
)


def test_every_opcode_that_acts_or_takes_memory_is_answered_here() -> None:
    stdlib: Any = pickle._Unpickler  # type: ignore[attr-defined]
    code = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
    harmless = {code[name] for name in HARMLESS.split()}
    answered = {code[name] for name in ANSWERED.split()}
    assert SafeUnpickler.dispatch.keys() == harmless | answered
    for step in harmless:
        assert SafeUnpickler.dispatch[step] is stdlib.dispatch[step]
    for step in answered:
        assert SafeUnpickler.dispatch[step] is not stdlib.dispatch[step]
    for method in ("find_class", "persistent_load", "get_extension", "_instantiate"):
        assert hasattr(stdlib, method) and method in vars(SafeUnpickler)


class Colour(enum.Enum):
    RED = 1


class Settings(dict[str, Any]):
    """A dict with a state, as those of mmengine and yacs."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        self.__dict__["__immutable__"] = True


class Grown(list[int]):
    pass


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class Hook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(torch.relu)


class Counter:
    """Pickled as Python before 3.14 pickles a counter."""

    def __reduce__(self) -> tuple[Any, ...]:
        return itertools.count, (0,)


HARMLESS_VALUES: dict[str, Any] = {
    "partial": functools.partial(torch.optim.SGD, lr=0.1),
    "enum": Colour.RED,
    "pattern": re.compile("a+"),
    "logger": logging.getLogger("x"),
    "dict with a state": Settings(a=1),
    "list": Grown([1]),
    "set of tuples": {(1, 2), (3, 4)},
    "slots": Slots(),
    "error": ValueError("x"),
    "bound method": Slots().__init__,
    "random": random.Random(0),
    "module": Hook(),
    "function": torch.relu,
    "masked array": np.ma.array([1, 2], mask=[0, 1]),
    "objects": np.array([1, "a", None], dtype=object),
    "records": np.zeros(2, dtype=[("a", "f4")]),
    "date": np.datetime64("2020-01-01"),
    "counter": Counter(),
    "file's state": Path().stat(),
    "loader": functools.partial(np.load, mmap_mode="r"),
    "torch's loader": torch.load,
    "signal": signal.SIGTERM,
    "getter": operator.itemgetter(1),
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.ones(2, device="meta"),
    "flagged": torch._neg_view(torch.ones(2)),
    "float8": torch.ones(2).to(torch.float8_e4m3fn),
    "detectron2's config": get_cfg(),
}


@pytest.mark.parametrize("name", sorted(HARMLESS_VALUES))
def test_what_hangs_on_no_tensor_is_inert(name: str, tmp_path: Path) -> None:
    content = {"state_dict": {"weight": torch.ones(3)}, "beside": HARMLESS_VALUES[name]}
    path = tmp_path / "file"
    for protocol in (2, 5):
        torch.save(content, path, pickle_protocol=protocol)
        got = read_content(path)
        assert got.value["state_dict"]["weight"].read().tolist() == [1, 1, 1]
    content = {"weight": np.ones(3, "f4"), "beside": HARMLESS_VALUES[name]}
    path.write_bytes(pickle.dumps(content, 2 if name in ("slots", "bound method") else 0))
    assert as_tensor(read_content(path).value["weight"]) is not None
    if name in ("partial", "enum", "pattern", "logger"):
        assert got.unknown


def test_a_whole_model_is_named_whatever_it_holds(tmp_path: Path) -> None:
    torch.save(Hook(), tmp_path / "file")
    with pytest.raises(ValueError, match=r"holds a whole pickled model, an instance of .*Hook"):
        read_backbone(tmp_path / "file")


WITHOUT_TORCH = """
import sys
from pathlib import Path
from transfer.checkpoints.read import read_backbone
try:
    read_backbone(Path(sys.argv[1]))
except ValueError as error:
    print(error)
assert "torch" not in sys.modules and "detectron2" not in sys.modules
"""


def test_no_dtype_is_looked_up_in_torch(tmp_path: Path) -> None:
    made = b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage(4) + b"K\x00K\x01\x85K\x01\x85\x89N"
    raw = torch_zip(b"\x80\x02" + made + b"ctorch\nonnx\ntR.", {"data/0": bytes(16)})
    (tmp_path / "file").write_bytes(raw)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "file")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the dtype torch.onnx, which torch has not" in ran.stdout


SIZE = struct.pack("<Q", 2**40)


@pytest.mark.parametrize("claim", [b"\x96" + SIZE, b"\x8e" + SIZE, b"\x8d" + SIZE, b"\x95" + SIZE])
def test_claimed_sizes_take_no_memory(claim: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x04" + claim + b"abc.")
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged pickle"):
        read_content(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_constructors_of_constructors_do_not_recurse(tmp_path: Path) -> None:
    made = b"ccopyreg\n__newobj__\nq\x01(" + b"h\x01" * 100_000 + b"tR"
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02" + made + b".")
    tracemalloc.start()
    assert isinstance(read_content(path).value, Instance)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
