"""Tier 2: what goes on inside: attention, residual paths, layers in a row. What cannot be seen says so.

B batch, T time, S time of the source, D width, K size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.checks.attended import Attention, attended
from anyformer.checks.results import CheckResult
from anyformer.checks.subject import Subject
from anyformer.models.inputs import Inputs

_HIDDEN = "not visible: no product of queries and keys was seen"


def attentions(subject: Subject) -> list[Attention]:
    """Every attention of one forward pass, in order; of an encoder-decoder, source and target differ in length."""
    inputs = watched_inputs(subject)
    T = subject.read(inputs).shape[1]
    with attended(T, inputs.input_ids.shape[1]) as watch:
        subject.logits(inputs)
    return watch.found


def watched_inputs(subject: Subject) -> Inputs:
    """Two rows, of a length that no other axis is likely to have; no id 0, which may be padding."""
    limit = subject.plan.only_length or subject.plan.max_positions or 11
    T, S = (min(limit, 7), min(limit, 11)) if subject.two and not subject.plan.only_length else (min(limit, 11),) * 2
    if subject.plan.only_length:
        T = S = subject.plan.only_length
    return subject.prober.inputs(subject.plan, 2, T, 200, S)


def attention(subject: Subject) -> CheckResult:
    """Weights of attention come from one softmax over the keys."""
    name, expected = "attention", "one softmax, over the keys"
    found = attentions(subject)
    if not found:
        return CheckResult(name, 2, "n/a", _HIDDEN, expected)
    for number, one in enumerate(found):
        where = f"attention {number + 1} of {len(found)}"
        if one.used_raw and not one.softmaxes:
            cause = "the softmax was forgotten; meant so, it is linear attention"
            return CheckResult(name, 2, "warn", "scores are multiplied with the values", expected, cause, where)
        if one.softmaxes > 1:
            cause = "the second softmax flattens what the first one told apart: leave one out"
            return CheckResult(name, 2, "warn", f"{one.softmaxes} softmaxes in a row", expected, cause, where)
        if one.scores is not None and one.over != -1:
            what = {-2: "queries", -3: "heads"}.get(one.over, "rows")
            cause = f"softmax(dim=-1) in place of dim={one.over}: the weights of one query must add up to 1"
            return CheckResult(name, 2, "warn", f"a softmax over the {what}", expected, cause, where)
    seen = [one for one in found if one.weights is not None]
    if not seen:
        return CheckResult(name, 2, "note", f"{len(found)} products of queries and keys, no softmax seen", expected)
    entropy = min(_spread(one) for one in seen)
    measured = f"{len(seen)} × a softmax over the keys; the narrowest spreads over {entropy:.0%} of what it may see"
    return CheckResult(name, 2, "ok", measured, expected)


def _spread(one: Attention) -> float:
    """Of the keys that a query may see, how many its weights are spread over: exp(entropy) / allowed, mean."""
    assert one.weights is not None
    p = one.weights.double().reshape(one.product.shape)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1)
    allowed = (p > 0).sum(-1).clamp_min(1)
    return float((entropy.exp() / allowed).mean())


def scale(subject: Subject) -> CheckResult:
    """Products of queries and keys are divided by √K (Vaswani et al. 2017, §3.2.1)."""
    name, expected = "attention scale", "1/√K, K the size of a head"
    limit = subject.limits.scale
    for number, one in enumerate(found := attentions(subject)):
        K, factor = one.queries.shape[-1], one.scale()
        if factor is None or K < 4 or _unit(one.queries) or _balanced(one):
            continue
        times = abs(factor) * math.sqrt(K)
        if times > limit:
            measured = f"scores are {factor:.3g} · q·k, {times:.1f} times 1/√{K}"
            cause = "the softmax saturates as heads grow wider, and its gradient vanishes: divide by √K, once"
            return CheckResult(name, 2, "warn", measured, expected, cause, f"attention {number + 1} of {len(found)}")
    told = [one.scale() for one in found]
    if not found or all(factor is None for factor in told):
        return CheckResult(name, 2, "n/a", _HIDDEN if not found else "no softmax of such a product was seen", expected)
    times = max(abs(f) * math.sqrt(one.queries.shape[-1]) for f, one in zip(told, found, strict=True) if f is not None)
    return CheckResult(name, 2, "ok", f"{times:.2g} times 1/√K", expected)


def _unit(vectors: Tensor) -> bool:
    """Whether each has one length: normalised queries need no such scale."""
    norms = vectors.double().norm(dim=-1)
    return bool(norms.std() < 1e-3 * norms.mean())


def _balanced(one: Attention) -> bool:
    """Whether queries begin smaller by √K, as T5 draws them in place of a scale."""
    q, k = float(one.queries.double().std()), float(one.keys.double().std())
    return q > 0 and k > 0 and q / k < 2 / math.sqrt(one.queries.shape[-1])


def source(subject: Subject) -> CheckResult:
    """Every position of the target may look at the whole source."""
    name, expected = "source", "every position of the target sees all of the source"
    if not subject.two:
        return CheckResult(name, 1, "n/a", "it reads one text")
    inputs = watched_inputs(subject)
    T, S = subject.read(inputs).shape[1], inputs.input_ids.shape[1]
    if T == S:
        return CheckResult(name, 1, "n/a", "source and target have one length: they cannot be told apart", expected)
    crossed = [one for one in attentions(subject) if one.product.shape[-2:] == (T, S) and one.weights is not None]
    if not crossed:
        return CheckResult(name, 1, "n/a", "not visible: no attention from target to source was seen", expected)
    for one in crossed:
        assert one.weights is not None
        hidden = (one.weights.reshape(one.product.shape) == 0).all(0)  # in every row and head
        if bool(hidden.any()):
            t, s = (int(i) for i in hidden.nonzero()[0])
            cause = "the mask of the target's own positions was handed to the attention over the source"
            return CheckResult(name, 1, "fail", f"target {t} gives source {s} no weight", expected, cause)
    return CheckResult(name, 1, "ok", f"{len(crossed)} × attention over the source, none of it hidden", expected)


def positions(subject: Subject) -> CheckResult:
    """The order of the tokens plays a part."""
    name, expected = "positions", "the order of tokens plays a part"
    if subject.plan.only_length == 1 or subject.plan.packed:
        return CheckResult(name, 1, "n/a", "not for this kind of call")
    cause = "no positions are added, or they are the same everywhere: a bag of words"
    if not subject.decodes:
        inputs = subject.batch(0)
        order = torch.arange(inputs.input_ids.shape[1] - 1, -1, -1, device=inputs.input_ids.device)
        there, back = subject.logits(inputs), subject.logits(Inputs(inputs.input_ids[:, order]))
        back = back[:, order] if subject.writes else back
        if there.shape == back.shape and torch.allclose(there, back, rtol=1e-4, atol=1e-5):
            return CheckResult(name, 1, "warn", "tokens in reverse give the same, in reverse", expected, cause)
        return CheckResult(name, 1, "ok", "tokens in reverse give something else", expected)
    if subject.plan.layout == "last":
        return CheckResult(name, 1, "n/a", "not for this kind of call")
    inputs = watched_inputs(subject)
    read = subject.read(inputs)
    inputs = subject.with_read(inputs, read[:, :1].expand_as(read).contiguous())
    T, S = read.shape[1], inputs.input_ids.shape[1]
    with attended(T, S) as watch:
        logits = subject.logits(inputs)
    spread = float((logits - logits[:, -1:]).abs().nan_to_num().max())
    scale_ = float(logits[logits.isfinite()].abs().median())
    if spread > subject.limits.share * max(scale_, 1e-30):
        return CheckResult(name, 1, "ok", "one token all along gives other logits at other places", expected)
    own = [one for one in watch.found if one.product.shape[-2:] == (T, T) and one.weights is not None]
    own = [one for one in own if T != S or not subject.two]
    if not own:
        return CheckResult(name, 1, "n/a", "one token gives the same everywhere; no attention is seen", expected)
    if any(_uneven(one) for one in own):
        return CheckResult(name, 1, "ok", "attention tells near places from far ones", expected)
    measured = "one token all along gives the same everywhere, and attention weighs all places alike"
    return CheckResult(name, 1, "warn", measured, expected, cause)


def _uneven(one: Attention) -> bool:
    """Whether a query weighs the keys that it may see differently, though all hold the same token."""
    assert one.weights is not None
    p = one.weights.double().reshape(one.product.shape)
    last = p[:, -1]
    seen = last > 0
    share = last * seen.sum(-1, keepdim=True)
    return bool(((share - 1).abs()[seen] > 1e-4).any())


@dataclass
class _Call:
    block: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    attends: bool


def residual(subject: Subject) -> CheckResult:
    """A block adds to what comes in: scaled up, its input comes out again, once."""
    name, expected = "residual", "a block gives its input, and what it adds"
    calls = _block_calls(subject)
    judged = [call for call in calls if call.attends]
    if not judged:
        return CheckResult(name, 2, "n/a", "no block with attention in it was seen", expected)
    told = 0
    for call in judged:
        likeness, slope = _passed_on(call)
        if likeness is None:
            continue
        told += 1
        if likeness < subject.limits.likeness:
            cause = "x = x + layer(norm(x)): the input is dropped, or replaced by what a layer makes of it"
            measured = f"what comes out has a correlation of {likeness:.2f} with what goes in"
            return CheckResult(name, 2, "warn", measured, expected, cause, call.name)
        if slope > 1.5:
            measured = (
                f"it gives its input {slope:.2g} times: {slope ** len(judged):.3g} times after {len(judged)} blocks"
            )
            return CheckResult(name, 2, "warn", measured, expected, "the input is added twice", call.name)
    if not told:
        return CheckResult(name, 2, "n/a", "no block runs with its input scaled", expected)
    growth = _rms(judged[-1].out) / max(_rms(_hidden(judged[0].args, judged[0].kwargs)), 1e-30)
    measured = f"{len(judged)} blocks pass their input on; {growth:.2g} times as large after them"
    return CheckResult(name, 2, "ok", measured, expected)


def _rms(x: Tensor | None) -> float:
    return 0.0 if x is None else float(x.double().square().mean().sqrt())


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden states that a block is given first."""
    given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    return given if given is not None and given.is_floating_point() and given.dim() == 3 else None


