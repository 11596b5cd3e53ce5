"""The plan once more, on the very batches that training will use: their size, every row, training mode, gradients.

The call plan is measured on tiny batches in eval mode; a leak may begin at a longer T, in a later row or in training
mode only. B batch, T time, V vocabulary.
"""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame, user_lines
from anyformer.models.calling import call_logits
from anyformer.models.plan import CallPlan
from anyformer.models.probes import untouched
from anyformer.models.probing import difference, high, seeded, target_high, tolerance
from anyformer.models.strays import require_known_leaves

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
    return [*findings, *_backward(module, plan, ids, read)]


def _backward(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None) -> list[Finding]:
    """One backward pass in training mode: it runs, and ends in the module's parameters.

    Raises CallError naming the line of an operation that overwrites what the pass needs, and weights that are no
    parameters. Parameters without a gradient are a warning.
    """
    with untouched(module):
        module.train()
        module.zero_grad(set_to_none=True)
        try:
            with torch.enable_grad():
                logits = _logits(module, plan, ids, read, attached=True)
                require_known_leaves(module, logits)
                _loss(logits).backward()  # type: ignore[no-untyped-call]
            without = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            line = _anomaly(module, plan, ids, read)
            what = "an in-place operation" if "inplace" in str(error) else "an operation"
            raise CallError(
                f"the backward pass fails: {what} of the model cannot be differentiated",
                f"{line}{str(error).splitlines()[0]}",
                "write x = x + y for x += y and relu(x) for relu_(x)" if "inplace" in str(error) else "",
            ) from error
        finally:
            module.zero_grad(set_to_none=True)
    if not without:
        return []
    shown = ", ".join(without[:4]) + (" …" if len(without) > 4 else "")
    why = "the logits do not depend on them: they stay as they are"
    return [Finding("gradients", "warn", f"{len(without)} parameters get none: {shown}", "all get one", why)]


def _loss(logits: Tensor) -> Tensor:
    """Cross-entropy with arbitrary classes: its gradient reaches what any objective's reaches."""
    rows = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(rows, torch.arange(len(rows), device=rows.device) % rows.shape[1])


def _anomaly(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None) -> str:
    """The line whose result the backward pass cannot use, once more with autograd's own record of it; "" if unknown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.enable_grad(), torch.autograd.set_detect_anomaly(True):
                _loss(_logits(module, plan, ids, read, attached=True)).backward()  # type: ignore[no-untyped-call]
        except RuntimeError:
            pass  # it failed before; the record of the forward pass is in the warning
    frames = [line for w in caught for line in user_lines(str(w.message))]
    return f"{frames[-1]}\n" if frames else ""


def _mode(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, training: bool) -> Finding:
    if plan.family in ("encoder", "classifier"):
        logits = _logits(module, plan, ids, read)
        mode = "training mode" if training else "training batches"
        if not bool(logits.isfinite().any()):
            return Finding(f"logits in {mode}", "note", "none is finite", reason="training stops at them")
        what = "gradients reach the parameters" if training else f"logits {tuple(logits.shape)}"
        return Finding(f"logits in {mode}", "ok", what)
    leak, checked = _leak(module, plan, ids, read)
    if leak is not None and training:
        # where a part runs on some of the tokens only (experts), another token shifts what dropout draws for the rest
        for part in module.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.eval()
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
    B, T = (ids if read is None else read).shape
    base = _logits(module, plan, ids, read)
    limit = tolerance(base)
    if bool(base.isnan().any()):
        return None, 0  # training stops at it and says where it arose
    if float(difference(base, _logits(module, plan, ids, read)).max()) > limit:
        return None, 0
    order = [1 + (T // 2 + 61 * i) % (T - 1) for i in range(T - 1)] if (T - 1) % 61 else list(range(1, T))
    checked, mixed, begin = 0, False, time.monotonic()
    while checked < len(order):
        # rows that see one another (a capacity of experts) would tell of the other rows' changes: one row, then
        rows = [checked % B] if mixed else list(range(B))
        at = [order[(checked + i) % len(order)] for i in range(len(rows))]
        moved = _moved(module, plan, ids, read, base, rows, at)
        if moved is None:
            return None, 0
        worst = _before(moved, rows, at)
        if float(worst.max()) > limit and not mixed and B > 1:
            row = int(worst.argmax()) // T
            again = _moved(module, plan, ids, read, base, [row], [at[row]])
            mixed = again is not None and float(_before(again, [row], [at[row]]).max()) <= limit
            if mixed:
                continue
        if float(worst.max()) > limit:
            row, position = divmod(int(worst.argmax()), T)
            size, token = float(worst.max()), at[rows.index(row)]
            return f"changing token {token} of row {row} changes the logits at {position} (by {size:.2g}; must be 0)", B
        checked += len(rows)
        if time.monotonic() - begin > SECONDS:
            break
    return None, min(checked, len(order))


def _moved(
    module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, base: Tensor, rows: list[int], at: list[int]
) -> Tensor | None:
    """(B, T), how far the logits move when each of these rows has the token at its place changed; None for NaN."""
    sequence = ids if read is None else read
    below = high(plan) if read is None else target_high(plan)
    changed = sequence.clone()
    each = torch.tensor(rows, device=sequence.device)
    places = torch.tensor(at, device=sequence.device)
    changed[each, places] = (sequence[each, places] + max(1, below // 2)) % below
    other = _logits(module, plan, changed, None) if read is None else _logits(module, plan, ids, changed)
    return None if bool(other.isnan().any()) else difference(base, other)


def _before(moved: Tensor, rows: list[int], at: list[int]) -> Tensor:
    """(B, T), what moved before the changed token of its own row; nothing of the other rows."""
    limits = torch.zeros(len(moved), dtype=torch.int64)
    limits[torch.tensor(rows)] = torch.tensor(at)
    earlier = torch.arange(moved.shape[1])[None] < limits[:, None]
    return torch.where(earlier.to(moved.device), moved, 0.0)


def _logits(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, *, attached: bool = False) -> Tensor:
    """Logits with the same random state each time; CallError where training could not reach a parameter."""
    seeded()
    logits = call_logits(module, plan, ids, target_ids=read)
    if torch.is_grad_enabled() and not logits.requires_grad:
        trainable = any(parameter.requires_grad for parameter in module.parameters())
        why = "its forward detaches them" if trainable else "none of its parameters requires a gradient"
        raise CallError("the model cannot be trained: no gradient reaches its parameters", why)
    return logits if attached else logits.detach()
