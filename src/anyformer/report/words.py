"""Numbers as people read them. Each accepts whatever a manifest may hold and gives "–" for what is no number."""

from __future__ import annotations

import math
from typing import Any

from anyformer.core.view import duration

NOTHING = "–"


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def decimal(value: Any, digits: int = 2) -> str:
    """3.08"""
    found = number(value)
    return NOTHING if found is None else f"{found:,.{digits}f}"


def count(value: Any) -> str:
    """11,300"""
    found = number(value)
    return NOTHING if found is None else f"{found:,.0f}"


def size(value: Any) -> str:
    """23.1 MB (10⁶ bytes)"""
    found = number(value)
    if found is None:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if found >= scale:
            return f"{found / scale:,.1f} {unit}"
    return f"{found:,.0f} bytes"


def time(value: Any) -> str:
    """12:05"""
    found = number(value)
    return NOTHING if found is None else duration(found)


def setting(value: Any) -> str:
    """A setting as settings.yaml would hold it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def plural(amount: Any, word: str) -> str:
    """1 document, 81 documents"""
    return f"{count(amount)} {word}" + ("" if number(amount) == 1 else "s")
