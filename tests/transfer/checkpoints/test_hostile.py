"""Untrusted files: nothing in them runs, and no size they claim is believed."""

import argparse
import collections
import datetime
import decimal
import fractions
import io
import json
import pickle
import random
import struct
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from transfer.checkpoints.containers import read_content
from transfer.checkpoints.read import read_backbone
from transfer.checkpoints.state_dicts import as_tensor

RUN = b"touch owned"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def call(name: bytes, argument: bytes = text(RUN)) -> bytes:
    """Return the opcodes of `name(argument)`."""
    return b"c" + name + b"\n(" + argument + b"tR"


SYSTEM = b"posix\nsystem"
PICKLES: dict[str, tuple[bytes, str]] = {
    "reduce": (call(SYSTEM), "this file would run posix.system"),
    "reduce os": (call(b"os\nsystem"), "this file would run os.system"),
    "eval": (call(b"__builtin__\neval"), "this file would run builtins.eval"),
    "exec": (call(b"builtins\nexec"), "this file would run builtins.exec"),
    "getattr": (call(b"builtins\ngetattr"), "would run builtins.getattr"),
    "getattr of a name": (
        b"c__builtin__\ngetattr\n(cos\npath\n" + text(b"x") + b"tR(" + text(RUN) + b"tR",
        "this file would run os.path.x"),
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
                                  "code that changes os.environ"),
    "call of an instance": (b"cmodule\nThing\n)\x81(" + text(RUN) + b"tR",
                            "an instance of module.Thing"),
    "rebuilt by name": (call(b"torch._tensor\n_rebuild_from_type_v2",
                             b"c" + SYSTEM + b"\nN(" + text(RUN) + b"tN"),
                        "this file would run posix.system"),
    "as jax's array": (call(b"jax._src.array\n_reconstruct_array",
                            b"c" + SYSTEM + b"\n(" + text(RUN) + b"tNN"),
                       "this file would run posix.system"),
    "partial": (call(b"functools\npartial", b"c" + SYSTEM + b"\n" + text(RUN)) + b")R",
                "this file would run functools.partial"),
    "a constructor": (b"csubprocess\nPopen\n(" + text(RUN) + b"t}\x92",
                      "this file would run subprocess.Popen"),
    "torch's own loader": (call(b"torch.hub\nload", text(RUN)), "would run torch.hub.load"),
    "extension": (b"\x82\x01", "copyreg extension 1"),
    "codec": (call(b"_codecs\nencode", text(b"x") + text(b"zlib_codec")), "the codec 'zlib_codec'"),
    "operator": (call(b"operator\ngetitem", call(SYSTEM)), "this file would run posix.system"),
}  # fmt: skip


def torch_zip(pickled: bytes, records: dict[str, bytes] | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, raw in (records or {}).items():
            archive.writestr(f"archive/{name}", raw)
    return file.getvalue()


def torch_legacy(pickled: bytes) -> bytes:
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    head = file.getvalue()[: -len(pickle.dumps({}, 2) + pickle.dumps([], 2))]
    return head + pickled + pickle.dumps([], 2)


def nested(pickled: bytes) -> bytes:
    """Return a pickle with a whole torch file in it, as a plainly pickled tensor has."""
    inner = torch_legacy(pickled)
    return (b"\x80\x03ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(inner))
            + inner + b"tR.")  # fmt: skip


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
    path.write_bytes(b"\x80\x02(" + made + b"ctorch.hub\nload\ncnumpy\nsave\nl.")
    assert read_content(path).unknown == {"evil.mod", "evil.mod.Thing", "torch.hub.load",
                                          "numpy.save"}  # fmt: skip


def storage(count: int, key: bytes = b"0") -> bytes:
    """Return the opcodes of a reference to a float storage."""
    return (b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(key) + text(b"cpu")
            + b"\x8a\x08" + struct.pack("<q", count) + b"tQ")  # fmt: skip


def tensor(count: int, shape: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    return (b"\x80\x02}" + text(b"conv1.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage(count) + offset + shape + stride + b"\x89NtRs.")  # fmt: skip


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


def test_a_pickle_that_unfolds_is_stopped(tmp_path: Path) -> None:
    many = b"(" + b"N" * 100_000 + b"lq\x00"
    copies = b"cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85R" * 2000
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02(" + many + copies + b"l.")
    new = b"cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85\x81" * 2000
    state = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x01\x85Nh\x00h\x00tb" * 2000
    for unfolding in (copies, new, state):
        path.write_bytes(b"\x80\x02(" + many + unfolding + b"l.")
        with pytest.raises(ValueError, match="unfold to more than the file holds"):
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


def test_keys_of_storages_that_cannot_be_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    end = len(pickle.dumps([], 2))
    path.write_bytes(torch_legacy(pickle.dumps({}, 2))[:-end] + pickle.dumps([[1]], 2))
    with pytest.raises(ValueError, match="a storage whose key is a list"):
        read_backbone(path)


def test_names_from_a_file_cannot_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    body = text(b"posix") + text(b"system\n\x1b[2J") + b"\x93(tR"
    path.write_bytes(b"\x80\x02" + body + b".")
    with pytest.raises(ValueError, match=r"this file would run posix.system\?\?\[2J") as caught:
        read_backbone(path)
    assert "\n" not in str(caught.value)


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
