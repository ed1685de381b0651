"""The kinds of checkpoint files, recognised by their first bytes and never by their names.

The file is read whole, not mapped: one that is cut meanwhile would kill the process. Tensors are
looked up and checked at once, but take memory of their own only when they are asked for.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer.checkpoints.other_files import (
    kind_of_file,
    kind_of_text,
    kind_of_zip,
    weight_files,
)
from transfer.checkpoints.safetensors_file import read_safetensors
from transfer.checkpoints.state_dicts import (
    ITEM_BYTES,
    MAX_NUMBER,
    MAX_RANK,
    Reference,
    Storage,
    TensorView,
    as_text,
    count_like,
    describe,
)
from transfer.checkpoints.unpickler import Limits, SafeUnpickler, Stream, UnsafeError
from transfer.files import refusal

Data = bytes
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_PROTOCOL = 1001
MAX_FILE_BYTES = 2**33
MAX_NESTING = 3
MAX_KEY = 200
MAX_TAR_RECORDS = 32
MAX_DIRECTORY_BYTES = 2**23
RECORD_BYTES = 1000
UNPICKLER_BYTES, UNPICKLER_STEPS = 4000, 50
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip


@dataclass
class Content:
    """What a file holds: nested dicts with `TensorView`s in them, and how it was written."""

    container: str
    value: Any
    unknown: set[str] = field(default_factory=set)
    num_bytes: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


def read_content(path: Path) -> Content:
    """Return what is in `path`, running nothing; of shards, what is in all of them.

    Raises:
        ValueError: it is no checkpoint, it is damaged, or it would run something.
    """
    try:
        files = weight_files(path)
    except ValueError as error:
        raise ValueError(refusal(path, error)) from None
    contents = [_read_file(file) for file in files[1:] or files]
    if len(contents) == 1:
        return contents[0]
    tensors: dict[Any, Any] = {}
    for file, content in zip(files[1:], contents, strict=True):
        if not isinstance(content.value, dict) or tensors.keys() & content.value.keys():
            raise ValueError(f"{file}: no shard of {path.name}: its names are another shard's too")
        tensors |= content.value
    return Content(
        f"{contents[0].container}, {len(contents)} shards",
        tensors,
        set().union(*(content.unknown for content in contents)),
        sum(content.num_bytes for content in contents),
        contents[0].metadata,
    )


def _read_file(path: Path) -> Content:
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty, so not a checkpoint that can be read safely")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB, no ResNet's file is")
    data = path.read_bytes()
    try:
        if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
            tensors, metadata = read_safetensors(path, data)
            content = Content("safetensors", tensors, metadata=metadata)
        else:
            content = _read(data, Limits(len(data)))
    except ValueError as error:
        reason = f"not a checkpoint that can be read safely: {error}"
        if isinstance(error, UnsafeError):
            reason = f"cannot be read safely: {error}; nothing was run"
        raise ValueError(refusal(path, reason)) from None
    content.num_bytes = len(data)
    return content


def _read(data: Data, limits: Limits, nesting: int = 0) -> Content:
    start = bytes(data[:256])
    if start.startswith(b"PK\x03\x04"):
        return _torch_zip(data, limits, nesting)
    if start.startswith(LEGACY_START):
        return _torch_legacy(data, limits, nesting)
    if bytes(data[257:262]) == b"ustar":
        return _Tar(data, limits, nesting).read()
    if start[:1] == b"\x80" or (start[:1] in b"(}]c" and data[len(data) - 1 :] in (b".", b".\n")):
        return _plain_pickle(data, limits, nesting)
    kind = kind_of_file(start) or kind_of_text(start)
    if kind is None and start[8:9] == b"{":
        length = int.from_bytes(start[:8], "little")
        kind = f"cut off: a safetensors header of {length} bytes in a file of {len(data)}"
    if kind is not None:
        raise ValueError(f"it is {kind}")
    raise ValueError("its first bytes belong to no known kind (torch, safetensors, pickle)")


def _unpickle(
    stream: Stream, limits: Limits, nesting: int, persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, set[str]]:
    """Return the object in a stream and the references in it that are not known."""
    unknown: set[str] = set()

    def nested(raw: Any, *_: Any) -> Any:
        if nesting >= MAX_NESTING or not isinstance(raw, bytes | bytearray):
            raise ValueError("torch files nested too deeply")
        content = _read(bytes(raw), limits, nesting + 1)
        unknown.update(content.unknown)
        return content.value

    limits.take(UNPICKLER_BYTES, UNPICKLER_STEPS)
    unpickler = SafeUnpickler(stream, persistent, nested, limits)
    try:
        value = unpickler.load()
    except UnsafeError:
        raise
    except ValueError:
        if any(name.startswith("joblib.") for name in unpickler.unknown):
            raise ValueError(
                "it is a joblib file; load it with joblib, then save its dict of tensors with "
                "torch.save"
            ) from None
        raise
    return value, unknown | unpickler.unknown


def _plain_pickle(data: Data, limits: Limits, nesting: int) -> Content:
    value, unknown = _unpickle(io.BytesIO(data), limits, nesting)
    if value == LEGACY_MAGIC:  # written with another pickle protocol than torch's own
        return _torch_legacy(data, limits, nesting)
    if isinstance(value, int):
        shown = value if abs(value) < 2**64 else "above 2**64"
        raise ValueError(f"it is a pickle of the number {shown}")
    return Content("pickle", value, unknown)


def _storage_parts(identifier: Any) -> tuple[str, str, int, Any]:
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


class _Directory:
    """A file of which no more is read at once than the longest directory of an honest zip file."""

    def __init__(self, data: Data) -> None:
        self.stream = io.BytesIO(data)
        self.seek, self.tell, self.close = self.stream.seek, self.stream.tell, lambda: None

    def seekable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return what lies at the place, unless it is absurdly much."""
        raw = self.stream.read(MAX_DIRECTORY_BYTES + 1 if size < 0 else size)
        if len(raw) > MAX_DIRECTORY_BYTES:
            raise ValueError(f"a directory of more than {MAX_DIRECTORY_BYTES} bytes")
        return raw


