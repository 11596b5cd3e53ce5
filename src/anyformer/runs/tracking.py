"""Rows of metrics handed to trackers while a run goes on; one that fails or hangs is left behind with one warning.

Training only ever puts a row into a list. A thread per tracker passes the rows on to the tracker's own process and
waits for its answer; no library of a tracker is imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.runs.trackers import About, Row

COMMAND = (sys.executable, "-P", "-m", "anyformer.runs.trackers")
PATIENCE = 180.0
"""Seconds that a tracker may take for one answer; W&B gives up connecting after 90."""
MOST_ROWS = 50_000
"""Rows kept for a tracker that has not answered yet."""
_AT_ONCE = 1000  # rows in one message
WAIT = 60.0
"""Seconds that the end of a run waits for its trackers at most."""
WAIT_STOPPED = 10.0
"""As many where the run was stopped, or has to keep to a time."""
_LEAVING = 5.0  # for a tracker's process to end after it has answered the last time


class TrackerProcess:
    """One tracker and the thread that talks to it; nothing here blocks whoever calls it, but ``close``.

    name: as in runs/trackers.py. rows: what metrics.csv holds already, for what the tracker lacks of it.
    """

    def __init__(self, name: str, about: About, rows: list[Row]) -> None:
        self.name = name
        self.problem: str | None = None
        """Why it was left behind."""
        self._changed = threading.Condition()
        self._rows: list[Row] = []
        self._last: dict[str, Any] | None = None
        self._asked: float | None = None  # since when an answer is waited for
        self._process: subprocess.Popen[str] | None = None
        self._ended = threading.Event()
        first = {"tracker": name, "about": asdict(about), "rows": rows}
        threading.Thread(target=self._work, args=(first,), daemon=True, name=f"tracker {name}").start()

    def offer(self, row: Row) -> None:
        """Have a row logged."""
        with self._changed:
            if self.problem is not None:
                return
            self._rows.append(row)
            self._changed.notify()
            waiting = 0.0 if self._asked is None else time.monotonic() - self._asked
            full = len(self._rows) > MOST_ROWS
        if full or waiting > PATIENCE:
            self.leave(f"no answer for {waiting:.0f} s")

    def end(self, state: str, figures: Mapping[str, float]) -> None:
        """Have the run ended after the rows offered so far; ``close`` waits for it."""
        with self._changed:
            self._last = {"state": state, "figures": dict(figures)}
            self._changed.notify()

    def close(self, deadline: float) -> None:
        """Wait for the end until ``deadline`` (time.monotonic), then end the process whatever it does."""
        if not self._ended.wait(max(0.0, deadline - time.monotonic())):
            self.leave("it did not come to its end in time")
        elif (process := self._process) is not None:
            try:
                process.wait(_LEAVING if self.problem is None else 0.1)
            except subprocess.TimeoutExpired:
                self._kill()

    def leave(self, reason: str) -> None:
        """Go on without this tracker."""
        with self._changed:
            self.problem = self.problem or reason
            self._rows = []
            self._changed.notify()
        self._kill()

    def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):  # it is gone
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
            else:
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)  # not for ever: a process in a broken file system's call cannot be killed

    def _work(self, first: dict[str, Any]) -> None:
        try:
            with self._changed:
                if self.problem is None:
                    self._process = _started()
            self._ask(first)
            while (job := self._next()) is not None:
                self._ask(job)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not be lost with the thread
            with self._changed:
                self.problem = self.problem or (" ".join(str(error).split()) or type(error).__name__)
        finally:
            self._ended.set()

    def _next(self) -> dict[str, Any] | None:
        """What to say next: the rows so far, then the end; None after that, or where it was left behind."""
        with self._changed:
            while not self._rows and self._last is None and self.problem is None:
                self._changed.wait()
            if self.problem is not None:
                return None
            if self._rows:
                rows, self._rows = self._rows[:_AT_ONCE], self._rows[_AT_ONCE:]
                return {"rows": rows}
            if "state" in (last := self._last or {}):
                self._last = {}  # said
                return last
            return None

    def _ask(self, job: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return
        with self._changed:
            self._asked = time.monotonic()
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it has ended; its last answer says why
        answer = process.stdout.readline()
        with self._changed:
            self._asked = None
        if not answer:
            raise RuntimeError(f"its process ended with code {process.wait()}")
        if problem := json.loads(answer).get("problem"):
            raise RuntimeError(problem)


def _started() -> subprocess.Popen[str]:
    paths = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))  # not installed, but found beside utils/
    return subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        start_new_session=True,  # Ctrl-C is for the training; it ends its trackers in order
    )


class Trackers:
    """All trackers of a run. ``findings`` holds a warning for each that was left behind."""

    def __init__(self, names: list[str], about: About, rows: list[Row], view: View) -> None:
        self.findings: list[Finding] = []
        self._view = view
        self._told: set[str] = set()
        self._trackers = [TrackerProcess(name, about, rows) for name in names]

    def offer(self, step: int, figures: dict[str, float]) -> None:
        """Hand a row to each; returns at once."""
        row = Row(step, time.time(), figures)
        for tracker in self._trackers:
            tracker.offer(row)
        self._tell()

    def close(self, state: str, figures: Mapping[str, float], limit: float) -> None:
        """End the run in each, and wait for them together at most ``limit`` seconds."""
        deadline = time.monotonic() + limit
        for tracker in self._trackers:
            tracker.end(state, figures)
        for tracker in self._trackers:
            tracker.close(deadline)
        self._tell()

    def _tell(self) -> None:
        for tracker in self._trackers:
            if tracker.problem is not None and tracker.name not in self._told:
                self._told.add(tracker.name)
                reason = "left behind; the run goes on, and metrics/metrics.csv has every row"
                self.findings.append(Finding(tracker.name, "warn", tracker.problem, reason=reason))
                self._view.finding(self.findings[-1])
