"""Gists on the disk: one folder per revision, each file with its sha256, verified whenever it is read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anyformer.core.errors import SourceError
from anyformer.core.files import write_atomically
from anyformer.core.findings import Finding

_RECORD = "gist.json"
_FILES = "files"
_NEWEST = "newest.json"
_PART = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,79}")


@dataclass(frozen=True)
class Gist:
    """One revision of a gist, on this disk."""

    id: str
    revision: str | None
    """None where the server told none."""
    owner: str | None
    """Login of its owner; None for an anonymous gist."""
    description: str
    folder: Path
    """Holds exactly ``files``."""
    files: dict[str, str]
    """File name → sha256 of its bytes."""
    left_out: tuple[str, ...] = ()
    """Files that were not fetched: neither Python nor settings nor text."""
    main: str = "model.py"
    """The file that holds the model."""
    etag: str = ""
    fetched: str = ""
    """UTC, ISO 8601."""
    findings: tuple[Finding, ...] = ()

    @property
    def location(self) -> str:
        """``gist:ID@REVISION``, with the file where it is not model.py."""
        at = f"@{self.revision}" if self.revision else ""
        return f"gist:{self.id}{at}" + (f":{self.main}" if self.main != "model.py" else "")

    @property
    def owner_shown(self) -> str:
        """The owner in words."""
        return self.owner or "an unknown owner (anonymous gist)"

    @property
    def code(self) -> dict[str, bytes]:
        """The Python files, the main one first: all of them can be imported by it."""
        names = sorted((n for n in self.files if n.endswith(".py")), key=lambda n: (n != self.main, n))
        return {name: (self.folder / name).read_bytes() for name in names}


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


class GistCache:
    """The gists of one server below ``root``: HOST/ID/REVISION/{gist.json, files/…}, HOST/ID/newest.json."""

    def __init__(self, root: Path, base_url: str) -> None:
        address = urlsplit(base_url)
        host = f"{address.hostname}-{address.port}" if address.port else f"{address.hostname}"
        # only letters, digits, dots: a host in brackets (IPv6) or a path must not become folders
        self.root = root / (re.sub(r"[^0-9A-Za-z.-]", "_", host) or "_")

    def read(self, identifier: str, revision: str) -> tuple[Gist | None, Finding | None]:
        """The stored gist, every file verified; a damaged one is removed and the finding says so."""
        folder = self.root / identifier / revision
        if not folder.is_dir():
            return None, None
        try:
            return self._verified(folder, identifier), None
        except (OSError, ValueError, KeyError, TypeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = f"{error}; it was dropped"
            return None, Finding("gist cache", "warn", f"the cached revision {revision[:12]} is damaged", reason=reason)

    def newest(self, identifier: str) -> tuple[Gist | None, Finding | None]:
        """The revision that was the newest when the gist was last fetched."""
        try:
            revision = str(json.loads((self.root / identifier / _NEWEST).read_text(encoding="utf-8"))["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, None
        return self.read(identifier, revision) if _PART.fullmatch(revision) else (None, None)

    def write(self, gist: Gist, contents: dict[str, bytes], *, newest: bool, asked: str | None = None) -> Gist:
        """Store a revision whole: written beside, then moved into place. Raises SourceError where it cannot be.

        newest: it was fetched without naming a revision. asked: the revision's name as the user gave it.
        """
        parent = self.root / gist.id
        folder = asked or gist.revision or f"content-{sha256(json.dumps(gist.files, sort_keys=True).encode())[:16]}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
            try:
                (temporary / _FILES).mkdir()
                for name, content in contents.items():
                    (temporary / _FILES / name).write_bytes(content)
                stored = replace(gist, folder=parent / folder / _FILES, fetched=_now())
                (temporary / _RECORD).write_text(json.dumps(_record(stored)), encoding="utf-8")
                self._put(temporary, parent / folder, stored)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if newest:
                write_atomically(parent / _NEWEST, json.dumps({"folder": folder}).encode())
        except OSError as error:
            raise SourceError(
                f"the gist cannot be stored in {parent}",
                error.strerror or str(error),
                "choose another folder: export ANYFORMER_CACHE=FOLDER",
            ) from error
        return stored

    def _put(self, temporary: Path, final: Path, stored: Gist) -> None:
        """Another process may have put the same revision there meanwhile: then that one is as good."""
        for _ in range(3):
            with contextlib.suppress(OSError):  # the folder exists and is not empty
                os.rename(temporary, final)
                return
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if self._verified(final, stored.id).files == stored.files:
                    # an answer may bring a new ETag for the same content
                    write_atomically(final / _RECORD, json.dumps(_record(stored)).encode())
                    return
            shutil.rmtree(final, ignore_errors=True)
        raise OSError(f"{final} cannot be replaced")

    def _verified(self, folder: Path, identifier: str) -> Gist:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        files = {str(name): str(value) for name, value in record["files"].items()}
        there = {path.name for path in (folder / _FILES).iterdir()}
        if there != set(files):
            raise ValueError(f"its files are {', '.join(sorted(there)) or 'none'}, not {', '.join(sorted(files))}")
        for name, expected in files.items():
            if sha256((folder / _FILES / name).read_bytes()) != expected:
                raise ValueError(f"the sha256 of {name} is not the recorded one")
        return Gist(
            id=identifier,
            revision=record["revision"],
            owner=record["owner"],
            description=str(record["description"]),
            folder=folder / _FILES,
            files=files,
            left_out=tuple(record["left_out"]),
            etag=str(record["etag"]),
            fetched=str(record["fetched"]),
        )


def _record(gist: Gist) -> dict[str, Any]:
    names = ("id", "revision", "owner", "description", "files", "left_out", "etag", "fetched")
    return {name: getattr(gist, name) for name in names}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
