"""Tensors and metadata of a safetensors file, as the safetensors library reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize, safe_open

from transfer.checkpoints.state_dicts import (
    MAX_NAME,
    MAX_RANK,
    Storage,
    TensorView,
    count_like,
    strides,
)

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32",
    "U64": "uint64", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
MAX_HEADER_BYTES = 2**24


def read_safetensors(path: Path, data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors by their names, twice what the metadata says is another's name; metadata.

    Raises:
        ValueError: the library refuses the file, or a name or shape in it is without measure.
    """
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(
            f"a safetensors header of {length} bytes, wanted at most {MAX_HEADER_BYTES}"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        entries = deserialize(bytes(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        reason = str(error).replace("invalid JSON in header", "a header that is not JSON")
        raise ValueError(f"the safetensors library refuses it: {reason}") from None
    tensors = {name: _view(name, entry) for name, entry in entries}
    for dropped, kept in metadata.items():
        if dropped not in tensors and kept in tensors:
            tensors[dropped] = tensors[kept]
    return {name: view for name, view in tensors.items() if view is not None}, metadata


def _view(name: str, entry: dict[str, Any]) -> TensorView | None:
    """Return a tensor that the library read; None for a dtype of no network."""
    shape = tuple(entry["shape"])
    if len(name) > MAX_NAME or len(shape) > MAX_RANK or not all(map(count_like, shape)):
        raise ValueError(f"a bad safetensors entry {name[:60]!r}: a name or shape without measure")
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        return None
    storage = Storage("safetensors", dtype, len(entry["data"]), entry["data"])
    return TensorView(storage, dtype, 0, shape, strides(shape))
