"""Whether forward replaces ids by chance before it looks them up: it then masks, or corrupts, what it is given.

An encoder that hides tokens itself would be given hidden ones: masked twice, and scored where nothing was hidden.
B batch, T time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anyformer.core.findings import Finding
from anyformer.models.calling import oriented
from anyformer.models.calls.precise import eager
from anyformer.models.calls.probing import Prober
from anyformer.models.inputs import Inputs
from anyformer.models.plan import CallPlan

_DRAWS = 4
_LENGTH = 24
"""At 15 % of the tokens, not one of 3 × 24 is replaced in 1 of 10^5 states."""
_MOSTLY = 0.4
"""Of the indices, how many must be the ids that were given: those of positions are not."""


class _Lookups(TorchFunctionMode):
    """Keeps what every embedding is indexed with, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "embedding":
            given = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
            self.seen += [a.detach().clone() for a in given if not a.is_floating_point() and a.dtype != torch.bool]
        return func(*args, **(kwargs or {}))


def altered_findings(prober: Prober, plan: CallPlan) -> list[Finding]:
    """Of an encoder a failure, in eval and in training mode; of a classifier and a source a warning, in eval mode."""
    if plan.family == "decoder" or plan.graph is not None:  # of a decoder, forcing tells
        return []
    modes = [(m, m.training) for m in prober.module.modules()]
    with eager(prober.module):
        for training in (False, True) if plan.family == "encoder" else (False,):
            try:
                for part, _ in modes:
                    part.training = training and not isinstance(part, nn.modules.dropout._DropoutNd)
                share = _replaced(prober, plan)
            finally:
                for part, mode in modes:
                    part.training = mode
            if share:
                return [_finding(plan, share, training)]
    return []


def _finding(plan: CallPlan, share: float, training: bool) -> Finding:
    text = f"forward replaces {share:.0%} of its ids by chance{' in training mode' if training else ''}"
    if plan.family == "encoder":
        why = "it hides tokens itself: its ids would be hidden a second time here, and the loss taken at other places;"
        why += " let forward read the ids as they are given, and leave the rest of its objective out"
        return Finding("masking", "fail", text, "it reads the ids that it is given", why)
    why = "in eval mode, too: what it answers depends on chance"
    return Finding("masking", "warn", text, "it reads the ids that it is given", why)


def _replaced(prober: Prober, plan: CallPlan) -> float:
    """Share of the ids that are looked up as others in one random state than in another."""
    shortest = prober.fixed or max(2, prober.length)
    lengths = [shortest] if prober.fixed else [shortest * max(1, _LENGTH // shortest), shortest]
    for T in dict.fromkeys(lengths):
        rows = max(2 if T >= 3 * _LENGTH else 3, 3 * _LENGTH // T)
        inputs = prober.inputs(plan, 1 if plan.packed else rows, T, 1)
        ids = oriented(plan, inputs.input_ids).flatten()
        drawn = [_looked_up(prober, plan, inputs, ids, seed) for seed in range(_DRAWS)]
        first = drawn[0]
        if not first or any(found is None or len(found) != len(first) for found in drawn):
            continue  # it refuses this length
        pairs = [pair for found in drawn[1:] for pair in zip(first, found or [], strict=True)]
        return max(float((a != b).float().mean()) for a, b in pairs) / 2  # those of both states
    return 0.0


def _looked_up(prober: Prober, plan: CallPlan, inputs: Inputs, ids: Tensor, seed: int) -> list[Tensor] | None:
    """What embeddings are indexed with that is mostly the ids; None where the module refuses this batch."""
    with _Lookups() as lookups:
        logits = prober.try_logits(plan, inputs, seed=seed)
    if logits is None:
        return None
    found = [index.flatten() for index in lookups.seen if index.numel() == len(ids)]
    return [index for index in found if float((index == ids).float().mean()) > _MOSTLY]
