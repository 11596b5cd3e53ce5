"""What the checks of a model found, as lines for a person: causes first, then every check, tier by tier."""

from __future__ import annotations

import shlex

from anyformer.checks.results import CheckReport, CheckResult
from anyformer.core.findings import MARKS, Verdict
from anyformer.core.view import wrapped

_TIERS = {0: "tier 0 · what it holds", 1: "tier 1 · what a forward pass does", 2: "tier 2 · what goes on inside"}
_COUNTED: tuple[tuple[Verdict, str], ...] = (
    *(("ok", "ok"), ("note", "noted"), ("warn", "to look at")),
    *(("fail", "wrong"), ("n/a", "not applicable")),
)


def check_lines(report: CheckReport, model: str, width: int) -> list[str]:
    """The causes with what follows from them, the table, the verdict and the way on. model: as the user named it."""
    lines = [line for cause in report.causes for line in ("", *_cause_lines(report, cause, width))]
    for tier in sorted({result.tier for result in report.results}):
        rows = [result for result in report.results if result.tier == tier]
        lines += ["", _TIERS[tier], *_rows(rows, width)]
    counts = [f"{report.count(verdict)} {words}" for verdict, words in _COUNTED if report.count(verdict)]
    lines += ["", f"{report.model}: {_verdict(report)}   {' · '.join(counts)} · {report.seconds:.1f} s"]
    return [*lines, *_next(report, shlex.quote(model), width)]


def _cause_lines(report: CheckReport, cause: CheckResult, width: int) -> list[str]:
    blocks = "blocks training · " if cause.verdict == "fail" else ""
    lines = wrapped(f"{cause.name}: {cause.measured}", first=f"{cause.mark} ", rest="  ", width=width)
    told = [("expected", cause.expected), ("likely", cause.cause), ("look at", cause.where)]
    told.append(("with it", ", ".join(result.name for result in report.symptoms(cause))))
    for name, words in told:
        if words:
            lines += wrapped(words, first=f"    {name:<8}  ", rest=" " * 14, width=width)
    return [*lines, f"    {blocks}tier {cause.tier}"]


def _rows(rows: list[CheckResult], width: int) -> list[str]:
    room = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        under = f" (with: {row.under})" if row.under else ""
        first = f"  {row.mark} {row.name:<{room}}  "
        lines += wrapped(row.measured + under, first=first, rest=" " * len(first), width=width)
    return lines


def _verdict(report: CheckReport) -> str:
    if report.blocked:
        return f"{MARKS['fail']} not right as it is"
    if report.causes:
        return f"{MARKS['warn']} can be trained; look at the lines above"
    return f"{MARKS['ok']} nothing wrong found"


def _next(report: CheckReport, model: str, width: int) -> list[str]:
    names = {cause.name for cause in report.causes if cause.verdict == "fail"}
    if not report.blocked:
        words = f"anyformer train {model} --data FILE"
    elif "future" in names:
        words = f"anyformer repair {model} shows a corrected file; --objective masked, if it is meant as an encoder"
    else:
        words = f"mend what is marked {MARKS['fail']}, then: anyformer check {model}"
    return wrapped(words, first="→ ", rest="  ", width=width)
