"""All checks of a module, tier by tier; none stops the others, and the module is left as it was."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from anyformer.checks import (
    attention,
    attribution,
    bounds,
    costs,
    forward,
    gradients,
    inside,
    learning,
    newprocess,
    numbers,
    padding,
    reading,
    static,
    trials,
)
from anyformer.checks.results import TROUBLE, CheckReport, CheckResult, folded
from anyformer.checks.subject import Limits, Subject, Trials
from anyformer.core.errors import CallError
from anyformer.core.protocols import View
from anyformer.core.view import QuietView
from anyformer.models.blame import blame
from anyformer.models.callplan import infer_call_plan
from anyformer.models.files.limits import OutOfTime, time_limit
from anyformer.models.plan import CallPlan
from anyformer.models.probes import step_by_step, untouched
from anyformer.models.source import LoadedModel

_SECONDS = 60.0
"""Of one check: the slowest of a 124M model takes some 20 s on two cores."""

Check = Callable[[Subject], CheckResult]

TIERS: dict[int, tuple[tuple[str, Check], ...]] = {
    0: (
        ("registered", static.registered),
        ("device", static.device),
        ("tied weights", static.tying),
        ("vocabulary", static.vocabulary),
        ("dropout", numbers.dropout),
        ("budget", costs.budget),
    ),
    1: (
        ("finite", forward.finite),
        ("repeat", forward.repeat),
        ("state", forward.state),
        ("rows", forward.alone),
        ("row order", forward.row_order),
        ("rows in training", forward.rows_in_training),
        ("future", forward.future),
        ("prefix", forward.prefix),
        ("future gradient", gradients.future_gradient),
        ("past", forward.past),
        ("positions", reading.positions),
        ("source", reading.source),
        ("attention", attention.attention),
        ("attention scale", attention.scale),
        ("gradients", gradients.flow),
        ("padding", padding.padding),
        ("output", numbers.output),
        ("initial weights", numbers.initial_weights),
        ("loss at the start", numbers.start),
        ("lengths", bounds.lengths),
        ("ids", bounds.ids),
        ("reload", numbers.reload),
        ("new process", newprocess.new_process),
        ("float64", numbers.float64),
        ("bfloat16", numbers.bfloat16),
        ("memory", costs.footprint),
        ("speed", costs.speed),
    ),
    2: (
        ("residual", inside.residual),
        ("linear layers", inside.linear_layers),
        ("sensitivity", attribution.sensitivity),
        ("attribution", attribution.attribution),
        ("checkpointing", learning.recomputed),
        ("save and go on", learning.goes_on),
        ("overfit", learning.overfit),
        ("noise", learning.noise),
        ("previous token", learning.previous),
        ("copy", learning.repeated),
    ),
    3: (
        ("compile", trials.compiled),
        ("fine-tuning", trials.fine_tuning),
        ("benchmark", trials.benchmark),
    ),
}
"""Tier → its checks by name, in the order in which they run."""


def run_checks(
    model: nn.Module | LoadedModel,
    *,
    plan: CallPlan | None = None,
    tiers: Sequence[int] = (0, 1),
    trained: bool = False,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    limits: Limits | None = None,
    longer: Trials | None = None,
    within: float = math.inf,
    view: View | None = None,
) -> CheckReport:
    """Check a module from outside, on tiny random batches; it is left as it was.

    plan: how it is called; inferred where not given. trained: its weights are not fresh ones. only: names of checks, of
    any tier, in place of whole tiers. without: names of checks that are left out. longer: what tier 3 trains on.
    within: seconds for all of them; those that come later are not tried, and say so.
    Raises nothing for what the module does: that is a result, with the line of its code.
    """
    begin, view = time.monotonic(), view or QuietView()
    loaded = model if isinstance(model, LoadedModel) else None
    module = loaded.module if loaded is not None else model
    assert isinstance(module, nn.Module)
    inner, known = getattr(module, "model", None), getattr(module, "call_plan", None)
    if isinstance(known, CallPlan) and isinstance(inner, nn.Module):  # a UniversalModelAdapter: the user's own
        module, plan = inner, plan or known
    name = type(module).__name__
    trained = trained or (loaded is not None and _loaded_weights(loaded))
    view.status("calling the model")
    try:
        plan = plan or infer_call_plan(module, overrides=loaded.overrides if loaded else None)
    except CallError as error:
        held = _without_a_call(module, trained, limits or Limits())
        return CheckReport(name, _uncalled(error, held), time.monotonic() - begin)
    results = _called(plan)
    with untouched(module), torch.no_grad():
        subject = Subject.of(
            module,
            plan,
            loaded=loaded,
            trained=trained,
            limits=limits or Limits(),
            trials=longer or Trials(),
            view=view,
        )
        with untouched(subject.awake):
            for tier, checks in TIERS.items():
                for label, check in checks:
                    if label not in without and ((tier in tiers) if only is None else (label in only)):
                        view.status(f"checking: {label}")
                        left = within - (time.monotonic() - begin)
                        results.append(_waits(label, tier, results, left) or _run(subject, label, tier, check, left))
    return CheckReport(name, folded(results), time.monotonic() - begin, plan)


def _loaded_weights(loaded: LoadedModel) -> bool:
    return any(finding.name == "initialisation" and finding.verdict == "n/a" for finding in loaded.findings)


_CUT = "and cut off"
_PATIENCE = 4
"""Checks that are cut off before no other is begun: a module that hangs would cost a minute each."""
_TASKS = ("overfit", "noise", "previous token", "copy", "fine-tuning", "benchmark")


def _waits(label: str, tier: int, results: list[CheckResult], left: float) -> CheckResult | None:
    """A task takes many steps: of a module in which something is wrong already it would tell nothing new."""
    cut = sum(result.measured.endswith(_CUT) for result in results)
    if cut >= _PATIENCE and tier < 3:
        return CheckResult(label, tier, "n/a", f"not tried: {cut} checks took too long")
    if left <= 0:
        return CheckResult(label, tier, "n/a", "not tried: the time for the checks was up")
    wrong = next((result.name for result in results if result.verdict == "fail"), None)
    if label == "new process" and wrong == "reload":
        return CheckResult(label, tier, "n/a", "not tried: mend reload first")
    if wrong is None or label not in _TASKS:
        return None
    return CheckResult(label, tier, "n/a", f"not tried: mend {wrong} first")


_LINE = re.compile(r"([\w.-]+\.py:\d+: [^\n]*)\n\s*([^\n]+)")


def _uncalled(error: CallError, held: list[CheckResult]) -> tuple[CheckResult, ...]:
    """No call was found: the first line of the user's code at which one ended, with its error; or what the call shows.

    held: what is wrong with what the module holds, and may be why.
    """
    found = _LINE.search(error.detail)
    measured = error.what if found is None else f"{error.what}: {found[2]}"
    cause = (error.fix.partition("\n")[0] or error.detail.partition("\n")[0]).removesuffix("; else")
    where = found[1] if found else error.where
    expected = _EXPECTED.get(error.check, "logits (B, T, V)")
    said = CheckResult(error.check, int(error.check != "call"), "fail", measured, expected, cause, where)
    if error.check == "call":
        return folded([said, *held])
    refused = CheckResult("call", 0, "fail", "what it gives is not to be trusted", "logits (B, T, V)")
    return (replace(refused, under=error.check), *folded([said, *held]))


_EXPECTED = {
    "finite": "every logit finite",
    "past": "the ids move the logits",
    "source": "each source token moves the logits, whatever the lengths of both texts",
}
"""Of a module whose call the plan refuses, for what these checks would have found."""


def _without_a_call(module: nn.Module, trained: bool, limits: Limits) -> list[CheckResult]:
    """What is wrong with a module that cannot be called, and may be why."""
    found = (static.held(module), numbers.weights_at_start(module, limits, trained))
    return [result for result in found if result.verdict in TROUBLE]


def _called(plan: CallPlan) -> list[CheckResult]:
    """That it can be called, and what the plan found to be wrong with it, each under its own name."""
    shape = "(B, C)" if plan.family == "classifier" else "(B, T, V)"
    said = f"{plan.family.replace('_', '-')}: {shape} from {plan.token_arg}"
    if plan.layout == "last":
        said += "; it gives the last position alone, so that each position takes a call of its own"
    wrong = [f for f in plan.findings if f.verdict == "fail" and f.name not in _ELSEWHERE]
    wrong += [f for f in plan.findings if f.name in ("own loss", "criterion") and f.verdict != "fail"]
    return [
        CheckResult("call", 0, "ok", said, shape),
        *(CheckResult(f.name, 0, f.verdict, f.measured, f.expected, f.reason) for f in wrong),
    ]


_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "causality": ("future", "prefix", "future gradient"),
    "batch": ("rows", "row order", "rows in training"),
    "repeat": ("repeat", "state"),
    "past": ("past",),
    "positions": ("lengths", "positions"),
    "ids": ("ids", "vocabulary"),
    "weights": ("initial weights", "loss at the start"),
}
"""Findings of the plan that other checks measure and explain."""


def told_by(name: str) -> tuple[str, ...]:
    """The checks that say again what a finding of the plan says."""
    return _ELSEWHERE.get(name, (name,))


_MEASURED = ("memory", "speed")
"""Checks of what a call costs."""


def _run(subject: Subject, label: str, tier: int, check: Check, left: float = math.inf) -> CheckResult:
    begin, most = time.monotonic(), min(_SECONDS, left)
    try:
        as_it_runs = tier == 3 or label in _MEASURED
        with (
            time_limit(most) if tier < 3 else nullcontext(),
            untouched(subject.awake, gradients=False),
            nullcontext() if as_it_runs else step_by_step(),
        ):
            result = check(subject)
    except OutOfTime:
        result = CheckResult(label, tier, "warn", f"not done after {most:.0f} s, {_CUT}")
    except Exception as error:  # noqa: BLE001  (a stranger's code may raise anything: that is the result)
        line, _, words = blame(error).rpartition("\n")
        # no line of the user's: it may be the check that is at fault, which blocks nobody's training
        result = CheckResult(label, tier, "fail" if line else "warn", words, "it runs", "", line)
    return replace(result, seconds=round(time.monotonic() - begin, 4))
