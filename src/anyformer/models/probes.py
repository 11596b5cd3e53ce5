"""Running a stranger's module without leaving a trace on it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put the random state of torch (CPU and CUDA), numpy and random back at the end, whatever happens."""
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put the module and the random state back at the end, whatever happens inside.

    Put back: the mode of every submodule, buffers, attributes (a tensor, list, dict or set among them with its
    contents), requires_grad, gradients; the random state of torch, numpy and random. Not put back: the values of
    parameters, which a forward or backward pass does not change; take no optimizer step inside.
    """
    modes = [(m, m.training) for m in module.modules()]
    modules = [m for m, _ in modes if not _lazy(m)]
    attributes = [(m, dict(vars(m))) for m in modules]
    contents = [_Contents(value) for m in modules for value in vars(m).values() if _mutable(value)]
    tensors = [_TensorState(b) for m in modules for b in _own_tensors(m)]
    parameters = [(p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]
    with preserved_rng():
        try:
            yield
        finally:
            for m, saved in attributes:
                vars(m).clear()
                vars(m).update(saved)
            for m, training in modes:
                m.training = training
            for content in contents:
                content.restore()
            for tensor in tensors:
                tensor.restore()
            for parameter, requires_grad, grad, value in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
                if grad is not None and value is not None:
                    with torch.no_grad():
                        grad.copy_(value)


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module on a device, and back where it was at the end."""
    home = next((parameter.device for parameter in module.parameters()), device)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def _lazy(module: nn.Module) -> bool:
    """Whether the first call still has to give it its shape; it keeps that shape, so nothing is put back."""
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


def _mutable(value: Any) -> bool:
    # exact types: the plain dicts in which nn.Module keeps parameters, buffers and submodules are among them
    return type(value) in (list, dict, set)


class _Contents:
    """The items of a list, dict or set, kept to be put back into the same object."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._items = container.copy()

    def restore(self) -> None:
        self._container.clear()
        if isinstance(self._container, list):
            self._container.extend(self._items)
        else:
            self._container.update(self._items)


class _TensorState:
    """The values of a tensor, kept to be put back into the same object."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._values = tensor.detach().clone()

    def restore(self) -> None:
        with torch.no_grad():
            if self._tensor.shape != self._values.shape:  # resized or replaced through .data
                self._tensor.data = self._values
            else:
                self._tensor.copy_(self._values)


def _own_tensors(module: nn.Module) -> list[Tensor]:
    """Buffers and plain tensor attributes; lazy parameters have no values yet, parameters are not kept."""
    plain = [value for value in vars(module).values() if isinstance(value, Tensor)]
    buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
    return [t for t in buffers + plain if not isinstance(t, nn.Parameter) and not t.is_inference()]
