"""Models that give the logits of the token after the last one alone: each position by a call of its own.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.calls.criteria import classes_of
from anyformer.models.calls.evidence import file_stem
from anyformer.models.calls.locating import Found
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober
from anyformer.models.plan import CallPlan, Objective, follow
from anyformer.models.probes import set_mode, untouched

_CLASSES = re.compile(r"[cC]lassif|[sS]entiment|[iI]ntent|[eE]motion|[tT]opic|[rR]egress")
"""In the name of a class or file: what comes out are no tokens, however many there are."""


def by_beginnings(prober: Prober, found: Found, said: Stated, objective: Objective | None) -> Found | None:
    """The next token's logits at every position, from calls of the ids up to each; None where that is not meant.

    found: a row of numbers per text. They are the next token's where there are as many as the embedding has rows, and
    neither it nor its file is named after what else they could be, and it reads its last position, or a decoder is
    stated. What comes after a token plays no part in its call.
    """
    plan, place = found.plan, found.place
    if said.family not in (None, "decoder") or objective not in (None, "causal") or prober.fixed is not None:
        return None
    if place.logits_from != "output" or plan.embedding_rows != place.V:
        return None
    names = [file_stem(prober.module), *(cls.__name__ for cls in classes_of(prober.module))]
    if any(_CLASSES.search(name) for name in names):
        return None
    plan = replace(plan, family="decoder", layout="last", causal=True)
    seen = said.family == "decoder" or _reads_the_last(prober, plan)  # it may be stated instead
    if not seen or not all(_runs(prober, plan, B, t) for B in (1, 2) for t in (False, True)):
        return None
    return replace(found, plan=plan, place=replace(place, use="last", layout="last"), others=[], undecided=())


def _runs(prober: Prober, plan: CallPlan, B: int, training: bool) -> bool:
    """Whether it gives logits for every position of B rows, in that mode."""
    T = 4
    with untouched(prober.module):
        set_mode(prober.module, training)
        logits = prober.try_logits(plan, prober.inputs(plan, B, T, 3))
    return logits is not None and tuple(logits.shape) == (B, T, plan.vocab_size)


def _reads_the_last(prober: Prober, plan: CallPlan) -> bool:
    """Whether a submodule is given the last position of what another gave: the output is no mean and no maximum of all.

    What comes last is made by a linear layer: a vector of features would be as wide by chance alone.
    """
    B, T = 2, 5
    ends: list[Tensor] = []
    scored: list[Tensor] = []
    given: list[Tensor] = []
    last: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = inputs[0] if inputs else None
        if isinstance(first, Tensor) and first.is_floating_point() and first.numel() % B == 0 and first.dim() in (2, 3):
            given.append(first)
        made = output[0] if isinstance(output, tuple) and output else output
        if isinstance(made, Tensor) and made.dim() == 3:
            end = [made[:, -1]] if made.shape[:2] == (B, T) else [made[-1]] if made.shape[:2] == (T, B) else []
            ends.extend(end)
            if isinstance(module, nn.Linear) and module.out_features == plan.vocab_size:
                scored.extend(end)
        if not list(module.children()) and isinstance(made, Tensor) and made.shape[-1] == plan.vocab_size:
            last.append(module)

    handles = [m.register_forward_hook(look) for m in prober.module.modules() if m is not prober.module]
    try:
        run, _ = prober.run(plan, prober.inputs(plan, B, T, 5))
    finally:
        for handle in handles:
            handle.remove()
    out = None if run is None else follow(run.output, plan.logits_path)
    tables = [m.weight for m in prober.module.modules() if isinstance(m, nn.Embedding)]
    if isinstance(out, Tensor) and any(_same(end, out) for end in scored):
        return True  # the head gave those of all positions
    if isinstance(out, Tensor) and any(_product(out, end, table) for end in ends for table in tables):
        return True
    rows = [g.reshape(B, -1) for g in given if g.dim() == 2 or g.shape[1] == 1]
    seen = any(r.shape == e.shape and torch.equal(r, e) for r in rows for e in ends)
    tied = any(p.shape[0] == plan.vocab_size for m in last for p in m.parameters(recurse=False))
    return seen and tied


def _same(end: Tensor, out: Tensor) -> bool:
    return end.numel() == out.numel() and torch.equal(end, out.reshape(end.shape))


def _product(out: Tensor, end: Tensor, table: Tensor) -> bool:
    """Whether the output is that of a head which is the embedding itself."""
    fits = end.shape[-1] == table.shape[1] and out.numel() == len(end) * len(table)
    return fits and torch.allclose(out.reshape(len(end), -1), end @ table.T, rtol=1e-4, atol=1e-5)


def last_position_finding(plan: CallPlan) -> list[Finding]:
    """What it costs."""
    if plan.layout != "last":
        return []
    why = "it gives the last one alone; if none sees a later one, a head on all (h in place of h[:, -1]) trains at once"
    said = "each position is a call of its own: T calls for T tokens"
    return [Finding("speed", "warn", said, "one call gives all", why)]
