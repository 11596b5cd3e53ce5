"""What a killed process leaves of a save, and what becomes of it.

.step-00001200.ab12cd34.tmp    half-written
.step-00001200.ab12cd34.old    the same step's earlier checkpoint, while its successor took its place
.step-00001200.ab12cd34.gone   one that was being removed
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

_HIDDEN = re.compile(r"\.(step-\d+(?:-v\d+)?)\.\w{8}\.(tmp|old|gone)")


def clear_up(run_path: str | Path) -> None:
    """Remove what a killed process left half-done in a run; call it while the run is locked.

    A checkpoint that was moved out of the way of its successor, which did not come, goes back to its place.
    """
    run = Path(run_path)
    for file in [*run.glob(".*.tmp"), *run.glob("metrics/.*.tmp")]:
        if file.is_file():
            with contextlib.suppress(OSError):
                file.unlink()
    for hidden in (run / "checkpoints").glob(".*"):
        if _HIDDEN.fullmatch(hidden.name) is None or not hidden.is_dir():
            continue
        with contextlib.suppress(OSError):  # a disk that cannot be written: they are in nobody's way
            if not went_back(hidden):
                shutil.rmtree(hidden)


def went_back(hidden: Path) -> bool:
    """Whether this was a checkpoint without its successor; then it has its name again. OSError where it should have."""
    match = _HIDDEN.fullmatch(hidden.name)
    if match is None or match[2] != "old" or hidden.with_name(match[1]).exists():
        return False
    hidden.rename(hidden.with_name(match[1]))
    return True
