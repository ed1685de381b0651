"""The kinds of checkpoint files, recognised by their first bytes and never by their names.

The file is mapped, not read: tensors are looked up and checked at once, but take memory only when
they are asked for.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from transfer.checkpoints.state_dicts import (
    MAX_NUMBER,
    MAX_RANK,
    Reference,
    Storage,
    TensorView,
    as_text,
    count_like,
    describe,
    strides,
)
from transfer.checkpoints.unpickler import SafeUnpickler, Stream, UnsafeError
from transfer.messages import printable

Data = mmap.mmap | bytes
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_PROTOCOL = 1001
MAX_NESTING = 3
MAX_KEY = 200
SMALL_BUDGET = 2**26
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
OTHER_FILES = (
    (b"\x89HDF", "an HDF5 (Keras) file"),
    (b"\x93NUMPY", "a single numpy array"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer; the weights themselves were not downloaded"),
)


@dataclass
class Content:
    """What a file holds: nested dicts with `TensorView`s in them, and how it was written."""

    container: str
    value: Any
    unknown: set[str] = field(default_factory=set)


def read_content(path: Path) -> Content:
    """Return what is in `path`, running nothing.

    Raises:
        ValueError: it is no checkpoint, it is damaged, or it would run something.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty, so not a checkpoint that can be read safely")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _read(data)
    except ValueError as error:
        reason = f"not a checkpoint that can be read safely: {printable(error)}"
        if isinstance(error, UnsafeError):
            reason = f"cannot be read safely: {printable(error)}; nothing was run"
        raise ValueError(f"{path}: {reason}") from None


def _read(data: Data, nesting: int = 0) -> Content:
    start = bytes(data[:256])
    for magic, what in OTHER_FILES:
        if start.startswith(magic):
            raise ValueError(f"it is {what}")
    if start.startswith(b"PK\x03\x04"):
        return _torch_zip(data, nesting)
    if start.startswith(LEGACY_START):
        return _torch_legacy(data, nesting)
    if start[8:9] == b"{" and (
        start[:1] != b"\x80" or int.from_bytes(data[:8], "little") <= len(data) - 8
    ):
        return _safetensors(data)
    if bytes(data[257:262]) == b"ustar":
        raise ValueError("it is a tar archive; unpack it first")
    if start[:1] == b"\x80" or (start[:1] in b"(}]c" and data[len(data) - 1 :] in (b".", b".\n")):
        return _plain_pickle(data, nesting)
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        raise ValueError(f"it is a text file that starts {start[:24].decode('ascii')!r}")
    raise ValueError("its first bytes belong to no known kind (torch, safetensors, pickle)")


def _stream(data: Data) -> Stream:
    """Return bytes or a mapped file as a stream, from their start."""
    if isinstance(data, bytes):
        return io.BytesIO(data)
    data.seek(0)
    return data


def _unpickle(
    stream: Stream, nesting: int, persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, set[str]]:
    """Return the object in a stream and the references in it that are not known."""
    unknown: set[str] = set()

    def nested(raw: Any, *_: Any) -> Any:
        if nesting >= MAX_NESTING or not isinstance(raw, bytes | bytearray):
            raise ValueError("torch files nested too deeply")
        content = _read(bytes(raw), nesting + 1)
        unknown.update(content.unknown)
        return content.value

    size = stream.getbuffer().nbytes if isinstance(stream, io.BytesIO) else len(stream)
    unpickler = SafeUnpickler(stream, persistent, nested, budget=SMALL_BUDGET + 4 * size)
    value = unpickler.load()
    return value, unknown | unpickler.unknown


def _plain_pickle(data: Data, nesting: int) -> Content:
    value, unknown = _unpickle(_stream(data), nesting)
    if value == LEGACY_MAGIC:  # written with another pickle protocol than torch's own
        return _torch_legacy(data, nesting)
    if isinstance(value, int):
        shown = value if abs(value) < 2**64 else "above 2**64"
        raise ValueError(f"it is a pickle of the number {shown}")
    return Content("pickle", value, unknown)


def _storage_parts(identifier: Any) -> tuple[torch.dtype, str, int, Any]:
    """Return dtype, key, size and view of a storage that torch's pickles name."""
    if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, count = identifier[:5]
    key = _storage_key(key)
    name = kind.name if isinstance(kind, Reference) else ""
    if name not in STORAGES or not isinstance(count, int) or not 0 <= count < MAX_NUMBER:
        raise ValueError(f"a storage of unknown kind {name!r} or size")
    return STORAGES[name], key, count, identifier[5] if len(identifier) > 5 else None


def _storage_key(key: Any) -> str:
    """Return the key of a storage as text; a short text, number or (in old files) bytes."""
    text = as_text(key)
    if text is not None and len(text) <= MAX_KEY:
        return text
    if isinstance(key, int) and 0 <= key < 2**64:
        return str(key)
    raise ValueError(f"a storage whose key is {describe(key)}, wanted a short text or number")


