"""A server on loopback that plays the gist API, faults included. Used by the tests and by benchmarks/gist_faults.py."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

ID = "0123456789abcdef0123456789abcdef"

MODEL = """\
import torch
from torch import nn


class TinyGPT(nn.Module):
    def __init__(self, vocab_size=300, width=8):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids):
        x = self.tokens(ids)
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device).view(1, -1, 1)
        return self.head(torch.tanh(self.mix(x.cumsum(1) / steps)))
"""
CONFIG = '{"vocab_size": 270, "width": 8}'


@dataclass(frozen=True)
class Fault:
    """What the server does instead of, or to, its right answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Instead of the right body."""
    delay: float = 0.0
    """Seconds of silence first."""
    cut: bool = False
    """Announce the whole body, send half, close."""
    reset: bool = False
    """Send half, then reset the connection."""
    unannounced: bool = False
    """No Content-Length."""


@dataclass(frozen=True)
class Asked:
    """One request that arrived."""

    path: str
    headers: dict[str, str]


class GistServer:
    """``with GistServer() as server``: ``server.put(files)``, ``server.faults.append(...)``, ``server.asked``."""

    def __init__(self) -> None:
        self.gists: dict[str, dict[str, Any]] = {}
        self.raw: dict[str, bytes] = {}
        self.faults: list[Fault | None] = []
        """One for each request to come, in order; None is a right answer."""
        self.always: Fault | None = None
        """For every request that no entry of ``faults`` is for."""
        self.raw_faults: list[Fault | None] = []
        """The same for files asked by raw_url."""
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    def __enter__(self) -> GistServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: Any) -> None:
                """Requests are in ``asked``."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def put(
        self,
        files: dict[str, str] | None = None,
        *,
        identifier: str = ID,
        owner: str | None = "octocat",
        edit: Callable[[dict[str, Any]], None] | None = None,
        **entries: dict[str, Any],
    ) -> str:
        """Publish a revision of a gist and return its commit; ``edit`` changes the record by hand."""
        given = files if files is not None else {"model.py": MODEL, "config.json": CONFIG}
        revision = hashlib.sha1(json.dumps([identifier, given]).encode()).hexdigest()
        record: dict[str, Any] = {
            "id": identifier,
            "description": "a tiny model",
            "owner": None if owner is None else {"login": owner},
            "truncated": False,
            "history": [{"version": revision}],
            "files": {
                name: {"filename": name, "size": len(text.encode()), "truncated": False, "content": text}
                for name, text in given.items()
            },
        }
        if edit is not None:
            edit(record)
        self.gists[identifier] = record
        self.gists[f"{identifier}/{revision}"] = record
        return revision

    def put_long(self, name: str, content: bytes, *, address: str | None = None, **entry: Any) -> str:
        """Publish a gist whose model.py is cut in the answer and lies at raw_url."""
        path = f"/raw/{name}"
        self.raw[path] = content

        def cut(record: dict[str, Any]) -> None:
            record["files"][name] = {
                "filename": name,
                "size": len(content),
                "truncated": True,
                "content": content[:100].decode(),
                "raw_url": address or f"{self.url}{path}",
                **entry,
            }

        return self.put({name: "", "config.json": CONFIG}, edit=cut)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        is_raw = handler.path.startswith("/raw/")
        with self._lock:
            self.asked.append(Asked(handler.path, headers))
            queue = self.raw_faults if is_raw else self.faults
            fault = queue.pop(0) if queue else None if is_raw else self.always
        fault = fault or Fault()
        time.sleep(fault.delay)
        if fault.status != 200 or fault.body is not None:
            self._send(handler, fault, fault.status, fault.body or b"{}", fault.headers)
            return
        if is_raw:
            body = self.raw.get(handler.path)
            status, etag = (200, "") if body is not None else (404, "")
        else:
            record = self.gists.get(handler.path.removeprefix("/gists/"))
            body = None if record is None else json.dumps(record).encode()
            status, etag = (404, "") if body is None else (200, f'"{hashlib.sha256(body).hexdigest()}"')
            if etag and headers.get("if-none-match") == etag:
                status, body = 304, b""
        found = body if body is not None else b'{"message": "Not Found"}'
        self._send(handler, fault, status, found, {**({"ETag": etag} if etag else {}), **fault.headers})

    def _send(
        self, handler: BaseHTTPRequestHandler, fault: Fault, status: int, body: bytes, headers: dict[str, str]
    ) -> None:
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            if status != 304 and not fault.unannounced and "Content-Length" not in headers:
                handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2] if fault.cut or fault.reset else body)
            handler.wfile.flush()
            if fault.reset:  # a zero linger time makes close() send RST
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                handler.connection.close()
        except OSError:
            return  # the client hung up: that is its right, and some faults provoke it


