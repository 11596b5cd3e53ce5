"""Proving a given plan again, line by line: a stored one, or one that a user stated.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.calling import value_of
from anyformer.models.calls.answers import answers_findings
from anyformer.models.calls.causal import causality_findings, glance, measure
from anyformer.models.calls.forcing import order_findings
from anyformer.models.calls.hiding import hides
from anyformer.models.calls.locating import SIZES, Size, locate, seen_of
from anyformer.models.calls.masks import with_argument, without
from anyformer.models.calls.meaning import classes_finding, places_finding
from anyformer.models.calls.names import hint, parameters_of
from anyformer.models.calls.options import padding_forms
from anyformer.models.calls.outputs import find_head, hidden_width
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.positions import candidates
from anyformer.models.calls.probing import Prober, difference, tolerance, woken
from anyformer.models.calls.properties import (
    argument_of,
    batch_finding,
    ids_limit,
    output_kind,
    position_limit,
)
from anyformer.models.calls.repeats import repeat_finding
from anyformer.models.calls.seq2seq import source_finding
from anyformer.models.inputs import Inputs
from anyformer.models.plan import Argument, CallPlan
from anyformer.models.probes import set_mode, untouched


def prove_plan(module: nn.Module, plan: CallPlan) -> tuple[Finding, ...]:
    """Findings on every line of the plan, verdict fail where the module does something else than the line says.

    Raises CallError where the plan's call does not run or gives no logits of the planned shape. The module is left as
    it was.
    """
    with untouched(module), torch.no_grad():
        set_mode(module, False)
        awake, _, _ = woken(module)
        with untouched(awake):
            set_mode(awake, False)
            try:
                # without the length that shorter batches would be padded to: that no other runs is proven, too
                return _proofs(Prober(awake), replace(plan, only_length=None))
            except CallError:
                raise
            except Exception as error:
                raise CallError(f"the plan's call of {type(module).__name__} fails", blame(error)) from error


def _proofs(prober: Prober, plan: CallPlan) -> tuple[Finding, ...]:
    logits = _runs(prober, plan)
    findings = [_finite(logits), _reacts(prober, plan), _kind(prober, plan), _head(prober, plan)]
    findings += [_place(prober, plan), repeat_finding(prober, plan), batch_finding(prober, plan)]
    asked = any(f.name == "classes" and f.measured.endswith("as asked") for f in plan.findings)
    said = Stated(family="classifier" if asked else None)
    findings += [*places_finding(prober, plan), *classes_finding(prober, plan, said)]
    findings += [*_order(prober, plan), *_masks(prober, plan), *_arguments(prober, plan)]
    return (*findings, *_limits(prober, plan))


def _runs(prober: Prober, plan: CallPlan) -> Tensor:
    """Logits of the planned shape at two sizes."""
    error: Exception | None = None
    named = [n for n in candidates(prober.module, []) if n == plan.max_positions]
    for sizes in (*SIZES, *(((2, n, n), (3, n, n)) for n in named)):
        try:
            prober.sizes = sizes
            many = [prober.logits(plan, prober.inputs(plan, B, T, i, S)) for i, (B, T, S) in enumerate(sizes)]
        except Exception as raised:  # noqa: BLE001  (a stranger's forward may raise anything; it is reported below)
            error = error or raised
        else:
            return many[0]
    assert error is not None
    if isinstance(error, CallError):
        raise error
    raise CallError(f"the plan's call of {type(prober.module).__name__} fails", blame(error)) from error


def _finite(logits: Tensor) -> Finding:
    broken = logits.isnan() | (logits == torch.inf)
    if bool(broken.any()):
        return Finding("numbers", "fail", f"{int(broken.sum()):,} logits are NaN or infinite", "none")
    return Finding("numbers", "ok", "no logit is NaN")


def _reacts(prober: Prober, plan: CallPlan) -> Finding:
    T = max(2, prober.length)
    first, second = (prober.logits(plan, prober.inputs(plan, 2, T, seed)) for seed in (1, 2))
    name = plan.token_arg.lstrip("*")
    if float(difference(first, second).max()) == 0:
        return Finding("tokens", "fail", f"{name} moves no logits", "it moves them")
    return Finding("tokens", "ok", f"the logits react to {name}")


def _kind(prober: Prober, plan: CallPlan) -> Finding:
    kind, _ = output_kind(prober, plan)
    verdict = "ok" if kind == plan.kind else "fail"
    return Finding("output", verdict, kind, plan.kind)  # type: ignore[arg-type]


def _head(prober: Prober, plan: CallPlan) -> Finding:
    """A head that is named did not run already; one that is not named is not left out."""
    seen = seen_of(prober, plan)
    if plan.head is not None:
        tied = isinstance(dict(prober.module.named_modules()).get(plan.head), nn.Embedding)  # it runs on the ids
        if plan.head in seen.called and not tied:
            return Finding("head", "fail", f"{plan.head} runs in forward already", "once")
        return Finding("head", "ok", plan.head)
    if plan.family != "classifier" and hidden_width(prober, plan, seen) is not None:
        headed = find_head(prober, plan, seen)
        if headed is not None:
            return Finding("head", "fail", "hidden states", f"logits: {headed[0].head} makes them")
    return Finding("head", "ok", "none is left out")


def _place(prober: Prober, plan: CallPlan) -> Finding:
    """The logits lie where they most likely are."""
    if plan.head is not None or any(f.name == "stated" for f in plan.findings):
        return Finding("logits", "note", "the place is stated, or a head's input")
    bare = replace(plan, alignment="next", logits_path=(), logits_from="output")
    found, failure = locate(prober, bare, Stated(), (_pair(prober),))
    if found is None:
        return Finding("logits", "fail", failure, "logits at the planned place")
    ordered = [found.place, *found.others]
    first = next((p for p in ordered if (p.use == "pooled") == (plan.family == "classifier")), ordered[0])
    if (first.logits_from, first.path) != (plan.logits_from, plan.logits_path):
        return Finding("logits", "fail", f"likelier at {first.where()}", "the planned place")
    return Finding("logits", "ok", first.text())


def _pair(prober: Prober) -> tuple[Size, Size]:
    """The sizes at which the plan's call ran."""
    return prober.sizes[0], prober.sizes[1]


