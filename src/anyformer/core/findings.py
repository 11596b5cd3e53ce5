"""What was detected, applied and proven, one record each: printed, stored in the manifest, shown in the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Verdict = Literal["ok", "note", "warn", "fail", "n/a"]

MARKS: dict[str, str] = {"ok": "✓", "note": "·", "warn": "!", "fail": "✗", "n/a": "–"}


@dataclass(frozen=True)
class Finding:
    """One property of a model, of data or of a run: what was measured, what was expected, and what follows."""

    name: str
    """Short name of the property, in the field's words ("causality", "precision")."""
    verdict: Verdict
    """ok: proven. note: a fact or a choice made. warn: works, look at it. fail: blocks. n/a: does not apply."""
    measured: str
    """What was seen, with its figure and unit."""
    expected: str = ""
    """What a right model or run would show; empty for plain facts and choices."""
    reason: str = ""
    """Why it is so, or what follows from it."""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict {self.verdict!r} is none of {get_args(Verdict)}")

    @property
    def mark(self) -> str:
        """The sign that stands before it in lists; readable without colour."""
        return MARKS[self.verdict]

    def to_dict(self) -> dict[str, str]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Finding:
        """Back from JSON; a missing or unknown key raises TypeError."""
        return cls(**record)
