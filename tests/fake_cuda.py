"""A GPU without values: what is on it has shapes alone, and every wait of the host is noted.

An operation on tensors of two devices raises, as it does on a GPU.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torchvision  # noqa: F401  (has NMS)
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class FakeCuda(TorchDispatchMode):
    """Tensors on the CPU are real, those on the GPU fake: what is read from there is all ones, and
    every check of it is passed. So a mask there selects all, and NMS keeps all boxes.

    `calls` are the GPU's operations. `waits` are the product's lines at which the host waits for
    the GPU: values that are read, copies that are not `non_blocking` or not from pinned memory.
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
        if not on_gpu and target.type != "cuda":
            return func(*args, **kwargs)
        if func is aten.equal.default:
            self.waits.append(place())
            return _equal(*args)
        if func is aten._local_scalar_dense.default:
            self.waits.append(place())
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and (not on_gpu or target.type == "cpu"):
            pinned = on_gpu or hasattr(args[0], "pinned")
            if not (kwargs.get("non_blocking") and pinned):
                self.waits.append(place())
            if target.type == "cpu":
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != "cuda":
            raise RuntimeError(f"{func}: expected a 'cuda' generator, got one of the CPU")
        self.calls.append(func.name())
        if func is aten._fused_sgd_.default:  # in place, and torch has no fake of it
            return None
        with self.fake:
            if func in INDEXING:
                args = (args[0], _without_masks(*args[:2]), *args[2:])
            return OF_ALL.get(func, func)(*args, **kwargs)


def all_places(x: Tensor) -> Tensor:
    """Return as many places as `x` has entries."""
    return torch.empty(x.numel(), x.ndim, dtype=torch.int64, device=x.device)


def all_boxes(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return as many places as there are boxes."""
    return (boxes[:, 0] + scores).argsort()


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.device != other.device:
        raise RuntimeError("torch.equal: wanted one device, got cuda:0 and cpu")
    return True


def _without_masks(x: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return indices in which masks became the places of all their entries."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.is_cuda and not x.is_cuda:  # torch's fake takes it
            raise RuntimeError("wanted indices on the device of their tensor, got cuda:0 and cpu")
        if index is not None and index.dtype == torch.bool:
            places += all_places(index).unbind(1)
        else:
            places.append(index)
    return places


INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
OF_ALL: dict[Any, Callable[..., Tensor]] = {
    aten.nonzero.default: all_places,
    torch.ops.torchvision.nms.default: all_boxes,
}


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


@contextlib.contextmanager
def fake_cuda(notes: list[str] | None = None) -> Iterator[FakeCuda]:
    """Run what is inside on a machine with such a GPU; `notes` get what its streams do."""
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("torch before 2.9 has no fake CUDA without a driver")
    gpu = FakeCuda()
    notes = [] if notes is None else notes
    stack = [Stream("steps", notes)]

    @contextlib.contextmanager
    def current(stream: Stream | None) -> Iterator[None]:
        stack.append(stream or stack[-1])
        yield
        stack.pop()

    changes: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda *_: 0,
        "is_bf16_supported": lambda *_: True,
        "get_device_capability": lambda *_: (9, 0),
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda *_: stack[-1],
        "Stream": lambda *_: Stream("beside", notes),
        "stream": current,
    }
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # of the message about two devices, where one tensor is no leaf
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        for name, change in changes.items():
            patch.setattr(torch.cuda, name, change)
        patch.setattr(FakeTensorMode, "avoid_device_init", True)  # whatever `is_available` says
        patch.setattr(Tensor, "pin_memory", pinned)
        patch.setattr(nn.Module, "_apply", _move)
        patch.setattr(torch.autograd, "backward", backward)
        patch.setattr(torch.autograd, "grad", grad)
        patch.setattr(
            FakeTensor, "record_stream", lambda _, stream: notes.append(f"kept for {stream.name}")
        )
        with gpu:
            torch._C._ensureCUDADeviceGuardSet()
            torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(.., device="cuda")`
            try:
                yield gpu
            finally:
                torch._C._set_only_lift_cpu_tensors(False)


def _move(module: nn.Module, function: Callable[[Tensor], Tensor], *_: Any, **__: Any) -> nn.Module:
    """Change parameters and buffers as `to` does: torch's own way swaps data, of which is none."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = function(parameter.detach())
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else function(buffer)
    return module


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    *_: Any,
    **__: Any,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of leaves."""
    leaves = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    before = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    backward(outputs, grad_outputs)
    grads = tuple(leaf.grad for leaf in leaves)
    for leaf, kept in zip(leaves, before, strict=True):
        leaf.grad = kept
    return grads


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Tensor | Sequence[Tensor] | None = None,
    *_: Any,
    **__: Any,
) -> None:
    """Leave gradients in the leaves, node by node: torch's engine looks for the device's driver."""
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    grads: dict[Any, dict[int, Tensor]] = {}
    queue: list[tuple[int, int, Any]] = []
    order = itertools.count()

    def add(node: Any, index: int, grad: Tensor) -> None:
        if node not in grads:
            grads[node] = {}
            heapq.heappush(queue, (-node._sequence_nr(), next(order), node))
        meta = node._input_metadata[index]
        grad = grad.sum_to_size(meta.shape).to(meta.dtype)  # as the engine does
        there = grads[node].get(index)
        grads[node][index] = grad if there is None else there + grad

    firsts = [grad_tensors] if isinstance(grad_tensors, Tensor) else grad_tensors or ()
    for root, grad in itertools.zip_longest(roots, firsts):
        add(root.grad_fn, root.output_nr, torch.ones_like(root) if grad is None else grad)
    with torch.no_grad():
        while queue:
            _, _, node = heapq.heappop(queue)
            of_outputs = grads.pop(node)
            if hasattr(node, "variable"):  # a leaf
                leaf, grad = node.variable, of_outputs[0]
                assert grad.device == leaf.device and grad.shape == leaf.shape
                leaf.grad = grad if leaf.grad is None else leaf.grad + grad
                continue
            of_inputs = _apply(node, of_outputs)
            for (parent, index), grad in zip(node.next_functions, of_inputs, strict=False):
                if parent is not None and grad is not None:
                    add(parent, index, grad)


def _apply(node: Any, of_outputs: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of a node's inputs from those of its outputs."""
    outputs = [of_outputs.get(index) for index in range(len(node._input_metadata))]
    apply = node
    if isinstance(node, torch.autograd.function.BackwardCFunction):  # wants zeros
        apply = node.apply
        for index, meta in enumerate(node._input_metadata):
            if outputs[index] is None:
                outputs[index] = torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)
    of_inputs = apply(*outputs)
    return of_inputs if isinstance(of_inputs, tuple) else (of_inputs,)
