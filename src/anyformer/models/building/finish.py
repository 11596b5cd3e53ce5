"""What a constructor leaves to its caller: drawing the weights, and one floating type for all matrices."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.building.reads import function_node, methods

_INITIALISERS = ("init_weights", "initialize_weights", "reset_parameters", "init_parameters")
"""Public methods without required arguments that draw the weights, where the constructor does not."""
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def initialised(module: nn.Module) -> list[Finding]:
    """Call a public init_weights() that the constructor leaves to the caller; undone, and said, where it fails."""
    cls = type(module)
    own = {name: function for _, name, function in reversed(list(methods(cls)))}
    called = _mentioned(own)
    for name in _INITIALISERS:
        if name not in own or name in called:
            continue
        # init_weights(m), static or not, is for apply(); a base of torch's, as nn.Linear, calls its own
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        if any(p.default is p.empty and p.kind not in _VARIADIC for p in parameters) or _of_torch(cls, name):
            continue
        if name != "init_weights" and any(n == "apply" or "init" in n for n in called):
            continue  # the constructor draws the weights in another way
        kept = {key: t.detach().clone() for key, t in module.state_dict().items() if not is_lazy(t)}
        try:
            getattr(module, name)()
        except Exception as error:  # noqa: BLE001  (a stranger's code may raise anything)
            with torch.no_grad():
                for key, tensor in module.state_dict().items():
                    if key in kept and kept[key].shape == tensor.shape:  # a layer put in another's place stays
                        tensor.copy_(kept[key])
            why = f"{blame(error)}; the weights are as the constructor made them".replace("\n", " ")
            return [Finding("initialisation", "warn", f"{name}() fails, and is left out", "it runs", why)]
        return [Finding("initialisation", "note", f"{name}() called", reason="the constructor does not call it")]
    return []


def _mentioned(own: dict[str, Any]) -> set[str]:
    """Its own attributes that a class's methods name: they are called, or handed to apply()."""
    found = set()
    for name, function in own.items():
        node = function_node(function)
        parts = [] if node is None or name in _INITIALISERS else ast.walk(node)
        for part in parts:
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
                found.add(part.attr)
    return found


def _of_torch(cls: type, name: str) -> bool:
    return any(name in vars(c) for c in cls.__mro__ if c.__module__.startswith("torch."))


def one_dtype(module: nn.Module) -> list[Finding]:
    """Where matrices have several floating types, make all parameters float32: it would run under autocast only.

    Buffers stay; norms of a type of their own are usual, and run.
    """
    found: dict[torch.dtype, list[str]] = {}
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            found.setdefault(parameter.dtype, []).append(name)
    matrices = {p.dtype for p in module.parameters() if p.is_floating_point() and p.ndim > 1}
    if len(matrices) < 2:
        return []
    odd = {str(d).removeprefix("torch."): names for d, names in found.items() if d != torch.float32}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    shown = "; ".join(
        f"{d}: {', '.join(n[:2])}{f' and {len(n) - 2} more' if len(n) > 2 else ''}" for d, n in odd.items()
    )
    reason = "its matrices have several types, which runs under autocast only; --precision chooses what it computes in"
    return [Finding("dtype", "warn", f"float32 instead of {shown}", reason=reason)]
