"""Pickles put together by hand, and the files of torch around them."""

import io
import pickle
import struct
import zipfile

import torch

RUN = b"touch owned"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def call(name: bytes, argument: bytes = text(RUN)) -> bytes:
    """Return the opcodes of `name(argument)`."""
    return b"c" + name + b"\n(" + argument + b"tR"


SYSTEM = b"posix\nsystem"


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


def storage(count: int, key: bytes = b"0") -> bytes:
    """Return the opcodes of a reference to a float storage."""
    return (b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(key) + text(b"cpu")
            + b"\x8a\x08" + struct.pack("<q", count) + b"tQ")  # fmt: skip


def tensor(count: int, shape: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    return (b"\x80\x02}" + text(b"conv1.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage(count) + offset + shape + stride + b"\x89NtRs.")  # fmt: skip
