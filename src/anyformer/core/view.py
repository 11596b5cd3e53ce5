"""Text and figures as people read them, and the view for logs, pipes and notebooks: plain lines, no cursor movement."""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
import time
from typing import TextIO

from anyformer.core.findings import Finding
from anyformer.core.protocols import Progress

# C0 and C1 controls but tab and line feed, the bidirectional ones, and halves of surrogate pairs, which have no bytes
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text as it may be shown: what would steer a terminal or turn the reading order stands as \\x1b, \\u202e."""
    return _CONTROLS.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if found[0] < "\u0100" else f"\\u{ord(found[0]):04x}", text
    )


def wrapped(text: str, *, first: str, rest: str, width: int) -> list[str]:
    """``text`` after ``first``; lines that follow begin with ``rest``. Paths are never broken."""
    lines = textwrap.wrap(
        printable(text),
        max(20, width),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [first.rstrip()]


def percent(share: float) -> str:
    """A share of 1 with two digits that tell: 12 %, 0.35 %, less than 0.01 %."""
    value = 100 * share
    if 0 < value < 0.01:
        return "less than 0.01 %"
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.2g} %"


def duration(seconds: float) -> str:
    """Minutes and seconds as people read them: 0:58, 12:05, 3:07:00."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def count(number: int) -> str:
    """A number with the digits that tell: 812, 3.4 k, 57 k, 1.3 M, 2.8 G."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            value = number / size
            return f"{value:.0f} {unit}" if value >= 100 or (value >= 10 and unit == "k") else f"{value:.1f} {unit}"
    return str(number)


def progress_text(progress: Progress) -> str:
    """One line of figures: step, loss, rate, time left."""
    parts = [f"{progress.label} {progress.done:,}/{progress.total:,}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.rate is not None:
        parts.append(f"{progress.rate:,.0f} {progress.unit}/s")
    if progress.seconds_left is not None and progress.done < progress.total:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "   ".join(parts)


class PlainView:
    """Lines on a stream (stderr by default); a progress line at most every ``every`` seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream
        self._every = every
        self._work: tuple[str, int] | None = None
        self._last = 0.0
        self._told = False

    def stage(self, name: str, value: str, detail: str = "") -> None:
        self.line(f"  {name:<10} {value}" + (f"   {detail}" if detail else ""))

    def status(self, text: str) -> None:
        """Not shown: a log keeps results, not states."""

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._work != (progress.label, progress.total):  # another piece of work
            self._work, self._last, self._told = (progress.label, progress.total), now, False
        # the end is worth a line where it closes what was told before, or a training
        ends = progress.done >= progress.total and (self._told or progress.label == "step")
        if now - self._last >= self._every or ends:
            self._last, self._told = now, progress.done < progress.total
            self.line(f"  {progress_text(progress)}")

    def finding(self, finding: Finding) -> None:
        reason = f" — {finding.reason}" if finding.reason else ""
        self.line(f"  {finding.mark} {finding.name}: {finding.measured}{reason}")

    def line(self, text: str = "") -> None:
        # looked up at each call: pytest and notebooks swap sys.stderr; a reader that left (| head) must not end a run
        with contextlib.suppress(BrokenPipeError):
            print(printable(text), file=self._stream or sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing moves here."""


class QuietView:
    """Shows nothing (``--quiet``)."""

    def stage(self, name: str, value: str, detail: str = "") -> None: ...

    def status(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def finding(self, finding: Finding) -> None: ...

    def line(self, text: str = "") -> None: ...

    def close(self) -> None: ...
