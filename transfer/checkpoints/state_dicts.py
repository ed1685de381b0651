"""The parts of a file that was read: tensors, other objects, and the dicts that hold tensors.

A tensor or array is described, not made (`TensorView`): where its bytes lie in the file, checked
against the file's size, read only when somebody asks. A class or function is a name (`Reference`);
an instance of a class what the file would have put into it (`Instance`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_KEY_PARTS = 16
MAX_KEY_NUMBER = 2**60
MAX_NUMBER = 2**48
MAX_RANK = 8
MAX_DEPTH = 8
SMALL = 2**20
PLAIN_DTYPE = re.compile(r"[<>|=]?[?biufc]\d{0,2}")
NUMPY_CORES = ("numpy.core", "numpy._core")
RECONSTRUCT = tuple(f"{core}.multiarray._reconstruct" for core in NUMPY_CORES)
FROM_BUFFER = tuple(f"{core}.numeric._frombuffer" for core in NUMPY_CORES)


@dataclass(frozen=True)
class Reference:
    """A class or function that the file names."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """The full name, as in `posix.system`."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """An instance of a class that was not looked up: what the file would have put into it."""

    reference: Reference
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    tensor: TensorView | None = None

    def extend(self, values: Any) -> None:
        """Take list elements, which nobody asks for."""

    append = extend


def describe(value: Any) -> str:
    """Return a name for what a file would call."""
    if isinstance(value, Reference):
        return value.path
    if isinstance(value, Instance):
        return f"an instance of {value.reference.path}"
    return f"a {type(value).__name__}"


def hashable(key: Any) -> Any:
    """Return `key` where hashing it is cheap, else an object that stands for it.

    Cheap are plain values, whole numbers that no file can make collide, and short flat tuples.
    """
    parts = key if isinstance(key, tuple) and len(key) <= MAX_KEY_PARTS else (key,)
    if all(
        part is None
        or isinstance(part, str | bytes | float | Reference)
        or (isinstance(part, int) and abs(part) < MAX_KEY_NUMBER)
        for part in parts
    ):
        return key
    return Instance(Reference("a key", type(key).__name__))


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
        size, count = self.dtype.itemsize, math.prod(self.shape)
        if count == 0:
            return
        end = (self.offset + self._span()) * size
        if end > self.storage.num_bytes:
            raise ValueError(
                f"a tensor of shape {self.shape} reaches byte {end} "
                f"of a storage of {self.storage.num_bytes} bytes"
            )
        if count * size > max(self.storage.num_bytes, SMALL):
            raise ValueError(
                f"a tensor of shape {self.shape} would take {count * size} bytes, "
                f"its storage holds {self.storage.num_bytes}"
            )

    def _span(self) -> int:
        """Return the number of elements from its first to its last one."""
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    def read(self) -> Tensor:
        """Return the tensor, contiguous, in memory of its own."""
        self.check()
        if self.storage.data is None:
            raise ValueError(f"storage {self.storage.name} is not in the file")
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        size = self.dtype.itemsize
        raw = self.storage.data[self.offset * size : (self.offset + self._span()) * size]
        flat = torch.frombuffer(bytearray(raw), dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


StateDict = dict[str, TensorView]


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, as torch counts them."""
    steps = [1]
    for size in reversed(shape[1:]):
        steps.insert(0, steps[0] * max(size, 1))
    return tuple(steps[: len(shape)])


def raw_bytes(raw: Any) -> bytes | None:
    """Return the bytes of an array, which Python 2 wrote as text; None for anything else."""
    if isinstance(raw, str):
        return raw.encode("latin-1")
    return bytes(raw) if isinstance(raw, bytes | bytearray) else None


