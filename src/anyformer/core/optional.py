"""Imports of packages that an installation may lack."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from anyformer.core.errors import DependencyError


def require(module: str, extra: str = "", purpose: str = "") -> ModuleType:
    """Import and return ``module``; DependencyError names the package and how to install it.

    extra: the extra of anyformer that brings it ("export"); empty for a base dependency.
    purpose: what it is needed for, for the message.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise  # the package is there; something inside it is missing
        raise _lacking(top, extra, purpose) from error


def require_there(package: str, extra: str = "", purpose: str = "") -> None:
    """DependencyError, as ``require`` raises it, where a package is not installed; imports nothing."""
    if importlib.util.find_spec(package) is None:
        raise _lacking(package, extra, purpose)


def _lacking(package: str, extra: str, purpose: str) -> DependencyError:
    target = f"'anyformer[{extra}]'" if extra else "anyformer"
    return DependencyError(
        f"the package {package} is not installed" + (f"; {purpose} needs it" if purpose else ""),
        fix=f"pip install {target}",
    )