def _order(prober: Prober, plan: CallPlan) -> list[Finding]:
    """Causality and the shift."""
    if plan.family == "classifier":
        shifted = plan.alignment != "next"
        return [Finding("shift", "fail", plan.alignment, "one row per text is not shifted")] if shifted else []
    two = plan.family == "encoder_decoder"
    sight = measure(prober, plan, target=two)
    findings = causality_findings(sight)
    if plan.family == "encoder" and plan.causal == sight.causal:
        findings = [replace(f, verdict="note") for f in findings]
    elif plan.causal != sight.causal:
        findings.append(Finding("causal", "fail", str(sight.causal), str(plan.causal)))
    asked = any(f.name == "family" and f.verdict == "warn" for f in plan.findings)
    if plan.family == "encoder" and sight.causal and not asked:
        findings.append(Finding("family", "fail", "no later token is seen", "an encoder sees both sides"))
    if not sight.own and sight.after:
        text = "logits[t] do not depend on token t: they are for it, not for the next"
        findings.append(Finding("shift", "fail", text, "they depend on it"))
    else:
        findings += order_findings(prober, plan, sight)
    if two:
        findings.append(source_finding(prober, plan))
    return findings


def _masks(prober: Prober, plan: CallPlan) -> list[Finding]:
    findings = []
    padding = argument_of(plan)
    if padding is not None and plan.graph is None:
        against = None if plan.needs_mask else without(plan, padding.name)
        hidden = hides(prober, plan, against=against)
        verdict = "ok" if hidden.works else "fail"
        if not hidden.works and plan.needs_mask and not _better_form(prober, plan, padding):
            verdict = "note"
        findings.append(Finding("mask", verdict, padding.text(), "a padded token is hidden", hidden.why))  # type: ignore[arg-type]
    stated = any(f.name == "stated" for f in plan.findings)
    if padding is None and not plan.methods and plan.graph is None and not stated:
        left_out = _left_out(prober, plan)
        findings += [Finding("mask", "fail", "padding is not hidden", left_out)] if left_out else []
    for argument in plan.extras:
        if argument.role == "target_mask":
            works = hides(prober, plan, target=True).works
            findings.append(
                Finding("target mask", "ok" if works else "fail", argument.text(), "a padded token is hidden")
            )
        if "causal" in argument.role:
            two = plan.family == "encoder_decoder"
            works = glance(prober, plan, target=two).decodes
            text = "earlier tokens are seen, later ones are not"
            findings.append(Finding("causal mask", "ok" if works else "fail", argument.text(), text))
    return findings