LIMITED = {"x-ratelimit-remaining": "0"}


@dataclass(frozen=True)
class Case:
    """One fault, how the server brings it about, and what the user must read."""

    name: str
    arrange: Callable[[GistServer], None]
    says: tuple[str, ...]
    """Parts of the error; where ``loads``, of the findings."""
    loads: bool = False
    ref: str = f"gist:{ID}"
    cached: bool = False
    """The gist was fetched once before."""
    requests: int | None = None
    """How many reach the API's server."""


def _faults(*faults: Fault | None) -> Callable[[GistServer], None]:
    return lambda server: server.faults.extend(faults)


def _always(fault: Fault) -> Callable[[GistServer], None]:
    def arrange(server: GistServer) -> None:
        server.always = fault

    return arrange


def _files(files: dict[str, str]) -> Callable[[GistServer], None]:
    return lambda server: void(server.put(files))


def void(value: object) -> None:
    """Drops a value, so that a lambda returns none."""


def _reset_at(minutes: int) -> dict[str, str]:
    return {**LIMITED, "x-ratelimit-reset": str(int(time.time() + minutes * 60 - 5))}


def _limited(server: GistServer) -> None:
    server.always = Fault(403, _reset_at(17), b'{"message": "API rate limit exceeded"}')


def _long(content: bytes = MODEL.encode(), **entry: Any) -> Callable[[GistServer], None]:
    return lambda server: void(server.put_long("model.py", content, **entry))


def _redirected(target: str) -> Callable[[GistServer], None]:
    def arrange(server: GistServer) -> None:
        server.put_long("model.py", MODEL.encode())
        server.raw_faults.append(Fault(302, {"Location": target}))

    return arrange


def _raw_cut(server: GistServer) -> None:
    server.put_long("model.py", MODEL.encode())
    server.raw_faults.append(Fault(cut=True))


def _growing(server: GistServer) -> None:
    """The record and the headers say nothing of the size; only reading tells."""
    server.put_long("model.py", b"#" * 10_500_000, size=None)
    server.raw_faults.append(Fault(unannounced=True))


def _truncated_gist(server: GistServer) -> None:
    server.put(edit=lambda record: record.update(truncated=True))


SLOW = 1.0
"""Seconds that the server is silent where the client waits less."""

