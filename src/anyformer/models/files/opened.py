"""Data files that a model's file opens while it is loaded, by names relative to the working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_heard: list[dict[str, bool]] = []
_listening: list[bool] = []


@contextmanager
def relative_opens() -> Iterator[dict[str, bool]]:
    """Name → whether it was opened for reading alone, for every relative name that is opened meanwhile."""
    if not _listening:
        sys.addaudithook(_listen)  # Python's own, which cannot be taken away again: it does nothing outside
        _listening.append(True)
    names: dict[str, bool] = {}
    _heard.append(names)
    try:
        yield names
    finally:
        _heard.remove(names)


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if not _heard or event != "open":
        return
    name, mode, flags = arguments
    if not isinstance(name, str | os.PathLike) or os.path.isabs(name):
        return
    reads = not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if mode is None else not set("wax+") & set(mode)
    for names in _heard:
        names[os.fspath(name)] = names.get(os.fspath(name), True) and reads
