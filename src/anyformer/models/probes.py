"""Running a stranger's module without leaving a trace on it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.utils import _device as default_device

_SMALL = 4096
"""Numbers of a tensor: a bias, a count for each expert."""


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
def untouched(module: nn.Module, *, attributes: bool = True, gradients: bool = True) -> Iterator[None]:
    """Put the module and the random state back at the end, whatever happens inside.

    Put back: the mode of every submodule, buffers, attributes (a tensor, list, dict, set or random generator among
    them with its contents), requires_grad, gradients; the random state of torch, numpy and random; torch's default
    number format and device, grad mode, the working folder; values of small parameters, into which a router may write
    how busy its experts are. Not put back: the values of large parameters; take no optimizer step inside.
    attributes: False leaves plain attributes and their contents as they then are, but for random generators.
    gradients: False puts back which tensors they are, not their values: enough where nothing runs backward, and it
    takes no memory beside them.
    """
    modes = [(m, m.training) for m in module.modules()]
    modules = [m for m, _ in modes if not _lazy(m)]
    saved_vars = [(m, dict(vars(m))) for m in modules if attributes]
    kept = [v for m in modules for k, v in vars(m).items() if attributes or k == "_buffers"]
    contents = [_Contents(value) for value in kept if _mutable(value)]
    tensors = [_TensorState(b) for m in modules for b in _own_tensors(m, plain=attributes)]
    values = [_TensorState(t) for _, t in small_tensors(module) if isinstance(t, nn.Parameter)]
    generators = [_GeneratorState(v) for m in modules for v in vars(m).values() if isinstance(v, _GENERATORS)]
    parameters = [(p, p.requires_grad, p.grad, _values(p.grad) if gradients else None) for p in module.parameters()]
    with preserved_rng(), _preserved_settings():
        try:
            yield
        finally:
            for m, saved in saved_vars:
                vars(m).clear()
                vars(m).update(saved)
            for m, training in modes:
                m.training = training
            for content in contents:
                content.restore()
            for tensor in (*tensors, *values):
                tensor.restore()
            for generator in generators:
                generator.restore()
            for parameter, requires_grad, grad, value in parameters:
                if is_lazy(parameter):
                    continue  # no call succeeded: nothing was changed
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
                if grad is not None and value is not None:
                    with torch.no_grad():
                        grad.copy_(value)


def _values(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.clone()


@contextmanager
def _preserved_settings() -> Iterator[None]:
    """Put back what a forward may set for the whole program: default format and device, grad mode, working folder."""
    dtype, device = torch.get_default_dtype(), default_device.CURRENT_DEVICE
    grad, folder = torch.is_grad_enabled(), _folder()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if device != default_device.CURRENT_DEVICE:
            torch.set_default_device(device)
        if torch.is_grad_enabled() != grad:
            torch.set_grad_enabled(grad)
        if folder is not None and _folder() != folder:
            os.chdir(folder)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return None


def small_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of few numbers, by name."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [(n, t) for n, t in named if not (is_lazy(t) or t.is_meta or t.is_inference()) and t.numel() <= _SMALL]


def set_mode(module: nn.Module, training: bool) -> None:
    """Training or eval mode as the module's own train() sets it; as nn.Module does where that fails or does nothing."""
    try:
        module.train(training)
    except Exception:  # noqa: BLE001  (an overridden train() may raise anything; the lines below do its work)
        module.training = not training
    if module.training != training:
        for part in module.modules():
            part.training = training


@contextmanager
def step_by_step() -> Iterator[None]:
    """Layers of torch.nn compute as they do in training: the one operation of eval mode is off.

    In it nothing inside is seen, values are looked at, and what goes from layer to layer may be a nested tensor.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


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


_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class _GeneratorState:
    """Where a module's own random generator stands."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        if isinstance(generator, np.random.Generator):
            self._state: Any = generator.bit_generator.state
        elif isinstance(generator, random.Random):
            self._state = generator.getstate()
        else:
            self._state = generator.get_state()

    def restore(self) -> None:
        if isinstance(self._generator, np.random.Generator):
            self._generator.bit_generator.state = self._state
        elif isinstance(self._generator, random.Random):
            self._generator.setstate(self._state)
        else:
            self._generator.set_state(self._state)


class _TensorState:
    """The values of a tensor, kept to be put back into the same object."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._values = tensor.detach().clone()
        self._plain = not tensor.requires_grad

    def restore(self) -> None:
        if self._plain and self._tensor.requires_grad and not self._tensor._is_view():
            self._tensor.detach_()  # what was written into it under autograd came with its graph
        with torch.no_grad():
            if self._tensor.shape != self._values.shape:  # resized or replaced through .data
                self._tensor.data = self._values
            elif self._tensor.is_meta or not torch.equal(self._tensor, self._values):  # an expanded one takes no values
                self._tensor.copy_(self._values)


def _own_tensors(module: nn.Module, *, plain: bool) -> list[Tensor]:
    """Buffers and plain tensor attributes; lazy parameters have no values yet, parameters are not kept."""
    others = [value for value in vars(module).values() if plain and isinstance(value, Tensor)]
    buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
    return [t for t in buffers + others if not isinstance(t, nn.Parameter) and not t.is_inference()]
