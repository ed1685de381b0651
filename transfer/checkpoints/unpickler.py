"""A pickle reader that runs nothing of what is in the file, within bounds of memory and time.

The standard library's unpickler in Python takes the opcodes apart; all it would import, call or
change is answered here. A name in the file stays a `Reference`, a name and no more; what a file
would make by a call stays an `Instance`, the name and what was given to it. Only the functions in
`CALLS` are called, which are this module's own. A name that can only mean an attack stops the
reading.

The unpickler in C is quicker, but it fills real dicts and sets, and tuples can be made to collide
in them: it could be kept busy for days, deaf to every signal.

A reading has one `Limits`, however many files are nested in it: memory against the size of the
file, and steps. What an opcode makes is paid for before it is made, at about what CPython takes for
it; what is paid for is never given back.
"""

from __future__ import annotations

import io
import pickle
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np

from transfer.checkpoints.state_dicts import (
    ITEM_BYTES,
    NUMPY_CORES,
    Instance,
    Reference,
    Storage,
    TensorView,
    describe,
    hashable,
    numpy_dtype,
)

BASE_MEMORY = 2**27
MEMORY_PER_BYTE = 2
MAX_STEPS = 8_000_000
MAX_CPU_SECONDS = 40
OPCODE_BYTES = 40  # a number or reference, its place on the stack and its place in a list
HEAVY_OPCODE_BYTES = {
    code[0]: num_bytes
    for num_bytes, codes in {
        80: (pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE, pickle.LIST),
        120: (pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT,
              pickle.MEMOIZE, pickle.DICT),
        200: (pickle.MARK,),
        300: (pickle.EMPTY_SET, pickle.FROZENSET, pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX,
              pickle.OBJ, pickle.INST, pickle.BUILD, pickle.PERSID, pickle.BINPERSID),
        500: (pickle.GLOBAL, pickle.STACK_GLOBAL),
    }.items()
    for code in codes
}  # fmt: skip
Call = Callable[..., Any]
Stream = io.BytesIO
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "__builtins__": "builtins"}
ATTACK = re.compile(  # names that have no business in a checkpoint, called or not
    r"(os|posix|nt|subprocess|_posixsubprocess|shutil|runpy|socket|pty|ctypes|webbrowser|timeit|imp|"
    r"sys)\.(?!(\w+_result|PathLike|getcwd|cpu_count|getpid|CompletedProcess|CalledProcessError)$).*|"
    r"builtins\.(eval|exec|execfile|compile|__import__|input|raw_input|breakpoint)",
    re.DOTALL,
)
LOADER = re.compile(  # names that run code or reach for files, once called; else an honest setting
    r"builtins\.(open|file|globals|locals|vars|setattr|delattr|apply)|"
    r"(pickle|_pickle|cPickle|marshal|importlib)\..*|"
    r"torch\.(load|hub\..*|serialization\.load|jit\.load|(ops|classes)\.load_library|"
    r"utils\.cpp_extension\..*)|"
    r"numpy\.(load|f2py\..*|distutils\..*|testing\..*runstring)|joblib\..*load|pandas\..*read_pickle",
    re.DOTALL,
)
MAX_REFERENCE = 500
LONG_TEXT = 2**20
SLOT_BYTES = 60  # of an element in a dict or set that has just grown


class LimitError(ValueError):
    """The file takes more memory or time than any checkpoint of its size."""


class Limits:
    """What is left of memory and steps, for all that one file holds."""

    def __init__(self, file_bytes: int) -> None:
        self.memory = BASE_MEMORY + MEMORY_PER_BYTE * file_bytes
        self.steps = MAX_STEPS

    def take(self, num_bytes: int, steps: int = 0) -> None:
        """Pay for memory and steps.

        Raises:
            LimitError: there is not so much left.
        """
        self.memory -= num_bytes
        self.steps -= steps
        if self.memory < 0:
            raise LimitError("a few bytes of it unfold to more than the file holds")
        if self.steps < 0:
            raise LimitError(f"it holds more than {MAX_STEPS:,} parts, no checkpoint does")


