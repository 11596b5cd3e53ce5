"""A gist as people name it: ``gist:ID``, the page's address, or the fragment that a builder's link ends in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from anyformer.core.errors import SourceError

FORMS = (
    "a gist is named gist:ID, gist:ID@REVISION, gist:ID:file.py, gist:ID:ClassName, or by its address,"
    " https://gist.github.com/OWNER/ID"
)
# letters and digits only: an id becomes a part of an address and of a folder's name and must never be a path
_ID = re.compile(r"[0-9A-Za-z]{1,64}")
_BARE = re.compile(r"[0-9a-f]{20}|[0-9a-f]{32}")  # the two lengths that GitHub gives; anything else needs gist:
_REVISION = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z_-]|\.(?!\.)){0,63}")
_FILE = re.compile(r"[^/\\:\x00-\x1f]{1,200}\.py")
_ANCHOR = re.compile(r"#file-[\w-]{1,200}")
_OWNER = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z-]){0,38}")
_PAGE_HOSTS = ("gist.github.com", "www.gist.github.com")
_RAW_HOST = "gist.githubusercontent.com"


@dataclass(frozen=True)
class GistRef:
    """Which gist, and what of it."""

    id: str
    revision: str | None = None
    """The newest where not given."""
    file: str | None = None
    """The file that holds the model; model.py where not given. ``#file-model-py`` is an anchor of the gist's page."""
    class_name: str | None = None
    """The class that must be taken."""
    name: str | None = None
    """What a builder calls the model: the class of this name if there is one, else only for display."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise _wrong(f"{self.id!r} is not the id of a gist, which has letters and digits only")
        if self.revision is not None and not _REVISION.fullmatch(self.revision):
            raise _wrong(f"{self.revision!r} is no revision of a gist (40 letters and digits: Revisions on its page)")
        if self.file is not None and not (_ANCHOR.fullmatch(self.file) or _FILE.fullmatch(self.file)):
            raise _wrong(f"{self.file!r} is not the name of a Python file of a gist")

    def __str__(self) -> str:
        """The short form, with which it can be loaded again."""
        parts = [f"gist:{self.id}" + (f"@{self.revision}" if self.revision else ""), self.file, self.class_name]
        return ":".join(part for part in parts if part and not part.startswith("#"))


def parse_gist(text: str) -> GistRef | None:
    """MODEL as a gist; None where it is something else. Uses no network.

    Raises SourceError for a gist with an impossible id, revision or file, and for addresses on GitHub that are no gist.
    """
    text = text.strip()
    if "gist_id=" in text.partition("#")[2]:
        return _from_fragment(text)
    if text.startswith("gist:"):
        rest = text.removeprefix("gist:")
        return parse_gist(rest) if rest.startswith(("http://", "https://")) else _from_short(rest, text)
    if text.startswith(("http://", "https://")):
        return _from_address(text)
    return GistRef(text) if _BARE.fullmatch(text) else None


def _from_fragment(text: str) -> GistRef:
    values = {key: found[-1] for key, found in parse_qs(text.partition("#")[2].lstrip("#?&")).items()}
    name = values.get("name", "").strip() or None
    return GistRef(values.get("gist_id", ""), values.get("revision") or None, name=name)


def _from_short(rest: str, text: str) -> GistRef:
    head, *parts = rest.split(":")
    owner, slash, bare = head.rpartition("/")
    if slash and not _OWNER.fullmatch(owner):
        raise _wrong(f"{text!r} names no gist: {head!r} is not an id")
    identifier, at, revision = bare.partition("@")
    if at and not revision:
        raise _wrong(f"{text!r} names no revision after @")
    file = parts.pop(0) if parts and parts[0].endswith(".py") else None
    class_name = parts.pop(0) if parts else None
    if parts or (class_name is not None and not class_name.isidentifier()):
        raise _wrong(f"{text!r} names no gist: {':'.join([class_name or '', *parts])!r} is no class name")
    return GistRef(identifier, revision or None, file, class_name)


def _from_address(text: str) -> GistRef | None:
    try:
        address = urlsplit(text)
        host = (address.hostname or "").lower()
    except ValueError as error:
        raise _wrong(f"{text!r} is no address: {error}") from error
    parts = [unquote(part) for part in address.path.split("/") if part]
    if host in _PAGE_HOSTS:
        return _from_page(address, parts, text)
    if host == _RAW_HOST:
        return _from_raw(parts, text)
    if host in ("github.com", "www.github.com", "raw.githubusercontent.com"):
        raise SourceError(
            f"{text} is a file or a repository on GitHub, not a gist",
            FORMS,
            "download the file and give its path: anyformer inspect model.py",
        )
    return None


def _from_page(address: SplitResult, parts: list[str], text: str) -> GistRef:
    """/ID, /OWNER/ID, /OWNER/ID/REVISION, with .git or /raw/… behind it."""
    if len(parts) > 1 and "raw" in parts[1:3]:
        return _from_raw(parts if parts[1] != "raw" else ["", *parts], text)
    if not parts:
        raise _wrong(f"{text} names no gist")
    found = parts[0:1] if len(parts) == 1 else parts[1:3]
    file = f"#{address.fragment}" if _ANCHOR.fullmatch("#" + address.fragment) else None
    revision = found[1] if len(found) > 1 and found[1] not in ("revisions", "edit", "stargazers", "forks") else None
    return GistRef(found[0].removesuffix(".git"), revision, file)


def _from_raw(parts: list[str], text: str) -> GistRef:
    """OWNER/ID/raw/REVISION/FILE, OWNER/ID/raw/FILE, OWNER/ID/raw."""
    if len(parts) < 3 or parts[2] != "raw" or len(parts) > 5:
        raise _wrong(f"{text} names no file of a gist")
    tail = parts[3:]
    revision = tail[0] if len(tail) == 2 else None
    file = tail[-1] if tail and tail[-1].endswith(".py") else None
    if len(tail) == 1 and file is None:
        revision = tail[0]
    return GistRef(parts[1], revision, file)


def _wrong(what: str) -> SourceError:
    return SourceError(what, FORMS)
