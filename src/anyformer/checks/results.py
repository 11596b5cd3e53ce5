"""What a check found, and all of them in the order in which they are read: causes first, symptoms folded under them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from anyformer.core.findings import MARKS, Finding, Verdict
from anyformer.models.plan import CallPlan

TROUBLE = ("fail", "warn")


@dataclass(frozen=True)
class Series:
    """Figures of a check, as they can be drawn."""

    kind: Literal["line", "bars", "map"]
    """line: each row a curve over ``x``, of one value a level. bars: one row, a bar for each of ``x``. map: rows of a
    picture."""
    rows: dict[str, tuple[float, ...]]
    x: tuple[float | str, ...] = ()
    name: str = ""
    x_label: str = ""
    y_label: str = ""


@dataclass(frozen=True)
class CheckResult:
    """One property of a module, measured from outside."""

    name: str
    """The property in the field's words: "future", "padding"."""
    tier: int
    """0: static. 1: forward passes alone."""
    verdict: Verdict
    """ok: as it should be. note: a fact. warn: works, look at it. fail: blocks training. n/a: does not apply."""
    measured: str
    """What was seen, with its figure and unit."""
    expected: str = ""
    """What a right model shows."""
    cause: str = ""
    """The likely cause, and what mends it."""
    where: str = ""
    """The submodule or the line to look at."""
    under: str = ""
    """Name of the check whose failure explains this one; empty for a cause of its own."""
    seconds: float = 0.0
    series: tuple[Series, ...] = ()
    """What can be drawn of it."""

    @property
    def mark(self) -> str:
        """The sign that stands before it in lists."""
        return MARKS[self.verdict]

    def finding(self) -> Finding:
        """As manifests and reports keep it."""
        reason = "; ".join(part for part in (self.cause, self.where and f"look at {self.where}") if part)
        return Finding(self.name, self.verdict, self.measured, self.expected, reason)

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)


@dataclass(frozen=True)
class CheckReport:
    """All results of one module, tier by tier."""

    model: str
    """The module's class."""
    results: tuple[CheckResult, ...]
    seconds: float
    """Wall time of all of them, the call plan's included."""
    plan: CallPlan | None = None
    """How the module was called; None where no call was found."""

    @property
    def blocked(self) -> bool:
        """Whether a cause blocks training; what one explains is judged again once that is mended."""
        return any(result.verdict == "fail" and not result.under for result in self.results)

    @property
    def causes(self) -> list[CheckResult]:
        """What is wrong, worst first, each a cause of its own."""
        own = [result for result in self.results if result.verdict in TROUBLE and not result.under]
        return sorted(own, key=lambda result: TROUBLE.index(result.verdict))

    def symptoms(self, cause: CheckResult) -> list[CheckResult]:
        """What is explained by a cause."""
        return [result for result in self.results if result.under == cause.name]

    def count(self, verdict: Verdict) -> int:
        """How many results have this verdict."""
        return sum(result.verdict == verdict for result in self.results)

    def with_result(self, result: CheckResult) -> CheckReport:
        """With one more, of tier 0, at its place."""
        before = [r for r in self.results if r.tier <= result.tier]
        return replace(self, results=folded([*before, result, *(r for r in self.results if r.tier > result.tier)]))

    def draw(self, path: str | None = None) -> Any:
        """A matplotlib figure of what was measured; saved at ``path``, too. Raises DependencyError without it."""
        from anyformer.checks.drawing import draw  # it needs the report itself

        return draw(self, path)

    def table(self) -> Any:
        """One row for each check: a pandas DataFrame, or a list of dicts where pandas is not installed."""
        from anyformer.checks.drawing import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return {
            "model": self.model,
            "blocked": self.blocked,
            "seconds": self.seconds,
            "results": [result.to_dict() for result in self.results],
        }


_REPEATED = ("rows", "row order", "prefix", "future", "future gradient", "float64", "reload", "checkpointing")
_LEARNED = ("overfit", "previous token", "copy")

EXPLAINS: dict[str, tuple[str, ...]] = {
    "initial weights": (
        *(
            "call",
            "loss at the start",
            "finite",
            "positions",
            "output",
            "float64",
            "bfloat16",
            "past",
            "attention",
            "source",
        ),
        *("gradients", *_LEARNED),
    ),
    "call": ("*",),
    "registered": ("reload", "new process", "device", "float64", "bfloat16", "save and go on"),
    "finite": ("repeat", "state", "rows", "row order", "prefix", "loss at the start", "float64", "bfloat16", *_LEARNED),
    "state": ("repeat", *_REPEATED),
    "repeat": (*_REPEATED, "device", "gradients"),
    "dropout": ("order", "output", "teacher forcing", *_LEARNED),
    "output": ("own loss", "gradients", "loss at the start", "positions", "teacher forcing", *_LEARNED),
    "attention": ("future", "future gradient", "prefix", "padding", "noise", "past", *_LEARNED),
    "source": ("padding", "gradients"),
    "padding": ("gradients",),
    "backward pass": ("gradients", "future gradient", "checkpointing", *_LEARNED),
    "parts": ("gradients", "past", *_LEARNED),
    "places": ("future", "future gradient", "prefix", "gradients", "past", *_LEARNED),
    "future": ("prefix", "future gradient", "noise"),
    "rows": ("row order", "prefix", "padding", "past", "teacher forcing", "rows in training"),
    "past": _LEARNED,
    "gradients": _LEARNED,
    "loss at the start": _LEARNED,
    "positions": _LEARNED,
    "attention scale": _LEARNED,
    "residual": _LEARNED,
}
"""Cause → what fails with it, for the same reason; "*": everything. In this order: the first that failed counts."""


def folded(results: Iterable[CheckResult]) -> tuple[CheckResult, ...]:
    """The results with each symptom's cause in ``under``; a cause is never the symptom of one further down."""
    listed = list(results)
    failed = {result.name: result for result in listed if result.verdict in TROUBLE}
    under: dict[str, str] = {}
    for cause, symptoms in EXPLAINS.items():
        if cause not in failed or cause in under:
            continue
        for name in failed if symptoms == ("*",) else symptoms:
            if name in failed and name != cause and name not in under:
                under[name] = cause
    # attention that is wrong weighs as much as the leak that comes of it; noise, say, only blurs what it explains
    grave = {"attention"} & {under.get(result.name) for result in listed if result.verdict == "fail"}
    loose = {name for name, cause in under.items() if failed[cause].verdict == "warn" and cause == "repeat"}

    def judged(result: CheckResult) -> Verdict:
        if result.name in grave and result.verdict == "warn":
            return "fail"
        # numbers drawn at each call: what differs with them is no graver than they are
        return "warn" if result.name in loose and result.verdict == "fail" else result.verdict

    return tuple(replace(result, under=under.get(result.name, ""), verdict=judged(result)) for result in listed)