@contextmanager
def cpu_time_limit(seconds: int = MAX_CPU_SECONDS) -> Iterator[None]:
    """Stop what runs inside after so much CPU time of the process; the last of the nets.

    Only the main thread can be stopped so; elsewhere nothing is limited.

    Raises:
        LimitError: the time is over.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise LimitError(f"it takes more than {seconds} seconds to read, no checkpoint does")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class UnsafeError(ValueError):
    """The file asks for something to be run."""


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, dtype: str | None = None
) -> TensorView | Instance:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor without a storage, on {describe(storage)}")
    metadata = rest[2] if len(rest) > 2 else None  # after requires_grad and the hooks
    if isinstance(metadata, dict) and any(value is not False for value in metadata.values()):
        return Instance(Reference("torch._utils", "_rebuild_flagged_tensor"))
    view = TensorView(storage, dtype or storage.dtype, offset, tuple(shape), tuple(stride))
    view.check()
    return view


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    dtype = rest[2] if len(rest) > 2 else None
    if not isinstance(dtype, Reference) or dtype.module != "torch" or dtype.name not in ITEM_BYTES:
        raise ValueError(f"a tensor of the dtype {describe(dtype)[:60]}, which torch has not")
    return _tensor(storage, offset, shape, stride, *rest[:2], *rest[3:], dtype=dtype.name)


def _scalar(dtype: Any, raw: Any = b"", *_: Any) -> Any:
    kind = numpy_dtype(dtype)
    data = raw.encode("latin-1") if isinstance(raw, str) else raw
    if kind is None or not isinstance(data, bytes | bytearray):
        return None
    return np.frombuffer(data, kind, count=1)[0].item()


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


def _jax_array(function: Any, args: Any, state: Any, *_: Any) -> Any:
    """Return the numpy array that jax wraps in its own."""
    return Instance(function, args, state) if isinstance(function, Reference) else None


def _rebuilt(cls: Any, base: Any = None, state: Any = None, *_: Any) -> Any:
    """Return the instance that protocols 0 and 1 make of a class; of a dict, with what is in it."""
    items = dict(state) if isinstance(state, dict) else {}
    return Instance(cls, items=items) if isinstance(cls, Reference) else None


def _getattr(target: Any, name: Any = None, *_: Any) -> Any:
    """Return a nested name, as old protocols spell it; nothing is looked up."""
    if isinstance(target, Reference) and isinstance(name, str):
        return Reference(target.module, f"{target.name}.{name}")
    return Instance(Reference("builtins", "getattr"), (target, name))


REBUILT = tuple(
    f"torch._utils._rebuild_{name}"
    for name in ("parameter", "parameter_with_state", "device_tensor_from_numpy")
)
JAX_ARRAYS = (
    "jax._src.array._reconstruct_array",
    "jax._src.device_array.reconstruct_device_array",
    *(f"jax.interpreters.xla.{name}reconstruct_device_array" for name in ("", "_")),
)
FROM_TYPE = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
CALLS: dict[str, Call] = {
    **{f"collections.{name}": _mapping for name in ("OrderedDict", "defaultdict", "Counter")},
    "collections.deque": _list,
    "copyreg._reconstructor": _rebuilt,
    "builtins.getattr": _getattr,
    "builtins.dict": _mapping,
    "builtins.list": _list,
    "builtins.tuple": lambda *args: tuple(_list(*args)),
    "builtins.set": lambda *args: set(map(hashable, _list(*args))),
    "builtins.frozenset": lambda *args: frozenset(map(hashable, _list(*args))),
    **dict.fromkeys(("builtins.bytes", "builtins.bytearray", "_codecs.encode"), _bytes),
    "torch.Size": lambda *args: tuple(_list(*args)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    **dict.fromkeys(REBUILT, lambda data, *_: data),
    **{f"{core}.multiarray.scalar": _scalar for core in NUMPY_CORES},
    **dict.fromkeys(JAX_ARRAYS, _jax_array),
}
KNOWN = re.compile(
    r"(collections|omegaconf|typing|pathlib|argparse|copyreg|datetime|decimal|fractions)\.(?s:.*)|"
    r"types\.SimpleNamespace|_?operator\.getitem|_codecs\.encode|"
    r"haiku\._src\.data_structures\.(frozendict|FlatMap(ping)?)|"
    r"builtins\.(int|long|float|str|bool|type|object|complex|slice|x?range)|"
    r"torch\.(\w+Storage|Tensor|Size|device|dtype|layout|strided|memory_format|"
    r"(q?u?int|b?float|complex)\d\w*|bool|half|double|long|short)|"
    r"torch\.(storage|_utils|_tensor|nn\.parameter|serialization)\.\w+|"
    r"numpy\.(ndarray|dtype|bool_?|u?int\d*|float\d+|complex\d+|str_|bytes_|number)|"
    r"numpy\.(dtypes|_?core\.(multiarray|numeric))\.\w+|"
    r"numpy\.random\.(_pickle|_mt19937|_pcg64|_philox|_sfc64|bit_generator)\.\w+"
)
_Stdlib: Any = pickle._Unpickler
OUT_OF_BAND = (pickle.NEXT_BUFFER[0], pickle.READONLY_BUFFER[0])


SIZED = (
    pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.STRING, pickle.BINSTRING,
    pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.BINBYTES8, pickle.SHORT_BINBYTES,
)  # fmt: skip


def _paid_by_size(step: Call) -> Call:
    """Return a step that pays for what it pushes."""

    def paid(reader: SafeUnpickler) -> None:
        step(reader)
        reader.limits.take(sys.getsizeof(reader.stack[-1]))

    return paid


class _Paid:
    """The steps by their opcodes; each is paid for when it is looked up.

    Of all that reading a pickle takes this is the most, so it calls nothing while there is enough.
    """

    __slots__ = ("limits", "steps")

    def __init__(self, steps: dict[int, tuple[Call, int]], limits: Limits) -> None:
        self.steps, self.limits = steps, limits

    def __getitem__(self, code: int) -> Call:
        step, num_bytes = self.steps[code]
        limits = self.limits
        limits.memory -= num_bytes
        limits.steps -= 1
        if limits.memory < 0 or limits.steps < 0:
            limits.take(0)  # says which
        return step


class SafeUnpickler(_Stdlib):  # type: ignore[misc]
    """Carries out one pickle: `SafeUnpickler(stream, ...).load()`.

    `persistent` answers persistent ids; `nested` answers a torch file in the pickle. References
    that are news are collected in `unknown`.
    """

    def __init__(
        self, stream: Stream, persistent: Call | None, nested: Call, limits: Limits
    ) -> None:
        super().__init__(stream, encoding="latin-1")
        self.persistent, self.limits = persistent, limits
        self.calls = {**CALLS, "torch.storage._load_from_bytes": nested}
        self.dispatch = _Paid(PRICED, limits)  # type: ignore[assignment]  # it is only looked up in
        self.unknown: set[str] = set()

    def load(self) -> Any:
        """Return what the pickle holds.

        Raises:
            UnsafeError: it would run something.
            LimitError: it would take more memory or time than a checkpoint of its size.
            ValueError: it is damaged.
        """
        try:
            return super().load()
        except (UnsafeError, LimitError):
            raise
        except EOFError:
            raise ValueError("damaged pickle (it has no end)") from None
        except Exception as error:  # noqa: BLE001  (damage shows in many types)
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"damaged pickle ({what})") from None

    def find_class(self, module: str, name: str) -> Reference:
        """Return the name of a class or function; nothing is looked up."""
        if len(module) + len(name) > MAX_REFERENCE:
            raise ValueError(f"a reference of more than {MAX_REFERENCE} characters")
        reference = Reference(RENAMED.get(module, module), name)
        if ATTACK.fullmatch(reference.path) or ("." in name and ATTACK.fullmatch(name)):
            raise UnsafeError(f"this file would run {reference.path}")
        if reference.path not in self.calls and not KNOWN.fullmatch(reference.path):
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

    def _call(self, function: Any, args: Any) -> Any:
        """Make a listed call; of any other keep the name and the arguments."""
        if not isinstance(args, tuple):
            raise ValueError("a call without an argument tuple")
        if isinstance(function, Instance):
            return Instance(function.reference, args)
        if not isinstance(function, Reference):
            raise ValueError(f"a call of {describe(function)}")
        path = function.path
        if path in FROM_TYPE and len(args) > 2 and isinstance(args[2], tuple):
            made = self._call(args[0], args[2])
            return made if isinstance(made, TensorView) else Instance(function, args)
        if path == "copyreg.__newobj__" and args and isinstance(args[0], Reference):
            self.limits.take(len(args) * SLOT_BYTES)
            return Instance(args[0], args[1:])
        if LOADER.fullmatch(path):
            raise UnsafeError(f"this file would run {path}")
        if path not in self.calls:
            return Instance(function, args)
        for arg in args:
            if isinstance(arg, Sized):
                self.limits.take(
                    len(arg) * (1 if isinstance(arg, str | bytes | bytearray) else SLOT_BYTES)
                )
        value = self.calls[path](*args)
        named = isinstance(value, Reference)
        return self.find_class(value.module, value.name) if named else value

    def _fill(self, pairs: list[Any]) -> None:
        """Put keys and values into the mapping on the stack."""
        target = self.stack[-1]
        mapping = target.items if isinstance(target, Instance) else target
        if not isinstance(mapping, dict):
            raise ValueError("items for something that is no mapping")
        self.limits.take(len(pairs) * SLOT_BYTES)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            mapping[hashable(key)] = value

    def _instantiate(self, cls: Any, args: list[Any]) -> None:
        self.append(self._call(cls, tuple(args)))

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.append(self._call(self.stack.pop(), args))

    def _newobj_ex(self) -> None:
        self.stack.pop()  # named arguments
        self._reduce()

    def _build(self) -> None:
        """Keep the state of the instance on the stack."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Instance):
            self.stack[-1].state = state

    def _dict(self) -> None:
        pairs = self.pop_mark()
        self.append({})
        self._fill(pairs)

    def _additems(self) -> None:
        values = self.pop_mark()
        self.limits.take(len(values) * SLOT_BYTES)
        self.stack[-1].update(map(hashable, values))

    def _frozenset(self) -> None:
        values = self.pop_mark()
        self.limits.take(len(values) * SLOT_BYTES)
        self.append(frozenset(map(hashable, values)))

    def _text(self, raw: bytes, codec: str, wide: bool) -> None:
        """Push a text; a long one holds the bytes of an array, so none of it takes two bytes."""
        if wide and len(raw) > LONG_TEXT:
            raise ValueError(f"a text of {len(raw)} bytes that is not latin-1, no checkpoint has")
        self.append(str(raw, codec, "surrogatepass" if codec == "utf-8" else "strict"))
        self.limits.take(sys.getsizeof(self.stack[-1]))

    def _binunicode(self, width: int) -> None:
        raw = self.read(int.from_bytes(self.read(width), "little"))
        self._text(raw, "utf-8", bool(raw) and int(np.frombuffer(raw, np.uint8).max()) >= 0xC4)

    def _unicode(self) -> None:
        line = self.readline()
        line = line[: len(line) - 1]
        wide = re.search(rb"\\(U|u(?!00))", line) is not None
        self._text(line, "raw-unicode-escape", wide)

    dispatch: dict[int, Call] = {  # noqa: RUF012  (a reader looks them up in `PRICED`)
        **{code: step for code, step in _Stdlib.dispatch.items() if code not in OUT_OF_BAND},
        **{code[0]: _paid_by_size(_Stdlib.dispatch[code[0]]) for code in SIZED},
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _newobj_ex,
        pickle.BUILD[0]: _build,
        pickle.DICT[0]: _dict,
        pickle.SETITEM[0]: lambda self: self._fill([self.stack.pop(), self.stack.pop()][::-1]),
        pickle.SETITEMS[0]: lambda self: self._fill(self.pop_mark()),
        pickle.ADDITEMS[0]: _additems,
        pickle.FROZENSET[0]: _frozenset,
        pickle.UNICODE[0]: _unicode,
        pickle.BINUNICODE[0]: lambda self: self._binunicode(4),
        pickle.BINUNICODE8[0]: lambda self: self._binunicode(8),
        pickle.SHORT_BINUNICODE[0]: lambda self: self._binunicode(1),
        pickle.BYTEARRAY8[0]: _paid_by_size(_Stdlib.load_binbytes8),  # the stdlib's own takes first
    }


PRICED = {
    code: (step, HEAVY_OPCODE_BYTES.get(code, OPCODE_BYTES))
    for code, step in SafeUnpickler.dispatch.items()
}
