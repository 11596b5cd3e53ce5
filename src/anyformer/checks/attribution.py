"""Tier 2: how much each token counts, and how far noise at the embedding is carried.

B batch, T time (of the text whose positions the logits belong to), D width, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace

import torch
from torch import Tensor, nn

from anyformer.checks.results import CheckResult, Series
from anyformer.checks.subject import Subject
from anyformer.models.calling import call_logits
from anyformer.models.inputs import Inputs

_STEPS = 64
"""Of the path from no embedding to the token's own: Sundararajan et al. 2017, §5, find 20 to 300 to be enough."""
_NOISE = (0.01, 0.001, 0.1)
"""Of the embedding's size: the first is judged, all are drawn."""


def token_table(subject: Subject, inputs: Inputs) -> nn.Embedding | None:
    """The embedding that is given the ids themselves; None where none is, or several are."""
    found: list[nn.Embedding] = []
    ids = subject.read(inputs)

    def hook(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        first = given[0] if given else None
        if isinstance(first, Tensor) and first.shape == ids.shape and torch.equal(first, ids):
            found.append(module)  # type: ignore[arg-type]

    handles = [m.register_forward_hook(hook) for m in subject.awake.modules() if isinstance(m, nn.Embedding)]
    try:
        subject.logits(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if len(found) == 1 else None


def attribution(subject: Subject) -> CheckResult:
    """Integrated gradients of the last logit that is highest: parts of all tokens, which add up to it (captum)."""
    name, expected = "attribution", "the tokens' parts add up to the logit, but for 5 %"
    if subject.plan.time_first or subject.plan.packed or subject.plan.only_length:
        return CheckResult(name, 2, "n/a", "not for this kind of call", expected)
    if importlib.util.find_spec("captum") is None:
        return CheckResult(name, 2, "n/a", "captum is not installed: pip install 'anyformer[explain]'", expected)
    inputs = subject.batch(0, 1)
    table = token_table(subject, inputs)
    if table is None:
        return CheckResult(name, 2, "n/a", "no one embedding is given the ids themselves", expected)
    from captum.attr import LayerIntegratedGradients

    ids = subject.read(inputs)
    best = int(_last(subject, subject.logits(inputs)).argmax())

    def chosen(read: Tensor) -> Tensor:
        other = inputs.input_ids.expand(len(read), -1)
        given = replace(inputs, input_ids=other, target_ids=read) if subject.two else Inputs(read)
        logits = call_logits(subject.awake, subject.plan, given.input_ids, target_ids=given.target_ids)
        return _last(subject, logits)[:, best]

    found = LayerIntegratedGradients(chosen, table)
    try:
        with torch.enable_grad():
            other = _another(ids, subject.ids)
            parts, delta = found.attribute(ids, other, n_steps=_STEPS, return_convergence_delta=True)
    except RuntimeError as error:
        return CheckResult(name, 2, "n/a", f"nothing runs backward in eval mode: {str(error)[:80]}", expected)
    if not isinstance(parts, Tensor):
        return CheckResult(name, 2, "n/a", "the embedding is read several times", expected)
    by_token = parts.sum(-1)[0].detach()
    total, missing = float(by_token.abs().sum()), float(delta.abs().sum())
    order = by_token.abs().argsort(descending=True)[:3].tolist()
    shares = ", ".join(f"token {t}: {float(by_token[t].abs()) / max(total, 1e-30):.0%}" for t in order)
    bars = Series(
        "bars", {"": tuple(by_token.tolist())}, tuple(map(str, range(len(by_token)))), y_label="part of the logit"
    )
    measured = f"{shares}; what they do not add up to is {missing / max(total, 1e-30):.1%}"
    if missing > 0.05 * total:
        cause = "the logit jumps on the way: rounding, a hard threshold, a choice among experts"
        return CheckResult(name, 2, "note", measured, expected, cause, series=(bars,))
    return CheckResult(name, 2, "ok", measured, expected, series=(bars,))


def _last(subject: Subject, logits: Tensor) -> Tensor:
    """(B, V) of the last place, (B, C) of a classifier."""
    return logits if logits.dim() == 2 else logits[:, -1]


def _another(ids: Tensor, high: int) -> Tensor:
    """The text that stands for none: all along one id below ``high`` that it has not; the first ones may be padding."""
    used = set(ids.flatten().tolist())
    return torch.full_like(ids, next((i for i in range(high - 1, 0, -1) if i not in used), 0))


def sensitivity(subject: Subject) -> CheckResult:
    """What noise of a hundredth at the embedding does to the logits."""
    name, expected = "sensitivity", f"1 % of noise changes logits by less than {subject.limits.carried:.0%}"
    worst = dict.fromkeys(_NOISE, 0.0)
    for seed, noise in itertools.product(subject.limits.seeds, _NOISE):
        inputs = subject.batch(seed, 2)
        table = token_table(subject, inputs)
        if table is None:
            return CheckResult(name, 2, "n/a", "no one embedding is given the ids themselves", expected)
        plain = subject.logits(inputs)
        generator = torch.Generator().manual_seed(seed)

        def noisy(
            m: nn.Module, given: object, made: Tensor, generator: torch.Generator = generator, size: float = noise
        ) -> Tensor:
            drawn = torch.randn(made.shape, generator=generator).to(made)
            return made + size * made.square().mean().sqrt() * drawn

        handle = table.register_forward_hook(noisy)
        try:
            moved = subject.logits(inputs)
        finally:
            handle.remove()
        seen = plain.isfinite() & moved.isfinite()
        spread = float((plain - plain.mean(-1, keepdim=True))[seen].norm())
        worst[noise] = max(worst[noise], float((moved - plain)[seen].norm()) / max(spread, 1e-30))
    sizes = sorted(worst)
    line = Series("line", {"change": tuple(worst[size] for size in sizes)}, tuple(sizes), "", "noise", "of the spread")
    measured = f"1 % of noise at the embedding changes the logits by {worst[_NOISE[0]]:.2g} of their spread"
    if worst[_NOISE[0]] > subject.limits.carried:
        cause = "something magnifies small differences: a division by a small number, a very sharp softmax"
        return CheckResult(name, 2, "warn", measured, expected, cause, series=(line,))
    return CheckResult(name, 2, "ok", measured, expected, series=(line,))
