"""Read a pickle without running anything in it.

The opcodes are carried out here one by one. A name in the file stays a `Reference`, a name and no
more; an instance of a class stays an `Instance`, its recorded state and no code. Only the calls
listed in `safe_calls` are made, and those are functions of that module, never the ones that the
file names. Any other call stops the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "__builtins__": "builtins"}
RUNS_ON_SIGHT = ("os", "posix", "nt", "subprocess", "sys", "builtins", "shutil", "runpy", "socket")
MAX_KEY_PARTS = 16
MAX_KEY_NUMBER = 2**60
MAX_NAME = 500
SMALL_BUDGET = 2**26


class UnsafeError(ValueError):
    """The file asks for something to be run."""


class Stream(Protocol):
    """What a pickle is read from."""

    def read(self, size: int = ..., /) -> bytes: ...  # noqa: D102
    def readline(self) -> bytes: ...  # noqa: D102


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
    elements: list[Any] = field(default_factory=list)


Call = Callable[..., Any]


class SafeUnpickler:
    """Carries out one pickle: `SafeUnpickler(stream, calls, ...).load()`.

    `calls` maps the path of what the file may call to what is called instead; `known` says which
    references are no news, the others are collected in `unknown`; `persistent` answers persistent
    ids; `budget` is how many bytes calls may copy.
    """

    def __init__(
        self,
        stream: Stream,
        calls: Mapping[str, Call],
        known: Callable[[str], bool],
        persistent: Callable[[Any], Any] | None = None,
        budget: int = SMALL_BUDGET,
    ) -> None:
        self.stream, self.calls, self.known, self.persistent = stream, calls, known, persistent
        self.budget = budget
        self.unknown: set[str] = set()
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return what the pickle holds.

        Raises:
            UnsafeError: it would run something.
            ValueError: it is damaged.
        """
        try:
            for opcode, argument, _ in pickletools.genops(self.stream):  # type: ignore[arg-type]
                if opcode.name == "STOP":
                    return self.stack.pop()
                if opcode.name in PUSHED:
                    self.stack.append(argument)
                else:
                    HANDLERS[opcode.name](self, argument)
        except UnsafeError:
            raise
        except Exception as error:  # noqa: BLE001  (damage shows in many types)
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"damaged pickle ({what})") from None
        raise ValueError("damaged pickle (it has no end)")

    def reference(self, module: str, name: str) -> None:
        """Push the name of a class or function."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a reference that is not text")
        found = Reference(RENAMED.get(module, module), name)
        self.stack.append(self.noted(found))

    def noted(self, found: Reference) -> Reference:
        """Return a reference, put on the list where it is not known."""
        if len(found.module) + len(found.name) > MAX_NAME:
            raise ValueError(f"a reference of more than {MAX_NAME} characters")
        if not self.known(found.path):
            self.unknown.add(found.path)
        return found

    def charge(self, args: Any) -> None:
        """Take what a call could copy out of the budget."""
        self.budget -= sum(
            len(arg) * (1 if isinstance(arg, str | bytes | bytearray) else 8)
            for arg in (args if isinstance(args, tuple) else ())
            if isinstance(arg, Sized)
        )
        if self.budget < 0:
            raise ValueError("a few bytes of it unfold to more than the file holds")

    def call(self, function: Any, args: Any) -> Any:
        """Make a listed call, or stop."""
        if not isinstance(args, tuple):
            raise ValueError("a call without an argument tuple")
        if not isinstance(function, Reference):
            raise UnsafeError(f"this file would run {describe(function)}")
        if function.path in ("copyreg._reconstructor", "copyreg.__newobj__"):
            rest = args[1:] if function.name == "__newobj__" else ()
            return self.create(args[0], rest)
        known = self.calls.get(function.path)
        if known is None:
            raise UnsafeError(f"this file would run {function.path}")
        self.charge(args)
        made = known(*args)
        return self.noted(made) if isinstance(made, Reference) else made

    def create(self, cls: Any, args: Any) -> Any:
        """Make an empty instance of a class."""
        if not isinstance(cls, Reference) or not isinstance(args, tuple):
            raise UnsafeError(f"this file would run {describe(cls)}")
        self.charge((args, *args))
        if cls.path in self.calls:
            return self.calls[cls.path](*args)
        if cls.module.partition(".")[0] in RUNS_ON_SIGHT and not self.known(cls.path):
            raise UnsafeError(f"this file would run {cls.path}")
        return Instance(cls, args)

    def build(self) -> None:
        """Give the instance on the stack its state."""
        state = self.stack.pop()
        target = self.stack[-1]
        for part in state if isinstance(state, tuple) else (state,):
            for key, value in part.items() if isinstance(part, dict) else ():
                if isinstance(key, str) and key.startswith("__") and key.endswith("__"):
                    what = describe(value) if key == "__setstate__" else f"{key} of its own"
                    raise UnsafeError(f"this file would run {what}")
        if hasattr(target, "set_state"):
            self.charge(state)
            target.set_state(state)
        elif isinstance(target, Instance):
            target.state = state
        elif isinstance(target, Reference):
            raise UnsafeError(f"this file would run code that changes {target.path}")

    def pop_mark(self) -> list[Any]:
        """Return what was pushed since the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def fill(self, pairs: list[Any]) -> None:
        """Put keys and values into the mapping on the stack."""
        target = self.stack[-1]
        mapping = target.items if isinstance(target, Instance) else target
        if not isinstance(mapping, dict):
            raise ValueError("items for something that is no mapping")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            mapping[hashable(key)] = value

    def extend(self, values: list[Any]) -> None:
        """Put elements into the list or set on the stack."""
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(hashable(value) for value in values)
        elif isinstance(target, list | Instance):
            (target if isinstance(target, list) else target.elements).extend(values)
        else:
            raise ValueError("elements for something that is no list")


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


