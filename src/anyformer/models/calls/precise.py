"""The same module in float64: a leak behind a small gate or a small initialisation hides in float32's rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SHARE = 1e-11
"""Of the usual logit: what may move in float64 (eps 2.2e-16, summed over layers: right models stay below 1e-14)."""
MOST_PARAMETERS = 30_000_000
"""A copy in float64 takes 240 MB."""
WORK = 1_000_000_000
"""Parameters × tokens of one forward pass: about a second of one processor core in float64."""

_LONGER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_CASTS = {
    torch.Tensor.float: torch.Tensor.double,
    torch.Tensor.half: torch.Tensor.double,
    torch.Tensor.bfloat16: torch.Tensor.double,
}


class Float64(TorchFunctionMode):
    """Gives float64 wherever a forward asks for a shorter format, as norms and softmax often do."""

    def __init__(self) -> None:
        super().__init__()
        self.short = False
        """Whether a shorter format came up all the same: what moves may then be its rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(_longer(value) for value in args)
        kwargs = {name: _longer(value) for name, value in (kwargs or {}).items()}
        result = _CASTS.get(func, func)(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype in _LONGER and result.numel() > 1:
            self.short = True
        return result


def _longer(value: Any) -> Any:
    return _LONGER.get(value, value) if isinstance(value, torch.dtype) else value


@contextmanager
def float64() -> Iterator[Float64]:
    """What is made inside is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64() as mode:
            yield mode
    finally:
        torch.set_default_dtype(before)


def copy_in_float64(module: nn.Module) -> nn.Module | None:
    """A copy in float64; None where the module is large or compiled, or cannot be copied."""
    module = getattr(module, "_orig_mod", module)
    if any(hasattr(m, "_orig_mod") or isinstance(m, torch.jit.ScriptModule) for m in module.modules()):
        return None  # it would be compiled anew
    if parameter_count(module) > MOST_PARAMETERS:
        return None
    try:
        double = copy.deepcopy(module).double()
        for part in double.modules():
            for name, value in list(vars(part).items()):
                if isinstance(value, Tensor) and value.dtype in _LONGER:
                    vars(part)[name] = value.to(_LONGER[value.dtype])
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.dtype in _LONGER:  # complex ones, which double() leaves
                    part._buffers[name] = buffer.to(_LONGER[buffer.dtype])
    except Exception:  # noqa: BLE001  (a stranger's attributes may refuse to be copied in any way; float32 is left)
        return None
    return double


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """Nothing of the module runs compiled: each new length or mode would be compiled anew."""
    if any(hasattr(m, "_orig_mod") for m in module.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def parameter_count(module: nn.Module) -> int:
    """Elements of all parameters."""
    return sum(p.numel() for p in module.parameters())


def most_tokens(module: nn.Module) -> int:
    """Tokens of one forward pass in float64 that a budget of time allows."""
    return WORK // max(1, parameter_count(module))
