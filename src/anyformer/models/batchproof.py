"""The plan once more, on the very batches that training will use: their size, every row, training mode, gradients.

The call plan is measured on tiny batches in eval mode; a leak may begin at a longer T, in a later row or in training
mode only. B batch, T time, V vocabulary.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.calling import call_logits
from anyformer.models.plan import CallPlan
from anyformer.models.probes import untouched
from anyformer.models.probing import difference, high, seeded, target_high, tolerance

SECONDS = 2.0
"""Rounds of changed tokens go on until every position was changed once or this time is over; one always runs."""
PROOF_TOKENS = 4096
LEAST_ROWS = 8
"""Rows of the batch that are used: all of a small batch, of a large one at least eight."""


def prove_on_batch(
    module: nn.Module, plan: CallPlan, input_ids: Tensor, *, target_ids: Tensor | None = None
) -> list[Finding]:
    """Findings on a batch (B, T) in eval and in training mode; the module is left as it was.

    Causality of a decoder, and of an encoder-decoder on target_ids (B, S), its decoder's input. Of an encoder and a
    classifier: that the batch runs and gradients arrive.
    Raises CallError where a token changes logits before it (in training mode through BatchNorm it is a warning), where
    the forward pass fails, or where no gradient reaches the parameters. A decoder whose plan says that it is not causal
    is trained because the user insists: its leak is a warning.
    """
    length = max(input_ids.shape[1], 0 if target_ids is None else target_ids.shape[1])
    rows = max(LEAST_ROWS, PROOF_TOKENS // length)
    ids = input_ids[:rows]
    read = None if target_ids is None else target_ids[:rows]
    findings = []
    for training in (False, True):
        with untouched(module):
            module.train(training)
            try:
                with torch.set_grad_enabled(training):
                    finding = _mode(module, plan, ids, read, training)
            except (CallError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                mode = "training" if training else "eval"
                raise CallError(
                    f"the model fails on a training batch {tuple(ids.shape)} in {mode} mode", blame(error)
                ) from error
            finally:
                module.zero_grad(set_to_none=True)
        findings.append(finding)
    return findings


def _mode(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, training: bool) -> Finding:
    if plan.family in ("encoder", "classifier"):
        logits = _logits(module, plan, ids, read)
        mode = "training mode" if training else "training batches"
        if not bool(logits.isfinite().any()):
            return Finding(f"logits in {mode}", "note", "none is finite", reason="training stops at them")
        what = "gradients reach the parameters" if training else f"logits {tuple(logits.shape)}"
        return Finding(f"logits in {mode}", "ok", what)
    leak, checked = _leak(module, plan, ids, read)
    length = ids.shape[1] if read is None else read.shape[1]
    return _finding(module, plan, leak, checked, length, training)


def _finding(module: nn.Module, plan: CallPlan, leak: str | None, checked: int, length: int, training: bool) -> Finding:
    mode = "training mode" if training else "training batches"
    if checked == 0:
        why = "equal calls differ (dropout that no seed controls, a state kept between calls), or the logits are NaN"
        return Finding(f"causality in {mode}", "note", "not measured", reason=why)
    if leak is None:
        measured = f"no logit before a changed token moves (T = {length}, {checked} positions)"
        return Finding(f"causality in {mode}", "ok", measured)
    if training and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        why = "BatchNorm's statistics tell it the future while it trains; the held-out loss is measured without them"
        return Finding(f"causality in {mode}", "warn", leak, "no change before the changed token", why)
    if not plan.causal:
        why = "trained on the next token all the same, as asked: it learns to copy it"
        return Finding(f"causality in {mode}", "warn", leak, "no change before the changed token", why)
    raise CallError(
        "the model sees the future: trained on the next token it would only learn to copy it",
        f"on a batch of the training data{', in training mode only,' if training else ''} {leak}",
        "give its attention a causal mask at every length, in every row and in both modes",
    )


def _leak(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None) -> tuple[str | None, int]:
    """What moved before a changed (target) token, or None; and at how many positions a token was changed.

    Each row has its own position changed, so that one forward pass tries as many positions as there are rows.
    """
    sequence = ids if read is None else read
    below = high(plan) if read is None else target_high(plan)
    B, T = sequence.shape
    base, begin = _logits(module, plan, ids, read), time.monotonic()
    limit = tolerance(base)
    if bool(base.isnan().any()):
        return None, 0  # training stops at it and says where it arose
    if float(difference(base, _logits(module, plan, ids, read)).max()) > limit:
        return None, 0
    order = [1 + (T // 2 + 61 * i) % (T - 1) for i in range(T - 1)] if (T - 1) % 61 else list(range(1, T))
    checked = 0
    while checked < len(order):
        at = [order[(checked + row) % len(order)] for row in range(B)]
        changed = sequence.clone()
        places = torch.tensor(at, device=sequence.device)
        each = torch.arange(B, device=sequence.device)
        changed[each, places] = (sequence[each, places] + max(1, below // 2)) % below
        other = _logits(module, plan, changed, None) if read is None else _logits(module, plan, ids, changed)
        if bool(other.isnan().any()):
            return None, 0
        moved = difference(base, other)
        before = torch.arange(T, device=sequence.device)[None] < places[:, None]
        worst = torch.where(before, moved, 0.0)
        if float(worst.max()) > limit:
            row, position = divmod(int(worst.argmax()), T)
            size = float(worst.max())
            return (
                f"changing token {at[row]} of row {row} changes the logits at {position} (by {size:.2g}; must be 0)",
                B,
            )
        checked += B
        if time.monotonic() - begin > SECONDS:
            break
    return None, min(checked, len(order))


def _logits(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None) -> Tensor:
    """Logits with the same random state each time; CallError where training could not reach a parameter."""
    seeded()
    logits = call_logits(module, plan, ids, target_ids=read)
    if torch.is_grad_enabled() and not logits.requires_grad:
        trainable = any(parameter.requires_grad for parameter in module.parameters())
        why = "its forward detaches them" if trainable else "none of its parameters requires a gradient"
        raise CallError("the model cannot be trained: no gradient reaches its parameters", why)
    return logits.detach()
