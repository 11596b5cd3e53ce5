"""The view for a terminal: finished stages stay, one moving line below them. Everything goes to stderr."""

from __future__ import annotations

import re
import time
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from anyformer.core.findings import Finding
from anyformer.core.protocols import Progress
from anyformer.core.view import duration, printable, wrapped
from anyformer.ui.layout import NAME, finding_lines, stage_lines

_STYLES = (("✓", "green"), ("!(?= )", "yellow"), ("✗", "bold red"))
_REFRESH = 4  # per second


class RichView:
    """Lines that stay, and below them one that moves: a spinner or a progress bar. Use it in ``with``."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._moving = _MovingLine()
        # stdout is left alone: it carries results, perhaps into a pipe
        self._live = Live(
            self._moving, console=self._console, refresh_per_second=_REFRESH, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> RichView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the moving line away; lines and stages still work."""
        self._moving.clear()
        self._live.stop()

    def stage(self, name: str, value: str, detail: str = "") -> None:
        self._settle()
        for number, line in enumerate(stage_lines(name, value, detail, self._console.width)):
            text = _coloured(line)
            if number == 0:
                text.stylize("dim", 0, 2 + NAME)
            self._print(text)

    def status(self, text: str) -> None:
        self._settle()
        self._moving.status(text)
        self._live.start(refresh=True)

    def progress(self, progress: Progress) -> None:
        self._moving.progress(progress)
        self._live.start()

    def finding(self, finding: Finding) -> None:
        for line in finding_lines(finding, self._console.width):
            self._print(_coloured(line))

    def line(self, text: str = "") -> None:
        self._settle()
        for line in printable(text).split("\n"):
            indent = line[: len(line) - len(line.lstrip())]
            fits = len(line) <= self._console.width
            for piece in (
                [line]
                if fits
                else wrapped(" ".join(line.split()), first=indent, rest=indent + "  ", width=self._console.width)
            ):
                self._print(_coloured(piece))

    def _settle(self) -> None:
        """A bar that reached its end stays as a line; a status is replaced."""
        last = self._moving.finished()
        self._moving.clear()
        if last is not None:
            self._print(Text(_figures(last, duration_text="", width=self._console.width), style="dim"))

    def _print(self, text: Text) -> None:
        self._console.print(text, overflow="ignore", no_wrap=True, crop=False, soft_wrap=True)


class _MovingLine:
    """Drawn anew at each refresh, so that it moves between two reports as well."""

    def __init__(self) -> None:
        self._spinner: Spinner | None = None
        self._progress: Progress | None = None
        self._at = 0.0

    def status(self, text: str) -> None:
        self._spinner, self._progress = Spinner("dots", Text(printable(text))), None

    def progress(self, progress: Progress) -> None:
        self._spinner, self._progress, self._at = None, progress, time.monotonic()

    def clear(self) -> None:
        self._spinner = self._progress = None

    def finished(self) -> Progress | None:
        return self._progress if self._progress is not None and self._progress.done >= self._progress.total else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = Table.grid(padding=(0, 1))
        if self._spinner is not None:
            grid.add_row(" ", self._spinner)
            yield grid
        progress = self._progress
        if progress is None:
            return
        left = progress.seconds_left
        remaining = "" if left is None else f"{duration(left - (time.monotonic() - self._at))} left"
        figures = _figures(progress, duration_text=remaining, width=options.max_width)
        head, _, tail = figures.partition("   ")
        room = options.max_width - len(figures) - 6
        if room >= 8:
            bar = ProgressBar(total=max(1, progress.total), completed=progress.done, width=min(room, 40))
            grid.add_row(Text(head, no_wrap=True), bar, Text(tail, no_wrap=True))
            yield grid
        else:
            yield Text(figures, no_wrap=True, overflow="ellipsis")


def _figures(progress: Progress, *, duration_text: str, width: int) -> str:
    """Step, percent, loss, rate, time left; the rate and then the loss give way on a narrow terminal."""
    percent = f"{100 * progress.done // max(1, progress.total)} %"
    loss = "" if progress.loss is None else f"loss {progress.loss:.2f}"
    rate = "" if progress.rate is None else f"{progress.rate:,.0f} {progress.unit}/s"
    head = f"  {progress.label} {progress.done:,}/{progress.total:,}"
    choices = ([head, percent, loss, rate, duration_text], [head, percent, loss, duration_text], [head, percent])
    lines = ["   ".join(part for part in choice if part) for choice in choices]
    return next((line for line in lines if len(line) <= width), lines[-1])


def _coloured(line: str) -> Text:
    text = Text(printable(line))
    for mark, style in _STYLES:
        text.highlight_regex(re.compile(rf"(?<!\S){mark}"), style)
    return text
