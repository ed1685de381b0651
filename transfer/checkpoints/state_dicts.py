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
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "uint16": 2, "uint32": 4,
    "uint64": 8, "bool": 1, "complex32": 4, "complex64": 8, "complex128": 16,
    "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1,
}  # fmt: skip
MAX_NAME = 500
MAX_TENSORS = 20_000
MAX_KEY_NUMBER = 2**60
MAX_NUMBER = 2**48
MAX_RANK = 8
MAX_PARTS = 8  # of an instance that are looked at
MAX_DEPTH = 8
SMALL = 2**20
PARAMETERS = ("torch.nn.parameter.Parameter", "torch.autograd.variable.Variable")
SPECIAL_TENSORS: tuple[tuple[str, str], ...] = (
    (
        r"_rebuild_qtensor$|[Qq]uantized\w*Tensor|\.AffineQuantized",
        "quantised: save the state_dict() of the model in floating point that it was made from",
    ),
    (
        r"\.DTensor$|\.ShardedTensor$",
        "parts of distributed tensors: gather them first, with "
        "torch.distributed.checkpoint.state_dict.get_model_state_dict and full_state_dict=True",
    ),
    (
        r"_rebuild_meta_tensor\w*$",
        "on torch's meta device, without values: load the weights before saving",
    ),
    (
        r"_rebuild_flagged_tensor$",
        "negated or conjugated by a flag, not as they are stored: save "
        "x.resolve_neg().resolve_conj()",
    ),
    (r"_rebuild_(sparse|sparse_csr|nested)_tensor$", "sparse or nested: save x.to_dense()"),
    (
        r"_rebuild_wrapper_subclass$|_rebuild_from_type\w*$",
        "of a class of their own: save plain tensors",
    ),
)
PLAIN_DTYPE = re.compile(r"[<>|=]?[?biufc]\d{0,2}")
NUMPY_CORES = ("numpy.core", "numpy._core")
RECONSTRUCT = tuple(f"{core}.multiarray._reconstruct" for core in NUMPY_CORES)
FROM_BUFFER = tuple(f"{core}.numeric._frombuffer" for core in NUMPY_CORES)


@dataclass(frozen=True, slots=True)
class Reference:
    """A class or function that the file names."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """The full name, as in `posix.system`."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Instance:
    """An instance of a class that was not looked up: what the file would have put into it."""

    reference: Reference
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    tensor: TensorView | None = None

    def extend(self, values: Any) -> None:
        """Take elements of a list or set, which nobody asks for."""

    append = update = extend


NESTED = (dict, list, tuple, Instance, Mapping)  # the abstract one last: asking for it is slow


def describe(value: Any) -> str:
    """Return a name for what a file holds or would call."""
    if isinstance(value, Reference):
        return value.path
    if isinstance(value, Instance):
        return f"an instance of {value.reference.path}"
    return "a single tensor" if isinstance(value, TensorView) else f"a {type(value).__name__}"


def hashable(key: Any) -> Any:
    """Return `key` where no file can make many of its kind collide, else an object in its place.

    Python salts the hash of texts and bytes, not that of tuples and large whole numbers.
    """
    if key is None or isinstance(key, str | bytes | float | Reference):
        return key
    if isinstance(key, int) and abs(key) < MAX_KEY_NUMBER:
        return key
    return Instance(Reference("a key", type(key).__name__))


def count_like(value: Any) -> bool:
    """Return whether a value can be a size or place: asked before computing with it."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER


@dataclass(eq=False, slots=True)
class Storage:
    """A run of bytes in the file; `data` is None until its place is known (legacy files).

    `dtype` is a key of `ITEM_BYTES`. Python 2 wrote bytes as text.
    """

    name: str
    dtype: str
    num_bytes: int
    data: memoryview | bytes | bytearray | str | None = None
    big_endian: bool = False


@dataclass(eq=False, slots=True)
class TensorView:
    """A tensor as the file describes it; `read` makes the tensor."""

    storage: Storage
    dtype: str
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
        size, count = ITEM_BYTES[self.dtype], math.prod(self.shape)
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

    @property
    def num_bytes(self) -> int:
        """How much of the file `read` goes through, or how much it makes, whichever is more."""
        count = math.prod(self.shape)
        return max(count, self._span()) * ITEM_BYTES[self.dtype] if count else 0

    def read(self) -> Tensor:
        """Return the tensor, contiguous, in memory of its own."""
        import torch  # noqa: PLC0415  (what is refused needs no torch)

        self.check()
        data, dtype = self.storage.data, getattr(torch, self.dtype)
        if data is None:
            raise ValueError(f"storage {self.storage.name} is not in the file")
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        size = ITEM_BYTES[self.dtype]
        raw = data[self.offset * size : (self.offset + self._span()) * size]
        if isinstance(raw, str):
            raw = raw.encode("latin-1")
        if self.storage.big_endian:
            raw = np.frombuffer(raw, self.dtype).byteswap().tobytes()
        flat = torch.frombuffer(bytearray(raw), dtype=dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


StateDict = dict[str, TensorView]


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, as torch counts them."""
    steps = [1]
    for size in reversed(shape[1:]):
        steps.insert(0, steps[0] * max(size, 1))
    return tuple(steps[: len(shape)])


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
    """Return a numpy array or an old parameter as a tensor."""
    path, state = array.reference.path, array.state
    if path in RECONSTRUCT and isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, fortran, raw = state
    elif path in PARAMETERS:  # of torch before 0.4
        inside = state.values() if isinstance(state, Mapping) else state
        listed = inside if isinstance(inside, tuple) or isinstance(state, Mapping) else ()
        parts = (*array.args[:MAX_PARTS], *islice(listed, MAX_PARTS))
        return next((part for part in parts if isinstance(part, TensorView)), None)
    elif path in FROM_BUFFER and len(array.args) > 2:
        raw, dtype, shape, order = (*array.args[:4], "C")[:4]
        fortran = order == "F"
    else:
        return None
    kind = numpy_dtype(dtype)
    if kind is None or kind.name not in ITEM_BYTES or not isinstance(shape, tuple):
        return None
    if not isinstance(raw, str | bytes | bytearray):
        return None
    if len(shape) > MAX_RANK or not all(count_like(n) for n in shape):
        raise ValueError("an array of an absurd shape")
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} with {len(raw)} bytes")
    steps = strides(shape[::-1])[::-1] if fortran else strides(shape)
    storage = Storage("array", kind.name, len(raw), raw, big_endian=not kind.isnative)
    return TensorView(storage, kind.name, 0, shape, steps)


