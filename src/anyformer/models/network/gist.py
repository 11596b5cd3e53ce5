"""GitHub gists: the API, its faults in plain words, and the files on this disk. Nothing is executed here."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from anyformer.core.errors import SourceError
from anyformer.core.findings import Finding
from anyformer.core.gistref import GistRef
from anyformer.core.places import default_cache_dir
from anyformer.core.protocols import Progress, View
from anyformer.core.view import QuietView, printable
from anyformer.models.network.gistcache import Gist, GistCache, sha256
from anyformer.models.network.http import Answer, Client, Unreachable, is_loopback, retry_after, too_big

API = "https://api.github.com"
"""Default server; the environment's ANYFORMER_GIST_API names another (https, or http on this machine)."""
LARGEST_FILE = 10_000_000
"""Bytes of one file."""
_LARGEST_ANSWER = 64_000_000  # the API puts up to 1 MB of each file into its answer
_RAW_HOST = "gist.githubusercontent.com"
_FETCHED = (".py", ".json", ".yaml", ".yml", ".toml", ".txt", ".md", ".csv", ".tsv")
"""Nothing else is stored: a .pyc or .so beside model.py could be imported without having been read."""
_SHOWN_FROM = 200_000  # bytes: a smaller download is over before a bar could be read


def fetch_gist(
    ref: GistRef,
    *,
    base_url: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    view: View | None = None,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = 15.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Gist:
    """The files of a gist, from the API or, where that says "not modified" or cannot be reached, from the cache.

    base_url: the API's server; $ANYFORMER_GIST_API or api.github.com where not given. token: $GITHUB_TOKEN where not
    given, "" for none; it goes to the API's own host alone. cache_dir: $ANYFORMER_CACHE where not given.
    progress: called with (bytes done, bytes in all or 0). timeout: seconds without a byte.
    Raises SourceError: what the server or the network did, and what to do.
    """
    base = _base(base_url)
    shown = view or QuietView()
    cache = GistCache((Path(cache_dir).expanduser() if cache_dir else default_cache_dir()) / "gists", base)
    known, damage = cache.read(ref.id, ref.revision) if ref.revision else cache.newest(ref.id)
    if known is not None and ref.revision:
        reason = f"fetched {known.fetched}; a revision never changes"
        finding = Finding("gist", "note", f"{_who(known)}, from the cache", reason=reason)
        return _announced(_chosen(known, ref, [finding]), shown)
    shown.status(f"fetching gist {ref.id}")
    server = _Server(
        base,
        _token(token),
        Client(_allowed(base, api=True), timeout, sleep, _reporter(shown, progress)),
        Client(_allowed(base, api=False), timeout, sleep, _reporter(shown, progress)),
    )
    damages = [damage] if damage else []
    try:
        answer = server.ask(ref, known.etag if known else "")
        if answer.status == 304 and known is not None:
            finding = Finding("gist", "note", f"{_who(known)}, from the cache", reason="GitHub says it has not changed")
            gist = _chosen(known, ref, [finding])
        elif answer.status == 200:
            gist = _stored(ref, answer, server, cache, damages)
        else:
            raise _refused(answer, ref, known, with_token=bool(server.token), base=base)
    except (Unreachable, _Limited) as error:
        if known is None:
            raise _no_answer(error, ref, base, damage) from error
        reason = f"{error}; the gist may have changed since {known.fetched}"
        warning = Finding("gist", "warn", f"{_who(known)}, from the cache: the network gave none", reason=reason)
        shown.finding(warning)
        gist = _chosen(known, ref, [warning])
    return _announced(gist, shown)


def _announced(gist: Gist, view: View) -> Gist:
    size = sum((gist.folder / name).stat().st_size for name in gist.files)
    count = f"{len(gist.files)} file" + ("" if len(gist.files) == 1 else "s")
    view.stage("gist", _who(gist), f"revision {(gist.revision or 'unknown')[:12]} · {count} · {size / 1000:,.1f} kB")
    return gist


class _Limited(Exception):
    """The server counts requests and has had enough of them."""


@dataclass(frozen=True)
class _Server:
    base: str
    token: str
    api: Client
    raw: Client

    def ask(self, ref: GistRef, etag: str) -> Answer:
        url = f"{self.base}/gists/{quote(ref.id, safe='')}" + (
            f"/{quote(ref.revision, safe='')}" if ref.revision else ""
        )
        headers = {
            "Accept": "application/vnd.github+json",
            "User-Agent": "anyformer",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if etag:
            headers["If-None-Match"] = etag
        return self.api.get(url, headers=headers, limit=_LARGEST_ANSWER, what=f"gist {ref.id}")

    def file(self, name: str, entry: dict[str, Any]) -> bytes:
        """The content of one file: as the answer has it, or from raw_url where the answer cut it."""
        size = entry.get("size")
        what = f"the gist's file {printable(name)}"
        if isinstance(size, int) and size > LARGEST_FILE:
            raise too_big(what, size, LARGEST_FILE)
        content = entry.get("content")
        if not entry.get("truncated") and isinstance(content, str):
            data = content.encode("utf-8", errors="surrogatepass")
            if len(data) > LARGEST_FILE:
                raise too_big(what, len(data), LARGEST_FILE)
            return data
        url = str(entry.get("raw_url") or "")
        if not self.raw.allowed(url):
            raise SourceError(
                f"{what} lies at {printable(url)[:200] or 'no address'}, from where nothing is fetched",
                f"long files are taken from https://{_RAW_HOST} alone",
                "download it by hand if you trust it, and give its path",
            )
        answer = self.raw.get(url, headers={"User-Agent": "anyformer"}, limit=LARGEST_FILE, what=what)
        if answer.status != 200:
            raise SourceError(f"{what} cannot be fetched: {urlsplit(url).hostname} answered {answer.status}")
        if isinstance(size, int) and size != len(answer.body):
            raise SourceError(f"{what} has {len(answer.body):,} bytes; the gist says {size:,}", fix="try again")
        return answer.body


def _stored(ref: GistRef, answer: Answer, server: _Server, cache: GistCache, findings: list[Finding]) -> Gist:
    """What a good answer holds, written to the cache."""
    record = _json_object(answer.body, ref)
    files: dict[str, Any] = record["files"]
    for name in files:
        _require_plain(name, ref)
    cut = bool(record.get("truncated"))
    main = _main_file(sorted(files), ref, f"gist:{ref.id}" + (f"@{ref.revision}" if ref.revision else ""), cut=cut)
    wanted = [name for name in files if name.endswith(_FETCHED)]
    contents = {name: server.file(name, files[name] if isinstance(files[name], dict) else {}) for name in wanted}
    owner = record.get("owner")
    login = owner.get("login") if isinstance(owner, dict) else None
    gist = Gist(
        id=ref.id,
        revision=_revision(record, ref),
        owner=str(login) if login else None,
        description=str(record.get("description") or ""),
        folder=Path(),
        files={name: sha256(content) for name, content in contents.items()},
        left_out=tuple(sorted(set(files) - set(wanted))),
        main=main,
        etag=answer.headers.get("etag", ""),
    )
    gist = cache.write(gist, contents, newest=ref.revision is None, asked=ref.revision)
    findings = [*findings, Finding("gist", "note", _who(gist), reason=f"fetched from {urlsplit(server.base).hostname}")]
    if cut:
        reason = "GitHub names only the first 300; a module beyond them cannot be imported"
        findings.append(Finding("gist files", "warn", f"{len(files)} of more files", reason=reason))
    return _chosen(gist, ref, findings)


def _chosen(gist: Gist, ref: GistRef, findings: list[Finding]) -> Gist:
    """The gist with the file that holds the model, and what is to be said of its files."""
    where = f"gist:{gist.id}" + (f"@{ref.revision}" if ref.revision else "")
    main = _main_file(sorted([*gist.files, *gist.left_out]), ref, where, cut=False)
    found = list(findings)
    if gist.left_out:
        shown = ", ".join(gist.left_out[:8])
        found.append(Finding("gist files", "note", f"left out: {shown}", reason="no code, settings or text"))
    if "config.json" not in gist.files:
        reason = "the class's own defaults are used; give sizes by a config.json in the gist"
        found.append(Finding("config.json", "warn", "the gist has none", reason=reason))
    return replace(gist, main=main, findings=tuple(found))


def _main_file(names: list[str], ref: GistRef, where: str, *, cut: bool) -> str:
    wanted = ref.file or "model.py"
    if wanted.startswith("#file-"):  # the page's anchors: model.py → #file-model-py
        slugs = {"#file-" + re.sub(r"[^0-9a-z_]+", "-", name.lower()).strip("-"): name for name in names}
        wanted = slugs.get(wanted.lower(), wanted)
    if wanted in names and wanted.endswith(".py"):
        return wanted
    code = [name for name in names if name.endswith(".py")]
    listed = ", ".join(printable(name) for name in names) or "none"
    raise SourceError(
        f"{where} has no {printable(wanted)}",
        f"its files: {listed}" + (" and more, which GitHub does not name" if cut else ""),
        "\n".join(f"anyformer train {where}:{printable(name)}" for name in code[:8])
        or "put the model into a file model.py of the gist",
    )


def _require_plain(name: str, ref: GistRef) -> None:
    """SourceError for a file name that could leave its folder or hide what it is."""
    reserved = name in (".", "..") or name.startswith("-") or not name.strip()
    if reserved or re.search(r"[/\\:\x00-\x1f\x7f]", name) or ".." in name or len(name.encode(errors="replace")) > 200:
        raise SourceError(
            f"gist {ref.id} has a file named {printable(name)[:80]!r}",
            "such a name could write outside its folder, so nothing of this gist is used",
            "rename the file in the gist",
        )


def _revision(record: dict[str, Any], ref: GistRef) -> str | None:
    """The commit: as asked for where that names it whole, else the newest of the history."""
    history = record.get("history")
    newest = history[0].get("version") if isinstance(history, list) and history and isinstance(history[0], dict) else ""
    newest = newest if isinstance(newest, str) and re.fullmatch(r"[0-9A-Za-z]{4,64}", newest) else ""
    if ref.revision and not newest.startswith(ref.revision):
        return ref.revision
    return newest or None


def _json_object(body: bytes, ref: GistRef) -> dict[str, Any]:
    try:
        record = json.loads(body)
    except (ValueError, RecursionError) as error:
        start = printable(body[:60].decode("utf-8", errors="replace")).strip()
        raise SourceError(
            f"the answer about gist {ref.id} is not JSON",
            f"it begins: {start or '(empty)'}",
            "is a proxy or a login page between this machine and GitHub? try again later",
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise SourceError(f"the answer about gist {ref.id} describes no gist: it has no list of files")
    return record


def _refused(answer: Answer, ref: GistRef, known: Gist | None, *, with_token: bool, base: str) -> Exception:
    """The error for an answer that is neither 200 nor a trouble of the network."""
    said = _message(answer.body)
    where = urlsplit(base).hostname
    kept = f"the revision fetched {known.fetched} is kept: {known.location}" if known else ""
    if answer.status == 404:
        what = f"there is no gist {ref.id}" + (f" with a revision {ref.revision}" if ref.revision else "")
        fix = "open https://gist.github.com/" + ref.id + " to see whether it is there"
        if ref.revision:
            fix += f"\nthe newest revision: {replace(ref, revision=None)}"
        return SourceError(what, "it was deleted, is not yours to see, or the id has a typing error", _lines(fix, kept))
    if answer.status == 401:
        fix = "make a new token, or unset GITHUB_TOKEN: public gists need none"
        return SourceError(f"{where} does not accept the token in GITHUB_TOKEN", said, _lines(fix, kept))
    spent = answer.headers.get("x-ratelimit-remaining", "").strip() == "0"
    if answer.status == 429 or (answer.status == 403 and (spent or "retry-after" in answer.headers)):
        return _Limited(_limit(answer, with_token))
    if answer.status == 403:
        return SourceError(
            f"{where} refuses gist {ref.id} (403)", said, _lines("open it in a browser to see why", kept)
        )
    return SourceError(f"{where} answered {answer.status} about gist {ref.id}", said, _lines("try again later", kept))


def _limit(answer: Answer, with_token: bool) -> str:
    reset = answer.headers.get("x-ratelimit-reset", "").strip()
    seconds = float(reset) - time.time() if re.fullmatch(r"\d{1,12}", reset) else retry_after(answer.headers)
    when = "at an unknown time"
    if seconds is not None:
        minutes = max(1, -(-max(0.0, seconds) // 60))
        when = f"in {minutes:.0f} minute{'' if minutes == 1 else 's'}"
    allowed = "5,000 requests an hour with a token" if with_token else "60 requests an hour without a token"
    return f"GitHub's rate limit is reached ({answer.status}: {allowed}); it resets {when}"


def _no_answer(error: Exception, ref: GistRef, base: str, damage: Finding | None) -> SourceError:
    """SourceError where the cache cannot help."""
    cached = f"{damage.measured} ({damage.reason})" if damage else "no copy of it is in the cache"
    if isinstance(error, _Limited):
        more = "wait, or set GITHUB_TOKEN: with a token of your own it is 5,000 requests an hour instead of 60"
        return SourceError(f"gist {ref.id} cannot be fetched: {error}", cached, more)
    return SourceError(
        f"gist {ref.id} cannot be fetched from {urlsplit(base).hostname}: {error}",
        cached,
        "try again later, or check the network; a gist that was fetched once is used offline too",
    )


def _message(body: bytes) -> str:
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    said = record.get("message") if isinstance(record, dict) else None
    return f"it says: {printable(said)[:200]}" if isinstance(said, str) else ""


def _base(given: str | None) -> str:
    base = (given or os.environ.get("ANYFORMER_GIST_API") or API).strip().rstrip("/")
    scheme, host = urlsplit(base).scheme, urlsplit(base).hostname
    if not host or not (scheme == "https" or (scheme == "http" and is_loopback(base))):
        raise SourceError(
            f"{printable(base)!r} cannot be the gist server", "it must be https://… (http only on this machine)"
        )
    return base


def _token(given: str | None) -> str:
    token = (os.environ.get("GITHUB_TOKEN", "") if given is None else given).strip()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        # never shown: it is a secret even where it is wrong
        raise SourceError("GITHUB_TOKEN holds spaces or characters that no token has", fix="set it anew, or unset it")
    return token


def _allowed(base: str, *, api: bool) -> Callable[[str], bool]:
    """Which addresses may be asked: the API's own, or those of long files."""
    server = urlsplit(base)

    def allowed(url: str) -> bool:
        try:
            address = urlsplit(url)
            port = address.port
        except ValueError:
            return False
        if address.username is not None or address.password is not None:
            return False
        if is_loopback(base) and is_loopback(url):
            return address.scheme in ("http", "https")
        if api:
            return (address.scheme, address.hostname, port) == (server.scheme, server.hostname, server.port)
        return address.scheme == "https" and address.hostname == _RAW_HOST and port in (None, 443)

    return allowed


def _reporter(view: View, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total)
        if total >= _SHOWN_FROM:
            view.progress(Progress(done, total, unit="bytes", label="bytes"))
        elif done >= _SHOWN_FROM:
            view.status(f"fetching: {done / 1e6:,.1f} MB so far")

    return report


def _who(gist: Gist) -> str:
    return f"{gist.id} by {gist.owner_shown}"


def _lines(*texts: str) -> str:
    return "\n".join(text for text in texts if text)