class _Zip:
    """The records of a zip file in memory, none of them compressed, none overlapping."""

    def __init__(self, data: Data, limits: Limits) -> None:
        self.view = memoryview(data)
        try:
            archive = zipfile.ZipFile(_Directory(data))
        except (
            zipfile.BadZipFile,
            struct.error,
            OSError,
            ValueError,
            NotImplementedError,
        ) as error:
            raise ValueError(f"a truncated or damaged zip file ({error})") from None
        self.records = {info.filename: info for info in archive.infolist()}
        limits.take(RECORD_BYTES * len(self.records), steps=len(self.records))
        kind = kind_of_zip(self.records)
        if kind is not None:
            raise ValueError(f"it is {kind}")
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
            raise ValueError(f"{len(roots)} records data.pkl in it, torch.save writes one")
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


def _torch_zip(data: Data, limits: Limits, nesting: int) -> Content:
    records = _Zip(data, limits)
    if "byteorder" in records and bytes(records.read("byteorder")) != b"little":
        raise ValueError("it was written on a big-endian machine")
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Storage:
        dtype, key, count, _ = _storage_parts(identifier)
        if key not in storages:
            raw, size = records.read(f"data/{key}"), ITEM_BYTES[dtype]
            if count * size > len(raw):
                raise ValueError(f"storage {key} claims {count} x {size} bytes, holds {len(raw)}")
            storages[key] = Storage(key, dtype, count * size, raw)
        return storages[key]

    pickled = io.BytesIO(records.read("data.pkl"))
    value, unknown = _unpickle(pickled, limits, nesting, persistent)
    return Content("torch zip", value, unknown)


def _torch_legacy(data: Data, limits: Limits, nesting: int) -> Content:
    stream = io.BytesIO(data)
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and identifier[:1] == ("module",):
            return identifier[1]
        dtype, key, count, view = _storage_parts(identifier)
        if count * ITEM_BYTES[dtype] > len(data):
            raise ValueError(f"storage {key} claims {count} elements, the file has {len(data)}")
        storage = storages.setdefault(key, Storage(key, dtype, count * ITEM_BYTES[dtype]))
        if view is not None:
            raise ValueError(f"storage {key} is a view, as torch before 0.4 wrote it")
        return storage

    magic, version = (_unpickle(stream, limits, nesting)[0] for _ in range(2))
    if magic != LEGACY_MAGIC or version != LEGACY_PROTOCOL:
        raise ValueError("it is a torch file of an unknown version")
    system, _ = _unpickle(stream, limits, nesting)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    value, unknown = _unpickle(stream, limits, nesting, persistent)
    keys, _ = _unpickle(stream, limits, nesting)
    position, view = stream.tell(), memoryview(data)
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(_storage_key(key))
        if storage is None or position + 8 + storage.num_bytes > len(view):
            raise ValueError(f"truncated: storage {key} is not all in the file")
        (count,) = struct.unpack_from("<q", view, position)
        if count * ITEM_BYTES[storage.dtype] != storage.num_bytes:
            raise ValueError(f"storage {key} has {count} elements, not what the file says before")
        storage.data = view[position + 8 : position + 8 + storage.num_bytes]
        position += 8 + storage.num_bytes
    return Content("torch legacy", value, unknown)


