"""Imports of packages that an installation may lack."""

from __future__ import annotations

import importlib
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
        target = f"'anyformer[{extra}]'" if extra else "anyformer"
        raise DependencyError(
            f"the package {top} is not installed" + (f"; {purpose} needs it" if purpose else ""),
            fix=f"pip install {target}",
        ) from error
