"""Door of the API reference for the pre-flight checks: every name comes from ``anyformer.checks``.

What that package does not have yet is said so, with what answers part of the question meanwhile.
"""

from __future__ import annotations

import importlib
from typing import Any

from anyformer.core.errors import DependencyError

__test__ = False  # named like a test file, and its functions like tests: pytest collects nothing from here

_CHECKS = "anyformer.checks"
_RUNNERS = ["run_all_tests", "run_all_tier1_tests", "run_all_tier2_tests"]

__all__ = _RUNNERS


def __getattr__(name: str) -> Any:
    asked_for_a_check = name in _RUNNERS or name.startswith("test_")
    if not asked_for_a_check:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_CHECKS), name, None)
    if found is None:
        raise DependencyError(
            f"{name} is not part of this version of anyformer",
            fix="anyformer check MODEL runs the checks that there are; in Python, anyformer.check(model)",
        )
    return found


def __dir__() -> list[str]:
    return list(__all__)
