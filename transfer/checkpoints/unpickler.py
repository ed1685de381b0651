"""A pickle reader that runs nothing of what is in the file.

The standard library's unpickler in Python takes the opcodes apart; all it would import, call or
change is answered here. A name in the file stays a `Reference`, a name and no more; an instance of
a class stays an `Instance`, its recorded state and no code. Only the functions in `CALLS` are
called, which are this module's own; any other call stops the reading.
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
from collections.abc import Callable, Sized
from typing import Any, ClassVar

import numpy as np
import torch

from transfer.checkpoints.state_dicts import (
    FROM_BUFFER,
    NUMPY_CORES,
    RECONSTRUCT,
    Instance,
    Reference,
    Storage,
    TensorView,
    describe,
    hashable,
    numpy_dtype,
    raw_bytes,
)

Call = Callable[..., Any]
Stream = io.BytesIO | mmap.mmap
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "__builtins__": "builtins"}
RUNS_ON_SIGHT = ("os", "posix", "nt", "subprocess", "sys", "builtins", "shutil", "runpy", "socket")
MAX_NAME = 500


class UnsafeError(ValueError):
    """The file asks for something to be run."""


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, dtype: torch.dtype | None = None
) -> TensorView:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor without a storage, on {describe(storage)}")
    metadata = rest[2] if len(rest) > 2 else None  # after requires_grad and the hooks
    if isinstance(metadata, dict) and any(value is not False for value in metadata.values()):
        keys = ", ".join(key[:20] for key in metadata if isinstance(key, str))[:60]
        raise ValueError(f"a tensor with metadata ({keys}): its values are not as stored")
    view = TensorView(storage, dtype or storage.dtype, offset, tuple(shape), tuple(stride))
    view.check()
    return view


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorView:
    named = isinstance(rest[2], Reference) and rest[2].module == "torch"
    dtype = getattr(torch, rest[2].name, None) if named and rest[2].name.isidentifier() else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor without a storage or dtype")
    return _tensor(storage, offset, shape, stride, *rest[:2], *rest[3:], dtype=dtype)


def _scalar(dtype: Any, raw: Any = b"", *_: Any) -> Any:
    kind, data = numpy_dtype(dtype), raw_bytes(raw)
    return None if kind is None or data is None else np.frombuffer(data, kind, count=1)[0].item()


def _jax_array(function: Any, args: Any, state: Any, *_: Any) -> Instance:
    """Return the numpy array that jax wraps in its own."""
    if describe(function) not in RECONSTRUCT:
        raise UnsafeError(f"this file would run {describe(function)}")
    return Instance(function, args, state)


def _bytes(value: Any = b"", codec: Any = "latin-1", *_: Any) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str):
        raise ValueError("bytes made from something else")
    if codec not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        what = repr(codec[:40]) if isinstance(codec, str) else describe(codec)
        raise UnsafeError(f"this file would run the codec {what}")
    return value.encode(codec)


def _mapping(*args: Any) -> dict[Any, Any]:
    pairs = next((arg for arg in args if isinstance(arg, dict | list | tuple)), ())
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    return {hashable(pair[0]): pair[1] for pair in pairs}


def _list(values: Any = (), *_: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple | set | frozenset) else []


def _getitem(target: Any, *_: Any) -> Instance:
    if not isinstance(target, Reference) or target.module not in ("typing", "builtins"):
        raise UnsafeError("this file would run operator.getitem")
    return Instance(target)


def _getattr(target: Any, name: Any = None, *_: Any) -> Reference:
    """Return a nested name, as old protocols spell it; nothing is looked up."""
    if not isinstance(target, Reference) or not isinstance(name, str):
        raise UnsafeError("this file would run builtins.getattr")
    return Reference(target.module, f"{target.name}.{name}")


PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
INERT = {  # calls that leave an Instance with the arguments
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"builtins.{name}" for name in ("object", "complex", "slice", "range", "xrange")),
    "decimal.Decimal",
    "fractions.Fraction",
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timezone", "timedelta")),
    *(f"numpy.random._pickle.__{name}_ctor" for name in ("randomstate", "generator")),
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    "numpy.dtype",
    *RECONSTRUCT,
    *FROM_BUFFER,
    "torch.device",
    "torch.serialization._get_layout",
    *(f"haiku._src.data_structures.{name}" for name in ("frozendict", "FlatMapping", "FlatMap")),
}
JAX_ARRAYS = (
    "jax._src.array._reconstruct_array",
    "jax._src.device_array.reconstruct_device_array",
    *(f"jax.interpreters.xla.{name}reconstruct_device_array" for name in ("", "_")),
)
REBUILT = tuple(
    f"torch._utils._rebuild_{name}"
    for name in ("parameter", "parameter_with_state", "device_tensor_from_numpy")
)
FROM_TYPE = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
CALLS: dict[str, Call] = {
    **{f"collections.{name}": _mapping for name in ("OrderedDict", "defaultdict", "Counter")},
    "collections.deque": _list,
    "builtins.getattr": _getattr,
    "builtins.dict": _mapping,
    "builtins.list": _list,
    "builtins.tuple": lambda *args: tuple(_list(*args)),
    "builtins.set": lambda *args: set(map(hashable, _list(*args))),
    "builtins.frozenset": lambda *args: frozenset(map(hashable, _list(*args))),
    **dict.fromkeys(("builtins.bytes", "builtins.bytearray", "_codecs.encode"), _bytes),
    **dict.fromkeys(("operator.getitem", "_operator.getitem"), _getitem),
    "torch.Size": lambda *args: tuple(_list(*args)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    **dict.fromkeys(REBUILT, lambda data, *_: data),
    **{f"{core}.multiarray.scalar": _scalar for core in NUMPY_CORES},
    **dict.fromkeys(JAX_ARRAYS, _jax_array),
}
KNOWN = re.compile(
    r"(collections|omegaconf|typing|pathlib|argparse|copyreg)\.(?s:.*)|"
    r"builtins\.(int|long|float|str|bool|type)|"
    r"torch\.(\w+Storage|Tensor|Size|device|dtype|layout|strided|memory_format|"
    r"(q?u?int|b?float|complex)\d\w*|bool|half|double|long|short)|"
    r"torch\.(storage|_utils|_tensor|nn\.parameter)\.\w+|"
    r"numpy\.(ndarray|dtype|bool_?|u?int\d*|float\d+|complex\d+|str_|bytes_|number)|"
    r"numpy\.(dtypes|_?core\.(multiarray|numeric))\.\w+|"
    r"numpy\.random\.(_pickle|_mt19937|_pcg64|_philox|_sfc64|bit_generator)\.\w+"
)


def known(path: str) -> bool:
    """Return whether a reference in a checkpoint is no news."""
    return path in CALLS or path in INERT or KNOWN.fullmatch(path) is not None


_Stdlib: Any = pickle._Unpickler  # the one in C cannot be stopped at an opcode
OUT_OF_BAND = (pickle.NEXT_BUFFER[0], pickle.READONLY_BUFFER[0])


class SafeUnpickler(_Stdlib):  # type: ignore[misc]
    """Carries out one pickle: `SafeUnpickler(stream, ...).load()`.

    `persistent` answers persistent ids; `nested` answers a torch file in the pickle; `budget` is
    how many bytes calls may copy. References that are news are collected in `unknown`.
    """

    def __init__(self, stream: Stream, persistent: Call | None, nested: Call, budget: int) -> None:
        super().__init__(stream, encoding="latin-1")
        self.persistent, self.budget = persistent, budget
        self.calls = {**CALLS, "torch.storage._load_from_bytes": nested}
        self.unknown: set[str] = set()

    def load(self) -> Any:
        """Return what the pickle holds.

        Raises:
            UnsafeError: it would run something.
            ValueError: it is damaged.
        """
        try:
            return super().load()
        except UnsafeError:
            raise
        except EOFError:
            raise ValueError("damaged pickle (it has no end)") from None
        except Exception as error:  # noqa: BLE001  (damage shows in many types)
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"damaged pickle ({what})") from None

    def find_class(self, module: str, name: str) -> Reference:
        """Return the name of a class or function; nothing is looked up."""
        reference = Reference(RENAMED.get(module, module), name)
        if len(module) + len(name) > MAX_NAME:
            raise ValueError(f"a reference of more than {MAX_NAME} characters")
        if not known(reference.path):
            self.unknown.add(reference.path)
        return reference

    def persistent_load(self, identifier: Any) -> Any:
        """Return what an id outside the pickle stands for."""
        if self.persistent is None:
            raise ValueError("a persistent id outside a torch file")
        return self.persistent(identifier)

    def get_extension(self, code: int) -> None:
        """Refuse a number of copyreg's registry."""
        raise UnsafeError(f"this file would run whatever copyreg extension {code} stands for")

    def _charge(self, args: Any) -> None:
        """Take what a call could copy out of the budget."""
        for arg in args if isinstance(args, tuple) else ():
            if isinstance(arg, Sized):
                self.budget -= len(arg) * (1 if isinstance(arg, str | bytes | bytearray) else 8)
        if self.budget < 0:
            raise ValueError("a few bytes of it unfold to more than the file holds")

    def _call(self, function: Any, args: Any, *, new: bool = False) -> Any:
        """Make a listed call, or stop; `new` only makes an empty instance of a class."""
        if not isinstance(args, tuple) and not new:
            raise ValueError("a call without an argument tuple")
        if not isinstance(function, Reference) or not isinstance(args, tuple):
            raise UnsafeError(f"this file would run {describe(function)}")
        path = function.path
        if path in ("copyreg._reconstructor", "copyreg.__newobj__") and not new:
            return self._call(args[0], args[1:] if "newobj" in path else (), new=True)
        if path in FROM_TYPE:
            return self._call(args[0], args[2])
        self._charge((args, *args) if new else args)
        if path in self.calls:
            value = self.calls[path](*args)
            named = isinstance(value, Reference)
            return self.find_class(value.module, value.name) if named else value
        harmless = known(path) or path.partition(".")[0] not in RUNS_ON_SIGHT
        if path in INERT or (new and harmless):
            return Instance(function, args)
        raise UnsafeError(f"this file would run {path}")

    def _fill(self, pairs: list[Any]) -> None:
        """Put keys and values into the mapping on the stack."""
        target = self.stack[-1]
        mapping = target.items if isinstance(target, Instance) else target
        if not isinstance(mapping, dict):
            raise ValueError("items for something that is no mapping")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            mapping[hashable(key)] = value

    def _instantiate(self, cls: Any, args: list[Any]) -> None:
        self.append(self._call(cls, tuple(args)))

    def _reduce(self, *, new: bool = False) -> None:
        args = self.stack.pop()
        self.append(self._call(self.stack.pop(), args, new=new))

    def _newobj_ex(self) -> None:
        self.stack.pop()  # named arguments
        self._reduce(new=True)

    def _build(self) -> None:
        """Give the instance on the stack its state."""
        state = self.stack.pop()
        target = self.stack[-1]
        for part in state if isinstance(state, tuple) else (state,):
            for key, value in part.items() if isinstance(part, dict) else ():
                if isinstance(key, str) and key.startswith("__") and key.endswith("__"):
                    what = describe(value) if key == "__setstate__" else f"{key} of its own"
                    raise UnsafeError(f"this file would run {what}")
        self._charge(state)
        if isinstance(target, Instance):
            target.state = state
        elif isinstance(target, Reference):
            raise UnsafeError(f"this file would run code that changes {target.path}")

    def _dict(self) -> None:
        pairs = self.pop_mark()
        self.append({})
        self._fill(pairs)

    def _additems(self) -> None:
        values = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise ValueError("elements for something that is no set")
        self.stack[-1].update(map(hashable, values))

    def _frozenset(self) -> None:
        values = self.pop_mark()
        self.append(frozenset(map(hashable, values)))

    dispatch: ClassVar[dict[int, Call]] = {
        **{code: step for code, step in _Stdlib.dispatch.items() if code not in OUT_OF_BAND},
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: lambda self: self._reduce(new=True),
        pickle.NEWOBJ_EX[0]: _newobj_ex,
        pickle.BUILD[0]: _build,
        pickle.DICT[0]: _dict,
        pickle.SETITEM[0]: lambda self: self._fill([self.stack.pop(), self.stack.pop()][::-1]),
        pickle.SETITEMS[0]: lambda self: self._fill(self.pop_mark()),
        pickle.ADDITEMS[0]: _additems,
        pickle.FROZENSET[0]: _frozenset,
        pickle.BYTEARRAY8[0]: _Stdlib.load_binbytes8,  # the stdlib's takes the memory first
    }
