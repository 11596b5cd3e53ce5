"""How far the training of a tokenizer is, on stderr: a bar where it is known how much there is, else figures alone."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyformer.core.view import count, duration
from anyformer.tokenization.texts import Sample

Unit = Literal["characters", "bytes", "rows"]
_MOVING, _LINES = 0.25, 10.0  # seconds from one line to the next: where it moves in its place; in a log
_BAR = 20


def size_text(number: int) -> str:
    """Bytes as people read them: 12.3 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"


class _Rows:
    """What gives rows or texts, and how many it has given since it was begun; anything else is its own."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        self.given = 0
        for row in self._rows:
            yield row
            self.given += 1

    def iter(self, batch_size: int) -> Iterator[Any]:
        """As ``datasets.Dataset.iter``."""
        self.given = 0
        for batch in self._rows.iter(batch_size=batch_size):
            yield batch
            self.given += len(next(iter(batch.values()), ()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)


@dataclass(frozen=True)
class Extent:
    """How much there is to read, where that is known without reading it."""

    total: int
    unit: Unit
    rows: tuple[_Rows, ...] = ()
    """Those of which one counts."""

    @property
    def given(self) -> int:
        """Rows given in this pass."""
        return max((rows.given for rows in self.rows), default=0)


def extent_of(texts: Any) -> tuple[Any, Extent | None]:
    """(the texts, which may now be counted as they are read; how much there is, None where that is not known).

    Files by their size, a list of strings by its characters, a Dataset, a dict of columns, and anything else with a
    length by its rows.
    """
    if isinstance(texts, Path):
        return extent_of([texts])
    if isinstance(texts, list | tuple):
        if texts and all(isinstance(text, Path) for text in texts):
            with suppress(OSError):  # reading it says why
                return texts, Extent(sum(path.stat().st_size for path in texts), "bytes")
        if all(isinstance(text, str) for text in texts):
            return texts, Extent(sum(map(len, texts)), "characters")
        return texts, None
    if isinstance(texts, Mapping):
        if "train" in texts and hasattr(texts["train"], "column_names"):  # of a DatasetDict, the part that is read
            return extent_of(texts["train"])
        columns = {name: _Rows(values) for name, values in texts.items() if isinstance(values, Sized)}
        rows = max((len(values) for values in texts.values() if isinstance(values, Sized)), default=0)
        whole = len(columns) == len(texts) and not any(hasattr(values, "column_names") for values in texts.values())
        return (columns, Extent(rows, "rows", tuple(columns.values()))) if whole else (texts, None)
    if isinstance(texts, Sized) and isinstance(texts, Iterable) and not isinstance(texts, str | bytes):
        counted = _Rows(texts)
        return counted, Extent(len(texts), "rows", (counted,))
    return texts, None


class TrainingProgress:
    """What is being done, in one line: on a terminal or in a notebook it moves, in a log one comes every 10 s.

    Use it in ``with``. texts: those to train on, to be read in place of the ones given. merges: those to learn.
    """

    def __init__(self, texts: Any, merges: int, shown: bool) -> None:
        self.texts, self._extent = extent_of(texts) if shown else (texts, None)
        self._merges = merges
        self._shown = shown
        self._begin = self._since = time.monotonic()
        self._stage = "reading"
        self._characters = self._bytes = 0
        self._sample: Sample | None = None
        self._taking: int | None = None
        self._width = 0
        self._moves = _moves()
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> TrainingProgress:
        if self._shown:
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._stop.set()
            self._ticker.join()
            self._clear()

    def looking(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts, counted: a pass before the one that learns."""
        self._enter("looking through the text")
        for text in texts:
            yield text
            if self._shown:
                self._characters += len(text)
                self._bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

    def reading(self, sample: Sample, taking: int | None) -> Iterator[list[str]]:
        """The sample, counted by itself and ``read``; where it ends, learning begins. taking: its bytes, if drawn."""
        self._enter("reading" if taking is None else "reading a sample")
        self._sample, self._taking = sample, taking
        yield from sample
        self._enter("learning")

    def read(self, characters: int) -> None:
        """So many more characters went to the library."""
        self._characters += characters

    def done(self, entries: int, taken: int) -> None:
        """The last line, which stays."""
        if self._shown:
            self._stop.set()
            self._ticker.join()
            self._clear()
            seconds = time.monotonic() - self._begin
            print(
                f"BPE: {entries:,} entries from {size_text(taken)} of text in {seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    def line(self) -> str:
        """Where it stands now."""
        seconds = time.monotonic() - self._since
        if self._stage == "learning":
            return f"BPE: learning up to {self._merges:,} merges, {seconds:.0f} s"
        done, total, shown = self._figures()
        if not total:
            speed = self._characters / max(seconds, 1e-9) / 1e6
            return f"BPE: {self._stage}, {self._characters / 1e6:.1f} M characters, {speed:.1f} M/s"
        share = min(1.0, done / total)
        filled = int(share * _BAR)
        bar = "#" * filled + "-" * (_BAR - filled)
        left = f", {duration(seconds * (1 - share) / share)} left" if share > 0 and seconds >= 1 else ""
        return f"BPE: {self._stage} [{bar}] {share:4.0%}  {shown}{left}"

    def _figures(self) -> tuple[int, int, str]:
        """(done, in all, both as people read them); in all 0 where that is not known."""
        extent = self._extent
        if extent is not None and extent.unit == "rows":
            return extent.given, extent.total, f"{extent.given:,} of {extent.total:,} rows"
        if self._taking is None and extent is not None and extent.unit == "characters":
            return self._characters, extent.total, f"{count(self._characters)} of {count(extent.total)} characters"
        read = self._bytes if self._sample is None else self._sample.taken
        total = self._taking if self._taking is not None else extent.total if extent is not None else 0
        return read, total, f"{size_text(min(read, total))} of {size_text(total)}"

    def _enter(self, stage: str) -> None:
        self._stage, self._since = stage, time.monotonic()
        self._characters = self._bytes = 0
        self._sample = self._taking = None

    def _tick(self) -> None:
        while not self._stop.wait(_MOVING if self._moves else _LINES):
            line = self.line()
            if not self._moves:
                print(line, file=sys.stderr, flush=True)
                continue
            line = line[: max(20, shutil.get_terminal_size().columns - 1)]  # a line that wraps cannot be taken back
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)

    def _clear(self) -> None:
        """Take the moving line away."""
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0


def _moves() -> bool:
    """Whether a line can be written over: on a terminal, and in a notebook's output."""
    if type(sys.stderr).__module__.startswith("ipykernel"):
        return True
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
