"""A server on loopback that plays the hub's dataset API, faults included; and the layouts of two real datasets."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WIKITEXT_CONFIGS = ("wikitext-103-raw-v1", "wikitext-103-v1", "wikitext-2-raw-v1", "wikitext-2-v1")


@dataclass(frozen=True)
class Fault:
    """What the server does instead of, or to, its right answer to paths that hold ``path``."""

    path: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    """Announce the whole body, send half, close."""
    method: str = ""
    """Only to this method."""
    times: int = 10**9


@dataclass
class Repository:
    """A dataset: its files, and who may read them."""

    files: dict[str, bytes]
    gated: bool = False
    token: str = ""
    """Needed to see it at all."""

    @property
    def commit(self) -> str:
        known = hashlib.sha1()
        for name in sorted(self.files):
            known.update(name.encode() + b"\0" + self.files[name])
        return known.hexdigest()


class HubServer:
    """``with HubServer() as hub``: ``hub.put(name, files)``, ``hub.moved[old] = new``, ``hub.faults.append(…)``.

    Data files (.parquet, .arrow, .gz) are answered as large files are: by a redirect to another address.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str]] = []
        """(method, path) of each request."""
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    def __enter__(self) -> HubServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                """Requests are in ``asked``."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def put(self, name: str, files: dict[str, bytes], *, gated: bool = False, token: str = "") -> None:
        self.repositories[name] = Repository(files, gated, token)

    def count(self, part: str, method: str = "") -> int:
        """Requests so far whose path holds ``part``."""
        return sum(part in path and method in ("", how) for how, path in self.asked)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path = unquote(handler.path)
        with self._lock:
            self.asked.append((handler.command, path))
            fault = self._fault(handler.command, path)
        time.sleep(fault.delay if fault else 0.0)
        if fault and fault.status != 200:
            self._send(handler, fault.status, b"{}", fault.headers)
            return
        status, content, headers = self._content(handler, urlsplit(path), body)
        self._send(handler, status, content, headers, cut=bool(fault and fault.cut))

    def _fault(self, method: str, path: str) -> Fault | None:
        for place, fault in enumerate(self.faults):
            if fault.path in path and fault.method in ("", method) and fault.times > 0:
                self.faults[place] = Fault(**{**vars(fault), "times": fault.times - 1})
                return fault
        return None

    def _content(self, handler: BaseHTTPRequestHandler, url: Any, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if url.path.startswith("/storage/"):
            digest = url.path.removeprefix("/storage/")
            found = next(
                c
                for r in self.repositories.values()
                for c in r.files.values()
                if hashlib.sha256(c).hexdigest() == digest
            )
            return 200, found, {"ETag": f'"{digest}"'}
        match = re.match(
            r"/(api/)?datasets/([\w.-]+/[\w.-]+|[\w.-]+?)(?=/resolve/|/revision/|/tree/|/paths-info/|$)", url.path
        )
        if match is None:
            return 404, b"{}", {}
        name, rest = match[2], url.path[match.end() :]
        if name in self.moved:
            target = url.path.replace(f"datasets/{name}", f"datasets/{self.moved[name]}", 1)
            return 307, b"", {"Location": target + (f"?{url.query}" if url.query else "")}
        repository = self.repositories.get(name)
        token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None or (repository.token and token != repository.token):
            code = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return (404, b"{}", code) if token else (401, b'{"error": "Invalid username or password."}', {})
        if repository.gated and "/resolve/" in url.path:
            return (
                (403 if token else 401),
                b"{}",
                {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"},
            )
        if match[1]:
            return self._api(repository, name, rest, url, body)
        return self._file(repository, rest)

    def _api(
        self, repository: Repository, name: str, rest: str, url: Any, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        record: Any
        if rest.startswith("/tree/"):
            folder = "/".join(rest.split("/")[3:])
            deep = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
            record = _tree(repository, folder, deep)
            if not record:
                return 404, b"{}", {"X-Error-Code": "EntryNotFound"}
        elif rest.startswith("/paths-info/"):
            wanted = json.loads(body).get("paths", []) if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            everything = _tree(repository, "", True)
            record = [entry for entry in everything if entry["path"] in wanted]
        else:
            siblings = [{"rfilename": path} for path in sorted(repository.files)]
            record = {"id": name, "sha": repository.commit, "siblings": siblings, "private": False, "gated": False}
            record |= {"disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return 200, json.dumps(record).encode(), {"Content-Type": "application/json"}

    def _file(self, repository: Repository, rest: str) -> tuple[int, bytes, dict[str, str]]:
        path = "/".join(rest.split("/")[3:])
        content = repository.files.get(path)
        commit = {"X-Repo-Commit": repository.commit}
        if content is None:
            return 404, b"Entry not found", {"X-Error-Code": "EntryNotFound", **commit}
        digest = hashlib.sha256(content).hexdigest()
        if path.endswith((".parquet", ".arrow", ".gz")):
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
            return 302, b"", {**commit, **linked, "Location": f"http://localhost:{self._port}/storage/{digest}"}
        return 200, content, {**commit, "ETag": f'"{digest}"'}

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], cut: bool = False
    ) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if wanted and status == 200:
            first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[first : last + 1]
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(body[: len(body) // 2] if cut else body)
                handler.wfile.flush()
            if cut:
                handler.connection.close()
        except OSError:
            return  # the client hung up, which some faults provoke


def _tree(repository: Repository, folder: str, deep: bool) -> list[dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    prefix = f"{folder}/" if folder else ""
    for path, content in sorted(repository.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if deep else min(2, len(parts))):
            inner = prefix + "/".join(parts[:depth])
            entries[inner] = {
                "type": "directory",
                "path": inner,
                "size": 0,
                "oid": hashlib.sha1(inner.encode()).hexdigest(),
            }
        if deep or len(parts) == 1:
            oid = hashlib.sha1(content).hexdigest()
            entries[path] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    return list(entries.values())


def parquet(columns: dict[str, list[Any]]) -> bytes:
    """A parquet file."""
    import pyarrow
    from pyarrow import parquet as library

    sink = io.BytesIO()
    library.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def wikitext_files(lines: list[str]) -> dict[str, bytes]:
    """Salesforce/wikitext as it lies on the hub: four configurations of three splits, in parquet, named in README.md.

    Each line is a row, an empty one too; every configuration gets other rows, so that a mix-up shows.
    """
    card = ["---", "configs:"]
    files: dict[str, bytes] = {}
    for number, config in enumerate(WIKITEXT_CONFIGS):
        card += [f"- config_name: {config}", "  data_files:"]
        for split in ("test", "train", "validation"):
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            rows = [f" {config} {split} \n", *lines[number:], ""]
            files[f"{config}/{split}-00000-of-00001.parquet"] = parquet({"text": rows})
    files["README.md"] = "\n".join([*card, "---", "# wikitext", ""]).encode()
    return files


def textbooks_files(texts: list[str]) -> dict[str, bytes]:
    """nampdn-ai/tiny-textbooks: parquet files at the top, two splits, the text in the column ``textbook``."""
    count = len(texts)
    columns = {
        "source": ["open-phi"] * count,
        "s": [str(n % 3) for n in range(count)],
        "len": [len(t) for t in texts],
        "idx": list(range(count)),
        "textbook": texts,
    }
    card = "---\nlanguage:\n- en\npretty_name: Tiny Textbooks\n---\n# Textbook-like Dataset\n"
    return {
        "README.md": card.encode(),
        "train.parquet": parquet(columns),
        "test.parquet": parquet({name: values[:2] for name, values in columns.items()}),
    }
