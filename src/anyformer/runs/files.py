"""Hashes of files, getting them onto the disk, and telling a full one."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Ask the system to put a written file on the disk itself."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


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
