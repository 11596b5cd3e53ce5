"""Tiers 0 and 1 before a run begins: what is wrong ends it, what is odd is said, and all of it stays with the run."""

from __future__ import annotations

from anyformer.checks.results import CheckReport, CheckResult
from anyformer.checks.runner import run_checks, told_by
from anyformer.checks.text import counted
from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.models.callplan import CallPlan
from anyformer.models.source import LoadedModel

TIERS = (0, 1)
_ELSEWHERE = ("new process", "future", "past")
"""The first takes seconds, and ``evaluate``, ``generate`` and ``--resume`` build a run's model anew in any case; the
others the call plan measured a moment ago, and the first batch proves them again, in training mode, too."""
_SECONDS = 300.0
"""What a model of 124M parameters may take on two cores; of a far larger one the last checks are left out."""
_NAME = "checks"


def preflight(loaded: LoadedModel, plan: CallPlan, view: View, *, model: str, skip: str | None) -> list[Finding]:
    """The checks of a model that is about to be trained, as findings of its run.

    model: as a command line names it. skip: why they are left out; None where they are not.
    Raises CallError where a check blocks training.
    """
    if skip is not None:
        left = Finding(_NAME, "warn", "tiers 0 and 1 left out", reason=skip)
        view.finding(left)
        return [left]
    report = run_checks(loaded, plan=plan, tiers=TIERS, without=_ELSEWHERE, within=_SECONDS, view=view)
    if report.blocked:
        raise _blocked(report, model)
    known = {name for finding in plan.findings if finding.verdict in ("warn", "fail") for name in told_by(finding.name)}
    odd = [cause for cause in report.causes if cause.name not in known]
    view.stage(_NAME, f"tiers 0 and 1   {counted(report)}", f"anyformer check {model}")
    for cause in odd:
        view.finding(cause.finding())
    said = Finding(_NAME, "note", f"tiers 0 and 1: {counted(report)}", reason=f"{report.seconds:.1f} s")
    return [said, *(cause.finding() for cause in odd)]


def _blocked(report: CheckReport, model: str) -> CallError:
    first, *others = [cause for cause in report.causes if cause.verdict == "fail"]
    told = [("expected", first.expected), ("likely", first.cause), ("look at", first.where)]
    told.append(("also wrong", ", ".join(cause.name for cause in others)))
    detail = "\n".join(f"{name}: {words}" for name, words in told if words)
    fix = f"mend it; anyformer check {model} shows every check\n"
    return CallError(_headed(first), detail, f'{fix}or, to train it as it is: --skip_checks "WHY"')


def _headed(cause: CheckResult) -> str:
    return f"{cause.name}: {cause.measured}"
