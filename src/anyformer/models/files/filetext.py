"""The text of a Python file, and what is wrong where it is none."""

from __future__ import annotations

import types
import warnings
from pathlib import Path

from anyformer.core.errors import SourceError


def read_text(path: Path) -> str:
    """The file's text; SourceError for what is no UTF-8 text."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path} is not a text file",
            f"byte 0x{data[error.start]:02x} at offset {error.start:,} (line {line}) is not UTF-8",
            "give a Python file; weights go to --weights",
        ) from error
    if "\0" in text:
        raise SourceError(f"{path} is not a text file", "it holds null bytes", "give a Python file")
    return text


def syntax_error(error: SyntaxError) -> SourceError:
    """SourceError with file:line, the source line and a caret under the column."""
    line = (error.text or "").rstrip("\n")
    stripped = line.lstrip()
    column = max(0, (error.offset or 1) - 1 - (len(line) - len(stripped)))
    pointer = f"{stripped}\n{' ' * column}^" if stripped else ""
    fix = "correct this line"
    if any(quote in line for quote in "“”‘’"):
        fix = "replace the typographic quotes by plain ones, \" or '"
    return SourceError(
        f"{error.filename}:{error.lineno} is not Python: {error.msg}",
        pointer,
        fix,
    )


def compiled(path: Path, text: str) -> types.CodeType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return compile(text, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise syntax_error(error) from error
    except ValueError as error:  # null bytes
        raise SourceError(f"{path} is not Python", str(error)) from error
