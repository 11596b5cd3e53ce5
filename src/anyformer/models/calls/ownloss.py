"""The module's own loss against ours: which logits it compares with which targets, and what else is in it.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.calling import arguments, call_logits, oriented
from anyformer.models.calls.names import hint, parameters_of
from anyformer.models.calls.probing import Prober, high, seeded, target_high, tensors_in
from anyformer.models.inputs import Inputs
from anyformer.models.losstap import LossTap
from anyformer.models.objectives import IGNORE_INDEX, causal_lm_loss
from anyformer.models.plan import CallPlan

_SAME = 2e-7  # of the loss: two float32 sums of the same numbers
_CLOSE = 1e-5  # of the loss: the same sum in another order
_ROUNDING = 5e-7  # of a difference of two losses
_IN_PLACE = ("labels", "mlm_labels", "masked_lm_labels", "lm_labels", "label")
"""Hugging Face's word: labels lie on their tokens, unshifted."""
_AUXILIARY = re.compile(r"aux|balanc|router|z_loss|commit|temperature|scale")


@dataclass(frozen=True)
class OwnLoss:
    """What the module's own loss is."""

    targets_arg: str | None
    findings: tuple[Finding, ...]
    in_place: bool = False
    """Whether it compares logits[t] with labels[t], of an argument that takes labels unshifted (masked LM)."""


@dataclass(frozen=True)
class _Call:
    loss: Tensor
    targets: Tensor


def own_loss(prober: Prober, plan: CallPlan) -> OwnLoss:
    """Compare it on two batches with the house's loss on the same logits."""
    name = _targets_name(prober, plan)
    if plan.layout == "last":
        return OwnLoss(None, ())  # of one token per text
    if plan.family == "classifier" or plan.graph is not None or plan.methods:
        return OwnLoss(name, _classes(prober, plan, name))
    length = plan.target_arg if name is not None and name == plan.target_arg else None
    calls: list[_Call] = []
    error: Exception | None = None
    B, T, S = prober.sizes[0]
    inputs = prober.inputs(plan, plan.only_rows or B, T, 11, S)  # rows that are repeated would count twice
    for low in (1, 0):
        read = inputs.target_ids if inputs.target_ids is not None else inputs.input_ids
        below = target_high(plan) if inputs.target_ids is not None else high(plan)
        targets = read if name is None or length else prober.ids(read.shape[0], read.shape[1], 23 + low, below, low=low)
        if low == 0 and name is not None and not length:
            targets = targets.clone()
            targets[:, 1] = 0
        call, error = _run(prober, plan, inputs, name, targets)
        if call is not None:
            calls.append(call)
    if error is not None and not calls and name is not None:
        used = plan.needs_targets
        why = f"it fails with them: {blame(error)}"
        about = Finding("targets", "note", f"{name} is not used", reason=why)
        return OwnLoss(name if used else None, () if used else (about,))
    about_targets = _targets_finding(prober, plan, name, inputs)
    if not calls:
        return OwnLoss(name, about_targets)
    finding, in_place = _compare(prober, plan, inputs, calls, name)
    if finding is not None and finding.verdict == "ok" and not _trains(prober, plan, inputs, name, calls[0].targets):
        why = "loss.item(), detach() or no_grad: whoever calls backward() on it trains nothing; ours is computed anew"
        finding = Finding("own loss", "warn", "its own loss has no gradient", "one for each weight", why)
    return OwnLoss(name, (*about_targets, finding) if finding else about_targets, in_place)


def _trains(prober: Prober, plan: CallPlan, inputs: Inputs, name: str | None, targets: Tensor) -> bool:
    """Whether a gradient of its own loss reaches any weight; True where it has none that could."""
    weights = [p for p in prober.module.parameters() if p.requires_grad]
    if not weights:
        return True
    with torch.enable_grad():
        call, _ = _run(prober, plan, inputs, name, targets, graph=True)
        if call is None:
            return True
        if not call.loss.requires_grad:
            return False
        try:
            found = torch.autograd.grad(call.loss, weights, allow_unused=True)
        except RuntimeError:  # a backward pass that raises is told by itself
            return True
        return any(g is not None for g in found)


