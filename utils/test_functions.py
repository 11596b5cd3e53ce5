"""Alias of ``anyformer.test_functions``: pre-flight checks of a model."""

from __future__ import annotations

from typing import Any

from anyformer import test_functions as _door

__test__ = False  # pytest collects nothing from here

__all__ = _door.__all__


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_door, name)


def __dir__() -> list[str]:
    return list(__all__)
