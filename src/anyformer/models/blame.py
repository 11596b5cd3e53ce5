"""Where in the user's own code an error arose: file, line, text."""

from __future__ import annotations

import functools
import linecache
import re
import sysconfig
import traceback
from collections import Counter
from pathlib import Path

import torch

_HOUSE = Path(__file__).resolve().parent.parent
_EXAMPLE = _HOUSE / "models" / "example_gpt.py"
_LIBRARIES = tuple(
    str(Path(p).resolve())
    for p in (Path(torch.__file__).parent, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), _HOUSE)
)


def blame(error: BaseException) -> str:
    """The last frame in the user's code with its line, then the error: ``model.py:41: self.x = y`` / ``ValueError: …``.

    Frames of torch, of installed packages, of the standard library and of anyformer are passed over; where no other is
    left, the error alone is returned. Of a recursion without end the line that calls itself again, not the one in which
    the stack happened to be full.
    """
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    if not frames:
        return message
    if isinstance(error, RecursionError):
        often = Counter(map(_line, frames)).most_common(1)
        return f"{often[0][0]}\n{type(error).__name__}: without end, {often[0][1]} times until the stack was full"
    return f"{_line(frames[-1])}\n{message}"


def here() -> str:
    """The line of the user's code that runs now, as blame() shows it; "" where none does."""
    frames = [f for f in traceback.extract_stack() if _is_users(f.filename)]
    return _line(frames[-1]) if frames else ""


def user_lines(text: str) -> list[str]:
    """The lines of the user's code in a printed traceback, as blame() shows them, in its order."""
    found = re.findall(r'File "([^"]+)", line (\d+)', text)
    frames = [traceback.FrameSummary(name, int(number), "") for name, number in found if _is_users(name)]
    return [_line(frame) for frame in frames]


def is_library(filename: str) -> bool:
    """Whether the file belongs to torch, an installed package, the standard library or the house."""
    return not _is_users(filename)


def _line(frame: traceback.FrameSummary) -> str:
    text = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{Path(frame.filename).name}:{frame.lineno}: {text}"


@functools.lru_cache(maxsize=4096)
def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    return path == _EXAMPLE or not str(path).startswith(_LIBRARIES)
