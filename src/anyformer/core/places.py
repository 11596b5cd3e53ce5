"""Where anyformer keeps what it may fetch or compute again, and where a run finds its data again."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA_PLACES = ("data", "val_data", "target_data")
"""Settings of a run that may be paths, relative to the folder that the run was started in."""


def default_cache_dir() -> Path:
    """$ANYFORMER_CACHE, else ~/.cache/anyformer."""
    return Path(os.environ.get("ANYFORMER_CACHE") or "~/.cache/anyformer").expanduser()


def from_here(run: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The places of a run's data as they can be opened now, by their settings' names; any value may be a Python type.

    A relative path is one from the folder that the run was started in, which is the one that its ``output_dir`` is
    relative to; where it leads nowhere from there, or no such folder can be told, it stays as it was.
    """
    started_in = _started_in(run, settings.get("output_dir"))
    found = {name: settings[name] for name in DATA_PLACES if name in settings}
    if started_in is None or started_in == Path.cwd():
        return found
    for name, value in found.items():
        if isinstance(value, str) and not value.startswith("~") and _leads_somewhere(str(started_in / value)):
            found[name] = str(started_in / value)
    return found


def same_place(one: Any, other: Any) -> bool:
    """Whether two settings name the same thing: equal, or paths to one file or folder."""
    if one == other:
        return True
    if not (isinstance(one, str) and isinstance(other, str) and _leads_somewhere(one)):
        return False
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))


def _started_in(run: Path, output_dir: Any) -> Path | None:
    parts = Path(str(output_dir)).parts if output_dir else ()
    if not parts or Path(*parts).is_absolute() or parts[0] == "~" or ".." in parts:
        return None
    parent = run.expanduser().resolve().parent
    return parent.parents[len(parts) - 1] if parent.parts[-len(parts) :] == parts else None


def _leads_somewhere(value: str) -> bool:
    try:
        path = os.path.expanduser(value)
        return os.path.exists(path) or bool(glob.glob(path, recursive=True))
    except (OSError, ValueError):  # names that no file can have
        return False