def _targets_name(prober: Prober, plan: CallPlan) -> str | None:
    if plan.targets_arg is not None or plan.graph is not None or plan.methods:
        return plan.targets_arg
    compared = [a.name for a in plan.extras if a.role == "target_ids"]
    names = compared + [p.name for p in parameters_of(prober.module) if hint(p.name) == "targets"]
    return next((n for n in names if n not in (plan.token_arg.lstrip("*"), plan.target_arg)), None)


def _targets_finding(prober: Prober, plan: CallPlan, name: str | None, inputs: Inputs) -> tuple[Finding, ...]:
    if name is None:
        return ()
    if any(a.name == name and a.role == "target_ids" for a in plan.extras):
        return (Finding("targets", "ok", f"{name} (B, S) int64", reason="any do: the loss alone compares with them"),)
    if plan.needs_targets:
        why = "without them it gives no logits for every position"
        return (Finding("targets", "ok", f"{name} (B, T) int64", reason=why),)
    return (
        Finding("targets", "note", f"{name} exists and is not needed", reason="the loss is computed from the logits"),
    )


def _run(
    prober: Prober, plan: CallPlan, inputs: Inputs, name: str | None, targets: Tensor, *, graph: bool = False
) -> tuple[_Call | None, Exception | None]:
    """The scalar that the module gives with these targets; with the graph of its backward pass where asked for."""
    bare = replace(plan, needs_targets=False)
    given = arguments(bare, inputs)
    if name is not None and name != plan.target_arg:
        given[name] = oriented(plan, targets)
    module = prober.module
    before = {k: id(v) for k, v in vars(module).items()}
    seeded()
    try:
        with torch.set_grad_enabled(graph), LossTap(module):
            ids = oriented(plan, inputs.input_ids)
            if plan.token_arg.startswith("*"):
                output = module(ids, **given)
            else:
                output = module(**{plan.token_arg: ids}, **given)
    except Exception as error:  # noqa: BLE001  (a stranger's forward may raise anything; the caller reports it)
        return None, error
    set_now = {k: v for k, v in vars(module).items() if before.get(k) != id(v) and "loss" in k}
    loss = _scalar(output) if _scalar(output) is not None else _scalar(set_now)
    return (None if loss is None else _Call(loss, targets)), None


def _scalar(output: Any) -> Tensor | None:
    scalars = [(path, t) for path, t in tensors_in(output) if t.numel() == 1 and t.dim() <= 1]
    scalars = [(path, t) for path, t in scalars if not any(_AUXILIARY.search(str(step)) for step in path)]
    named = [t for path, t in scalars if path and str(path[-1]) in ("loss", "lm_loss", "total_loss")]
    found = [*named, *[t for _, t in scalars]]
    return found[0].reshape(()) if found else None


def _compare(
    prober: Prober, plan: CallPlan, inputs: Inputs, calls: list[_Call], name: str | None
) -> tuple[Finding | None, bool]:
    with torch.no_grad():
        seeded()
        logits = call_logits(prober.module, plan, inputs.input_ids, target_ids=inputs.target_ids)
    if not bool(logits.isfinite().all()) and plan.kind != "log-probabilities":
        logits = logits.clamp_min(-1e30)
    in_place = [_in_place(prober, plan, inputs, logits, c.targets) for c in calls]
    shifted = [causal_lm_loss(logits, c.targets) for c in calls]
    both = {"caller": in_place, "inside": shifted}
    apart = {s: max(_apart(c.loss, o) for c, o in zip(calls, ours, strict=True)) for s, ours in both.items()}
    if max(apart.values()) <= _CLOSE:
        why = "its logits are nearly equal before any training: every shift of the targets gives the same loss"
        return Finding("own loss", "note", "cannot be told from ours, shifted or not", reason=why), False
    for shift, far in apart.items():
        if far <= _CLOSE:
            return _equal(plan, name, shift, far)
    if _apart(calls[0].loss, in_place[0]) <= _CLOSE or _apart(calls[0].loss, shifted[0]) <= _CLOSE:
        shift = "caller" if _apart(calls[0].loss, in_place[0]) <= _CLOSE else "inside"
        finding, place = _equal(plan, name, shift, 0.0)
        why = "it leaves out targets of id 0, as padding; ours counts every target that is not -100"
        return replace(finding, verdict="note" if finding.verdict == "ok" else finding.verdict, reason=why), place
    return _other_formula(plan, logits, calls, both, name)


