"""Attention as it is computed: its softmax, its scale, what it may see, and whether order plays a part.

B batch, T time, S time of the source, K size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.checks.attended import Attention, Watch, attended
from anyformer.checks.padding import unheeded
from anyformer.checks.results import CheckResult, Series
from anyformer.checks.subject import Subject
from anyformer.models.inputs import Inputs

_HIDDEN = "not visible: no product of queries and keys was seen"


def attentions(subject: Subject, seed: int = 0) -> list[Attention]:
    """Every attention of one forward pass, in order; of an encoder-decoder, source and target differ in length."""
    inputs = watched_inputs(subject, seed)
    T = subject.read(inputs).shape[1]
    with attended(T, inputs.input_ids.shape[1]) as watch, _named(subject.awake, watch):
        subject.logits(inputs)
    return watch.found


@contextmanager
def _named(module: nn.Module, watch: Watch) -> Iterator[None]:
    """While open, the watch knows which submodule runs."""

    def entering(name: str) -> Any:
        return lambda m, given: watch.inside.append(name)

    def leaving(m: nn.Module, given: Any, made: Any) -> None:
        watch.inside.pop()

    handles = []
    for name, part in module.named_modules():
        if name:
            handles += [part.register_forward_pre_hook(entering(name)), part.register_forward_hook(leaving)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_GRAVITY = ("n/a", "ok", "note", "warn", "fail")


def worst(subject: Subject, judged: Callable[[Subject, int], CheckResult]) -> CheckResult:
    """Of a batch for each seed: the first of the gravest results."""
    found = [judged(subject, seed) for seed in subject.limits.seeds]
    return max(found, key=lambda result: _GRAVITY.index(result.verdict))


def watched_inputs(subject: Subject, seed: int = 0) -> Inputs:
    """Two rows, of a length that no other axis is likely to have; no id 0, which may be padding."""
    limit = subject.plan.only_length or subject.plan.max_positions or 11
    T, S = (min(limit, 7), min(limit, 11)) if subject.two and not subject.plan.only_length else (min(limit, 11),) * 2
    if subject.plan.only_length:
        T = S = subject.plan.only_length
    return subject.prober.inputs(subject.plan, _ROWS, T, 200 + seed, S)


_ROWS = 2


def attention(subject: Subject) -> CheckResult:
    """Weights of attention come from one softmax over the keys."""
    return worst(subject, _attention)


def _attention(subject: Subject, seed: int) -> CheckResult:
    name, expected = "attention", "one softmax, over the keys"
    found = attentions(subject, seed)
    if not found:
        return CheckResult(name, 1, "n/a", _HIDDEN, expected)
    for number, one in enumerate(found):
        where = _place(one, number, len(found))
        if one.used_raw and not one.softmaxes:
            cause = "the softmax was forgotten; meant so, it is linear attention"
            return CheckResult(name, 1, "warn", "scores are multiplied with the values", expected, cause, where)
        if one.softmaxes > 1:
            cause = "the second softmax flattens what the first one told apart: leave one out"
            return CheckResult(name, 1, "warn", f"{one.softmaxes} softmaxes in a row", expected, cause, where)
        if one.weights is not None and one.over != -1:
            what = {-2: "queries", -3: "heads"}.get(one.over, "rows")
            cause = f"softmax(dim=-1) in place of dim={one.over}: the weights of one query must add up to 1"
            return CheckResult(name, 1, "warn", f"a softmax over the {what}", expected, cause, where)
    seen = [one for one in found if one.weights is not None]
    if not seen:
        other = ", yet numbers from 0 on" if any(one.shares for one in found) else ""
        measured = f"{len(found)} products of queries and keys, no softmax seen{other}"
        return CheckResult(name, 1, "note", measured, expected)
    spreads = [_spread(one) for one in seen]
    narrowest = min(float(spread.mean()) for spread in spreads)
    measured = f"{len(seen)} × a softmax over the keys; the narrowest spreads over {narrowest:.0%} of what it may see"
    maps = (*_maps(seen), _entropies(seen, spreads))
    for share, where in ((_ahead(subject, seen), "later tokens"), (_on_padding(subject, seed), "hidden ones")):
        measured += f"; up to {share:.0%} of a query's weight lies on {where}" if share else ""
    if not subject.trained and (tilt := max((_tilt(one), i) for i, one in enumerate(seen)))[0] > _FAVOURED:
        measured = (
            f"the farthest token gets {math.exp(tilt[0]):.1f} times the weight of the nearest, the more the farther"
        )
        cause = "a bias by distance of the wrong sign: what lies far away is to get less"
        where = _place(seen[tilt[1]], tilt[1], len(seen))
        return CheckResult(name, 1, "warn", measured, "fresh weights favour no place, or the near", cause, where)
    collapsed = sum(int((_largest(one) > _COLLAPSED).sum()) for one in seen)
    heads = sum(len(spread) for spread in spreads)
    if collapsed:
        measured += f"; {collapsed} of {heads} heads look at one token alone"
        if not subject.trained:
            cause = "fresh weights spread attention over many tokens: scores are far too large, or the mask leaves one"
            at = next(i for i, one in enumerate(seen) if bool((_largest(one) > _COLLAPSED).any()))
            where = _place(seen[at], at, len(seen))
            return CheckResult(name, 1, "note", measured, expected, cause, where, series=maps)
    return CheckResult(name, 1, "ok", measured, expected, series=maps)


_COLLAPSED = 0.99
"""Mean weight on one token, of the queries that may see three or more, from which on a head has collapsed."""


_FAVOURED = math.log(3.0)
"""How much more weight the farthest token may get than the nearest."""


def _tilt(one: Attention) -> float:
    """By how much a head's weights grow with distance, log of farthest over nearest; 0 unless at each step.

    Of the last query, which sees all, where a text attends to itself; mean over rows, of all heads the most.
    """
    p = weights_of(one)
    N, T, S = p.shape
    if N % _ROWS or S != T or T < 5 or not bool((p[:, -1] > 0).all()):
        return 0.0
    by_distance = p[:, -1].log().reshape(_ROWS, -1, T).mean(0).flip(-1)  # (H, T)
    grows = (by_distance.diff(dim=-1) > 0).all(-1)
    return float(((by_distance[:, -1] - by_distance[:, 0]) * grows).max())


def _place(one: Attention, number: int, count: int) -> str:
    """Where to look: the submodule in which it was computed, or its number."""
    return one.where or f"attention {number + 1} of {count}"


def weights_of(one: Attention) -> Tensor:
    """(N, T, S): heads of all rows together."""
    assert one.weights is not None
    return one.weights.double().reshape(one.product.shape)


def _spread(one: Attention) -> Tensor:
    """Of the keys that a query may see, how many its weights are spread over: exp(entropy) / allowed, mean; (N,)."""
    p = weights_of(one)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1)
    allowed = (p > 0).sum(-1).clamp_min(1)
    return (entropy.exp() / allowed).mean(-1)


def _ahead(subject: Subject, seen: list[Attention]) -> float:
    """Of a decoder's attention over its own text: the largest share of a query's weight that lies on later places."""
    inputs = watched_inputs(subject)
    T, S = subject.read(inputs).shape[1], inputs.input_ids.shape[1]
    if not subject.decodes or (subject.two and T == S):
        return 0.0
    return max(
        (float(weights_of(one).triu(1).sum(-1).max()) for one in seen if one.product.shape[-2:] == (T, T)), default=0.0
    )


def _on_padding(subject: Subject, seed: int) -> float:
    """The largest share of a query's weight on a token that the padding mask hides; 0 where there is none."""
    masks = subject.plan.mask_arg is not None or any(a.role == "mask" for a in subject.plan.extras)
    left_out = None if masks else unheeded(subject)
    plan = subject.plan if masks else left_out[0] if left_out else None
    inputs = watched_inputs(subject, seed)
    T, at = inputs.input_ids.shape[1], 1
    if plan is None or subject.two or T < 3:
        return 0.0
    shown = torch.ones_like(inputs.input_ids)
    shown[:, at] = 0
    with attended(T) as watch:
        subject.prober.logits(plan, replace(inputs, attention_mask=shown))
    seen = [one for one in watch.found if one.weights is not None and one.product.shape[-2:] == (T, T)]
    others = [t for t in range(T) if t != at]
    return max((float(weights_of(one)[:, others, at].max()) for one in seen), default=0.0)