class _Zip:
    """The records of a zip file in memory, none of them compressed, none overlapping."""

    def __init__(self, data: Data) -> None:
        self.view = memoryview(data)
        try:
            archive = zipfile.ZipFile(_stream(data))  # type: ignore[arg-type]
        except (
            zipfile.BadZipFile,
            struct.error,
            OSError,
            ValueError,
            NotImplementedError,
        ) as error:
            raise ValueError(f"a truncated or damaged zip file ({error})") from None
        self.records = {info.filename: info for info in archive.infolist()}
        for info in self.records.values():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(
                    f"record {info.filename} is compressed ({info.compress_size} to "
                    f"{info.file_size} bytes), which torch.save never does"
                )
        if sum(info.file_size for info in self.records.values()) > len(data):
            raise ValueError("its records overlap: together they are larger than the file")
        roots = [name[:-8] for name in self.records if name.split("/")[-1] == "data.pkl"]
        if len(roots) != 1:
            raise ValueError("it is a zip file without the data.pkl that torch.save writes")
        self.root = roots[0]

    def __contains__(self, name: str) -> bool:
        return self.root + name in self.records

    def read(self, name: str) -> memoryview:
        """Return the bytes of a record, where they lie."""
        info = self.records.get(self.root + name)
        if info is None:
            raise ValueError(f"record {name} is not in the file")
        start = info.header_offset
        if (
            not 0 <= start <= len(self.view) - 30
            or bytes(self.view[start : start + 4]) != b"PK\x03\x04"
        ):
            raise ValueError(f"record {name} is not where the file says")
        start += 30 + sum(struct.unpack_from("<HH", self.view, start + 26))
        if start + info.file_size > len(self.view):
            raise ValueError(f"record {name} reaches beyond the end of the file")
        return self.view[start : start + info.file_size]


def _torch_zip(data: Data, nesting: int) -> Content:
    records = _Zip(data)
    if "constants.pkl" in records:
        raise ValueError("it is a TorchScript archive; save the model's state_dict() instead")
    if "byteorder" in records and bytes(records.read("byteorder")) != b"little":
        raise ValueError("it was written on a big-endian machine")
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Storage:
        dtype, key, count, _ = _storage_parts(identifier)
        if key not in storages:
            raw = records.read(f"data/{key}")
            if count * dtype.itemsize > len(raw):
                raise ValueError(
                    f"storage {key} claims {count} x {dtype.itemsize} bytes, holds {len(raw)}"
                )
            storages[key] = Storage(key, dtype, count * dtype.itemsize, raw)
        return storages[key]

    value, unknown = _unpickle(io.BytesIO(records.read("data.pkl")), nesting, persistent)
    return Content("torch zip", value, unknown)


def _torch_legacy(data: Data, nesting: int) -> Content:
    stream = _stream(data)
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and identifier[:1] == ("module",):
            return identifier[1]
        dtype, key, count, view = _storage_parts(identifier)
        if count * dtype.itemsize > len(data):
            raise ValueError(f"storage {key} claims {count} elements, the file has {len(data)}")
        storage = storages.setdefault(key, Storage(key, dtype, count * dtype.itemsize))
        if view is not None:
            raise ValueError(f"storage {key} is a view, as torch before 0.4 wrote it")
        return storage

    magic, version = (_unpickle(stream, nesting)[0] for _ in range(2))
    if magic != LEGACY_MAGIC or version != LEGACY_PROTOCOL:
        raise ValueError("it is a torch file of an unknown version")
    system, _ = _unpickle(stream, nesting)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    value, unknown = _unpickle(stream, nesting, persistent)
    keys, _ = _unpickle(stream, nesting)
    position, view = stream.tell(), memoryview(data)
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(_storage_key(key))
        if storage is None or position + 8 + storage.num_bytes > len(view):
            raise ValueError(f"truncated: storage {key} is not all in the file")
        (count,) = struct.unpack_from("<q", view, position)
        if count * storage.dtype.itemsize != storage.num_bytes:
            raise ValueError(f"storage {key} has {count} elements, not what the file says before")
        storage.data = view[position + 8 : position + 8 + storage.num_bytes]
        position += 8 + storage.num_bytes
    return Content("torch legacy", value, unknown)


def _safetensors(data: Data) -> Content:
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError(f"a safetensors header of {length} bytes in a file of {len(data)}")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise ValueError("a safetensors header that is not JSON") from None
    body = memoryview(data)[8 + length :]
    metadata = header.pop("__metadata__", None)
    tensors: dict[str, Any] = {}
    for name, entry in header.items():
        try:
            tensors[name] = _safetensor(entry, body)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"a bad safetensors entry {name[:60]!r} ({error})") from None
    for dropped, kept in metadata.items() if isinstance(metadata, dict) else ():
        if isinstance(kept, str) and dropped not in tensors and kept in tensors:
            tensors[dropped] = tensors[kept]
    return Content("safetensors", tensors)


def _safetensor(entry: dict[str, Any], body: memoryview) -> TensorView:
    dtype = SAFETENSORS_DTYPES[entry["dtype"]]
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if len(shape) > MAX_RANK or not all(count_like(n) for n in (*shape, start, stop)):
        raise ValueError("sizes that are no counts")
    if not start <= stop <= len(body) or math.prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"bytes {start}-{stop} of {len(body)} for shape {str(shape)[:60]}")
    storage = Storage("safetensors", dtype, stop - start, body[start:stop])
    return TensorView(storage, dtype, 0, shape, strides(shape))
