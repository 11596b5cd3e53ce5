"""Properties of a module measured by running it: rows of a batch, repetition, ids, masks, kind of output.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.calls.calm import calm
from anyformer.models.calls.capacity import limits, pushed_out, roomy
from anyformer.models.calls.positions import longest_sequence
from anyformer.models.calls.probing import (
    Prober,
    close,
    difference,
    high,
    target_high,
    tolerance,
)
from anyformer.models.inputs import Inputs, row
from anyformer.models.plan import Argument, CallPlan, OutputKind

__all__ = [
    "batch_finding",
    "ids_limit",
    "output_kind",
    "position_limit",
    "squashed",
]

_GROWN = 1000.0
"""Times its weights, a fresh logit of 0.001 is out of 0 … 1."""


def rows_apart(prober: Prober, plan: CallPlan) -> float | None:
    """How far a row alone differs from the row in a batch, in tolerances; where none runs alone, beside other rows.

    Dropout that is on in eval mode is passed over: alone, a row draws others. None also where a random choice stays.
    So is the capacity of experts, for which rows compete.
    """
    apart = _apart(prober, plan)
    if apart is None or apart <= 1:
        return apart
    if limits(prober.module):
        with roomy(prober.module):
            free = _apart(prober, plan)
        if free is not None and free <= 1:
            return free
    if not _draws(prober, plan):
        return apart
    with calm():
        return None if _draws(prober, plan) else _apart(prober, plan)


def _apart(prober: Prober, plan: CallPlan) -> float | None:
    T = max(2, prober.length)
    B = 3 if T != 3 else 4
    inputs = prober.inputs(plan, B, T, 3)
    together = prober.try_logits(plan, inputs)
    alone = [prober.try_logits(plan, row(inputs, i)) for i in range(B)]
    if any(a is None for a in alone):
        beside = prober.inputs(plan, B, T, 4)
        changed = [prober.try_logits(plan, _with_row(beside, inputs, i)) for i in range(B)]
        alone = [None if c is None or len(c) != B else c[i : i + 1] for i, c in enumerate(changed)]
    if together is None or any(a is None or a.shape != together[:1].shape for a in alone):
        return None
    if bool(together.isnan().any()):
        return float("inf")
    limit = tolerance(together, 1e-4)
    return max(float(difference(together[i : i + 1], a).max()) / limit for i, a in enumerate(alone) if a is not None)


def _with_row(inputs: Inputs, other: Inputs, i: int) -> Inputs:
    """The inputs with row ``i`` of others of the same shape."""
    made: dict[str, Any] = {}
    for field in fields(Inputs):
        kept, taken = getattr(inputs, field.name), getattr(other, field.name)
        made[field.name] = None if kept is None else torch.cat((kept[:i], taken[i : i + 1], kept[i + 1 :]))
    return Inputs(**made)


def _draws(prober: Prober, plan: CallPlan) -> bool:
    inputs = prober.inputs(plan, 2, max(2, prober.length), 3)
    first, other = (prober.try_logits(plan, inputs, seed=seed) for seed in (0, 1))
    return first is not None and other is not None and not close(first, other, tolerance(first, 1e-4))


def batch_finding(prober: Prober, plan: CallPlan) -> Finding:
    """Whether a row alone gives what it gives among others."""
    apart = rows_apart(prober, plan)
    order = " (ids go in as (T, B))" if plan.time_first else ""
    if apart is None:
        measured = "not measured: the rows draw at random, or their number changes what is given"
        return Finding("batch", "note", measured, "a row alone gives what it gives in a batch")
    if apart <= 1 and limits(prober.module) and ((as_it_is := _apart(prober, plan)) or 0.0) > 1:
        name = limits(prober.module)[0][1]
        measured, expected = f"a row alone differs by {as_it_is:.2g} tolerances", "the same as in a batch"
        if plan.causal and plan.family == "decoder" and pushed_out(prober, plan):
            why = f"{name}: a later token may push an earlier one out of its expert, so that the future is seen"
            return Finding("batch", "fail", measured, expected, why)
        why = f"its experts leave tokens out: a row alone = the row in a batch where {name} leaves room for all"
        return Finding("batch", "warn", measured, expected, why)
    if apart <= 1:
        return Finding("batch", "ok", f"a row alone = the row in a batch{order}")
    if place_alone(prober, plan):
        if _number_alone(prober, plan):
            measured = f"a row alone differs by {apart:.2g} tolerances from the row among others, wherever it stands"
            why = "rounding is blown up, it seems: a division by a number near 0, or a sum that cancels"
            return Finding("batch", "warn", measured, "the same as in a batch", why)
        measured = "what a row gives depends on its place in the batch, not on the other rows"
        why = "positions are added along the batch, it seems: for ids (T, B) inside they are (T, 1, D), pe[: x.size(0)]"
        return Finding("batch", "warn", measured, "the same at every place", why)
    torchs = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase)
    used = {type(m).__name__ for m in prober.module.modules() if isinstance(m, torchs) and not _batch_first(m)}
    why = "the rows see one another: "
    if used:
        why += f"torch's {' and '.join(sorted(used))} need batch_first=True for ids (B, T)"
    else:
        why += "attention, a norm or a sum goes over the batch where time is meant (an axis moved or transposed)"
    return Finding("batch", "fail", f"a row alone differs by {apart:.2g} tolerances", "the same as in a batch", why)


def _batch_first(module: nn.Module) -> bool:
    inner = getattr(module, "self_attn", module)
    return bool(getattr(inner, "batch_first", False))


def _number_alone(prober: Prober, plan: CallPlan) -> bool:
    """Whether the rows give the same in another order: then it is their number that matters."""
    inputs = prober.inputs(plan, 3, max(2, prober.length), 1)
    read = inputs.target_ids
    turned = replace(
        inputs, input_ids=inputs.input_ids.roll(1, 0), target_ids=None if read is None else read.roll(1, 0)
    )
    full, other = prober.try_logits(plan, inputs), prober.try_logits(plan, turned)
    if full is None or other is None:
        return False
    return float(difference(full.roll(1, 0), other).max()) <= tolerance(full, 1e-4)


def place_alone(prober: Prober, plan: CallPlan) -> bool:
    """Whether each row gives the same beside other rows of the same number: only where it stands can matter."""
    inputs, others = (prober.inputs(plan, 3, max(2, prober.length), seed) for seed in (1, 2))
    full = prober.try_logits(plan, inputs)
    beside = [prober.try_logits(plan, _with_row(others, inputs, i)) for i in range(3)]
    if full is None or any(logits is None for logits in beside):
        return False
    limit = tolerance(full, 1e-4)
    return all(float(difference(full[i], b[i]).max()) <= limit for i, b in enumerate(beside) if b is not None)


def output_kind(prober: Prober, plan: CallPlan) -> tuple[OutputKind, list[Finding]]:
    """What the output is, with a finding where it is normalised already."""
    inputs = prober.inputs(plan, 2, max(2, prober.length), 1)
    logits = prober.try_logits(replace(plan, kind="logits"), inputs)
    if logits is None:
        return "logits", []
    values = logits.double()
    if bool((values >= 0).all()) and bool(((values.sum(-1) - 1).abs() < 1e-3).all()):
        why = "their logarithm is used as logits; a model without the softmax at its end trains more precisely"
        return "probabilities", [Finding("output", "warn", "rows sum to 1: probabilities", "logits", why)]
    if bool((values <= 0).all()) and bool((values.logsumexp(-1).abs() < 1e-3).all()):
        why = "their cross-entropy is that of logits"
        return "log-probabilities", [Finding("output", "note", "log-probabilities", reason=why)]
    squash = squashed(prober, plan, inputs) if float(values.std()) > 0 else ""
    sigmoid = squash == "sigmoid"
    if squash == "tanh" and plan.layout == "B":
        why = "as the logit of a yes or no it gives no more than 0.73; leave the tanh out, or train a score as a score"
        return "logits", [Finding("output", "warn", "one number from -1 to 1 per text", "a logit", why)]
    if sigmoid and plan.layout == "B":
        why = "the logarithms of it and of what is left to 1 are used as logits of its two classes"
        return "probabilities", [Finding("output", "note", "one probability per text", reason=why)]
    if sigmoid:
        why = (
            "a sigmoid per class: they are used as logits, which a softmax then spreads over 0 … 1 only;"
            " leave the sigmoid out to train well"
        )
        return "logits", [Finding("output", "warn", "numbers from 0 to 1 that do not sum to 1", "logits", why)]
    return "logits", []


def squashed(prober: Prober, plan: CallPlan, inputs: Inputs) -> Literal["", "sigmoid", "tanh"]:
    """Whether all numbers stay within 0 … 1 (a sigmoid) or -1 … 1 (a tanh) when the weights that make them grow.

    Fresh logits may lie there by chance; those of weights a thousandfold do not. The weights are put back.
    """
    values = prober.try_logits(replace(plan, kind="logits"), inputs)
    if values is None or not values.numel() or not bool((values.abs() <= 1).all()):
        return ""
    grown = of_large_weights(prober, plan, inputs)
    if grown is None or bool(grown.isnan().any()) or not bool((grown.abs() <= 1).all()):
        return ""
    if not float(difference(values, grown).max()) > tolerance(values):
        return ""  # the weights that grew play no part
    return "sigmoid" if bool((values >= 0).all()) and bool((grown >= 0).all()) else "tanh"


def of_large_weights(prober: Prober, plan: CallPlan, inputs: Inputs) -> Tensor | None:
    """What comes out where the weights of the last layer are a thousandfold; they are put back."""
    named = list(prober.module.named_parameters())
    width = 1 if plan.layout == "B" else plan.vocab_size
    last = [p for _, p in named if p.is_floating_point() and p.dim() > 1 and width in p.shape]
    last = last or [p for _, p in named if p.is_floating_point() and p.dim() > 1]
    kept = [p.detach().clone() for p in last]
    try:
        with torch.no_grad():
            for p in last:
                p.mul_(_GROWN)
        return prober.try_logits(replace(plan, kind="logits"), inputs)
    finally:
        with torch.no_grad():
            for p, was in zip(last, kept, strict=True):
                p.copy_(was)


def ids_limit(prober: Prober, plan: CallPlan) -> tuple[int | None, Finding]:
    """How many ids the module can read: the rows of the embedding that sees them, else where ids start to raise."""
    rows = plan.embedding_rows
    if rows is not None:
        return rows, Finding("ids", "ok", f"0 … {rows - 1:,}", reason="rows of the embedding that receives them")
    V = plan.vocab_size
    if plan.family == "classifier":  # its classes say nothing of ids
        tables = [m.num_embeddings for m in prober.module.modules() if isinstance(m, nn.Embedding)]
        V = max(tables, default=V)
    if prober.device.type == "cpu":  # on a GPU an id out of range breaks the process
        good, bad = 1, V + 1  # id 1 ran when the call was found
        sample = prober.inputs(plan, 2, prober.fixed or max(2, min(4, prober.length)), 1)

        def runs(id_: int) -> bool:
            given = replace(sample, input_ids=torch.full_like(sample.input_ids, id_))
            return prober.try_logits(plan, given) is not None

        if not runs(V):
            good, bad = (V - 1, V) if runs(V - 1) else (1, V - 1)
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (middle, bad) if runs(middle) else (good, middle)
            T = sample.input_ids.shape[1]
            longer = torch.full((2, 2 * T + 1), bad, dtype=torch.int64)
            # a limit of the vocabulary stays where the texts are longer, one of their length does not
            if good <= T < V - 1 and prober.try_logits(plan, Inputs(longer)) is not None:
                why = f"{bad:,} raises at T = {T}: a token is read as a length or a place, not as a word"
                return bad, Finding("ids", "fail", f"0 … {good:,}", f"0 … {V - 1:,}", why)
            return bad, Finding("ids", "ok", f"0 … {good:,}", reason=f"{good:,} runs, {bad:,} raises")
    return None, Finding("ids", "note", "no limit found", reason="no nn.Embedding receives the ids")


def position_limit(prober: Prober, plan: CallPlan, position_rows: list[int]) -> tuple[int | None, Finding]:
    """The longest T (and S) that runs, where one more raises."""
    if prober.fixed is not None:
        T, packs = prober.fixed, plan.family in ("decoder", "encoder")
        why = f"its forward runs at T = {T:,} alone: " + (f"blocks of {T:,} tokens" if packs else "texts are padded")
        return T, Finding("positions", "warn", f"exactly {T:,}; others fail", "shorter ones run", why)
    if plan.graph is not None and plan.graph.positions is not None:
        rows = plan.graph.positions
        return rows, Finding("positions", "ok", f"up to {rows:,}", reason="rows of its position embedding")
    if prober.device.type != "cpu":  # a position out of range breaks a GPU process: measured on a copy on the CPU
        try:
            prober = Prober(copy.deepcopy(prober.module).cpu())
        except Exception as error:  # noqa: BLE001  (a stranger's module may refuse in any way)
            return None, Finding("positions", "note", "not measured", reason=f"no copy on the CPU: {error}")
    unlimited = replace(plan, max_positions=None)

    def runs(ids: Tensor) -> bool:
        inputs = Inputs(ids)
        if plan.layout == "last":  # one call tells
            return prober.run(unlimited, inputs)[1] is None
        if plan.family == "encoder_decoder":
            inputs = Inputs(ids, target_ids=prober.ids(ids.shape[0], ids.shape[1], 6, target_high(plan)))
        return prober.try_logits(unlimited, inputs) is not None

    return longest_sequence(prober, plan, position_rows, high(plan), runs)


def rows_finding(plan: CallPlan) -> list[Finding]:
    """How many rows go in at a time, of a module that runs with one number of them alone."""
    N = plan.only_rows
    if N is None:
        return []
    why = f"its forward runs with {N:,} rows alone: fewer are filled up, at the cost of {N:,} → --batch_size {N}"
    return [Finding("batch size", "warn", f"exactly {N:,}; others fail", "any number of rows runs", why)]


def argument_of(plan: CallPlan) -> Argument | None:
    """The padding mask as an argument."""
    if plan.mask_arg is None:
        return None
    return Argument(plan.mask_arg, "mask", plan.mask_shape, plan.mask_dtype, plan.mask_form)
