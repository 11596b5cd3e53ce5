"""The processes that a run starts beside its own, where no launcher has: the same program, once per device."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from anyformer.core.ranks import LED_BY
from anyformer.training.places import Place

_WORDS = 2000  # characters of what a process wrote last


def program(command: str) -> list[str]:
    """How to start this program again: the command line where there is one, else the script as Lightning starts it."""
    if command.startswith("anyformer "):
        return [sys.executable, "-m", *shlex.split(command)]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]


@dataclass(frozen=True)
class Dead:
    """A process that ended without a word."""

    rank: int
    how: str
    last_words: str


class Helpers:
    """Processes of ranks that follow this one's on the same machine; silent, and out of reach of the terminal's Ctrl-C.

    What the terminal or a scheduler says comes to the first process, which agrees on it with the others.
    """

    def __init__(self, arguments: list[str], place: Place, use_gpu: bool) -> None:
        self._first = place.rank
        self._on_cpu = not (use_gpu and torch.cuda.is_available())
        self._threads = max(1, torch.get_num_threads() // place.local_size)
        self._written: list[IO[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for local_rank in range(1, place.local_size):
                self._start(arguments, place, local_rank)
        except BaseException:
            self.end(0.0)
            raise

    def _start(self, arguments: list[str], place: Place, local_rank: int) -> None:
        told = {
            LED_BY: os.getpid(),
            "RANK": place.rank + local_rank,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": place.local_size,
            "NODE_RANK": place.node_rank,
            "WORLD_SIZE": place.size,
            "MASTER_ADDR": place.address,
            "MASTER_PORT": place.port,
        }
        environment = os.environ | {name: str(value) for name, value in told.items()}
        if self._on_cpu:  # they share the cores
            environment["OMP_NUM_THREADS"] = str(self._threads)
        self._written.append(tempfile.TemporaryFile())  # noqa: SIM115  (read when it ends without a word)
        self._processes.append(
            subprocess.Popen(
                arguments,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._written[-1],
                start_new_session=True,
            )
        )

    @contextmanager
    def threads(self) -> Iterator[None]:
        """As many threads for this process as for each of the others, until the block ends."""
        before = torch.get_num_threads()
        if self._on_cpu:
            torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def killed(self) -> Dead | None:
        """The first process that has ended, if one has that was not told to."""
        for number, process in enumerate(self._processes):
            if (code := process.poll()) not in (None, 0):
                how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
                stream = self._written[number]
                with suppress(OSError, ValueError):
                    stream.seek(0)
                    words = stream.read().decode("utf-8", "replace").strip()
                    return Dead(self._first + number + 1, how, words[-_WORDS:])
                return Dead(self._first + number + 1, how, "")
        return None

    def end(self, patience: float) -> None:
        """Wait for them so many seconds, then end those that have not ended."""
        for stop in (None, signal.SIGTERM, signal.SIGKILL):
            limit = time.monotonic() + (patience if stop is None else 3.0)
            for process in self._processes:
                if stop is not None and process.poll() is None:
                    process.send_signal(stop)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, limit - time.monotonic()))
        for stream in self._written:
            stream.close()
        self._written = []
