"""Hashes of files, getting them onto the disk, and telling a full one."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class HashedFile:
    """A stream to write to that hashes what it is given: what the disk makes of that is compared later.

    ``error`` is what ended a write: a native writer that calls ``write`` may raise something else in its place.
    before: called before each write; what it raises ends the writing.
    """

    def __init__(self, stream: BinaryIO, before: Callable[[], None]) -> None:
        self._stream = stream
        self._before = before
        self._digest = hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Hash and write all of ``data``."""
        try:
            self._before()
            self._digest.update(data)
            return self._stream.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._stream.flush()

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of what was written."""
        return self._digest.hexdigest()


def sync_file(path: Path) -> None:
    """Put a written file on the disk itself; where the system can, the next one to read it reads the disk."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice only
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_back(path: Path, expected: str) -> None:
    """RuntimeError where the bytes of a file are not those with the SHA-256 ``expected``."""
    if sha256(path) != expected:
        raise RuntimeError(f"{path.name} does not read back as it was written: the disk or the memory is failing")


def cause_of(error: BaseException) -> BaseException:
    """The system's error behind that of a native writer or a library; the error itself where there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, of Python or of a native writer that keeps only the message, means that no space is left."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(cause) or "os error 28" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
