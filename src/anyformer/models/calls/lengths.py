"""Lengths (B,) of the rows: whose they are, and whether rows must come sorted by them.

B batch, T time (source), S time (target).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from anyformer.core.findings import Finding
from anyformer.models.calls.masks import with_argument
from anyformer.models.calls.probing import Prober, changed_inputs, difference, tolerance
from anyformer.models.inputs import Inputs
from anyformer.models.plan import Argument, CallPlan

_LENGTHS = ("lengths", "target_lengths")


def settle_lengths(prober: Prober, plan: CallPlan) -> tuple[CallPlan, list[Finding]]:
    """Whether lengths (B,) count the tokens of the source or of the target: by which tokens shorter ones hide."""
    findings = []
    for argument in plan.extras:
        if argument.role not in ("lengths", "target_lengths"):
            continue
        whose = [target for target in (False, True) if _cuts(prober, plan, argument, target=target)]
        if len(whose) == 1:
            settled = replace(argument, role="target_lengths" if whose[0] else "lengths")
            plan = replace(plan, extras=tuple(settled if a.name == argument.name else a for a in plan.extras))
            which = "target" if whose[0] else "source"
            why = f"shorter ones hide the last tokens of the {which} alone"
            findings.append(Finding("lengths", "ok", f"{argument.name} of the {which}", reason=why))
    return plan, findings


def _cuts(prober: Prober, plan: CallPlan, argument: Argument, *, target: bool) -> bool:
    """Whether lengths that end before the last tokens of the source (target) hide them from later logits."""
    T = prober.fixed or max(5, prober.length)
    inputs = prober.inputs(plan, 2, T, 3, T)
    at = T - 2 if target else T - 1
    other = changed_inputs(prober, plan, inputs, at, target=target)
    moved = []
    for length in (T, T - 3):
        given = with_argument(plan, Argument(argument.name, "constant", "B", value=length))
        pair = [prober.try_logits(given, i) for i in (inputs, other)]
        if pair[0] is None or pair[1] is None:
            return False
        places = difference(pair[0], pair[1])[:, T - 1 :] if target else difference(pair[0], pair[1])
        moved.append(bool((places > tolerance(pair[0])).any()))
    return moved == [True, False]


def settle_order(prober: Prober, plan: CallPlan) -> tuple[CallPlan, list[Finding]]:
    """Whether rows of unequal lengths run in any order; sorted by length, longest first, where that alone runs."""
    if not any(a.role in _LENGTHS for a in plan.extras) or plan.packed:
        return plan, []
    T = prober.fixed or max(5, prober.length)
    lengths = (T - 2, T, T - 1)
    unsorted, ordered = (_of_lengths(prober, plan, T, each) for each in (lengths, tuple(sorted(lengths))[::-1]))
    if prober.try_logits(plan, unsorted) is not None or prober.try_logits(plan, ordered) is None:
        return plan, []
    plan = replace(plan, longest_first=True)
    if prober.try_logits(plan, unsorted) is None:
        return replace(plan, longest_first=False), []
    text = "rows are sorted by their lengths for it, and put back"
    return plan, [Finding("lengths", "note", text, reason="it refuses rows that are not: enforce_sorted, as is usual")]


def _of_lengths(prober: Prober, plan: CallPlan, T: int, lengths: tuple[int, ...]) -> Inputs:
    inputs = prober.inputs(plan, len(lengths), T, 1, T)
    ends = torch.tensor(lengths, device=inputs.input_ids.device)
    keep: Tensor = (torch.arange(T, device=ends.device) < ends[:, None]).to(torch.int64)
    two = inputs.target_ids is not None
    return replace(inputs, attention_mask=keep, target_mask=keep if two else None)