def numpy_dtype(dtype: Any) -> np.dtype[Any] | None:
    """Return the dtype of plain numbers that a file describes, None for any other."""
    path = dtype.reference.path if isinstance(dtype, Instance) else ""
    code = dtype.args[0] if path == "numpy.dtype" and dtype.args else None
    if not isinstance(code, str) or not PLAIN_DTYPE.fullmatch(code):
        return None
    state = dtype.state
    if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
        code = state[1] + code.lstrip("<>|=")
    try:
        return np.dtype(code)
    except TypeError:
        return None


def as_tensor(value: Any) -> TensorView | None:
    """Return a tensor or numpy array of plain numbers as a tensor, None for anything else."""
    if isinstance(value, Instance) and value.tensor is None:
        value.tensor = _array(value)  # copied once, however often the file names it
    tensor = value.tensor if isinstance(value, Instance) else value
    return tensor if isinstance(tensor, TensorView) else None


def _array(array: Instance) -> TensorView | None:
    """Return a numpy array as a tensor."""
    path, state = array.reference.path, array.state
    if path in RECONSTRUCT and isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, fortran, raw = state
    elif path in FROM_BUFFER and len(array.args) > 2:
        raw, dtype, shape, order = (*array.args, "C")[:4]
        fortran = order == "F"
    else:
        return None
    kind, data = numpy_dtype(dtype), raw_bytes(raw)
    if kind is None or data is None or not isinstance(shape, tuple):
        return None
    if len(shape) > MAX_RANK or not all(count_like(n) for n in shape):
        raise ValueError("an array of an absurd shape")
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
    native = kind.newbyteorder("=")
    try:
        torch_dtype = torch.from_numpy(np.zeros(1, native)).dtype
    except TypeError:
        return None
    if not kind.isnative:
        data = np.frombuffer(data, kind).astype(native).tobytes()
    steps = strides(shape[::-1])[::-1] if fortran else strides(shape)
    return TensorView(Storage("array", torch_dtype, len(data), data), torch_dtype, 0, shape, steps)


def as_text(key: Any) -> str | None:
    """Return a key as text (old Python's names are bytes), None for other keys."""
    if isinstance(key, bytes):
        return key.decode("latin-1")
    return key if isinstance(key, str) else None


def find_state_dicts(content: Mapping[Any, Any]) -> dict[str, StateDict]:
    """Return every dict with tensors in it, by its path of keys and places in lists.

    Raises:
        ValueError: two of them have the same path, or two tensors the same name.
    """
    state_dicts: dict[str, StateDict] = {}
    for parts, node in _mappings(content):
        tensors: StateDict = {}
        for key, value in node.items():
            name, tensor = as_text(key), as_tensor(value)
            if name is None or tensor is None:
                continue
            if name in tensors:
                raise ValueError(f"two tensors of the name {name[:100]}, one as bytes")
            tensors[name] = tensor
        path = ".".join(parts)
        if tensors and path in state_dicts:
            raise ValueError(f"two dicts of tensors at the same path {path[:100]}")
        if tensors:
            state_dicts[path] = tensors
    return state_dicts


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield every dict once, with its path, in the file's order (a dict before what is in it)."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        path, node = waiting.pop()
        node = node.items if isinstance(node, Instance) else node
        if id(node) in seen or len(path) > MAX_DEPTH:
            continue
        if isinstance(node, Mapping):
            texts = ((as_text(key), value) for key, value in node.items())
            inner = [((*path, text), value) for text, value in texts if text is not None]
            yield path, node
        elif isinstance(node, list | tuple):
            inner = [((*path, str(index)), value) for index, value in enumerate(node)]
        else:
            continue
        seen.add(id(node))
        nested = (Instance, Mapping, list, tuple)
        waiting += [pair for pair in reversed(inner) if isinstance(pair[1], nested)]


def whole_model(content: Mapping[Any, Any]) -> str | None:
    """Return the path of a model that was pickled whole, None if there is none."""
    for path, node in _mappings(content):
        for key, value in node.items():
            state = value.state if isinstance(value, Instance) else None
            if isinstance(key, str) and isinstance(state, dict) and "_modules" in state:
                return ".".join((*path, key))
    return None
