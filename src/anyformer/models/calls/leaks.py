"""Which logits move when a token of a real batch is changed, in the mode that the module is in.

Each row has its own position changed, so that one forward pass tries as many positions as there are rows. B batch,
T time, V vocabulary.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.models.calling import call_logits
from anyformer.models.calls.precise import SHARE, float64, most_tokens
from anyformer.models.calls.probing import difference, high, seeded, target_high, tolerance
from anyformer.models.calls.strays import require_no_new_parameters
from anyformer.models.plan import CallPlan
from anyformer.models.probes import set_mode, untouched

SECONDS = 2.0
"""Rounds of changed tokens go on until every position was changed once or this time is over; one always runs."""
_FINE_TOKENS = 1024
_LEAST_LENGTH = 16
"""Of a batch in float64."""
_SEEDS = 9
"""A forward that drops its mask in 30 % of the steps is seen in 96 % of the cases."""
_SEED_TOKENS = 512


@dataclass(frozen=True)
class Looked:
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


def look(
    module: nn.Module,
    plan: CallPlan,
    ids: Tensor,
    read: Tensor | None,
    training: bool,
    *,
    share: float = 1e-5,
    seconds: float = SECONDS,
    seed: int = 0,
    seeds: bool = True,
) -> Looked:
    """In training mode: with several random states, and without what tells of other tokens by right.

    seed: of the random state, and of which positions come first; seeds: False leaves it at that one.
    """
    seen = find_leak(module, plan, ids, read, share, seconds, seed=seed)
    if not training:
        return seen
    if seen.checked and seen.leak is None and share > SHARE and seeds:
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
            again = find_leak(module, plan, ids, read, share, seconds, seed=seen.seed)
            if again.checked and again.leak is None and share > SHARE and seeds:
                again = _other_seeds(module, plan, ids, read, share, seconds, again)  # without dropout draws differ
            if again.leak is None:
                return replace(seen, normed=True) if parts is norms else again
            seen = again
    return seen


def _other_seeds(
    module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, share: float, seconds: float, seen: Looked
) -> Looked:
    """The first leak of a few other random states; what was seen where none leaks.

    Only of those that change the logits. A forward may drop its mask in some of the steps only.
    """
    few = max(1, _SEED_TOKENS // ids.shape[1])
    ids, read = ids[:few], None if read is None else read[:few]
    base, begin = seeded_logits(module, plan, ids, read), time.monotonic()
    for seed in range(1, _SEEDS):
        if time.monotonic() - begin > seconds / 2:
            break
        if torch.equal(base, seeded_logits(module, plan, ids, read, seed=seed)):
            continue
        other = find_leak(module, plan, ids, read, share, 0.0, seed=seed)
        if other.leak is not None:
            return other
    return seen


def look_in_float64(double: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, training: bool) -> Looked:
    """The same on a copy in float64, with as many tokens as time allows; nothing is seen where it does not run."""
    nothing = Looked(None, 0)
    with untouched(double), torch.set_grad_enabled(training), float64() as numbers:
        set_mode(double, training)
        length = max(ids.shape[1], 0 if read is None else read.shape[1])
        tokens = min(most_tokens(double), _FINE_TOKENS)
        rows, length = max(1, tokens // length), max(_LEAST_LENGTH, min(length, tokens))
        ids, read = ids[:rows, :length], None if read is None else read[:rows, :length]
        try:
            seen = look(double, plan, ids, read, training, share=SHARE, seconds=SECONDS / 4)
        except Exception:  # noqa: BLE001  (not every forward takes float64; float32 has run, and what it saw counts)
            return nothing
    return nothing if seen.leak is not None and numbers.short else seen


def find_leak(
    module: nn.Module,
    plan: CallPlan,
    ids: Tensor,
    read: Tensor | None,
    share: float,
    seconds: float,
    *,
    seed: int = 0,
) -> Looked:
    """What moved before a changed (target) token, if anything, and what moved at it.

    Each row has its own position changed, so that one forward pass tries as many positions as there are rows.
    """
    B, T = (ids if read is None else read).shape
    base = seeded_logits(module, plan, ids, read, seed=seed)
    limit = tolerance(base, share)
    if bool(base.isnan().any()):
        return Looked(None, 0, nan=True)  # training stops at it and says where it arose
    if float(difference(base, seeded_logits(module, plan, ids, read, seed=seed)).max()) > limit:
        return Looked(None, 0)
    order = [1 + (T // 2 + 61 * i) % (T - 1) for i in range(T - 1)] if (T - 1) % 61 else list(range(1, T))
    checked, own, mixed, begin = 0, 0, False, time.monotonic()
    while checked < len(order):
        # rows that see one another (a capacity of experts) would tell of the other rows' changes: one row, then
        rows = [checked % B] if mixed else list(range(B))
        at = [order[(seed + checked + i) % len(order)] for i in range(len(rows))]
        moved = _moved(module, plan, ids, read, base, rows, at, seed)
        if moved is None:
            return Looked(None, 0, nan=True)
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
            return Looked(text, B, own, seed=seed)
        checked += len(rows)
        if time.monotonic() - begin > seconds:
            break
    return Looked(None, checked, own, seed=seed)


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
    other = seeded_logits(module, plan, *((changed, None) if read is None else (ids, changed)), seed=seed)
    return None if bool(other.isnan().any()) else difference(base, other)


def _before(moved: Tensor, rows: list[int], at: list[int]) -> Tensor:
    """(B, T), what moved before the changed token of its own row; nothing of the other rows."""
    limits = torch.zeros(len(moved), dtype=torch.int64)
    limits[torch.tensor(rows)] = torch.tensor(at)
    earlier = torch.arange(moved.shape[1])[None] < limits[:, None]
    return torch.where(earlier.to(moved.device), moved, 0.0)


def seeded_logits(
    module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, *, seed: int = 0, attached: bool = False
) -> Tensor:
    """Logits with the same random state each time; CallError where training could not reach a parameter.

    attached: with their graph, which what the call left on the module belongs to; else the module is left as it was.
    """
    known, graph = {name for name, _ in module.named_parameters()}, torch.is_grad_enabled()
    with nullcontext() if attached else untouched(module, gradients=False):
        seeded(seed)
        logits = call_logits(module, plan, ids, target_ids=read)
        require_no_new_parameters(module, known)
    if graph and not logits.requires_grad:
        trainable = any(parameter.requires_grad for parameter in module.parameters())
        why = "its forward detaches them" if trainable else "none of its parameters requires a gradient"
        raise CallError("the model cannot be trained: no gradient reaches its parameters", why)
    return logits if attached else logits.detach()
