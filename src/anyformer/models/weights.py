"""A user's own weights into a module."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from anyformer.core.errors import ConstructError
from anyformer.core.findings import Finding
from anyformer.core.optional import require

_PREFIXES = ("model.", "module.", "_orig_mod.")
"""Put before every name by Lightning, DistributedDataParallel and torch.compile."""
_NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts save the state dict beside the optimizer's."""
_SHOWN = 8
_FRESH = ("initialisation", "weights")
"""Names of findings that assume a fresh initialisation."""
NOT_APPLICABLE = "not applicable: weights were given"


def without_fresh_start(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings of a load, those that assume a fresh initialisation as not applicable."""
    return tuple(replace(f, verdict="n/a", reason=NOT_APPLICABLE) if f.name in _FRESH else f for f in findings)


def sha256_of(path: str | Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a .safetensors file or of a state dict (torch.save) into the module, all or none.

    A prefix "model.", "module." or "_orig_mod." before every name is taken off. Of tensors that share memory one is
    enough. Files of torch.save are read with weights_only=True: they cannot run code.
    Raises ConstructError naming the missing, unexpected and mis-shaped tensors, those with NaN, or why a file cannot be
    read.
    """
    path = Path(path)
    state = _strip_prefixes(_read(path), set(module.state_dict(keep_vars=True)))
    own = module.state_dict(keep_vars=True)
    shared = _shared_names(own)
    missing = [name for name in own if name not in state and not any(other in state for other in shared[name])]
    unexpected = [name for name in state if name not in own]
    misshaped = [
        f"{name}: file {tuple(state[name].shape)}, model {tuple(own[name].shape)}"
        for name in own
        if name in state and not is_lazy(own[name]) and state[name].shape != own[name].shape
    ]
    if missing or unexpected or misshaped:
        groups = (("missing in the file", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        raise ConstructError(
            f"the weights in {path} do not fit the model",
            "\n".join(_listed(title, names) for title, names in groups if names),
            "give the weights of this very architecture, or set its sizes in config.json",
        )
    _refuse_nan(path, state)
    _refuse_ties_that_differ(path, state, shared)
    module.load_state_dict(state, strict=False)


def _refuse_nan(path: Path, state: Mapping[str, Tensor]) -> None:
    """Weights that a run has spoiled; infinite ones may be a mask that is kept among them."""
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and bool(tensor.isnan().any())]
    if bad:
        raise ConstructError(
            f"the weights in {path} hold NaN",
            _listed("NaN in", bad),
            "take them from a checkpoint that was saved before the training went wrong",
        )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConstructError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        safetensors = require("safetensors.torch", purpose="reading .safetensors weights")
        try:
            return dict(safetensors.load_file(str(path)))
        except Exception as error:  # the library's error type is its extension module's own
            raise ConstructError(f"{path} is not a readable safetensors file", str(error)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols of files that the next line refuses anyway
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ConstructError(
            f"{path} cannot be loaded as a state dict",
            str(error).split("\n", 1)[0],
            "save it with torch.save(model.state_dict(), FILE) or as .safetensors; pickled modules are not loaded,"
            " they can run code",
        ) from error
    return _state_dict(path, loaded)


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict itself, or the one that a training checkpoint holds."""
    if isinstance(loaded, Mapping):
        for key in _NESTED:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
        if loaded and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
            return dict(loaded)
    raise ConstructError(
        f"{path} holds no state dict (names to tensors)",
        f"found: {type(loaded).__name__}" + (f" with {list(loaded)[:_SHOWN]}" if isinstance(loaded, Mapping) else ""),
        "save it with torch.save(model.state_dict(), FILE)",
    )


def _strip_prefixes(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Take known prefixes off while that lets more names match."""
    while True:
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in state):
                stripped = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                if sum(name in own for name in stripped) >= sum(name in own for name in state) and stripped:
                    state = stripped
                    break
        else:
            return state


def _shared_names(own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Per name, the other names of the very same tensor (tied weights)."""
    return {name: [o for o, tensor in own.items() if tensor is own[name] and o != name] for name in own}


def _refuse_ties_that_differ(path: Path, state: Mapping[str, Tensor], shared: Mapping[str, list[str]]) -> None:
    for name, others in shared.items():
        for other in others:
            if name in state and other in state and not torch.equal(state[name], state[other]):
                raise ConstructError(
                    f"the weights in {path} do not fit the model",
                    f"{name} and {other} are one tensor in the model, but differ in the file",
                    "untie them in the model's code",
                )


def _listed(title: str, names: list[str]) -> str:
    more = f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{title} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"