def _largest(one: Attention) -> Tensor:
    """The largest weight of each query that may see three keys or more, mean over them; (N,), 0 where none may."""
    p = weights_of(one)
    room = (p > 0).sum(-1) > 2
    # weights that underflow to 0 hide how many keys there were: a query of a later place counts as one with room
    room = room | (torch.arange(p.shape[1], device=p.device) > 2)
    return (p.amax(-1) * room).sum(-1) / room.sum(-1).clamp_min(1)


def _maps(seen: list[Attention]) -> list[Series]:
    """The first text's weights, mean over heads; the first and the last attention."""
    drawn = []
    for number, one in {0: seen[0], len(seen) - 1: seen[-1]}.items():
        p = weights_of(one)
        rows = p[: max(1, len(p) // 2)].mean(0)
        picture = {str(t): tuple(row) for t, row in enumerate(rows.tolist())}
        name = f"weights of {_place(one, number, len(seen))}, mean over heads"
        drawn.append(Series("map", picture, name=name, x_label="key", y_label="query"))
    return drawn


def _entropies(seen: list[Attention], spreads: list[Tensor]) -> Series:
    heights = tuple(float(spread.mean()) for spread in spreads)
    names = tuple(_place(one, number, len(seen)) for number, one in enumerate(seen))
    return Series("bars", {"": heights}, names, "spread over what it may see", y_label="exp(entropy) / keys in sight")


def scale(subject: Subject) -> CheckResult:
    """Products of queries and keys are divided by √K (Vaswani et al. 2017, §3.2.1)."""
    return worst(subject, _scale)


def _scale(subject: Subject, seed: int) -> CheckResult:
    name, expected = "attention scale", "1/√K, K the size of a head"
    limit = subject.limits.scale
    for number, one in enumerate(found := attentions(subject, seed)):
        K, factor = one.queries.shape[-1], one.scale()
        if factor is None or K < 4 or _unit(one.queries):
            continue
        times, where = abs(factor) * math.sqrt(K), _place(one, number, len(found))
        if K >= _TOLD_APART and abs(times * math.sqrt(K) - 1) < 0.1:
            measured = f"scores are {factor:.3g} · q·k, 1/{K}: {times:.2g} times 1/√{K}"
            cause = "divided by √K twice, so that all tokens weigh nearly alike (µP means 1/K)"
            return CheckResult(name, 1, "warn", measured, expected, cause, where)
        if times > limit and not _balanced(one):
            measured = f"scores are {factor:.3g} · q·k, {times:.1f} times 1/√{K}"
            cause = "the softmax saturates as heads grow wider, and its gradient vanishes: divide by √K, once"
            return CheckResult(name, 1, "warn", measured, expected, cause, where)
    told = [one.scale() for one in found]
    if not found or all(factor is None for factor in told):
        return CheckResult(name, 1, "n/a", _HIDDEN if not found else "no softmax of such a product was seen", expected)
    times = max(abs(f) * math.sqrt(one.queries.shape[-1]) for f, one in zip(told, found, strict=True) if f is not None)
    return CheckResult(name, 1, "ok", f"{times:.2g} times 1/√K", expected)


_TOLD_APART = 8
"""Sizes of a head from which on 1/K is no 1/√K."""


def _unit(vectors: Tensor) -> bool:
    """Whether each has one length: normalised queries need no such scale."""
    norms = vectors.double().norm(dim=-1)
    return bool(norms.std() < 1e-3 * norms.mean())


def _balanced(one: Attention) -> bool:
    """Whether queries begin smaller by √K, as T5 draws them in place of a scale."""
    q, k = float(one.queries.double().std()), float(one.keys.double().std())
    return q > 0 and k > 0 and q / k < 2 / math.sqrt(one.queries.shape[-1])