def as_text(key: Any) -> str | None:
    """Return a key as text (old Python's names are bytes), None for other keys."""
    if isinstance(key, bytes):
        return key.decode("latin-1")
    return key if isinstance(key, str) else None


def find_state_dicts(content: Mapping[Any, Any]) -> dict[str, StateDict]:
    """Return every dict with tensors in it, by its path of keys and places in lists.

    Raises:
        ValueError: two of them have the same path, or two tensors the same name; or there are more
            tensors, or longer names, than any network has.
    """
    state_dicts: dict[str, StateDict] = {}
    num_tensors = 0
    for parts, node in _mappings(content):
        tensors: StateDict = {}
        for key, value in node.items():
            name, tensor = as_text(key), as_tensor(value)
            if name is None or tensor is None:
                continue
            if name in tensors:
                raise ValueError(f"two tensors of the name {name[:100]}, one as bytes")
            if len(name) > MAX_NAME:
                raise ValueError(
                    f"a tensor's name of {len(name)} characters ({name[:40]}...), wanted at most "
                    f"{MAX_NAME}"
                )
            tensors[name] = tensor
        num_tensors += len(tensors)
        if num_tensors > MAX_TENSORS:
            raise ValueError(f"more than {MAX_TENSORS} tensors with names, no ResNet has so many")
        path = ".".join(parts)
        if tensors and path in state_dicts:
            raise ValueError(f"two dicts of tensors at the same path {path[:100]}")
        if tensors:
            state_dicts[path] = tensors
    return state_dicts


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield every dict once, with its path, in the file's order (a dict before what is in it)."""
    seen: set[int] = set()

    def inside(path: tuple[str, ...], node: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in pairs:
            if not isinstance(value, NESTED):
                continue
            inner = value.items if isinstance(value, Instance) else value
            if id(inner) not in seen:
                name = as_text(key) if isinstance(node, Mapping) else str(key)
                if name is not None and len(name) <= MAX_NAME:
                    yield (*path, name), inner

    waiting: list[Iterator[tuple[tuple[str, ...], Any]]] = [iter([((), content)])]
    while waiting:
        path, node = next(waiting[-1], (None, None))
        if path is None:
            waiting.pop()
        elif id(node) not in seen and len(path) <= MAX_DEPTH:
            seen.add(id(node))
            if isinstance(node, Mapping):
                yield path, node
            waiting.append(inside(path, node))


def whole_model(content: Mapping[Any, Any]) -> str | None:
    """Return the path of a model that was pickled whole, None if there is none."""
    for path, node in _mappings(content):
        for key, value in node.items():
            state = value.state if isinstance(value, Instance) else None
            if isinstance(key, str) and isinstance(state, dict) and "_modules" in state:
                return ".".join((*path, key))
    return None


def special_tensors(content: Mapping[Any, Any]) -> str | None:
    """Return of what kind tensors are that cannot be read, None where there are none."""
    for path, node in _mappings(content):
        for key, value in node.items():
            if not isinstance(value, Instance):
                continue
            names = [
                one.path
                for one in (value.reference, *value.args[:MAX_PARTS])
                if isinstance(one, Reference)
            ]
            for pattern, kind in SPECIAL_TENSORS:
                if any(re.search(pattern, name) for name in names):
                    name = ".".join((*path, as_text(key) or "?"))
                    return f"its tensors are {kind} ({name[:60]})"
    return None
