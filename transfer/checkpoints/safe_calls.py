"""What an untrusted checkpoint may call, and the harmless functions called in its place.

Tensors and arrays become descriptions (`TensorView`): where their bytes lie in the file, checked
against the file's size, read only when somebody asks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfer.checkpoints.unpickler import Instance, Reference, UnsafeError, describe, hashable

DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
PLAIN_DTYPE = re.compile(r"[<>|=]?[?biufc]\d{0,2}")
SMALL = 2**20
MAX_RANK = 8
MAX_NUMBER = 2**48


def count_like(value: Any) -> bool:
    """Return whether a value can be a size or place: asked before computing with it."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER


@dataclass(eq=False)
class Storage:
    """A run of bytes in the file; `data` is None until its place is known (legacy files)."""

    name: str
    dtype: torch.dtype
    num_bytes: int
    data: memoryview | bytes | None = None


@dataclass(eq=False)
class TensorView:
    """A tensor as the file describes it; `read` makes the tensor."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def place(self) -> tuple[int, int, tuple[int, ...]]:
        """Equal for two names of one tensor."""
        return id(self.storage), self.offset, self.shape

    def check(self) -> None:
        """Raise ValueError unless the tensor lies inside its storage and is no larger than it."""
        if max(len(self.shape), len(self.stride)) > MAX_RANK:
            raise ValueError(f"a tensor of more than {MAX_RANK} dimensions")
        if not all(count_like(n) for n in (self.offset, *self.shape, *self.stride)):
            raise ValueError("a tensor with an absurd place: no counts, or above 2**48")
        if len(self.shape) != len(self.stride):
            raise ValueError(f"a tensor of shape {self.shape} with {len(self.stride)} steps")
        count = math.prod(self.shape)
        if count == 0:
            return
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        size = self.dtype.itemsize
        if (last + 1) * size > self.storage.num_bytes:
            raise ValueError(
                f"a tensor of shape {self.shape} reaches byte {(last + 1) * size} "
                f"of a storage of {self.storage.num_bytes} bytes"
            )
        if count * size > max(self.storage.num_bytes, SMALL):
            raise ValueError(
                f"a tensor of shape {self.shape} would take {count * size} bytes, "
                f"its storage holds {self.storage.num_bytes}"
            )

    def read(self) -> Tensor:
        """Return the tensor, contiguous, in memory of its own."""
        self.check()
        if self.storage.data is None:
            raise ValueError(f"storage {self.storage.name} is not in the file")
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        size = self.dtype.itemsize
        start = self.offset * size
        raw = bytearray(self.storage.data[start : start + (last + 1) * size])
        flat = torch.frombuffer(raw, dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


@dataclass(eq=False)
class Dtype:
    """numpy's dtype in the making; `code` is None where it is not a plain number."""

    code: str | None

    def set_state(self, state: Any) -> None:
        """Take the byte order."""
        if self.code and isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.code = state[1] + self.code.lstrip("<>|=")


@dataclass(eq=False)
class Array:
    """numpy's array in the making: filled by its state."""

    dtype: Dtype = field(default_factory=lambda: Dtype(None))
    shape: tuple[int, ...] = ()
    raw: bytes = b""
    fortran: bool = False
    made: TensorView | None = None

    def set_state(self, state: Any) -> None:
        """Take `(version, shape, dtype, fortran order, bytes)`."""
        _, self.shape, self.dtype, self.fortran, raw = state
        if isinstance(raw, str):
            raw = raw.encode("latin-1")
        self.raw = bytes(raw) if isinstance(raw, bytes | bytearray) else b""

    def view(self) -> TensorView | None:
        """Return the array as a tensor, None where it is not one of plain numbers."""
        self.made = self.made or self._view()  # copied once, however often the file names it
        return self.made

    def _view(self) -> TensorView | None:
        sound = isinstance(self.dtype, Dtype) and isinstance(self.shape, tuple)
        if not sound or self.dtype.code is None:
            return None
        try:
            kind = np.dtype(self.dtype.code)
            dtype = torch.from_numpy(np.zeros(1, kind.newbyteorder("="))).dtype
        except (TypeError, ValueError, OverflowError):
            return None
        if len(self.shape) > MAX_RANK or not all(count_like(n) for n in self.shape):
            raise ValueError("an array of an absurd shape")
        if math.prod(self.shape) * kind.itemsize != len(self.raw):
            raise ValueError(f"an array of shape {self.shape} with {len(self.raw)} bytes")
        raw: bytes = self.raw
        if not kind.isnative:
            raw = np.frombuffer(raw, kind).astype(kind.newbyteorder("=")).tobytes()
        steps = _strides(self.shape[::-1])[::-1] if self.fortran else _strides(self.shape)
        storage = Storage("array", dtype, len(raw), raw)
        return TensorView(storage, dtype, 0, tuple(self.shape), steps)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.insert(0, steps[0] * size)
    return tuple(steps[: len(shape)])


