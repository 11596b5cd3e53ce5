"""Door of the API reference: what a module's signature says, builder exports run, and the Lightning module around it.

It only re-exports. Names are looked up when asked for: the inspector needs torch alone, the adapter needs Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyformer.models.graph import ComputationalGraphExecutor
    from anyformer.models.signature import ModelSignatureInspector
    from anyformer.training.adapter import UniversalModelAdapter

_HOMES = {
    "ComputationalGraphExecutor": "anyformer.models.graph",
    "ModelSignatureInspector": "anyformer.models.signature",
    "UniversalModelAdapter": "anyformer.training.adapter",
}

__all__ = ["ComputationalGraphExecutor", "ModelSignatureInspector", "UniversalModelAdapter"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
