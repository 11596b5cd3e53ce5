"""Checkpoints copied elsewhere while a run goes on: one thread, which never blocks, slows or stops the training."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anyformer.core.errors import AnyformerError, CorruptCheckpoint
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.view import duration
from anyformer.runs.checkpoints import FILES, MANIFEST, checkpoint_number, checkpoints_in
from anyformer.runs.remote import RemoteFolder, checkpoints_at, put_checkpoint, remove_checkpoint_at

WAIT = 600.0
"""Seconds that the end of a run waits for its backup at most."""
WAIT_STOPPED = 20.0
"""As many where the run was stopped: what asks a process to end kills it after about 30."""
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0
_GENERATIONS = 2  # newest ones that stay there, whatever is kept here


@dataclass
class _Job:
    """One checkpoint to copy. ``folder`` holds hard links to its files, so that it stays while the run drops it."""

    name: str
    folder: Path
    linked: bool


class Backup:
    """Copies checkpoints of ``checkpoints`` into a folder elsewhere, the newest first.

    place: that folder, found in the thread (it may take its time, or fail and be tried again).
    others: called in the thread before each checkpoint; copies what else belongs there.
    staging: a folder for hard links, on the disk of the checkpoints. prune_all: everything in the place is this run's;
    otherwise only what this object copied is ever removed there. drop_beyond: checkpoints of later steps are removed
    there at first: the run went back to this one. ``first_delay``: seconds before the first retry; doubled each time.
    """

    def __init__(
        self,
        url: str,
        checkpoints: Path,
        staging: Path,
        view: View,
        *,
        place: Callable[[], RemoteFolder],
        others: Callable[[RemoteFolder], None] | None = None,
        prune_all: bool = True,
        drop_beyond: int | None = None,
        first_delay: float = _FIRST_DELAY,
    ) -> None:
        self.url = url.rstrip("/") or url
        self._checkpoints, self._staging, self._view = checkpoints, staging, view
        self._place, self._others = place, others
        self._prune_all, self._drop_beyond, self._first_delay = prune_all, drop_beyond, first_delay
        self._jitter = random.Random(os.getpid())  # not the training's generator
        self._pending: list[_Job] = []
        self._busy = False
        self._current: _Job | None = None
        self._changed = threading.Condition()
        self._closing = self._told = self._refresh = self._stopped = False
        self._number = itertools.count()
        self._failures = 0
        self._last_error = ""
        self._copied: list[str] = []
        self._remote: RemoteFolder | None = None
        self._thread: threading.Thread | None = None
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed

    def offer(self, folder: Path) -> None:
        """Have a checkpoint copied; returns at once and raises nothing."""
        job = self._staged(folder)
        with self._changed:
            kept = [old for old in self._pending if old.name != job.name]
            # of those that wait only the newest must survive: the run itself dropped the others
            gone = [old for old in kept if not (self._checkpoints / old.name).is_dir()]
            self._pending = [*(old for old in kept if old not in gone), job]
            for old in gone:
                self._drop(old)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="anyformer-backup", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, limit: float) -> list[Finding]:
        """Wait until all is copied, at most ``limit`` seconds, and say how the backup went.

        Ctrl-C ends the waiting; what was not copied is named.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            waiting = len(self._pending) + self._busy
        if waiting:
            what = f"{waiting} checkpoint" + ("s" if waiting > 1 else "")
            self._view.line(f"  waiting for the backup of {what} to {self.url}, at most {duration(limit)}")
        self._await(limit)
        return [self._verdict()]

    def refresh(self, limit: float) -> None:
        """Copy what belongs beside the checkpoints once more, as it is now; waits at most ``limit`` seconds."""
        if self._others is None or self._remote is None or self._pending or self._busy:
            return  # what could not be done in time is not waited for twice
        with self._changed:
            self._refresh = True
            self._changed.notify_all()
        self._await(limit)

    def stop(self) -> None:
        """Let the thread end once nothing is left to copy."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _await(self, limit: float) -> None:
        end = time.monotonic() + limit
        with suppress(KeyboardInterrupt), self._changed:
            while (self._pending or self._busy or self._refresh) and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.2))  # in pieces: Ctrl-C is heard

    def _verdict(self) -> Finding:
        with self._changed:
            waiting = [*self._pending, *([self._current] if self._current is not None else [])]
        missing = sorted({job.name for job in waiting})
        total = len(self._copied)
        if missing:
            why = self._last_error or "there was no time left"
            return Finding(
                "backup", "warn", f"not copied: {', '.join(missing)}", f"a copy in {self.url}", f"{why}; {total} copied"
            )
        place = self._remote.url if self._remote else self.url
        retried = f"; {self._failures} failed attempts in between" if self._failures else ""
        measured = f"{total} checkpoint{'s' if total != 1 else ''} in {place}"
        return Finding("backup", "ok" if total else "note", measured, reason=f"each read again and hashed{retried}")

    # --- the thread ---

    def _work(self) -> None:
        delay = self._first_delay
        while True:
            with self._changed:
                while not self._pending and not self._refresh:
                    if self._stopped:
                        return
                    self._changed.wait()
                refresh_only = not self._pending
                job = self._current = None if refresh_only else self._pending.pop()  # the newest first
                self._busy = True
            error: Exception | None = None
            try:
                self._copy(job)
            except Exception as caught:  # noqa: BLE001 - file systems raise what they like, and the training goes on
                error = caught
            with self._changed:
                self._busy, self._current = False, None
                if refresh_only:
                    self._refresh = False
                if error is None:
                    delay = self._first_delay
                else:
                    self._failed(job, error)
                self._changed.notify_all()
                if error is not None and not refresh_only:
                    self._pause(delay)
                    delay = min(2 * delay, _LONGEST_DELAY)

    def _copy(self, job: _Job | None) -> None:
        place = self._remote = self._remote or self._place()
        checkpoints = place if self._others is None else place.inside("checkpoints")
        if self._drop_beyond is not None:
            for name in checkpoints_at(checkpoints):
                if (checkpoint_number(name) or (0,))[0] > self._drop_beyond:
                    remove_checkpoint_at(checkpoints, name)
            self._drop_beyond = None
        if self._others is not None:
            self._others(place)
        if job is not None:
            put_checkpoint(checkpoints, job.folder, job.name)
            self._copied = [*(name for name in self._copied if name != job.name), job.name]
            self._drop(job)
            self._prune(checkpoints)

    def _prune(self, remote: RemoteFolder) -> None:
        """Remove what the run dropped, too; the newest generations stay, and all where nothing is left here."""
        here = {folder.name for folder in checkpoints_in(self._checkpoints)}
        if not here:
            return
        there = checkpoints_at(remote)
        for name in there[_GENERATIONS:]:
            if name not in here and (self._prune_all or name in self._copied):
                remove_checkpoint_at(remote, name)

    def _failed(self, job: _Job | None, error: Exception) -> None:
        self._failures += 1
        self._last_error = error.what if isinstance(error, AnyformerError) else f"{type(error).__name__}: {error}"
        # a checkpoint that is damaged here, or that the run dropped before it could be linked, will not get better
        lost = isinstance(error, CorruptCheckpoint) or (job is not None and not (job.folder / MANIFEST).is_file())
        newer = job is not None and any(other.name > job.name for other in self._pending)
        if job is not None and not lost and (not newer or (self._checkpoints / job.name).is_dir()):
            self._pending.insert(0 if newer else len(self._pending), job)
        elif job is not None:
            self._drop(job)
        if not self._told:
            self._told = True
            reason = "the training goes on, and it is tried again"
            with suppress(Exception):  # whatever the view is, it must not end the thread
                self._view.finding(Finding("backup", "warn", self._last_error, f"a copy in {self.url}", reason))

    def _pause(self, delay: float) -> None:
        """Wait before the next attempt; shorter at the end of a run, which waits for it."""
        end = time.monotonic() + delay * (1 + 0.25 * self._jitter.random())
        while (left := end - time.monotonic()) > 0:
            if self._closing:
                left = min(left, end - delay + min(delay, 5.0) - time.monotonic())
                if left <= 0:
                    return
            self._changed.wait(left)

    # --- hard links ---

    def _staged(self, folder: Path) -> _Job:
        stage = self._staging / f"{folder.name}.{next(self._number)}"
        try:
            stage.mkdir(parents=True)
            for name in (*FILES, MANIFEST):
                os.link(folder / name, stage / name)
        except OSError:  # a file system without hard links: copied from where it lies, while it lies there
            shutil.rmtree(stage, ignore_errors=True)
            return _Job(folder.name, folder, linked=False)
        return _Job(folder.name, stage, linked=True)

    def _drop(self, job: _Job) -> None:
        if job.linked:
            shutil.rmtree(job.folder, ignore_errors=True)
            with suppress(OSError):
                self._staging.rmdir()


@contextmanager
def waited_for(
    backup: Backup | None, finish: Callable[[Backup, list[Finding], float], None], *, in_time: bool = False
) -> Iterator[None]:
    """Wait for a backup however the block ends, shorter where it ended early; ``finish`` gets what it said.

    in_time: the block has a time of its own to keep to: no longer after one that ended in order.
    """
    limit = WAIT_STOPPED
    try:
        yield
        limit = WAIT_STOPPED if in_time else WAIT
    finally:
        if backup is not None:
            finish(backup, backup.close(limit), limit)
            backup.stop()