def dtype_of(value: Any) -> torch.dtype | None:
    """Return the torch dtype that a reference such as `torch.float16` names."""
    if isinstance(value, Reference) and value.module == "torch":
        found = getattr(torch, value.name, None) if value.name.isidentifier() else None
        return found if isinstance(found, torch.dtype) else None
    return None


def _check_metadata(metadata: Any = None, *_: Any) -> None:
    """Raise ValueError where a tensor's values are not those of its storage."""
    if isinstance(metadata, dict) and any(value is not False for value in metadata.values()):
        named = ", ".join(key[:20] for key in metadata if isinstance(key, str))[:60]
        raise ValueError(f"a tensor with metadata ({named}): its values are not as stored")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorView:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor without a storage, on {describe(storage)}")
    _check_metadata(*rest[2:])  # after requires_grad and the hooks
    view = TensorView(storage, storage.dtype, offset, tuple(shape), tuple(stride))
    view.check()
    return view


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorView:
    kind = dtype_of(rest[2])  # after requires_grad and the hooks
    if not isinstance(storage, Storage) or kind is None:
        raise ValueError("a tensor without a storage or dtype")
    _check_metadata(*rest[3:])
    view = TensorView(storage, kind, offset, tuple(shape), tuple(stride))
    view.check()
    return view


