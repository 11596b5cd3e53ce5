"""Checkpoints written by a thread of their own, from a copy of the state, while the training goes on."""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from anyformer.core.errors import CheckpointError
from anyformer.core.findings import Finding
from anyformer.models.files.limits import available_memory
from anyformer.runs.checkpoints import Abandoned, DirectoryCheckpointIO
from anyformer.runs.tensors import copied, size_of

SHARE = 0.5
"""Of the free memory at most is taken for a copy; the rest is for the step after it."""


class BackgroundCheckpointIO(CheckpointIO):
    """DirectoryCheckpointIO in a thread: ``save_checkpoint`` takes a copy of the state and returns.

    One save at a time: the next one waits for it. Checkpoints that are to be removed meanwhile go once it is complete,
    on the disk and read back, and stay where it fails. Nothing is saved before ``wait`` has returned; it raises what a
    save failed with. The thread ends with its work; a process waits for it before it exits.

    Where there is no memory for a copy, the state is written before ``save_checkpoint`` returns.

    Lightning's AsyncCheckpointIO (2.6.6) is not used: it removes an older checkpoint while its successor is still being
    written, its copy unties tied weights (before pull request 21079 it copied nothing), saves and their copies queue up
    without end, and an error shows with the next save at the earliest.
    """

    def __init__(self, io: DirectoryCheckpointIO) -> None:
        self._io = io
        self._lock = threading.Lock()
        self._work: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._error: BaseException | None = None
        self._kept: list[CheckpointError] = []
        self.seconds = 0.0
        """How long the last save was written and read back in the background."""
        self.without_copy = 0
        """Saves that the training waited for, because there was no memory for a copy."""

    @property
    def busy(self) -> bool:
        """Whether a save is in flight."""
        return not self._idle.is_set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy the state and have it written; waits for the save before it and raises what that failed with.

        Raises CheckpointError at once where the state holds an object that cannot be loaded without running code.
        """
        self.wait()
        free = available_memory()
        if free is not None and size_of(checkpoint) > SHARE * free:
            self.without_copy += 1
            self._io.save_checkpoint(checkpoint, path)
            self.seconds = 0.0
        else:
            self._begin(partial(self._save, copied(checkpoint), path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As DirectoryCheckpointIO, once nothing is in flight."""
        self.wait()
        return self._io.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        """As DirectoryCheckpointIO; while a save is in flight, after it, and what cannot be removed is warned of."""
        with self._lock:
            if self.busy:
                self._work.append(partial(self._remove, path))
                return
            failed = self._error is not None
        if not failed:  # else the one to be removed is the newest that is whole
            self._io.remove_checkpoint(path)

    def wait(self) -> None:
        """Until nothing is in flight. Raises what the save failed with, once."""
        self._join()
        kept, self._kept = self._kept, []
        for problem in kept:
            warnings.warn(f"{problem.what}; training goes on", stacklevel=2)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def findings(self) -> list[Finding]:
        """What there was no memory for."""
        if not self.without_copy:
            return []
        count = "1 checkpoint" if self.without_copy == 1 else f"{self.without_copy:,} checkpoints"
        reason = f"a copy of the state would have taken more than {SHARE:.0%} of the free memory"
        return [Finding("saving", "note", f"the training waited for {count}", "saved while it goes on", reason)]

    def abandon(self) -> None:
        """Leave what is in flight; nothing of it stays. Returns as soon as the call to the system it is in does."""
        with self._lock:
            self._work.clear()
        self._io.abandoned.set()
        self._join()
        self._io.abandoned.clear()
        self._kept, self._error = [], None

    def _join(self) -> None:
        # not Thread.join: left by a signal's exception, it takes a thread that runs for one that has ended (3.11)
        while not self._idle.wait(0.2):  # in pieces: signals are heard
            if self._thread is None or not self._thread.is_alive():  # a signal's exception kept it from being started
                self._work.clear()
                self._idle.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _begin(self, job: Callable[[], None]) -> None:
        self._work.append(job)
        self._idle.clear()
        # no daemon: one that is stopped in the middle of a native call takes the process down with it
        self._thread = threading.Thread(target=self._run, name="anyformer-checkpoints", daemon=False)
        self._thread.start()

    # --- the thread ---

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._work:
                    self._idle.set()
                    return
                job = self._work.popleft()
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - raised by ``wait`` in the thread that trains
                with self._lock:
                    self._error = None if isinstance(error, Abandoned) else error
                    self._work.clear()
                    self._idle.set()
                return
            del job  # and the copy with it

    def _save(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        begin = time.monotonic()
        self._io.save_checkpoint(checkpoint, path)
        self.seconds = time.monotonic() - begin

    def _remove(self, path: str | Path) -> None:
        try:
            self._io.remove_checkpoint(path)
        except CheckpointError as error:
            self._kept.append(error)
