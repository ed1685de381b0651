"""Untrusted files: nothing in them runs, and no size they claim is believed."""

import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.transfer.opcodes import RUN, SYSTEM, call, nested, tensor, text, torch_legacy, torch_zip
from transfer.checkpoints.read import read_backbone

PICKLES: dict[str, tuple[bytes, str]] = {
    "reduce": (call(SYSTEM), "this file would run posix.system"),
    "reduce os": (call(b"os\nsystem"), "this file would run os.system"),
    "eval": (call(b"__builtin__\neval"), "this file would run builtins.eval"),
    "exec": (call(b"builtins\nexec"), "this file would run builtins.exec"),
    "getattr of a name": (
        b"c__builtin__\ngetattr\n(cos\npath\n" + text(b"x") + b"tR(" + text(RUN) + b"tR",
        "this file would run os.path"),
    "dotted": (text(b"torch.storage") + text(b"os.system") + b"\x93", "would run torch.storage.os"),
    "dotted by getattr": (b"cbuiltins\ngetattr\n(ctorch\nhub\n" + text(b"load") + b"tR("
                          + text(RUN) + b"tR", "would run torch.hub.load"),
    "popen": (call(b"subprocess\nPopen"), "would run subprocess.Popen"),
    "new popen": (b"csubprocess\nPopen\n(" + text(RUN) + b"t\x81", "would run subprocess.Popen"),
    "torch.load": (call(b"torch\nload"), "this file would run torch.load"),
    "numpy.load": (call(b"numpy\nload"), "this file would run numpy.load"),
    "inst": (b"(" + text(RUN) + b"i" + SYSTEM + b"\n", "this file would run posix.system"),
    "inst without arguments": (b"(ios\nabort\n", "this file would run os.abort"),
    "obj": (b"(c" + SYSTEM + b"\n" + text(RUN) + b"o", "this file would run posix.system"),
    "stack global": (text(b"posix") + text(b"system") + b"\x93(" + text(RUN) + b"tR",
                     "this file would run posix.system"),
    "memo": (b"c" + SYSTEM + b"\nq\x000h\x00(" + text(RUN) + b"tR",
             "this file would run posix.system"),
    "in a dict": (b"}" + text(b"state_dict") + call(SYSTEM) + b"s",
                  "this file would run posix.system"),
    "in a key": (b"}" + call(SYSTEM) + b"Ns", "this file would run posix.system"),
    "as an argument": (call(b"collections\nOrderedDict", call(SYSTEM)),
                       "this file would run posix.system"),
    "build": (b"cargparse\nNamespace\n)\x81}" + text(b"__setstate__") + b"c" + SYSTEM + b"\nsb"
              + text(RUN) + b"b", "this file would run posix.system"),
    "build with slots": (b"cmodule\nThing\n)\x81N}" + text(b"__setstate__") + b"c" + SYSTEM
                         + b"\ns\x86b" + text(RUN) + b"b", "this file would run posix.system"),
    "build of a module's thing": (b"cos\nenviron\n}" + text(b"x") + b"Nsb",
                                  "this file would run os.environ"),
    "rebuilt by name": (call(b"torch._tensor\n_rebuild_from_type_v2",
                             b"c" + SYSTEM + b"\nN(" + text(RUN) + b"tN"),
                        "this file would run posix.system"),
    "as jax's array": (call(b"jax._src.array\n_reconstruct_array",
                            b"c" + SYSTEM + b"\n(" + text(RUN) + b"tNN"),
                       "this file would run posix.system"),
    "partial": (call(b"functools\npartial", b"c" + SYSTEM + b"\n" + text(RUN)) + b")R",
                "this file would run posix.system"),
    "a constructor": (b"csubprocess\nPopen\n(" + text(RUN) + b"t}\x92",
                      "this file would run subprocess.Popen"),
    "torch's own loader": (call(b"torch.hub\nload", text(RUN)), "would run torch.hub.load"),
    "extension": (b"\x82\x01", "copyreg extension 1"),
    "codec": (call(b"_codecs\nencode", text(b"x") + text(b"zlib_codec")), "the codec 'zlib_codec'"),
    "operator": (call(b"operator\ngetitem", call(SYSTEM)), "this file would run posix.system"),
}  # fmt: skip


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "zip": torch_zip,
    "legacy": torch_legacy,
    "nested": nested,
    "nested in zip": lambda pickled: torch_zip(nested(pickled)),
}