CASES = (
    Case("no such gist (404)", lambda s: s.gists.clear(), ("there is no gist", "deleted", "typing error"), requests=1),
    Case(
        "no such revision (404)",
        _faults(),
        ("with a revision beef", f"gist:{ID}"),
        ref=f"gist:{ID}@beef",
        requests=1,
    ),
    Case("bad token (401)", _faults(Fault(401)), ("GITHUB_TOKEN", "does not accept"), requests=1),
    Case("rate limit (403)", _limited, ("resets in 17 minutes", "GITHUB_TOKEN", "5,000", "60"), requests=1),
    Case("rate limit (403), cached", _limited, ("from the cache", "resets in 17 minutes"), True, cached=True),
    Case(
        "forbidden (403)",
        _faults(Fault(403, {}, b'{"message": "Gist is blocked"}')),
        ("refuses gist", "it says: Gist is blocked"),
        requests=1,
    ),
    Case("too many requests (429)", _faults(Fault(429)), ("(429", "resets at an unknown time"), requests=1),
    Case("429, Retry-After 1, then right", _faults(Fault(429, {"Retry-After": "1"})), ("fetched",), True, requests=2),
    Case(
        "429, Retry-After 1 hour",
        _faults(Fault(429, {"Retry-After": "3600"})),
        ("(429", "resets in 60 minutes"),
        requests=1,
    ),
    Case("500 twice, then right", _faults(Fault(500), Fault(502)), ("fetched",), True, requests=3),
    Case("500 for ever", _always(Fault(500)), ("the server answered 500, 4 times", "try again"), requests=4),
    Case("503, Retry-After 1 hour", _always(Fault(503, {"Retry-After": "3600"})), ("503 and asks to wait 3600 s",)),
    Case("500 for ever, cached", _always(Fault(500)), ("from the cache", "answered 500"), True, cached=True),
    Case("silence, then right", _faults(Fault(delay=SLOW)), ("fetched",), True, requests=2),
    Case("silence for ever", _always(Fault(delay=SLOW)), ("no answer within the time limit, 4 times",), requests=4),
    Case("connection refused", lambda s: s.stop(), ("the connection was refused", "no copy of it is in the cache")),
    Case("connection refused, cached", lambda s: s.stop(), ("from the cache", "refused"), True, cached=True),
    Case("reset amid the body, then right", _faults(Fault(reset=True)), ("fetched",), True, requests=2),
    Case("reset amid the body for ever", _always(Fault(reset=True)), ("4 times",), requests=4),
    Case("body cut short, then right", _faults(Fault(cut=True)), ("fetched",), True, requests=2),
    Case("body cut short for ever", _always(Fault(cut=True)), ("ended after", "4 times"), requests=4),
    Case("answer is no JSON", _faults(Fault(body=b"<html>Log in")), ("is not JSON", "it begins: <html>Log in")),
    Case("answer is no gist", _faults(Fault(body=b'{"files": 3}')), ("describes no gist",)),
    Case(
        "no model.py",
        _files({"transformer.py": MODEL, "README.md": "x"}),
        ("has no model.py", "its files: README.md, transformer.py", f"anyformer train gist:{ID}:transformer.py"),
    ),
    Case("no Python at all", _files({"notes.md": "x"}), ("its files: notes.md", "put the model into a file model.py")),
    Case("no config.json", _files({"model.py": MODEL}), ("config.json", "defaults"), True),
    Case("long file, by raw_url", _long(), ("fetched",), True, requests=2),
    Case("long file, cut once", _raw_cut, ("fetched",), True, requests=3),
    Case(
        "long file elsewhere",
        _long(address="https://evil.example/model.py"),
        ("evil.example", "from where nothing is fetched"),
        requests=1,
    ),
    Case(
        "long file by plain http",
        _long(address="http://gist.githubusercontent.com/o/x/raw/model.py"),
        ("from where nothing is fetched", "https://gist.githubusercontent.com"),
        requests=1,
    ),
    Case(
        "long file by a host that only looks right",
        _long(address="https://gist.githubusercontent.com@evil.example/model.py"),
        ("from where nothing is fetched",),
        requests=1,
    ),
    Case(
        "redirect elsewhere",
        _redirected("https://evil.example/model.py"),
        ("sends us on to https://evil.example", "no gist is kept"),
        requests=2,
    ),
    Case(
        "redirect down to http",
        _redirected("http://gist.githubusercontent.com/model.py"),
        ("sends us on to http://gist.githubusercontent.com",),
        requests=2,
    ),
    Case(
        "redirect of the API elsewhere",
        _faults(Fault(301, {"Location": "https://evil.example/gists/x"})),
        ("sends us on to https://evil.example",),
        requests=1,
    ),
    Case(
        "too big, by its size", _long(size=10_000_001), ("too big: 10,000,001 bytes", "at most 10,000,000"), requests=1
    ),
    Case(
        "too big, by Content-Length",
        _long(b"#" * 10_500_000, size=None),
        ("too big: 10,500,000 bytes", "--weights"),
        requests=2,
    ),
    Case("too big, found while reading", _growing, ("too big",), requests=2),
    Case("a size that is not true", _long(size=7), ("the gist says 7",)),
    Case("a file named ../model.py", _files({"../model.py": MODEL}), ("'../model.py'", "outside its folder")),
    Case("a file named a\\b.py", _files({"model.py": MODEL, "a\\b.py": ""}), ("outside its folder",)),
    Case("more than 300 files", _truncated_gist, ("first 300",), True),
    Case("impossible id", _faults(), ("is not an id", "gist:ID"), ref="gist:../../etc", requests=0),
    Case("not changed (304)", _faults(), ("from the cache", "has not changed"), True, cached=True, requests=1),
)