def _left_out(prober: Prober, plan: CallPlan) -> str:
    """A padding mask that the module takes and the plan does not give."""
    used = {a.name for a in plan.extras}
    names = [p.name for p in parameters_of(prober.module) if hint(p.name) == "mask" and p.name not in used]
    for argument in (a for name in names for a in padding_forms(name)):
        if hides(prober, with_argument(plan, argument), against=plan).works:
            return argument.text()
    return ""


def _better_form(prober: Prober, plan: CallPlan, padding: Argument) -> bool:
    forms = padding_forms(padding.name, time_first=plan.time_first)
    return any(hides(prober, replace(with_argument(plan, a), needs_mask=True)).works for a in forms)


def _arguments(prober: Prober, plan: CallPlan) -> list[Finding]:
    """Names exist; positions play a part."""
    findings = []
    if plan.targets_arg is not None and plan.targets_arg not in {p.name for p in parameters_of(prober.module)}:
        findings.append(Finding("targets", "fail", f"forward has no {plan.targets_arg}"))
    findings += answers_findings(prober, plan)
    T = max(3, prober.length)
    inputs = prober.inputs(plan, 2, T, 1)
    base = prober.logits(plan, inputs)
    for argument in plan.extras:
        findings += _other_role(prober, plan, argument, inputs, base)
        if argument.role != "positions":
            continue
        zeros = torch.zeros_like(value_of(plan, argument, inputs))
        still = with_argument(plan, Argument(argument.name, "constant", "", value=zeros))
        other = prober.try_logits(still, inputs)
        moved = other is None or float(difference(base, other).max()) > tolerance(base)
        text = "other positions give other logits" if moved else "positions 0 everywhere give the same"
        findings.append(Finding("argument", "ok" if moved else "fail", f"{argument.name}: {text}"))
    return findings


def _other_role(prober: Prober, plan: CallPlan, argument: Argument, inputs: Inputs, base: Tensor) -> list[Finding]:
    """Fail where positions are given to what is named after segments, or the other way round, and it matters."""
    named = hint(argument.name)
    if argument.role not in ("positions", "segments") or named not in ("positions", "segments"):
        return []
    if named == argument.role:
        return []
    other: Tensor | None = None
    for shape in ("BT", "T", "1T") if named == "positions" else ("BT",):
        other = prober.try_logits(with_argument(plan, replace(argument, role=named, shape=shape)), inputs)
        if other is not None:
            break
    if other is None or float(difference(base, other).max()) <= tolerance(base):
        return []
    return [Finding("argument", "fail", f"{argument.name} is given {argument.role}", f"{named}, as it is named")]


def _limits(prober: Prober, plan: CallPlan) -> list[Finding]:
    """Ids and positions."""
    seen = seen_of(prober, plan)
    rows, about = ids_limit(prober, replace(plan, embedding_rows=seen.embedding_rows))
    findings = [about]
    if rows != plan.embedding_rows:
        findings.append(Finding("ids", "fail", f"below {rows}", f"below {plan.embedding_rows}"))
    if seen.target_rows != plan.target_vocab:
        findings.append(Finding("target ids", "fail", f"below {seen.target_rows}", f"below {plan.target_vocab}"))
    longest, positions = position_limit(prober, plan, seen.position_rows)
    findings.append(positions)
    if longest != plan.max_positions:
        findings.append(Finding("positions", "fail", f"up to {longest}", f"up to {plan.max_positions}"))
    return findings