@pytest.mark.parametrize("wrapping", sorted(WRAPPINGS))
@pytest.mark.parametrize("name", sorted(PICKLES))
def test_nothing_runs(
    name: str, wrapping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body, expected = PICKLES[name]
    path = tmp_path / "file"
    path.write_bytes(WRAPPINGS[wrapping](b"\x80\x02" + body + b"."))
    with pytest.raises(ValueError, match=expected) as caught:
        read_backbone(path)
    assert "\n" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_the_hostile_pickles_do_run_in_an_ordinary_unpickler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("reduce", "inst", "obj", "stack global", "memo", "build"):
        pickle.loads(b"\x80\x02" + PICKLES[name][0] + b".")
        assert Path("owned").exists(), name
        Path("owned").unlink()


HUGE = b"\x8a\x08" + struct.pack("<q", 2**40)
SIZES: dict[str, tuple[bytes, str]] = {
    "storage": (tensor(2**40, b"K\x01\x85", b"K\x01\x85"), "storage 0 claims 1099511627776"),
    "shape": (tensor(2, HUGE + b"\x85", b"K\x01\x85"), "of a storage of 8 bytes"),
    "expanded": (tensor(2, HUGE + b"\x85", b"K\x00\x85"), "would take .* bytes, its storage"),
    "offset": (tensor(2, b"K\x02\x85", b"K\x01\x85", b"K\x01"), "of a storage of 8 bytes"),
    "negative": (tensor(2, b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "absurd place"),
    "negative stride": (tensor(2, b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), "absurd place"),
    "ranks": (tensor(2, b"K\x01K\x01\x86", b"K\x01\x85"), "1 steps"),
    "bytearray": (b"\x80\x02" + call(b"builtins\nbytearray", HUGE) + b".", "made from something"),
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_absurd_sizes_are_refused_before_memory_is_taken(name: str, tmp_path: Path) -> None:
    pickled, expected = SIZES[name]
    path = tmp_path / "file"
    path.write_bytes(torch_zip(pickled, {"data/0": bytes(8)}))
    with pytest.raises(ValueError, match=expected):
        read_backbone(path)


def tuples(width: int, depth: int) -> bytes:
    """Return the opcodes of tuples in tuples that are `width ** depth` values when walked."""
    out = b"(" + b"K\x01" * width + b"tq\x05"
    for _ in range(depth - 1):
        out += b"0(" + b"h\x05" * width + b"tq\x05"
    return out


LONG = b"\x8b" + struct.pack("<I", 4000) + b"\x7f" * 4000
BOMBS: dict[str, tuple[bytes, str]] = {
    "key": (b"\x80\x02}" + tuples(400, 4) + b"Ns.", "no tensors in it; keys: an instance of a key"),
    "set": (b"\x80\x02(" + tuples(400, 4) + b"\x91.", "holds a frozenset"),
    "key of a storage": (tensor(2, b"K\x01\x85", b"K\x01\x85").replace(
        text(b"0"), tuples(400, 4)), "storage whose key is a tuple"),
    "shape": (tensor(2, tuples(400, 4), b"K\x01\x85"), "more than 8 dimensions"),
    "sizes in a shape": (tensor(2, tuples(400, 4) + b"\x85", b"K\x01\x85"), "absurd place"),
    "product": (tensor(2, LONG + b"\x85", b"K\x01\x85"), "absurd place"),
    "codec": (b"\x80\x02" + call(b"_codecs\nencode", text(b"x") + tuples(400, 4)) + b".",
              "would run the codec a tuple"),
    "name": (b"\x80\x02cbuiltins\ngetattr\nq\x01cx\ny\nq\x02" + text(b"a" * 300) + b"q\x03"
             + b"h\x01h\x02h\x03\x86Rq\x02" * 9000 + b".", "reference of more than 500 char"),
    "colliding keys": (b"\x80\x02}(" + b"".join(
        b"\x8a\x10" + ((2**61 - 1) * i).to_bytes(16, "little") + b"N" for i in range(1, 60_000)
    ) + b"u.", "no tensors in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_what_grows_when_walked_compared_or_printed_is_not(name: str, tmp_path: Path) -> None:
    pickled, expected = BOMBS[name]
    path = tmp_path / "file"
    path.write_bytes(torch_zip(pickled, {"data/0": bytes(8)}))
    with pytest.raises(ValueError, match=expected) as caught:
        read_backbone(path)
    assert len(str(caught.value)) < 1000


def test_names_from_a_file_cannot_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    body = text(b"posix") + text(b"system\n\x1b[2J") + b"\x93(tR"
    path.write_bytes(b"\x80\x02" + body + b".")
    with pytest.raises(ValueError, match=r"this file would run posix.system\?\?\[2J") as caught:
        read_backbone(path)
    assert "\n" not in str(caught.value)


def test_flipped_bytes_never_show_a_traceback(tmp_path: Path) -> None:
    path, draw = tmp_path / "file", random.Random(0)
    content = {"state_dict": {"layer1.0.conv1.weight": torch.ones(2)}, "array": np.arange(3.0)}
    originals = [pickle.dumps(content, 2), pickle.dumps(content, 4)]
    for new in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        originals.append(path.read_bytes())
    for _ in range(600):
        raw = bytearray(draw.choice(originals))
        for _ in range(3):
            raw[draw.randrange(len(raw))] = draw.choice((0, 255, draw.randrange(256)))
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="file: ") as caught:
            read_backbone(path)
        assert "\n" not in str(caught.value)