class _Tar:
    """What torch before 0.1.10 (2016) wrote: a tar archive of four records, each of pickles."""

    def __init__(self, data: Data, limits: Limits, nesting: int) -> None:
        self.stream, self.view = io.BytesIO(data), memoryview(data)
        self.limits, self.nesting, self.places = limits, nesting, _tar_records(data)
        self.objects: dict[str, Storage | TensorView] = {}  # by what the pickle calls them
        if missing := {"sys_info", "storages", "tensors", "pickle"} - self.places.keys():
            listed = ", ".join(self.places)[:100] or "nothing"
            raise ValueError(
                f"it is a tar archive of {listed} without torch's {min(missing)}; unpack it, and "
                "give the checkpoint in it"
            )

    def read(self) -> Content:
        """Return what the record `pickle` holds."""
        system = self._start("sys_info")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
        for _ in range(self._count("storages")):
            self._storage(*self._parts(3))
        for part in self._pickled() or ():
            self._part_of_a_storage(*part)
        for _ in range(self._count("tensors")):
            self._tensor(*self._parts(3))
        self.stream.seek(self.places["pickle"])
        value, unknown = _unpickle(self.stream, self.limits, self.nesting, self._persistent)
        return Content("torch tar", value, unknown)

    def _pickled(self) -> Any:
        return _unpickle(self.stream, self.limits, self.nesting)[0]

    def _start(self, name: str) -> Any:
        self.stream.seek(self.places[name])
        return self._pickled()

    def _count(self, name: str) -> int:
        count = self._start(name)
        if not count_like(count):
            raise ValueError(f"record {name} starts with {describe(count)}, wanted a number")
        return int(count)

    def _parts(self, count: int) -> tuple[Any, ...]:
        parts = self._pickled()
        if not isinstance(parts, tuple) or len(parts) != count:
            raise ValueError(f"{describe(parts)} in place of the {count} parts of a tensor")
        return parts

    def _numbers(self, count: int) -> tuple[int, ...]:
        place = self.stream.tell()
        if place + 8 * count > len(self.view):
            raise ValueError("truncated: a tensor's place is not all in the file")
        self.stream.seek(place + 8 * count)
        return struct.unpack_from(f"<{count}q", self.view, place)

    def _whole(self, key: Any) -> Storage:
        whole = self.objects.get(_storage_key(key))
        if not isinstance(whole, Storage):
            raise ValueError(f"storage {_storage_key(key)} is not in the file")
        return whole

    def _storage(self, key: Any, _: Any, kind: Any) -> None:
        count = self._numbers(1)[0]
        dtype, name, count, _ = _storage_parts(("storage", kind, key, "cpu", count))
        start, size = self.stream.tell(), count * ITEM_BYTES[dtype]
        if start + size > len(self.view):
            raise ValueError(f"truncated: storage {name} is not all in the file")
        self.objects[name] = Storage(name, dtype, size, self.view[start : start + size])
        self.stream.seek(start + size)

    def _part_of_a_storage(self, key: Any, root: Any, offset: Any, count: Any) -> None:
        whole, name = self._whole(root), _storage_key(key)
        size = ITEM_BYTES[whole.dtype]
        sound = count_like(offset) and count_like(count)
        if not sound or (offset + count) * size > whole.num_bytes or whole.data is None:
            raise ValueError(f"storage {name} reaches beyond the one that it is a part of")
        data = whole.data[offset * size : (offset + count) * size]
        self.objects[name] = Storage(name, whole.dtype, count * size, data)

    def _tensor(self, key: Any, storage: Any, _: Any) -> None:
        whole, rank = self._whole(storage), self._numbers(1)[0] & 0xFFFFFFFF
        if rank > MAX_RANK:
            raise ValueError(f"a tensor of {rank} dimensions, wanted at most {MAX_RANK}")
        shape, stride, (offset,) = self._numbers(rank), self._numbers(rank), self._numbers(1)
        tensor = TensorView(whole, whole.dtype, offset, shape, stride)
        tensor.check()
        self.objects[_storage_key(key)] = tensor

    def _persistent(self, identifier: Any) -> Any:
        if isinstance(identifier, tuple):  # a module and its source code
            return identifier[0] if identifier else None
        return self.objects[_storage_key(identifier)]


def _tar_records(data: Data) -> dict[str, int]:
    """Return where the first records of a tar archive start, by their names."""
    places: dict[str, int] = {}
    position = 0
    for _ in range(MAX_TAR_RECORDS):
        header = bytes(data[position : position + 512])
        if len(header) < 512 or header[257:262] != b"ustar":
            break
        try:
            size = int(header[124:136].strip(b"\0 ") or b"0", 8)
        except ValueError:
            raise ValueError("a damaged tar archive: a size that is no number") from None
        if header[156:157] in b"0\0":
            places[header[:100].rstrip(b"\0").decode("latin-1").removeprefix("./")] = position + 512
        position += 512 + -(-size // 512) * 512
    return places
