"""CUDA without a GPU: tensors that have device, shape and type but no data.

An operation on tensors of two devices raises, as it does on a GPU.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

# What the code reads from tensors decides its way: every check is passed, every number is 1.
ANSWERS: Mapping[Callable[..., Any], Any] = {
    torch.equal: True,
    Tensor.equal: True,
    Tensor.__bool__: True,
    Tensor.item: 1.0,
    Tensor.__float__: 1.0,
    Tensor.__int__: 1,
}


class _Answers(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.pin_memory:  # which asks for the driver
            return args[0]
        return ANSWERS[func] if func in ANSWERS else func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Give the device of the tensors to make inside; `backward` works there."""
    with (
        patch.multiple(torch.autograd, backward=backward, grad=grad),
        patch.object(nn.Module, "_apply", _move),
        FakeTensorMode(),
        _Answers(),
    ):
        yield torch.device("cuda", 0)


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