def _from_type(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    if not isinstance(function, Reference) or function.path not in CALLS:
        raise UnsafeError(f"this file would run {describe(function)}")
    return CALLS[function.path](*args)


def _numpy_dtype(code: Any = None, *_: Any) -> Dtype:
    plain = isinstance(code, str) and PLAIN_DTYPE.fullmatch(code)
    return Dtype(code if plain else None)


def _scalar(dtype: Any, raw: Any = b"", *_: Any) -> Any:
    if isinstance(raw, str):
        raw = raw.encode("latin-1")
    if not isinstance(dtype, Dtype) or dtype.code is None or not isinstance(raw, bytes):
        return None
    return np.frombuffer(raw, np.dtype(dtype.code), count=1)[0].item()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Array:
    if not isinstance(dtype, Dtype) or not isinstance(raw, bytes | bytearray):
        raise ValueError("an array without bytes")
    return Array(dtype, tuple(shape), bytes(raw), order == "F")


def _jax_array(function: Any, args: Any, state: Any, *_: Any) -> Array:
    """Return the numpy array that jax wraps in its own."""
    if describe(function) not in NUMPY_RECONSTRUCT:
        raise UnsafeError(f"this file would run {describe(function)}")
    del args
    array = Array()
    array.set_state(state)
    return array


def _encode(text: Any, codec: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        what = repr(codec[:40]) if isinstance(codec, str) else describe(codec)
        raise UnsafeError(f"this file would run the codec {what}")
    return text.encode(codec)


def _bytes(value: Any = b"", codec: Any = "latin-1", *_: Any) -> bytes:
    if isinstance(value, str):
        return _encode(value, codec)
    if not isinstance(value, bytes | bytearray):
        raise ValueError("bytes made from something else")
    return bytes(value)


def _mapping(*args: Any) -> dict[Any, Any]:
    pairs = next((arg for arg in args if isinstance(arg, dict | list | tuple)), ())
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    return {hashable(pair[0]): pair[1] for pair in pairs}


def _list(values: Any = (), *_: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple | set | frozenset) else []


def _set(values: Any = (), *_: Any) -> set[Any]:
    return {hashable(value) for value in _list(values)}


def _path(*parts: Any) -> str:
    return "/".join(part for part in parts if isinstance(part, str))


def _getitem(target: Any, *_: Any) -> Instance:
    if not isinstance(target, Reference) or target.module not in ("typing", "builtins"):
        raise UnsafeError("this file would run operator.getitem")
    return Instance(target)


def _getattr(target: Any, name: Any = None, *_: Any) -> Reference:
    """Return a nested name, as old protocols spell it; nothing is looked up."""
    if not isinstance(target, Reference) or not isinstance(name, str):
        raise UnsafeError("this file would run builtins.getattr")
    return Reference(target.module, f"{target.name}.{name}")


def _inert(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    return lambda *args: Instance(Reference(module, name), args)


INERT = (
    "argparse.Namespace",
    "builtins.object",
    "builtins.complex",
    "builtins.slice",
    "builtins.range",
    "builtins.xrange",
    "types.SimpleNamespace",
    "decimal.Decimal",
    "fractions.Fraction",
    "numpy.random._pickle.__randomstate_ctor",
    "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    "datetime.datetime",
    "datetime.date",
    "datetime.time",
    "datetime.timezone",
    "datetime.timedelta",
    "torch.device",
    "torch.serialization._get_layout",
    "haiku._src.data_structures.frozendict",
    "haiku._src.data_structures.FlatMapping",
    "haiku._src.data_structures.FlatMap",
)
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
NUMPY_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
JAX_ARRAYS = (
    ("jax._src.array", "_reconstruct_array"),
    ("jax._src.device_array", "reconstruct_device_array"),
    ("jax.interpreters.xla", "_reconstruct_device_array"),
    ("jax.interpreters.xla", "reconstruct_device_array"),
)
CALLS: dict[str, Callable[..., Any]] = {
    **{path: _inert(path) for path in INERT},
    **{f"collections.{name}": _mapping for name in ("OrderedDict", "defaultdict", "Counter")},
    "collections.deque": _list,
    "builtins.getattr": _getattr,
    "builtins.dict": _mapping,
    "builtins.list": _list,
    "builtins.tuple": lambda *args: tuple(_list(*args)),
    "builtins.set": _set,
    "builtins.frozenset": lambda *args: frozenset(_set(*args)),
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    "operator.getitem": _getitem,
    "_operator.getitem": _getitem,
    **{f"{module}.{name}": _path for module in ("pathlib", "pathlib._local") for name in PATHS},
    "torch.Size": lambda *args: tuple(_list(*args)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._tensor._rebuild_from_type": _from_type,
    "numpy.dtype": _numpy_dtype,
    **{
        f"{module}.{name}": function
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, function in (("scalar", _scalar), ("_reconstruct", lambda *_: Array()))
    },
    **{f"{module}.{name}": _jax_array for module, name in JAX_ARRAYS},
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
}
KNOWN_ROOTS = ("collections", "omegaconf", "typing", "pathlib", "argparse")
KNOWN_TENSOR = re.compile(
    r"torch\.(\w+Storage|Tensor|Size|device|dtype|layout|strided|memory_format|"
    r"(q?u?int|b?float|complex)\d\w*|bool|half|double|long|short)|"
    r"torch\.(storage|_utils|_tensor|nn\.parameter)\.\w+|"
    r"numpy\.(ndarray|dtype|bool_?|u?int\d*|float\d+|complex\d+|str_|bytes_|number)|"
    r"numpy\.(dtypes|_?core\.(multiarray|numeric))\.\w+|"
    r"numpy\.random\.(_pickle|_mt19937|_pcg64|_philox|_sfc64|bit_generator)\.\w+"
)
KNOWN = frozenset(CALLS) | {
    f"builtins.{name}" for name in ("int", "long", "float", "str", "bool", "type")
}


def known(path: str) -> bool:
    """Return whether a reference in a checkpoint is no news."""
    if path in KNOWN or path.startswith("copyreg.") or KNOWN_TENSOR.fullmatch(path):
        return True
    return path.partition(".")[0] in KNOWN_ROOTS