def _first_tensor(out: Any) -> Any:
    return next((t for t in out if isinstance(t, Tensor)), None) if isinstance(out, tuple | list) else out


def _blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules that stand in a row, and hold others; the outermost."""
    found: list[tuple[str, nn.Module]] = []
    for name, holder in module.named_modules():
        if not isinstance(holder, nn.ModuleList | nn.Sequential):
            continue
        for key, child in holder.named_children():
            if len(list(child.modules())) > 2 and not isinstance(child, nn.ModuleList | nn.ModuleDict):
                place = f"{name}.{key}" if name else key
                if not any(place.startswith(f"{outer}.") for outer, _ in found):
                    found.append((place, child))
    return found


@contextmanager
def _recorded(subject: Subject, watch: Any, calls: list[_Call]) -> Iterator[None]:
    begun: dict[int, int] = {}
    handles = []
    for name, block in _blocks(subject.awake):

        def enter(m: nn.Module, args: Any, kwargs: Any) -> None:
            begun[id(m)] = len(watch.found)

        def leave(m: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name) -> None:
            hidden, made = _hidden(args, kwargs), _first_tensor(out)
            if hidden is not None and isinstance(made, Tensor) and made.shape == hidden.shape:
                attends = len(watch.found) > begun.get(id(m), 0)
                calls.append(_Call(m, name, args, kwargs, made.detach(), attends))

        handles += [
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave, with_kwargs=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _block_calls(subject: Subject) -> list[_Call]:
    inputs = watched_inputs(subject)
    calls: list[_Call] = []
    with attended(subject.read(inputs).shape[1], inputs.input_ids.shape[1]) as watch, _recorded(subject, watch, calls):
        subject.logits(inputs)
    return calls


_LOUD = 1e4
"""Times the input of a block: what it adds behind a norm is then small beside it."""


def _passed_on(call: _Call) -> tuple[float | None, float]:
    """Correlation of a block's output with its input, at the input's own size or far larger, and the slope there."""
    hidden = _hidden(call.args, call.kwargs)
    assert hidden is not None
    loud = hidden.detach() * (_LOUD / max(_rms(hidden), 1e-30))

    def swapped(value: Any) -> Any:
        return loud if value is hidden else value

    try:
        with torch.no_grad():
            out = call.block(*map(swapped, call.args), **{k: swapped(v) for k, v in call.kwargs.items()})
    except Exception:  # noqa: BLE001  (a stranger's block may refuse other numbers: then nothing is told)
        return None, 0.0
    made = _first_tensor(out)
    if not bool(made.isfinite().all()):
        return None, 0.0
    likeness = max(_likeness(hidden, call.out), _likeness(loud, made))
    x, y = loud.double().flatten(), made.double().flatten()
    return likeness, float((x * y).sum() / (x * x).sum())


def _likeness(x: Tensor, y: Tensor) -> float:
    x, y = x.double().flatten(), y.double().flatten()
    x, y = x - x.mean(), y - y.mean()
    both = float(x.norm() * y.norm())
    return float((x * y).sum()) / both if both else 0.0


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Addresses of tensors that something else than a linear layer reads."""

    _LINEAR = ("addmm", "mm", "linear", "t", "transpose", "view", "_unsafe_view", "expand", "detach", "alias")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elsewhere: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).removeprefix("aten.").partition(".")[0] not in self._LINEAR:
            self.elsewhere |= {t.data_ptr() for t in args if isinstance(t, Tensor)}
        return func(*args, **(kwargs or {}))


