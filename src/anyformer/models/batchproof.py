"""The plan once more, on the very batches that training will use: their size, every row, training mode, gradients.

The call plan is measured on tiny batches in eval mode; a leak may begin at a longer T, in a later row or in training
mode only. B batch, T time, V vocabulary.
"""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding, Verdict
from anyformer.models.blame import blame, user_lines
from anyformer.models.calling import call_logits
from anyformer.models.calls.precise import SHARE, copy_in_float64, float64, most_tokens
from anyformer.models.calls.probing import difference, high, seeded, target_high, tolerance, woken
from anyformer.models.calls.strays import require_known_leaves, require_no_new_parameters
from anyformer.models.calls.ungraded import require_gradients
from anyformer.models.plan import CallPlan
from anyformer.models.probes import set_mode, untouched

SECONDS = 2.0
"""Rounds of changed tokens go on until every position was changed once or this time is over; one always runs."""
PROOF_TOKENS = 4096
LEAST_ROWS = 8
"""Rows of the batch that are used: all of a small batch, of a large one at least eight."""
_FINE_TOKENS = 1024
_LEAST_LENGTH = 16
"""Of a batch in float64."""
_SEEDS = 9
"""A forward that drops its mask in 30 % of the steps is seen in 96 % of the cases."""
_SEED_TOKENS = 512
_OWN = 0.5
_OWN_IN_TRAINING = 0.1
"""Of the changed tokens, how many must move their own logits; in training mode dropout may hide many."""


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
    causal = plan.family not in ("encoder", "classifier")
    awake = woken(module)[0] if causal else module  # weights at zero would hide what lies behind them
    double = copy_in_float64(awake) if causal else None
    for training in (False, True):
        with untouched(awake):
            set_mode(awake, training)
            try:
                with torch.set_grad_enabled(training):
                    finding = _mode(awake, double, plan, ids, read, training)
            except (CallError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                mode = "training" if training else "eval"
                raise CallError(
                    f"the model fails on a training batch {tuple(ids.shape)} in {mode} mode", blame(error)
                ) from error
            finally:
                awake.zero_grad(set_to_none=True)
        findings.append(finding)
    return [*findings, *_state(module, plan, ids, read), *_backward(module, plan, ids, read)]


def _state(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None) -> list[Finding]:
    """A warning where a call in training mode depends on attributes that the one before left; buffers may."""
    calls = []
    with untouched(module), torch.no_grad():
        set_mode(module, True)
        for _ in range(2):
            with untouched(module, attributes=False):
                seeded()
                calls.append(call_logits(module, plan, ids, target_ids=read))
    if float(difference(*calls).nan_to_num().max()) <= tolerance(calls[0]):
        return []
    why = "a step would see what the batch before it held: a cache, a memory or a counter kept on the module"
    return [Finding("state in training mode", "warn", "a call changes the next one", "equal calls, equal logits", why)]


def _backward(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None) -> list[Finding]:
    """One backward pass in training mode: it runs, and ends in the module's parameters.

    Raises CallError naming the line of an operation that overwrites what the pass needs, and weights that are no
    parameters. Parameters without a gradient are a warning.
    """
    with untouched(module):
        set_mode(module, True)
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
    require_gradients(module, plan, without)
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


def _mode(
    module: nn.Module, double: nn.Module | None, plan: CallPlan, ids: Tensor, read: Tensor | None, training: bool
) -> Finding:
    if plan.family in ("encoder", "classifier"):
        logits = _logits(module, plan, ids, read)
        mode = "training mode" if training else "training batches"
        if not bool(logits.isfinite().any()):
            return Finding(f"logits in {mode}", "note", "none is finite", reason="training stops at them")
        what = "gradients reach the parameters" if training else f"logits {tuple(logits.shape)}"
        return Finding(f"logits in {mode}", "ok", what)
    seen = _look(module, plan, ids, read, training)
    exact = None
    if seen.leak is None and seen.checked and double is not None:
        exact = _look_in_float64(double, plan, ids, read, training)
    length = ids.shape[1] if read is None else read.shape[1]
    return _finding(module, plan, seen, exact, length, training)


def _finding(
    module: nn.Module, plan: CallPlan, seen: _Seen, exact: _Seen | None, length: int, training: bool
) -> Finding:
    mode = "training mode" if training else "training batches"
    leak = seen.leak or (exact.leak if exact is not None else None)
    if seen.checked == 0 and leak is None:
        why = "the logits are NaN" if seen.nan else "equal calls differ (randomness that no seed controls)"
        verdict: Verdict = "note" if seen.nan or not training else "warn"
        return Finding(f"causality in {mode}", verdict, "not measured", "equal calls give equal logits", why)
    if leak is None:
        if plan.causal and seen.own < (_OWN_IN_TRAINING if training else _OWN) * seen.checked:
            raise CallError(
                f"logits[t] do not see token t{' in training mode' if training else f' at T = {length}'}: the model"
                " shifts its input there, not on the batches on which its call was measured",
                f"of {seen.checked} changed tokens {seen.own} moved their own logits",
                "shift the input (or the targets) in the same way at every length and in both modes",
            )
        numbers = "float64" if exact is not None and exact.checked else "float32"
        tried = f"{min(seen.checked, length - 1)} positions, in {numbers}"
        measured = f"no logit before a changed token moves (T = {length}, {tried})"
        return Finding(f"causality in {mode}", "ok", measured)
    if training and (seen.normed if seen.leak else exact is not None and exact.normed):
        why = "BatchNorm's statistics tell it the future while it trains; the held-out loss is measured without them"
        return Finding(f"causality in {mode}", "warn", leak, "no change before the changed token", why)
    if not plan.causal:
        why = "trained on the next token all the same, as asked: it learns to copy it"
        return Finding(f"causality in {mode}", "warn", leak, "no change before the changed token", why)
    small = "" if seen.leak else "; in float64: float32's rounding hides it, training would make it grow"
    raise CallError(
        "the model sees the future: trained on the next token it would only learn to copy it",
        f"on a batch of the training data{', in training mode only,' if training else ''} {leak}{small}",
        "give its attention a causal mask at every length, in every row and in both modes",
    )


@dataclass(frozen=True)
class _Seen:
    """What changed tokens moved."""

    leak: str | None
    checked: int
    """Positions at which a token was changed."""
    own: int = 0
    """Of them, those whose own logits moved."""
    nan: bool = False
    normed: bool = False
    """Whether the leak goes through BatchNorm's statistics alone."""
    seed: int = 0
    """Of the random state in which it was seen."""


def _look(
    module: nn.Module,
    plan: CallPlan,
    ids: Tensor,
    read: Tensor | None,
    training: bool,
    *,
    share: float = 1e-5,
    seconds: float = SECONDS,
) -> _Seen:
    """In training mode: with several random states, and without what tells of other tokens by right."""
    seen = _leak(module, plan, ids, read, share, seconds)
    if not training:
        return seen
    if seen.checked and seen.leak is None and share > SHARE:
        seen = _other_seeds(module, plan, ids, read, share, seconds, seen)
    if seen.leak is None:
        return seen
    # where a part runs on some of the tokens only (experts), another token shifts what dropout draws for the rest
    quiet = [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for parts in (quiet, norms):
        for part in parts:
            part.training = False
        if parts:
            again = _leak(module, plan, ids, read, share, seconds, seed=seen.seed)
            if again.checked and again.leak is None and share > SHARE:
                again = _other_seeds(module, plan, ids, read, share, seconds, again)  # without dropout draws differ
            if again.leak is None:
                return replace(seen, normed=True) if parts is norms else again
            seen = again
    return seen


def _other_seeds(
    module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, share: float, seconds: float, seen: _Seen
) -> _Seen:
    """The first leak of a few other random states; what was seen where none leaks.

    Only of those that change the logits. A forward may drop its mask in some of the steps only.
    """
    few = max(1, _SEED_TOKENS // ids.shape[1])
    ids, read = ids[:few], None if read is None else read[:few]
    base, begin = _logits(module, plan, ids, read), time.monotonic()
    for seed in range(1, _SEEDS):
        if time.monotonic() - begin > seconds / 2:
            break
        if torch.equal(base, _logits(module, plan, ids, read, seed=seed)):
            continue
        other = _leak(module, plan, ids, read, share, 0.0, seed=seed)
        if other.leak is not None:
            return other
    return seen


def _look_in_float64(double: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, training: bool) -> _Seen:
    """The same on a copy in float64, with as many tokens as time allows; nothing is seen where it does not run."""
    nothing = _Seen(None, 0)
    with untouched(double), torch.set_grad_enabled(training), float64() as numbers:
        set_mode(double, training)
        length = max(ids.shape[1], 0 if read is None else read.shape[1])
        tokens = min(most_tokens(double), _FINE_TOKENS)
        rows, length = max(1, tokens // length), max(_LEAST_LENGTH, min(length, tokens))
        ids, read = ids[:rows, :length], None if read is None else read[:rows, :length]
        try:
            seen = _look(double, plan, ids, read, training, share=SHARE, seconds=SECONDS / 4)
        except Exception:  # noqa: BLE001  (not every forward takes float64; float32 has run, and what it saw counts)
            return nothing
    return nothing if seen.leak is not None and numbers.short else seen


def _leak(
    module: nn.Module,
    plan: CallPlan,
    ids: Tensor,
    read: Tensor | None,
    share: float,
    seconds: float,
    *,
    seed: int = 0,
) -> _Seen:
    """What moved before a changed (target) token, if anything, and what moved at it.

    Each row has its own position changed, so that one forward pass tries as many positions as there are rows.
    """
    B, T = (ids if read is None else read).shape
    base = _logits(module, plan, ids, read, seed=seed)
    limit = tolerance(base, share)
    if bool(base.isnan().any()):
        return _Seen(None, 0, nan=True)  # training stops at it and says where it arose
    if float(difference(base, _logits(module, plan, ids, read, seed=seed)).max()) > limit:
        return _Seen(None, 0)
    order = [1 + (T // 2 + 61 * i) % (T - 1) for i in range(T - 1)] if (T - 1) % 61 else list(range(1, T))
    checked, own, mixed, begin = 0, 0, False, time.monotonic()
    while checked < len(order):
        # rows that see one another (a capacity of experts) would tell of the other rows' changes: one row, then
        rows = [checked % B] if mixed else list(range(B))
        at = [order[(checked + i) % len(order)] for i in range(len(rows))]
        moved = _moved(module, plan, ids, read, base, rows, at, seed)
        if moved is None:
            return _Seen(None, 0, nan=True)
        worst = _before(moved, rows, at)
        if float(worst.max()) > limit and not mixed and B > 1:
            row = int(worst.argmax()) // T
            again = _moved(module, plan, ids, read, base, [row], [at[row]], seed)
            mixed = again is not None and float(_before(again, [row], [at[row]]).max()) <= limit
            if mixed:
                continue
        own += int((moved[rows, at] > 0).sum())
        if float(worst.max()) > limit:
            row, position = divmod(int(worst.argmax()), T)
            size, token = float(worst.max()), at[rows.index(row)]
            text = f"changing token {token} of row {row} changes the logits at {position} (by {size:.2g}; must be 0)"
            return _Seen(text, B, own, seed=seed)
        checked += len(rows)
        if time.monotonic() - begin > seconds:
            break
    return _Seen(None, checked, own, seed=seed)


def _moved(
    module: nn.Module,
    plan: CallPlan,
    ids: Tensor,
    read: Tensor | None,
    base: Tensor,
    rows: list[int],
    at: list[int],
    seed: int,
) -> Tensor | None:
    """(B, T), how far the logits move when each of these rows has the token at its place changed; None for NaN."""
    sequence = ids if read is None else read
    below = high(plan) if read is None else target_high(plan)
    changed = sequence.clone()
    each = torch.tensor(rows, device=sequence.device)
    places = torch.tensor(at, device=sequence.device)
    changed[each, places] = (sequence[each, places] + max(1, below // 2)) % below
    other = _logits(module, plan, *((changed, None) if read is None else (ids, changed)), seed=seed)
    return None if bool(other.isnan().any()) else difference(base, other)


def _before(moved: Tensor, rows: list[int], at: list[int]) -> Tensor:
    """(B, T), what moved before the changed token of its own row; nothing of the other rows."""
    limits = torch.zeros(len(moved), dtype=torch.int64)
    limits[torch.tensor(rows)] = torch.tensor(at)
    earlier = torch.arange(moved.shape[1])[None] < limits[:, None]
    return torch.where(earlier.to(moved.device), moved, 0.0)


def _logits(
    module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, *, seed: int = 0, attached: bool = False
) -> Tensor:
    """Logits with the same random state each time; CallError where training could not reach a parameter.

    attached: with their graph, which what the call left on the module belongs to; else the module is left as it was.
    """
    known, graph = {name for name, _ in module.named_parameters()}, torch.is_grad_enabled()
    with nullcontext() if attached else untouched(module):
        seeded(seed)
        logits = call_logits(module, plan, ids, target_ids=read)
        require_no_new_parameters(module, known)
    if graph and not logits.requires_grad:
        trainable = any(parameter.requires_grad for parameter in module.parameters())
        why = "its forward detaches them" if trainable else "none of its parameters requires a gradient"
        raise CallError("the model cannot be trained: no gradient reaches its parameters", why)
    return logits if attached else logits.detach()
