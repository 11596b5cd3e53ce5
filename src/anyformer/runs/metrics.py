"""Metrics of a run as one CSV file that is always complete up to the last finished step."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from anyformer.core.files import write_atomically
from anyformer.runs.table import COLUMNS, FILE, cell, line, read_metrics

_PENDING = 10_000  # rows kept in memory while the disk is full


class CsvMetrics(Logger):
    """Lightning's logger to ``metrics/metrics.csv``: one row per step, appended when the step changes.

    run_path: the run's folder.
    resume_from: optimizer step of the checkpoint a run continues from; rows beyond it are dropped.
    ``steps`` gives the finished optimizer steps, once the trainer is there; Lightning's own number is one behind.
    A disk that is full stops no training: one warning, and the rows are written once there is space again.
    """

    def __init__(self, run_path: str | Path, resume_from: int | None = None) -> None:
        super().__init__()
        self.path = Path(run_path) / FILE
        self.steps: Callable[[], int] | None = None
        self.on_row: Callable[[int, dict[str, float]], None] | None = None
        """Gets each row once it is complete."""
        self.saved_step: Callable[[], int] | None = None
        """The step of the newest checkpoint: a run that is left goes on behind it."""
        self._run_path = Path(run_path)
        self._row: dict[str, str] = {}
        self._written: tuple[dict[str, str], int] | None = None  # the row as it stands in the file, and where
        self._pending: list[str] = []
        self._warned = False
        self._seconds_before = 0.0
        if resume_from is not None:
            self._drop_rows_beyond(resume_from)
        self._started = time.monotonic()

    @property
    def name(self) -> str:
        """The run's name."""
        return self._run_path.name

    @property
    def version(self) -> str:
        """Empty: a run's folder is its version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._run_path)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the manifest and settings.yaml hold them (the signature is Lightning's)."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Fill the row of ``step`` (optimizer steps); keys that are no columns are ignored."""
        step = step if self.steps is None else self.steps()
        known = {key: float(value) for key, value in metrics.items() if key in COLUMNS and key != "step"}
        if step is None or not known.keys() - {"epoch"}:
            return
        if self._row and int(self._row["step"]) != step:
            self._finish_row()
        self._row["step"] = str(step)
        if "seconds" not in known and "seconds" not in self._row:
            known["seconds"] = round(self._seconds_before + time.monotonic() - self._started, 3)
        for key, value in known.items():
            self._row[key] = str(int(value)) if key == "epoch" and value.is_integer() else repr(value)

    @rank_zero_only
    def save(self) -> None:
        """Write what is logged so far; Lightning asks for it after each call of log_metrics."""
        self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row. Of a step that is done once more on resume, it is handed on then."""
        saved = self.saved_step() if self.saved_step is not None else None
        self._finish_row(hand_on=status == "success" or saved is None or int(self._row.get("step", 0)) <= saved)

    def _finish_row(self, *, hand_on: bool = True) -> None:
        """The row is complete: the next one is another step's."""
        self._write()
        if self._row and hand_on and self.on_row is not None:
            figures = {name: float(text) for name, text in self._row.items() if name != "step"}
            self.on_row(int(self._row["step"]), figures)
        if self._row and self._written is None:  # the disk is full
            self._pending = [*self._pending[-_PENDING:], self._line()]
        self._row, self._written = {}, None

    def _line(self) -> str:
        return line([self._row.get(name, "") for name in COLUMNS])

    def _write(self) -> None:
        if not self._pending and (not self._row or (self._written is not None and self._written[0] == self._row)):
            return
        try:
            if self._row and self._written is not None:  # its first figures are there; the whole row replaces them
                self._replace(self._written[1])
            else:
                self._append("".join(self._pending))
                self._pending = []
                if not self._row:
                    return
                self._append(self._line())
            self._written = dict(self._row), self.path.stat().st_size - len(self._line().encode())
        except OSError as error:
            self._warn(error)

    def _replace(self, place: int) -> None:
        with self.path.open("rb+") as stream:
            stream.seek(place)
            stream.write(self._line().encode())
            stream.truncate()

    def _append(self, text: str) -> None:
        if not text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as stream:
            size = stream.tell()
            if size == 0:
                text = line(COLUMNS) + text
            elif not self._ends_with_newline():
                text = "\n" + text  # the process was killed in the middle of a row
            try:
                stream.write(text.encode())
                stream.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)  # half a row would be read as a wrong number
                raise

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"

    def _drop_rows_beyond(self, step: int) -> None:
        rows = [row for row in read_metrics(self.path) if (row["step"] or 0) <= step]
        if not self.path.is_file():
            return
        if rows and rows[-1]["seconds"] is not None:
            self._seconds_before = rows[-1]["seconds"]
        text = line(COLUMNS) + "".join(line([cell(name, row[name]) for name in COLUMNS]) for row in rows)
        try:
            write_atomically(self.path, text.encode())
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"metrics are not being written to {self.path}: {error}; training goes on", stacklevel=3)