def _in_place(prober: Prober, plan: CallPlan, inputs: Inputs, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the targets as they were given, each with the logits of its own place."""
    if plan.alignment == "own":
        with torch.no_grad():
            seeded()
            raw = replace(plan, alignment="next")
            logits = call_logits(prober.module, raw, inputs.input_ids, target_ids=inputs.target_ids)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    # the house's own function, told what follows: label t + 1 is target t
    labels = torch.cat([targets[:, :1], targets[:, :-1]], dim=1)
    return causal_lm_loss(logits, labels, targets[:, -1])


def _apart(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).abs() / second.double().abs().clamp_min(1e-9))


def _equal(plan: CallPlan, name: str | None, shift: str, apart: float) -> tuple[Finding, bool]:
    digits = "2e-7" if apart <= _SAME else f"{max(apart, _SAME):.0e}"
    if shift == "inside":
        return Finding("own loss", "ok", f"equals ours to {digits} (targets shifted inside)"), False
    if plan.alignment == "own":
        return Finding("own loss", "ok", f"equals ours to {digits} (the input is shifted right inside)"), False
    if name is None:
        copy = "its own loss trains a copy: it compares logits[t] with token t, which it has read"
        why = "ours compares them with token t + 1; its formula is not used"
        return Finding("own loss", "warn", copy, "targets shifted by one", why), False
    if name in _IN_PLACE and plan.family != "encoder_decoder":
        if not plan.causal:
            words = f"equals ours to {digits} on {name} that lie on their tokens (unshifted: masked LM)"
            return Finding("own loss", "ok", words), True
        copy = f"its own loss trains a copy: {name} are neither shifted inside nor, by their name, by the caller"
        why = "ours shifts them once; given shifted ones its formula equals ours"
        return Finding("own loss", "warn", copy, "targets shifted by one", why), True
    return Finding("own loss", "ok", f"equals ours to {digits} (targets shifted by the caller)"), False


def _other_formula(
    plan: CallPlan, logits: Tensor, calls: list[_Call], both: dict[str, list[Tensor]], name: str | None
) -> tuple[Finding | None, bool]:
    """Label smoothing, a sum, an auxiliary loss; else only that it differs."""
    call = calls[0]
    words = {"caller": "targets shifted by the caller", "inside": "targets shifted inside"}
    for shift, ours in both.items():
        rows = logits if shift == "caller" else logits[:, :-1]
        if (share := _smoothing(rows, calls, ours)) is not None:
            text = f"ours with label smoothing {share:.3g} ({words[shift]})"
            return Finding("own loss", "note", text, reason="--label_smoothing sets it here"), False
        count = rows.shape[0] * rows.shape[1]
        if _apart(call.loss, ours[0] * count) <= _CLOSE:
            text = f"ours times {count}: a sum over the targets ({words[shift]})"
            return Finding("own loss", "note", text, reason="ours is the mean"), False
        extra = [float(c.loss - o) for c, o in zip(calls, ours, strict=True)]
        if len(extra) > 1 and abs(extra[0] - extra[1]) < 1e-5 * abs(float(call.loss)) and extra[0] > 0:
            text = f"ours + {extra[0]:.3g}, which the targets do not change: an auxiliary loss ({words[shift]})"
            return Finding("own loss", "warn", text, "ours", "it is not part of ours, and so is not trained"), False
    if (other := _other_targets(plan, logits, calls)) is not None:
        return other, False
    if name is None:
        return None, False
    measured = f"{float(call.loss):.4f}, ours {float(both['inside'][0]):.4f} or {float(both['caller'][0]):.4f}"
    why = "another formula, or other targets; training uses ours, of the same logits"
    return Finding("own loss", "warn", measured, "equal", why), False


def _smoothing(rows: Tensor, calls: list[_Call], ours: list[Tensor]) -> float | None:
    """The label smoothing, in hundredths or thousandths, that makes our losses of rows (B, T, V) theirs, each of them.

    A fresh module's losses are nearly those of even guesses: what rounding leaves open is not read as a share.
    """
    spread = -rows.double().log_softmax(-1).mean()
    unsure = _ROUNDING * float(spread)
    pairs = [(float(c.loss - own), float(spread - own)) for c, own in zip(calls, ours, strict=True)]
    if not all(math.isfinite(number) for pair in pairs for number in pair):
        return None
    more, most = max(pairs, key=lambda pair: abs(pair[1]))
    for grid in (100, 1000):
        if abs(most) < 20 * unsure * grid:
            break
        share = round(more / most * grid) / grid
        if 0 < share < 0.5 and all(abs(gain - share * whole) < unsure for gain, whole in pairs):
            return share
    return None


def _other_targets(plan: CallPlan, logits: Tensor, calls: list[_Call]) -> Finding | None:
    """Whether it compares logits[t] with a target further off, or with the id beside it."""
    V = plan.vocab_size
    for ahead in (0, 1, -1, 2, -2, 3):
        for offset in (0, 1, -1):
            if all(_apart(c.loss, _ahead(logits, (c.targets + offset) % V, ahead)) <= _CLOSE for c in calls):
                place = f"target t {'+' if ahead > 0 else '-'} {abs(ahead)}" if ahead else "target t"
                text = f"it compares logits[t] with {place}" + (f", id {offset:+d}" if offset else "")
                why = "what it was written to predict is not the token that follows; ours compares with token t + 1"
                return Finding("own loss", "warn", text, "targets shifted by one", why)
    return None


def _ahead(logits: Tensor, targets: Tensor, ahead: int) -> Tensor:
    """Mean cross-entropy of logits[t] and target t + ahead, over the places that have both; infinite where none has."""
    T = min(logits.shape[1], targets.shape[1])
    low, high_ = max(0, -ahead), min(T, T - ahead)
    if high_ <= low:
        return logits.new_tensor(torch.inf)
    return F.cross_entropy(logits[:, low:high_].flatten(0, 1), targets[:, low + ahead : high_ + ahead].flatten())


def _classes(prober: Prober, plan: CallPlan, name: str | None) -> tuple[Finding, ...]:
    """Of a classifier: its loss on labels (B,)."""
    if plan.family != "classifier" or name is None:
        return ()
    B, T, _ = prober.sizes[0]
    inputs = prober.inputs(plan, plan.only_rows or B, T, 11)
    labels = prober.ids(1, len(inputs.input_ids), 3, plan.vocab_size, low=0)[0]
    tap, bare = LossTap(prober.module), arguments(replace(plan, needs_targets=False), inputs)

    def given(labels: Tensor) -> Any:
        seeded()
        ids = oriented(plan, inputs.input_ids)
        with torch.no_grad(), tap:
            if plan.token_arg.startswith("*"):
                return prober.module(ids, **{**bare, name: labels})
            return prober.module(**{plan.token_arg: ids}, **{**bare, name: labels})

    with torch.no_grad():
        logits = call_logits(prober.module, plan, inputs.input_ids)
    ours = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
    try:
        loss = _scalar(given(labels))
    except Exception as error:  # noqa: BLE001  (labels of another shape; the loss is ours in any case)
        why = f"it fails with labels (B,): {blame(error)}"
        about = Finding("own loss", "note", f"{name} is not used", reason=why)
        return (_rows_of_labels(given, labels, logits, ours) or about,)
    if loss is None:
        return ()
    same = _apart(loss, ours) <= _CLOSE
    if same:
        return (Finding("own loss", "ok", "equals ours to 2e-7 (labels (B,))"),)
    text = f"{float(loss):.4f}, ours {float(ours):.4f}"
    if tap.seen:
        return (Finding("own loss", "note", text, "equal"),)
    why = "its own loss of class numbers is no cross-entropy of these numbers: scores, or another objective"
    return (Finding("own loss", "warn", text, "equal", why),)


def _rows_of_labels(given: Callable[[Tensor], Any], labels: Tensor, logits: Tensor, ours: Tensor) -> Finding | None:
    """Where class numbers (B,) fail: whether a number for each class (B, C) goes in, and means one class."""
    rows = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    try:
        loss = _scalar(given(rows))
    except Exception:  # noqa: BLE001  (no such labels either)
        return None
    if loss is None:
        return None
    if _apart(loss, ours) <= _CLOSE:
        return Finding("own loss", "ok", "equals ours (labels (B, C), one of them 1)")
    text = f"it takes labels (B, C): {float(loss):.4f}, ours {float(ours):.4f}"
    why = "it takes a number for each column of a row, no class number: several labels, or scores"
    return Finding("own loss", "warn", text, "equal", why)
