"""Models by their import path: ``pkg.module:Class``."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from anyformer.core.errors import AnyformerError, DependencyError, SourceError
from anyformer.models.blame import blame


def imported(dotted: str, accepted: str) -> Any:
    """The module of a dotted name. accepted: what else MODEL may be, for the message.

    Raises SourceError (no such module, or it fails while it is imported), DependencyError (what it imports is missing).
    """
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name and (dotted == error.name or dotted.startswith(error.name + ".")):
            raise SourceError(
                f"no module named {error.name}", accepted, "start in its folder, or install it"
            ) from error
        raise DependencyError(
            f"{dotted} imports {error.name}, which is not installed", blame(error), f"pip install {error.name}"
        ) from error
    except AnyformerError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise SourceError(f"{dotted} failed while it was imported", blame(error)) from error


@contextlib.contextmanager
def import_path(folder: str) -> Iterator[None]:
    """Let modules of a folder be imported before others of their name."""
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
