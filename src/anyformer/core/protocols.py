"""What the layers expect of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from anyformer.core.findings import Finding


@dataclass(frozen=True)
class Progress:
    """Where a long piece of work stands."""

    done: int
    """Units finished (optimizer steps, bytes …)."""
    total: int
    """Units in all."""
    loss: float | None = None
    """Mean training loss since the last report, nats per token."""
    rate: float | None = None
    """``unit`` per second over the last interval."""
    seconds_left: float | None = None
    """Estimate from the rate so far."""
    unit: str = "tokens"
    """What the rate counts."""
    label: str = "step"
    """What ``done`` counts."""


class View(Protocol):
    """Shows a person what is happening. Implemented by plain lines (core/view.py) and by the terminal (ui/)."""

    def stage(self, name: str, value: str, detail: str = "") -> None:
        """One finished stage: its name, the answer first, details after."""

    def status(self, text: str) -> None:
        """What is being done right now; replaced by the next status, stage or progress."""

    def progress(self, progress: Progress) -> None:
        """Move the bar. Called often; the view decides how often to draw."""

    def finding(self, finding: Finding) -> None:
        """Show one finding."""

    def line(self, text: str = "") -> None:
        """Free text (samples, the closing lines)."""

    def close(self) -> None:
        """Take a moving line away: something else is about to write to the terminal."""
