"""A hub of tokenizers on loopback, with a cache of its own."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anyformer.tokenization import FastBPETrainer, TextTokenizer
from anyformer.tokenization.bpe import BPETrainerConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEAD = "http://127.0.0.1:9"  # the port for discarding: nothing listens
TEXTS = [f"The {n}th line isn't like the other lines, it's café number {n}.\n" for n in range(300)]


class Hub:
    """Repositories as folders; what was asked for; what the server answers instead."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.states: dict[str, int] = {}
        """HTTP state for every file of a repository."""

    def add(self, name: str) -> Path:
        """The folder of a new repository."""
        folder = self.root / name
        folder.mkdir(parents=True)
        return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Answers as the hub's resolve endpoints do."""
    repositories = Hub(tmp_path / "repositories")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            repositories.asked.append(self.path)
            owner, name, verb, _, *rest = self.path.split("?")[0].strip("/").split("/")
            folder = repositories.root / owner / name
            file = folder.joinpath(*rest)
            state = repositories.states.get(f"{owner}/{name}", 200)
            if state == 200 and (verb != "resolve" or not file.is_file()):
                state = 404
            data = file.read_bytes() if state == 200 else b""
            self.send_response(state)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            if state == 200:
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            elif state == 404:
                self.send_header("X-Error-Code", "EntryNotFound" if folder.is_dir() else "RepoNotFound")
            elif state == 403:
                self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the hub is this machine's loopback
    yield repositories
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def small() -> TextTokenizer:
    """A BPE of 300 entries."""
    return FastBPETrainer(BPETrainerConfig(vocab_size=300)).train_on_dataset(TEXTS)
