"""What the checks of a model found, as lines for a person: causes first, then every check, tier by tier."""

from __future__ import annotations

import shlex

from anyformer.checks.results import CheckReport, CheckResult
from anyformer.core.findings import MARKS, Verdict
from anyformer.core.view import wrapped
from anyformer.models.calls.culprit import LETS_IN, MISSING

TIERS = {
    0: "tier 0 · what it holds",
    1: "tier 1 · what a forward pass does",
    2: "tier 2 · what goes on inside",
    3: "tier 3 · what it makes of real text",
}
COUNTED: tuple[tuple[Verdict, str], ...] = (
    *(("ok", "ok"), ("note", "noted"), ("warn", "to look at")),
    *(("fail", "wrong"), ("n/a", "not applicable")),
)


def check_lines(report: CheckReport, model: str, width: int) -> list[str]:
    """The causes with what follows from them, the table, the verdict and the way on. model: as the user named it."""
    lines = [line for cause in report.causes for line in ("", *_cause_lines(report, cause, width))]
    for tier in sorted({result.tier for result in report.results}):
        rows = [result for result in report.results if result.tier == tier]
        lines += ["", TIERS[tier], *_rows(rows, width)]
    lines += ["", f"{report.model}: {' '.join(verdict(report))}   {counted(report)} · {report.seconds:.1f} s"]
    return [*lines, *wrapped(way_on(report, shlex.quote(model)), first="→ ", rest="  ", width=width)]


def counted(report: CheckReport) -> str:
    """How many checks came out how."""
    return " · ".join(f"{report.count(kind)} {words}" for kind, words in COUNTED if report.count(kind))


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


def verdict(report: CheckReport) -> tuple[str, str]:
    """The sign and the sentence that tell whether the model is right."""
    if report.blocked:
        return MARKS["fail"], "not right as it is"
    if all(result.verdict == "n/a" for result in report.results if result.name != "call"):
        return MARKS["n/a"], "nothing was checked"
    if report.causes:
        return MARKS["warn"], "can be trained; look at the lines above"
    return MARKS["ok"], "nothing wrong found"


def way_on(report: CheckReport, model: str) -> str:
    """What to do next. model: as a command line takes it."""
    names = {cause.name for cause in report.causes if cause.verdict == "fail"}
    if not report.blocked:
        deeper = (
            ""
            if any(result.tier > 1 for result in report.results)
            else f" · anyformer check {model} --tier 2 looks inside"
        )
        return f"anyformer train {model} --data FILE{deeper}"
    if "future" in names and any(map(_no_mask, report.causes)):
        encoder = "call: {family: encoder} in an anyformer.yaml beside it, if it is meant as one"
        return f"anyformer repair {model} may show a corrected file; {encoder}"
    return f"mend what is marked {MARKS['fail']}, then: anyformer check {model}"


def _no_mask(cause: CheckResult) -> bool:
    """Whether no mask was seen, which a repair may add."""
    return MISSING in cause.cause or (LETS_IN in cause.cause and f"{LETS_IN}:" not in cause.cause)