def printable(value: object) -> str:
    """Return text from a file in one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in str(value))


def describe(value: Any) -> str:
    """Return a name for what a file would call."""
    if isinstance(value, Reference):
        return value.path
    if isinstance(value, Instance):
        return f"an instance of {value.reference.path}"
    return f"a {type(value).__name__}"


def _persistent(self: SafeUnpickler, identifier: Any) -> None:
    if self.persistent is None:
        raise ValueError("a persistent id outside a torch file")
    self.stack.append(self.persistent(identifier))


def _reduce(self: SafeUnpickler, _: Any) -> None:
    args = self.stack.pop()
    self.stack.append(self.call(self.stack.pop(), args))


def _new(self: SafeUnpickler, _: Any) -> None:
    args = self.stack.pop()
    self.stack.append(self.create(self.stack.pop(), args))


def _new_ex(self: SafeUnpickler, _: Any) -> None:
    self.stack.pop()
    _new(self, _)


def _obj(self: SafeUnpickler, _: Any) -> None:
    function, *args = self.pop_mark()
    self.stack.append(self.call(function, tuple(args)))


def _inst(self: SafeUnpickler, name: str) -> None:
    args = tuple(self.pop_mark())
    self.reference(*name.split(" ", 1))
    self.stack.append(self.call(self.stack.pop(), args))


def _mark(self: SafeUnpickler, _: Any) -> None:
    self.marks.append(self.stack)
    self.stack = []


def _pop(self: SafeUnpickler, _: Any) -> None:
    if self.stack:
        self.stack.pop()
    else:
        self.pop_mark()


def _pop_mark(self: SafeUnpickler, _: Any) -> None:
    self.pop_mark()


def _stack_global(self: SafeUnpickler, _: Any) -> None:
    name = self.stack.pop()
    self.reference(self.stack.pop(), name)


def _dict(self: SafeUnpickler, _: Any) -> None:
    pairs = self.pop_mark()
    self.stack.append({})
    self.fill(pairs)


def _setitem(self: SafeUnpickler, _: Any) -> None:
    value = self.stack.pop()
    key = self.stack.pop()
    self.fill([key, value])


def _append(self: SafeUnpickler, _: Any) -> None:
    value = self.stack.pop()
    self.extend([value])


def _tuple(size: int) -> Callable[[SafeUnpickler, Any], None]:
    def handler(self: SafeUnpickler, _: Any) -> None:
        self.stack[-size:] = [tuple(self.stack[-size:])]

    return handler


def _push(make: Callable[[], Any]) -> Callable[[SafeUnpickler, Any], None]:
    return lambda self, _: self.stack.append(make())


def _from_mark(make: Callable[[list[Any]], Any]) -> Callable[[SafeUnpickler, Any], None]:
    def handler(self: SafeUnpickler, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(make(items))

    return handler


def _put(self: SafeUnpickler, index: int) -> None:
    self.memo[index] = self.stack[-1]


def _refuse_extension(self: SafeUnpickler, code: int) -> None:
    raise UnsafeError(f"this file would run whatever copyreg extension {code} stands for")


PUSHED = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
})  # fmt: skip
HANDLERS: dict[str, Callable[[SafeUnpickler, Any], None]] = {
    "PROTO": lambda self, _: None,
    "FRAME": lambda self, _: None,
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_LIST": _push(list),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_DICT": _push(dict),
    "EMPTY_SET": _push(set),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": lambda self, _: self.stack.append(self.stack[-1]),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _from_mark(tuple),
    "LIST": _from_mark(list),
    "FROZENSET": _from_mark(lambda items: frozenset(hashable(item) for item in items)),
    "DICT": _dict,
    "SETITEM": _setitem,
    "SETITEMS": lambda self, _: self.fill(self.pop_mark()),
    "APPEND": _append,
    "APPENDS": lambda self, _: self.extend(self.pop_mark()),
    "ADDITEMS": lambda self, _: self.extend(self.pop_mark()),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda self, _: _put(self, len(self.memo)),
    "GET": lambda self, index: self.stack.append(self.memo[index]),
    "BINGET": lambda self, index: self.stack.append(self.memo[index]),
    "LONG_BINGET": lambda self, index: self.stack.append(self.memo[index]),
    "GLOBAL": lambda self, name: self.reference(*name.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _new,
    "NEWOBJ_EX": _new_ex,
    "OBJ": _obj,
    "INST": _inst,
    "BUILD": lambda self, _: self.build(),
    "PERSID": _persistent,
    "BINPERSID": lambda self, _: _persistent(self, self.stack.pop()),
    "EXT1": _refuse_extension,
    "EXT2": _refuse_extension,
    "EXT4": _refuse_extension,
}
