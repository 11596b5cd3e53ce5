"""Properties of a module measured by running it: causality, batch rows, positions, ids, mask, kind of output.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.plan import CallPlan, OutputKind, call_logits
from anyformer.models.positions import longest_sequence
from anyformer.models.probing import Binding, Prober

_TOLERANCE = 1e-5  # of the largest logit: float32 carries 1.2e-7, summed over a few layers
_BATCHES = ((12, 1), (12, 2), (33, 1))  # T and seed; a leak may need a block of 16 or 32 tokens to be filled


def difference(first: Tensor, second: Tensor) -> Tensor:
    """Largest |difference| over V, (B, T); equal infinities differ by nothing."""
    return torch.where(first == second, 0.0, (first.double() - second.double()).abs()).nan_to_num(posinf=1e30).amax(-1)


def tolerance(logits: Tensor, share: float = _TOLERANCE) -> float:
    """Absolute tolerance for logits of this size and number format.

    The size is that of the usual logit: one column at -1e9 (a masked part of the vocabulary) must not excuse the rest.
    """
    finite = logits[logits.isfinite() & (logits != 0)].abs()
    scale = min(float(finite.max()), 10 * float(finite.median())) if finite.numel() else 1.0
    return scale * max(share, 4 * torch.finfo(logits.dtype).eps)


def _high(plan: CallPlan) -> int:
    return min(plan.vocab_size, plan.embedding_rows or plan.vocab_size)


def _logits(prober: Prober, plan: CallPlan, ids: Tensor) -> Tensor | None:
    """Logits, or None where the module refuses this batch."""
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            logits = call_logits(prober.module, plan, ids)
    except Exception:  # noqa: BLE001  (a stranger's forward may raise anything; None says that it refused)
        return None
    return logits if logits.shape[-1] == plan.vocab_size else None


def causality(prober: Prober, plan: CallPlan) -> tuple[bool, list[Finding]]:
    """Whether a token can change logits before it (it must not), and whether it changes logits after it."""
    worst, size, at, checked, past = 0.0, 0.0, (0, 0, 0, 0), 0, False
    for T, seed in _BATCHES:
        ids = prober.ids(2, T, seed, _high(plan))
        base = _logits(prober, plan, ids)
        if base is None:
            continue
        for t in sorted({1, T // 2, T - 1}):
            other = _logits(prober, plan, _changed(ids, t, _high(plan)))
            if other is None:
                continue
            moved = difference(base, other).amax(0)
            checked += 1
            past = past or bool((moved[t + 1 :] > 0).any())
            share = float(moved[:t].max()) / tolerance(base)
            if share > max(1.0, worst):
                worst, size = share, float(moved[:t].max())
                at = (t, int(moved[:t].argmax()), int((moved[:t] > tolerance(base)).sum()), T)
    if checked == 0:  # T is below 12: the shortest sizes at which the call was found
        return _short_causality(prober, plan)
    if worst > 0:
        t, s, count, length = at
        measured = (
            f"changing token {t} of {length} changes the logits at {count} earlier positions,"
            f" most at {s} (by {size:.2g}; must be 0)"
        )
        why = "trained on the next token it would learn to copy it: a causal mask is missing, or this is an encoder"
        return False, [Finding("causality", "warn", measured, "no change before the changed token", why)]
    findings = [Finding("causality", "ok", f"no logit before a changed token moves ({checked} pairs of batches)")]
    if not past:
        why = "each position sees only its own token: nothing but token pairs can be learned"
        findings.append(Finding("past", "warn", "no logit after a changed token moves", "later logits react", why))
    return True, findings


def _short_causality(prober: Prober, plan: CallPlan) -> tuple[bool, list[Finding]]:
    ids = prober.ids(4, 3, 1, _high(plan))
    base, other = _logits(prober, plan, ids), _logits(prober, plan, _changed(ids, 2, _high(plan)))
    if base is None or other is None:
        raise CallError("causality could not be measured: the model refuses a second batch of the same shape")
    leak = float(difference(base, other)[:, :2].max())
    if leak > tolerance(base):
        return False, [Finding("causality", "warn", f"changing token 2 moves earlier logits by {leak:.2g}", "0")]
    return True, [Finding("causality", "ok", "no logit before a changed token moves", reason="measured at T = 3 only")]


def _changed(ids: Tensor, t: int, high: int) -> Tensor:
    """The same ids with another token at t in every row."""
    low = 1 if high > 2 else 0
    other = ids.clone()
    other[:, t] = low + (ids[:, t] - low + max(1, (high - low) // 2)) % (high - low)
    return other


def batch_finding(prober: Prober, plan: CallPlan) -> Finding:
    """Whether a row alone gives what it gives among others."""
    ids = prober.ids(3, prober.length, 3, _high(plan))
    together = _logits(prober, plan, ids)
    alone = [_logits(prober, plan, ids[i : i + 1]) for i in range(3)]
    if together is None or any(a is None for a in alone):
        return Finding("batch", "note", "a single row could not be run", "a row alone gives what it gives in a batch")
    worst = max(float(difference(together[i : i + 1], a).max()) for i, a in enumerate(alone) if a is not None)
    if worst <= tolerance(together, 1e-4):
        return Finding("batch", "ok", f"a row alone = the row in a batch ({worst:.0e})")
    why = "the rows see one another; nn.MultiheadAttention and nn.TransformerEncoderLayer need batch_first=True"
    return Finding("batch", "fail", f"a row alone differs by {worst:.2g}", "the same logits as in a batch", why)


def repeat_finding(prober: Prober, plan: CallPlan) -> Finding:
    """Whether eval mode gives the same logits twice, without the random state being reset."""
    ids = prober.ids(2, 3, 4, _high(plan))
    first = _logits(prober, plan, ids)
    with torch.no_grad():
        second = call_logits(prober.module, plan, ids) if first is not None else None
    if first is None or second is None:
        return Finding("repeat", "note", "not measured: the model refuses T = 3")
    worst = float(difference(first, second).max())
    if worst <= tolerance(first):
        return Finding("repeat", "ok", "the same ids give the same logits twice")
    why = "dropout that ignores eval mode, or a state kept between calls"
    return Finding("repeat", "warn", f"the logits differ by {worst:.2g} at the second call", "equal", why)


def output_kind(prober: Prober, plan: CallPlan) -> tuple[OutputKind, list[Finding]]:
    """What the output is, with a finding where it is normalised already."""
    logits = _logits(prober, plan, prober.ids(2, prober.length, 1, _high(plan)))
    if logits is None:
        return "logits", []
    values = logits.double()
    if bool((values >= 0).all()) and bool(((values.sum(-1) - 1).abs() < 1e-3).all()):
        why = "their logarithm is used as logits; a model without the softmax at its end trains more precisely"
        return "probabilities", [Finding("output", "warn", "rows sum to 1: probabilities", "logits", why)]
    if bool((values <= 0).all()) and bool((values.logsumexp(-1).abs() < 1e-3).all()):
        why = "their cross-entropy is that of logits"
        return "log-probabilities", [Finding("output", "note", "log-probabilities", reason=why)]
    return "logits", []


def mask_finding(prober: Prober, plan: CallPlan, name: str) -> tuple[bool, Finding]:
    """Whether ones (B, T) int64 change nothing and a zero hides its token from the others."""
    masked = replace(plan, mask_arg=name)
    ids = prober.ids(2, prober.length, 1, _high(plan))
    ones = torch.ones_like(ids)
    unused = "not used; packed batches have no padding, so none is needed"
    plain = _logits(prober, plan, ids)
    targets = ids if plan.needs_targets else None
    binding = Binding(plan.token_arg, name, plan.targets_arg)
    _, error = prober.run(binding, ids, mask=ones, targets=targets)
    if error is not None or plain is None:
        why = (
            f"it takes no (B, T) mask of ones: {blame(error)}" if error is not None else "the model refuses this batch"
        )
        return False, Finding("mask", "note", f"{name} is {unused}", reason=why)
    with torch.no_grad():
        same = float(difference(plain, call_logits(prober.module, masked, ids, ones)).max())
        if not same <= tolerance(plain):
            why = f"a mask of ones moves the logits by {same:.2g}"
            return False, Finding("mask", "note", f"{name} is {unused}", "ones change nothing", why)
        hidden = ones.clone()
        hidden[:, 1] = 0  # not the first: a causal row that sees nothing at all gives NaN
        pair = [call_logits(prober.module, masked, i, hidden) for i in (ids, _changed(ids, 1, _high(plan)))]
    moved = difference(*pair)[:, [t for t in range(ids.shape[1]) if t != 1]]
    if bool(pair[0][:, 2:].isnan().any()) or float(moved.max()) > tolerance(plain):
        return False, Finding("mask", "note", f"{name} is {unused}", "a 0 hides its token", "a 0 does not hide it")
    return True, Finding("mask", "ok", f"{name} (B, T), 1 = keep", reason="ones change nothing, a 0 hides its token")


def ids_limit(prober: Prober, plan: CallPlan) -> tuple[int | None, Finding]:
    """How many ids the module can read: the rows of the embedding that sees them, else where ids start to raise."""
    rows = plan.embedding_rows
    if rows is not None:
        return rows, Finding("ids", "ok", f"0 … {rows - 1:,}", reason="rows of the embedding that receives them")
    V = plan.vocab_size
    if prober.device.type == "cpu":  # on a GPU an id out of range breaks the process
        good, bad = 1, V + 1  # id 1 ran when the call was found

        def runs(id_: int) -> bool:
            return _logits(prober, plan, torch.full((2, 2), id_)) is not None

        if not runs(V):
            good, bad = (V - 1, V) if runs(V - 1) else (1, V - 1)
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (middle, bad) if runs(middle) else (good, middle)
            return bad, Finding("ids", "ok", f"0 … {good:,}", reason=f"{good:,} runs, {bad:,} raises")
    return None, Finding("ids", "note", "no limit found", reason="no nn.Embedding receives the ids")


def position_limit(prober: Prober, plan: CallPlan, position_rows: list[int]) -> tuple[int | None, Finding]:
    """The longest T that runs, where one more raises."""
    if prober.device.type != "cpu":  # a position out of range breaks a GPU process: measured on a copy on the CPU
        try:
            prober = Prober(copy.deepcopy(prober.module).cpu())
        except Exception as error:  # noqa: BLE001  (a stranger's module may refuse in any way)
            return None, Finding("positions", "note", "not measured", reason=f"no copy on the CPU: {error}")
    return longest_sequence(
        prober, plan, position_rows, _high(plan), lambda ids: _logits(prober, plan, ids) is not None
    )
