"""Everything of a module and of the program that planning must leave as it found it, as hashes and identities."""

from __future__ import annotations

import hashlib
import os
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def fingerprint(module: nn.Module) -> dict[str, Any]:
    """By what it is a fingerprint of, so that a test that fails says what was touched."""
    modules = list(module.named_modules())
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        "parameters and buffers": {name: (id(t), _digest(t)) for name, t in tensors},
        "gradients": {
            name: None if p.grad is None else (id(p.grad), _digest(p.grad)) for name, p in module.named_parameters()
        },
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "modes": {name: m.training for name, m in modules},
        "hooks": {
            f"{name}.{key}": [(number, id(hook)) for number, hook in value.items()]
            for name, m in modules
            for key, value in vars(m).items()
            if key.endswith("_hooks") and isinstance(value, dict)
        },
        "attributes": {name: {key: _value(value) for key, value in vars(m).items()} for name, m in modules},
        "random states": (_bytes(repr(random.getstate())), _bytes(repr(_numpy())), _digest(torch.get_rng_state())),
        "settings": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(), os.getcwd()),
    }


def _numpy() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return kind, np.asarray(keys).tobytes(), *rest


def _bytes(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    """Of shape, number format and every byte."""
    if is_lazy(tensor):
        return "lazy"
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + values).hexdigest()


def _value(value: Any) -> Any:
    """Which object it is; of tensors and plain containers what is in them, too."""
    if isinstance(value, Tensor):
        return id(value), _digest(value)
    if isinstance(value, dict):
        return id(value), {repr(key): _value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return id(value), [_value(each) for each in value]
    if isinstance(value, set):
        return id(value), sorted(map(repr, value))
    if isinstance(value, bool | int | float | str | None):
        return value
    return id(value)
