"""Nothing that came over a network runs before a person saw it and said yes. This very content, not its author."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anyformer.core.errors import SettingsError, TrustError
from anyformer.core.files import write_atomically
from anyformer.core.findings import Finding
from anyformer.core.places import default_cache_dir
from anyformer.core.protocols import View
from anyformer.core.view import PlainView, QuietView, printable
from anyformer.models.network.gistcache import Gist, sha256
from anyformer.models.network.review import NOT_A_BOUNDARY, Remark, decode, review, source_lines

FIRST_LINES = 20
_SHOWN_REMARKS = 20
_SHOWN_DIFFERENCE = 200  # lines
_WIDTH = 200  # characters of one source line
_QUESTION = "Run this code? [y]es / [s]how all / [N]o "


@dataclass(frozen=True)
class Approval:
    """What was approved once, with the text, so that a later version can be compared with it."""

    sha256: str
    gist_id: str
    revision: str | None
    when: str
    """UTC, ISO 8601."""
    sources: dict[str, str]
    """File name → text."""


@dataclass(frozen=True)
class TrustRequest:
    """What a person is asked to approve; ``approve`` callables get it."""

    gist: Gist
    code: dict[str, bytes]
    """Every Python file, the main one first."""
    sha256: str
    """Of the names and bytes of all Python files together."""
    remarks: tuple[Remark, ...]
    previous: Approval | None
    """The version of this gist that was approved last, if it was another."""

    @property
    def summary(self) -> str:
        """The review in one line."""
        if not self.remarks:
            return "review: nothing stood out"
        return f"review: {len(self.remarks)} remark{'' if len(self.remarks) == 1 else 's'}"

    @property
    def difference(self) -> list[str]:
        """Unified diff from the approved version to this one, lines made safe to print."""
        if self.previous is None:
            return []
        old, new = self.previous.sources, {name: decode(content) for name, content in self.code.items()}
        lines: list[str] = []
        for name in sorted({*old, *new}):
            before, after = (source_lines(side[name]) if name in side else [] for side in (old, new))
            lines += difflib.unified_diff(before, after, f"approved/{name}", f"now/{name}", lineterm="")
        return [safe(line) for line in lines]

    def lines(self, *, whole: bool = False, colour: bool = False) -> list[str]:
        """What is shown: whose it is, the source, what changed, the review. Free of control characters of its own.

        whole: every line of every file instead of the first 20 of the main one. colour: highlighted for a terminal.
        """
        gist = self.gist
        head = [f"  code from a network: gist {gist.id} by {safe(gist.owner_shown)}"]
        if gist.description:
            head.append(f"  described as  {safe(gist.description)[:_WIDTH]}")
        number = f"{len(self.code)} Python file" + ("" if len(self.code) == 1 else "s, all importable")
        head += [f"  revision      {gist.revision or 'unknown'}", f"  sha256        {self.sha256}   ({number})"]
        body: list[str] = []
        for name in list(self.code) if whole else list(self.code)[:1]:
            body += ["", *self._file(name, whole, colour)]
        if not whole and len(self.code) > 1:
            body += [f"  and {', '.join(safe(name) for name in list(self.code)[1:])}"]
        return [*head, *body, *self._changes(whole), "", *self._review(whole)]

    def _file(self, name: str, whole: bool, colour: bool) -> list[str]:
        text = source_lines(decode(self.code[name]))
        # "every line" means all of it: code behind the 200th column would be hidden otherwise
        shown = [safe(line) for line in text] if whole else [_cut(safe(line)) for line in text[:FIRST_LINES]]
        more = len(text) - len(shown)
        lines = _painted(shown) if colour else shown
        title = f"  {safe(name)}, {len(text):,} lines, sha256 {self.gist.files[name][:16]}…"
        return [
            title + (f"; the first {FIRST_LINES}:" if more else ":"),
            *(f"  {number:>5} │ {line}" for number, line in enumerate(lines, 1)),
            *([f"        … {more:,} more: anyformer inspect {self.gist.location} --show_source"] if more else []),
        ]

    def _changes(self, whole: bool) -> list[str]:
        if self.previous is None:
            return []
        revision = (self.previous.revision or "unknown")[:12]
        lines = [f"  changed since it was approved on {self.previous.when[:10]} (revision {revision}):"]
        difference = self.difference
        kept = difference if whole else difference[:_SHOWN_DIFFERENCE]
        lines += [f"    {_cut(line)}" for line in kept]
        if len(kept) < len(difference):
            lines.append(f"    … {len(difference) - len(kept):,} more lines of changes")
        return ["", *lines]

    def _review(self, whole: bool) -> list[str]:
        kept = self.remarks if whole else self.remarks[:_SHOWN_REMARKS]
        lines = [f"  {self.summary}"]
        for remark in kept:
            place = safe(remark.file) + (f":{remark.line}" if remark.line else "")
            lines.append(f"    ! {place}  {safe(remark.words)}")
            if remark.code:
                lines.append(f"        {_cut(safe(remark.code), 100)}")
        if len(kept) < len(self.remarks):
            lines.append(f"    … {len(self.remarks) - len(kept)} more")
        return [*lines, f"  {NOT_A_BOUNDARY}"]


def request_for(gist: Gist, cache_dir: str | Path | None = None) -> TrustRequest:
    """Everything that a person needs to decide. Executes nothing."""
    code = gist.code
    digest = content_sha256(code)
    previous = _last_approval(_folder(cache_dir), gist.id, digest)
    return TrustRequest(gist, code, digest, review(code), previous)


def require_trust(
    gist: Gist,
    *,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View | None = None,
    cache_dir: str | Path | None = None,
) -> Finding:
    """Return how the gist's code was approved, or raise TrustError; nothing of it has run by then.

    Approved before (the same names and bytes): at once. trust: approves what is there now, after showing it.
    approve: asked instead of the terminal; only the answer True means yes. Otherwise a terminal is asked.
    Raises TrustError where nobody can be asked or the answer is no, SettingsError where trust is not a bool.
    """
    if not isinstance(trust, bool):
        raise SettingsError(f"trust is {trust!r}; it must be True or False")
    request = request_for(gist, cache_dir)
    folder = _folder(cache_dir)
    if (known := _read(folder / f"{request.sha256}.json")) is not None:
        return _finding(request, f"approved on {known.when[:10]}", "the same code, to the byte")
    shown = view or PlainView()
    if trust:
        _show(request.lines(colour=_coloured()), shown, insist=True)  # nothing runs that was not shown
        how = "--trust"
    elif approve is not None:
        if approve(request) is not True:
            raise _refused(request, "the answer was no")
        how = "the answer given"
    elif sys.stderr.isatty() and sys.stdin is not None and sys.stdin.isatty():
        _show(request.lines(colour=_coloured()), shown, insist=True)
        if not _prompted(request):
            raise _refused(request, "the answer was no")
        how = "the answer at the prompt"
    else:
        _show(request.lines(), shown, insist=False)
        raise _refused(request, "nobody has approved this version, and there is no terminal to ask at")
    note = _remember(folder, request)
    return _finding(request, f"approved by {how}", note)


def content_sha256(code: dict[str, bytes]) -> str:
    """One sha256 over the names and contents of all files, in whatever order they come."""
    return sha256(json.dumps(sorted((name, sha256(content)) for name, content in code.items())).encode())


def safe(text: str) -> str:
    """One line as it may be printed: nothing steers a terminal, turns the reading order or stays unseen."""
    plain = printable(text).replace("\n", "\\n")
    return "".join(
        f"\\u{ord(s):04x}" if not s.isascii() and unicodedata.category(s) in ("Cf", "Zl", "Zp", "Co", "Cn") else s
        for s in plain
    )


def _coloured() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def _show(lines: list[str], view: View, *, insist: bool) -> None:
    """To the view; to the terminal itself where there is one, since a view would take the colours away.

    insist: even with --quiet, for a question needs what it is about, and code that runs is shown first.
    """
    if isinstance(view, QuietView):
        if not insist:
            return
        view = PlainView()
    if sys.stderr.isatty():
        view.close()
        print("\n".join(lines), file=sys.stderr, flush=True)
    else:
        for line in lines:
            view.line(line)


def _prompted(request: TrustRequest) -> bool:
    """Ask until the answer is clear; the end of the input and a bare Enter mean no."""
    while True:
        print(f"\n{_QUESTION}", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        word = answer.strip().lower()
        if word in ("y", "yes"):
            return True
        if word in ("s", "show", "show all"):
            print("\n".join(request.lines(whole=True, colour=_coloured())), file=sys.stderr, flush=True)
            continue
        if word in ("", "n", "no") or not answer:
            return False
        print("  y runs it, s shows every line, n stops", file=sys.stderr, flush=True)


def _refused(request: TrustRequest, why: str) -> TrustError:
    gist = request.gist
    found = "; ".join(
        f"{safe(r.file)}:{r.line} {safe(r.words)}" if r.line else f"{safe(r.file)} {safe(r.words)}"
        for r in request.remarks[:3]
    )
    changed = f"it changed since it was approved on {request.previous.when[:10]}\n" if request.previous else ""
    return TrustError(
        f"the code of {gist.location} by {safe(gist.owner_shown)} was not run: {why}",
        f"{changed}sha256 {request.sha256}\n{request.summary}" + (f": {found}" if found else ""),
        f"read all of it: anyformer inspect {gist.location} --show_source\n"
        "then approve this very content: --trust (in Python: load_model(..., trust=True))",
    )


def _finding(request: TrustRequest, measured: str, note: str) -> Finding:
    reason = f"sha256 {request.sha256[:16]}…; {request.summary} (a warning, not a boundary)"
    return Finding("trust", "note", measured, reason=f"{reason}; {note}" if note else reason)


def _folder(cache_dir: str | Path | None) -> Path:
    return (Path(cache_dir).expanduser() if cache_dir else default_cache_dir()) / "gists" / "approvals"


def remember(request: TrustRequest, cache_dir: str | Path | None = None) -> str:
    """Keep the approval of this very content, as the answer yes does; why not, where it cannot be kept."""
    return _remember(_folder(cache_dir), request)


def _remember(folder: Path, request: TrustRequest) -> str:
    """Keep the approval in a file of its own, readable by its owner alone; why not, where it cannot be kept."""
    record = {
        "sha256": request.sha256,
        "gist_id": request.gist.id,
        "revision": request.gist.revision,
        "when": datetime.now(UTC).isoformat(timespec="microseconds"),
        "sources": {name: decode(content) for name, content in request.code.items()},
        "files": {name: sha256(content) for name, content in request.code.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = json.dumps(record, ensure_ascii=True).encode()
        write_atomically(folder / f"{request.sha256}.json", content, mode=0o600)
    except OSError as error:
        return f"not remembered: {error.strerror or error}"
    return ""


def _read(file: Path) -> Approval | None:
    """An approval; None for one that is absent, damaged, or not about the content that its name says."""
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        files = sorted((str(name), str(value)) for name, value in record["files"].items())
        if sha256(json.dumps(files).encode()) != file.stem or record["sha256"] != file.stem:
            return None
        sources = {str(name): str(text) for name, text in record["sources"].items()}
        return Approval(file.stem, str(record["gist_id"]), record["revision"], str(record["when"]), sources)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _last_approval(folder: Path, gist_id: str, digest: str) -> Approval | None:
    found = [approval for file in folder.glob("*.json") if (approval := _read(file)) and approval.gist_id == gist_id]
    if not found or any(approval.sha256 == digest for approval in found):
        return None
    return max(found, key=lambda approval: approval.when)


def _cut(line: str, width: int = _WIDTH) -> str:
    return line if len(line) <= width else f"{line[:width]} … ({len(line):,} characters)"


def _painted(lines: list[str]) -> list[str]:
    """Python in a terminal's colours, where pygments is installed."""
    try:
        pygments = importlib.import_module("pygments")
        lexer = importlib.import_module("pygments.lexers.python").PythonLexer(stripnl=False, ensurenl=False)
        formatter = importlib.import_module("pygments.formatters.terminal").TerminalFormatter()
    except ImportError:
        return lines
    painted = str(pygments.highlight("\n".join(lines), lexer, formatter)).split("\n")
    return painted if len(painted) == len(lines) else lines
