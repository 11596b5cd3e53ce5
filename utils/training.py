"""Alias of ``anyformer.training``: training under the names of the API reference."""

from __future__ import annotations

from typing import Any

from anyformer import training as _door

__all__ = _door.__all__


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_door, name)


def __dir__() -> list[str]:
    return list(__all__)
