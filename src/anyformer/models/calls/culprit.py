"""Which part of a module lets the future through, and what there is to do about it, in words.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.models.calls.causal import Leak
from anyformer.models.calls.evidence import Evidence
from anyformer.models.calls.hiding import looks_ahead_alone
from anyformer.models.calls.names import held, hint
from anyformer.models.calls.origins import Trace
from anyformer.models.calls.precise import eager
from anyformer.models.calls.probing import Prober, changed_inputs, readable, tolerance
from anyformer.models.calls.properties import rows_apart
from anyformer.models.plan import CallPlan

_SWITCH = re.compile(
    r"(is_|use_)?causal|(use_)?causal_mask|autoregressive|auto_regressive|unidirectional|masked|is_decoder"
)
_BOTH_WAYS = re.compile(r"(is_)?bidirectional|bi_?directional|bidirection")
_ATTENTION = re.compile(r"[aA]tt(entio)?n|[aA]tt(?![a-z])|MHA|MHSA|Transformer|Block|Head")
_SMALL = 1e-2
"""Of the usual logit: what so little tells is hardly worth copying."""
_LENGTHS = (13, 11, 14, 9, 22)
MISSING = "a causal mask is missing"
LETS_IN = "lets later positions into earlier ones"
TURNED = "its mask is the wrong way round, and hides earlier ones"
COPY = "trained on the next token it would learn to copy it"

Seen = list[tuple[str, list[Tensor], list[Tensor]]]


def no_past_reason(prober: Prober, plan: CallPlan, *, insisted: bool) -> str:
    """Why a model whose logits depend on no earlier token is at fault; "" where it was made so, as a bigram model is.

    insisted: the user named the family or the objective.
    """
    if plan.packed or any(hint(a.name) == "cache" for a in plan.extras):
        return "it reads one token at a time, with a state that its caller carries: what was taken for time is a batch"
    inputs = prober.inputs(plan, *prober.sizes[0][:2], 0)
    with Trace((inputs.input_ids,)) as trace:
        prober.run(plan, inputs)
    if insisted or not trace.attends or (rows_apart(prober, plan) or 0.0) > 1:
        return ""  # rows that see one another are told of by themselves
    return (
        "it attends, yet no token reads another: heads attend to each other where queries stay (B, T, heads, size);"
        " turn them by transpose(1, 2) before queries @ keys"
    )


def leak_reason(prober: Prober, plan: CallPlan, leak: Leak, evidence: Evidence, *, ways_on: bool = True) -> str:
    """Why it leaks, as far as it can be known, and, where asked for, the flags of ``train`` that go on: one line."""
    part = leaking_part(prober, plan, leak)
    size = _size(prober, plan, leak)
    lines = [f"small: {leak.size:.2g} of logits of about {size:.2g}, yet a leak" if leak.size < _SMALL * size else COPY]
    lines += [_words(*part)] if part else [] if lines[0] != COPY else [f"{MISSING}, or this is an encoder"]
    turned = looks_ahead_alone(prober, plan)
    if turned:
        lines[-1] = _turned(part)
    switch = causal_setting(prober.module)
    lines += [f"its constructor has a switch: {switch} in config.json"] if switch else []
    against = [f"a decoder: {e}" for e in evidence.decoder[:1]] + [
        f"for another objective: {e}" for e in evidence.neither[:1]
    ]
    lines[-1] += f" ({', '.join(against)})" if against else ""
    if not ways_on:
        return "; ".join(lines)
    masked = [] if evidence.neither or turned else ["--objective masked trains it as an encoder"]
    mended = ["anyformer repair proposes a mask"] if "causal mask" in " ".join(lines) else []
    return "; ".join([*lines, ", ".join(["--objective causal trains it as it is", *masked, *mended])])


def leaking_part(prober: Prober, plan: CallPlan, leak: Leak) -> tuple[str, nn.Module, bool] | None:
    """The innermost module whose output before the changed token moves while what goes in there does not.

    Also whether something without an axis of time goes in, and moves: a state, a mean of the text.
    """
    if plan.graph is not None or plan.packed or plan.family == "encoder_decoder":
        return None
    leak = _told_apart(prober, leak)
    inputs = prober.inputs(plan, 3 if leak.T != 3 else 2, leak.T, 1, leak.T)
    with eager(prober.module):
        base = _watched(prober, plan, inputs)
        other = _watched(prober, plan, changed_inputs(prober, plan, inputs, leak.changed))
    parts = dict(prober.module.named_modules())
    for (name, given, made), (again, given_2, made_2) in zip(base, other, strict=False):
        if name != again:
            return None
        before = any(_before(a, b, leak) for a, b in zip(given, given_2, strict=False))
        if given and not before and any(_before(a, b, leak) for a, b in zip(made, made_2, strict=False)):
            whole = any(_whole(a, b, leak) for a, b in zip(given, given_2, strict=False))
            return name, parts[name], whole
    return None


def _told_apart(prober: Prober, leak: Leak) -> Leak:
    """The same leak at a length that no axis of a weight has, so that the axis of time is known by its size."""
    sizes = {n for p in prober.module.parameters() for n in p.shape}
    T = next((T for T in (leak.T, *_LENGTHS) if T not in sizes), leak.T)
    if T == leak.T or prober.fixed is not None:
        return leak
    return replace(leak, T=T, changed=max(1, T - (leak.T - leak.changed)))


def _watched(prober: Prober, plan: CallPlan, inputs: Any) -> Seen:
    """What went in and came out of each module, in the order in which they end."""
    seen: Seen = []

    def tensors(values: Any) -> list[Tensor]:
        values = values if isinstance(values, list | tuple) else [values]
        return [v.detach().clone() for v in values if isinstance(v, Tensor) and readable(v) and v.dim() > 1]

    def hook(name: str) -> Any:
        def look(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen.append((name, tensors([*args, *kwargs.values()]), tensors(output)))

        return look

    parts = prober.module.named_modules()
    handles = [m.register_forward_hook(hook(n), with_kwargs=True) for n, m in parts if n]
    try:
        prober.run(plan, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _before(first: Tensor, second: Tensor, leak: Leak) -> bool:
    """Whether two tensors with an axis of time differ before the changed token."""
    if first.shape != second.shape or leak.T not in first.shape:
        return False
    axes = [axis for axis in (1, 0, *range(2, first.dim())) if axis < first.dim() and first.shape[axis] == leak.T]
    early = [t.narrow(axes[0], 0, leak.changed) for t in (first, second)]
    moved = (early[0].double() - early[1].double()).abs().nan_to_num(nan=0.0)
    return bool(moved.numel()) and float(moved.max()) > tolerance(first)


def _whole(first: Tensor, second: Tensor, leak: Leak) -> bool:
    """Whether two tensors without an axis of time differ."""
    if first.shape != second.shape or leak.T in first.shape:
        return False
    return float((first.double() - second.double()).abs().nan_to_num(nan=0.0).max()) > tolerance(first)


def _words(name: str, part: nn.Module, whole: bool) -> str:
    kind = f"{name} ({type(part).__name__})"
    if whole:
        return f"into {kind} goes what was computed from the whole text"
    if isinstance(part, nn.RNNBase) and part.bidirectional:
        return f"{kind} reads from the end, too: bidirectional=False"
    if isinstance(part, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        return f"{kind} takes its mean over all of time: nn.LayerNorm in its place"
    if isinstance(part, nn.Conv1d):
        reach = (part.kernel_size[0] - 1) * part.dilation[0]
        return f"{kind} sees tokens ahead of its own: pad {reach} on the left alone, nothing on the right"
    if isinstance(part, nn.MultiheadAttention) or _ATTENTION.search(type(part).__name__):
        return f"in {kind} each position sees later ones: {MISSING}"
    return f"{kind} {LETS_IN}"


def _turned(part: tuple[str, nn.Module, bool] | None) -> str:
    where = f"in {part[0]} ({type(part[1]).__name__})" if part else "in attention"
    return f"{where} each position sees later ones: {TURNED}"


def causal_setting(module: nn.Module) -> str:
    """A switch of the constructor that is not set to what makes a module causal: {"causal": true}; "" without one."""
    module = getattr(module, "_orig_mod", module)
    config = held(module, "config")
    try:
        known = {n: p.default for n, p in inspect.signature(type(module).__init__).parameters.items()}
    except (TypeError, ValueError):
        known = {}
    known |= {k: v for k, v in getattr(config, "__dict__", {}).items() if isinstance(v, bool)}
    for name, default in known.items():
        value = held(module, name)
        value = value if isinstance(value, bool) else default
        if _SWITCH.fullmatch(name) and value is not True and isinstance(value, bool):
            return f'{{"{name}": true}}'
        if _BOTH_WAYS.fullmatch(name) and value is not False and isinstance(value, bool):
            return f'{{"{name}": false}}'
    return ""


def _size(prober: Prober, plan: CallPlan, leak: Leak) -> float:
    """The usual |logit|."""
    logits = prober.try_logits(plan, prober.inputs(plan, 2, leak.T, 1, leak.T))
    finite = torch.zeros(0) if logits is None else logits[logits.isfinite() & (logits != 0)].abs()
    return float(finite.median()) if finite.numel() else 0.0