def linear_layers(subject: Subject) -> CheckResult:
    """Between two linear layers stands something that is not linear."""
    name, expected = "linear layers", "an activation between two of them"
    made: dict[int, tuple[str, nn.Linear, Tensor]] = {}
    pairs: list[tuple[str, int]] = []

    def enter(m: nn.Linear, args: tuple[Any, ...], place: str) -> None:
        before = made.get(args[0].data_ptr()) if args and isinstance(args[0], Tensor) else None
        if before is None or before[2].shape != args[0].shape or before[2]._version != args[0]._version:
            return
        inner = before[1].out_features
        if inner >= min(before[1].in_features, m.out_features):  # else it is one matrix of low rank, as may be meant
            pairs.append((f"{before[0]} → {place}", args[0].data_ptr()))

    def leave(m: nn.Linear, args: tuple[Any, ...], out: Tensor, place: str) -> None:
        made[out.data_ptr()] = (place, m, out)

    handles = []
    given = [n for n, m in subject.awake.named_modules() if isinstance(m, nn.AdaptiveLogSoftmaxWithLoss)]  # torch's own
    for place, layer in subject.awake.named_modules():
        if isinstance(layer, nn.Linear) and not any(place.startswith(f"{n}.") for n in given):
            handles.append(layer.register_forward_pre_hook(partial(enter, place=place)))
            handles.append(layer.register_forward_hook(partial(leave, place=place)))
    uses = _Uses()
    try:
        with uses:
            subject.logits(watched_inputs(subject))
    finally:
        for handle in handles:
            handle.remove()
    found = [pair for pair, address in pairs if address not in uses.elsewhere]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        cause = "two matrices in a row are one matrix: an activation is missing between them, or a layer is too many"
        return CheckResult(name, 2, "warn", f"nothing stands between {found[0]}{more}", expected, cause, found[0])
    return CheckResult(name, 2, "ok", "none follows another one at once", expected)
