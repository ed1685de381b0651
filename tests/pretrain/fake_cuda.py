"""A GPU without values: what is on it has shapes alone, and every wait of the host is noted."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class FakeCuda(TorchDispatchMode):
    """Tensors on the CPU are real, those on the GPU fake; what is read from there is all ones.

    `calls` are the GPU's operations. `waits` are the product's lines at which the host waits for
    the GPU: values that are read, copies that are not `non_blocking` or not from pinned memory.
    The backward pass has to be left out: torch's engine asks for a real device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.calls: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_gpu = any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs)))
        target = torch.device(kwargs.get("device") or (CUDA if on_gpu else "cpu"))
        if not on_gpu and target.type == "cpu":
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self.waits.append(place())
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and (not on_gpu or target.type == "cpu"):
            pinned = on_gpu or hasattr(args[0], "pinned")
            if not (kwargs.get("non_blocking") and pinned):
                self.waits.append(place())
            if target.type == "cpu":
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        self.calls.append(func.name())
        if func is aten._fused_sgd_.default:  # in place, and torch has no fake of it
            return None
        with self.fake:
            return func(*args, **kwargs)


def place() -> str:
    """Return the innermost line of the product."""
    for frame in reversed(traceback.extract_stack()):
        if "/pretrain/" in frame.filename and "/tests/" not in frame.filename:
            return f"{frame.filename.rpartition('/pretrain/')[2]}: {frame.line}"
    return "a test"


class Stream:
    """A queue of the GPU, which notes what is done with it."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    def record_event(self) -> Stream:
        self.notes.append(f"{self.name}: event")
        return self

    def synchronize(self) -> None:
        self.notes.append(f"{self.name}: host waits for the event")

    def wait_stream(self, other: Stream) -> None:
        self.notes.append(f"{self.name}: waits for {other.name}")


def pinned(x: Tensor) -> Tensor:
    copy = x.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def moved(module: nn.Module, device: torch.device) -> nn.Module:
    """Stand in for `Module.to`, which cannot put fake parameters in the place of real ones."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(parameter.detach().to(device)))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
    return module


@contextlib.contextmanager
def fake_cuda(patch: pytest.MonkeyPatch, notes: list[str] | None = None) -> Iterator[FakeCuda]:
    """Run what is inside on a machine with such a GPU; `notes` get what its streams do."""
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("torch before 2.9 has no fake CUDA without a driver")
    notes = [] if notes is None else notes
    stack = [Stream("steps", notes)]

    @contextlib.contextmanager
    def current(stream: Stream | None) -> Iterator[None]:
        stack.append(stream or stack[-1])
        yield
        stack.pop()

    changes: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_bf16_supported": lambda *_: True,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda *_: stack[-1],
        "Stream": lambda *_: Stream("beside", notes),
        "stream": current,
    }
    with patch.context() as inside:
        for name, change in changes.items():
            inside.setattr(torch.cuda, name, change)
        inside.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        inside.setattr(Tensor, "pin_memory", pinned)
        inside.setattr(nn.Module, "to", moved)
        inside.setattr(
            FakeTensor, "record_stream", lambda _, stream: notes.append(f"kept for {stream.name}")
        )
        with FakeCuda() as gpu:
            yield gpu
