"""Whether a padding mask hides what it says.

B batch, T time (source), S time (target).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anyformer.models.calls.names import PAD, hint
from anyformer.models.calls.probing import Prober, changed_inputs, difference, high, target_high, tolerance
from anyformer.models.inputs import Inputs, row
from anyformer.models.plan import Argument, CallPlan
from anyformer.models.probes import step_by_step


@dataclass(frozen=True)
class Hidden:
    """What a padding mask did."""

    works: bool
    why: str
    idle: bool = False
    """Whether nothing at all came of a 0: in this form the mask is not looked at."""


def hides(prober: Prober, plan: CallPlan, *, target: bool = False, against: CallPlan | None = None) -> Hidden:
    """Whether a 0 in the padding mask hides its token from the others, and ones change nothing.

    against: the plan without the mask, whose logits those with ones must equal; None where it has no default.
    """
    T = max(3, prober.length)
    inputs = prober.inputs(plan, 2, T, 1, T - 1 if T > 3 else 2)
    ids = inputs.target_ids if target and inputs.target_ids is not None else inputs.input_ids
    ones = torch.ones_like(ids)
    name = "target_mask" if target else "attention_mask"
    try:
        full = prober.logits(plan, replace(inputs, **{name: ones}))
        if against is not None:
            moved = float(difference(full, prober.logits(against, inputs)).nan_to_num(nan=1e30).max())
            if not moved <= tolerance(full):
                return Hidden(False, f"a mask of ones moves the logits by {moved:.2g}")
        at = 1  # not the first: a causal row that sees nothing at all gives NaN
        hidden = ones.clone()
        hidden[:, at] = 0
        masked = replace(inputs, **{name: hidden})
        first = prober.logits(plan, masked)
        if against is not None and torch.equal(first, full):
            return Hidden(False, "a padded token is not hidden", idle=True)
        pair = [first, prober.logits(plan, changed_inputs(prober, plan, masked, at, target=target))]
        shown = prober.logits(plan, changed_inputs(prober, plan, inputs, at, target=target))
    except Exception as error:  # noqa: BLE001  (a stranger's forward may raise anything: this form is not its own)
        return Hidden(False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    reads_itself = full.dim() == 3 and (target or plan.family != "encoder_decoder")
    others = [t for t in range(ids.shape[1]) if t != at] if reads_itself else slice(None)
    if full.dim() == 2:
        moved_by, seen_by = difference(*pair), difference(full, shown)
    else:
        moved_by, seen_by = difference(*pair)[:, others], difference(full, shown)[:, others]
    if bool(full.isnan().any()) or bool(pair[0].isnan().any()) or bool(moved_by.isnan().any()):
        return Hidden(False, "it gives NaN")
    if not float(seen_by.max()) > tolerance(full):
        return Hidden(False, "no token is seen by the others, with or without it")
    if float(moved_by.max()) > tolerance(full):
        return Hidden(False, "a padded token is not hidden")
    if not plan.packed and (why := _wrong_rows(prober, plan, name, T, at, target)):
        return Hidden(False, why)
    return Hidden(
        True, "without padding nothing changes, a padded token is hidden" if against else "a padded token is hidden"
    )


def _wrong_rows(prober: Prober, plan: CallPlan, name: str, T: int, at: int, target: bool) -> str:
    """Why a mask that differs between rows is not that of its rows; "" where it is.

    A mask (B, T) may land on the axis of the heads, and fit where there are as many of them as rows.
    """
    B, row = 3, 1
    inputs = prober.inputs(plan, B, T, 2, T - 1 if T > 3 else 2)
    ids = inputs.target_ids if target and inputs.target_ids is not None else inputs.input_ids
    ones = torch.ones_like(ids)
    hidden = ones.clone()
    hidden[row, at] = 0
    try:
        full = prober.logits(plan, replace(inputs, **{name: ones}))
        masked = prober.logits(plan, replace(inputs, **{name: hidden}))
    except Exception as error:  # noqa: BLE001  (a stranger's forward may raise anything: this form is not its own)
        return f"with {B} rows: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    apart = difference(full, masked).reshape(B, -1).amax(1).nan_to_num(nan=1e30)
    moved = [i for i, far in enumerate(apart.tolist()) if far > tolerance(full)]
    return "" if moved == [row] else "what one row's mask hides is hidden in others, or in none"


def mask_matters(prober: Prober, plan: CallPlan) -> bool:
    """Whether zeros in the padding mask change logits at other places than their own."""
    T = max(3, prober.length)
    inputs = prober.inputs(plan, 2, T, 1, T - 1 if T > 3 else 2)
    hidden = torch.ones_like(inputs.input_ids)
    full = prober.try_logits(plan, replace(inputs, attention_mask=hidden))
    at = torch.arange(1, T, 2, device=hidden.device)
    hidden = hidden.index_fill(1, at, 0)
    other = prober.try_logits(plan, replace(inputs, attention_mask=hidden))
    if full is None or other is None or full.shape != other.shape:
        return full is not None
    moved = difference(full, other)
    if full.dim() == 3 and plan.family != "encoder_decoder":
        moved = moved.index_fill(1, at, 0.0)
    return bool((moved > tolerance(full)).any())


_FAR = 1e3
"""A score so far below the others has no weight: exp(-1000) is 0 in every number format."""


class _Weights(TorchFunctionMode):
    """What each attention of a run gives one key, and how many attentions there were."""

    def __init__(self, T: int, at: int) -> None:
        super().__init__()
        self._T, self._at = T, at
        self.given: list[bool] = []
        """Of each attention over T keys, whether any query gives the key a weight."""
        self.swallowed = False
        """Whether a mask left nothing of the scores: all keys have the same weight, or axes are mixed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":
            self._by_masks(kwargs.get("key_padding_mask"), kwargs.get("attn_mask"))
        elif name == "scaled_dot_product_attention":
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            self._by_masks(~mask if mask is not None and mask.dtype == torch.bool else mask)
        elif name == "softmax" and output.dim() > 2 and output.shape[-1] == self._T:
            self.given.append(bool((output[..., self._at] != 0).any()))
            self.swallowed = self.swallowed or output.dim() > 4  # (B, heads, T, T) that a mask gave further axes
            self.swallowed = self.swallowed or bool((output == output[..., :1]).all())
        return output

    def _by_masks(self, *masks: Tensor | None) -> None:
        """masks: True, or far below zero, where a query may not look; keys are their last axis."""
        told = [m for m in masks if m is not None and m.shape[-1] == self._T]
        for mask in [m for m in told if m.is_floating_point()]:
            self.swallowed = self.swallowed or not bool((mask.amax(-1).abs() < _FAR).all())
        hides = [m if m.dtype == torch.bool else m < -_FAR for m in told]
        self.given.append(not any(bool(m[..., self._at].all()) for m in hides))


def attention_passes_over(prober: Prober, plan: CallPlan) -> bool:
    """Whether an attention gives a token no weight where its mask is 0 alone, and none where it is 1 alone.

    Another attention, or what pools the positions afterwards, may read it all the same.
    """
    T, at = max(5, prober.length), 2
    inputs = prober.inputs(plan, 2, T, 1)
    ones = torch.ones_like(inputs.input_ids)
    hidden = ones.index_fill(1, torch.tensor([at], device=ones.device), 0)
    seen = []
    for mask in (ones, hidden):
        with step_by_step(), _Weights(T, at) as weights:
            run = prober.try_logits(plan, replace(inputs, attention_mask=mask))
        if run is None or weights.swallowed:
            return False
        seen.append(weights.given)
    pairs = list(zip(*seen, strict=False))
    return len(seen[0]) == len(seen[1]) and (True, False) in pairs and (False, True) not in pairs


def id_passed_over(prober: Prober, plan: CallPlan) -> int | None:
    """The id to which the module's attention gives no weight wherever it lies: its padding, compared with in forward.

    Tried are the ids that an attribute names so, the first four, and the last one; None where none of them is hidden.
    """
    named = [value for m in prober.module.modules() for name, value in vars(m).items() if _names_padding(name)]
    sides = [False, True] if plan.family == "encoder_decoder" else [False]
    for target in sides:
        limit = target_high(plan) if target else high(plan)
        tried = dict.fromkeys(i for i in (*named, 0, 1, 2, 3, limit - 1) if type(i) is int and 0 <= i < limit)
        ordinary = next((i for i in range(limit - 1, -1, -1) if i not in tried), None)
        shown = [] if ordinary is None else _given_to(prober, plan, ordinary, target)
        for candidate in tried if any(shown) else ():
            given = _given_to(prober, plan, candidate, target)
            pairs = list(zip(shown, given, strict=True)) if len(given) == len(shown) else []
            if (True, False) in pairs and (False, True) not in pairs:
                return candidate
    return None


def _names_padding(name: str) -> bool:
    return hint(name) == "padding_id" or PAD.fullmatch(name.lower()) is not None


def _given_to(prober: Prober, plan: CallPlan, token: int, target: bool) -> list[bool]:
    """Of each attention over the source (target: over the decoder's input), whether it looks at this token at all.

    Empty where that does not run.
    """
    T, at = max(6, prober.length), 2
    inputs = prober.inputs(plan, 2, T, 1, T - 1)
    ids = inputs.target_ids if target and inputs.target_ids is not None else inputs.input_ids
    ids = ids.index_fill(1, torch.tensor([at], device=ids.device), token)
    inputs = replace(inputs, target_ids=ids) if target else replace(inputs, input_ids=ids)
    with step_by_step(), _Weights(ids.shape[1], at) as weights:
        run = prober.try_logits(plan, inputs)
    return [] if run is None or weights.swallowed else weights.given


class _Seen(TorchFunctionMode):
    """Of each attention of a run from T places to T: which it gives weight."""

    def __init__(self, T: int) -> None:
        super().__init__()
        self._T = T
        self.ahead: list[bool] = []
        """Whether some place looks at a later one."""
        self.back: list[bool] = []
        """Whether each looks at itself, and some at earlier ones."""
        self.turned: list[bool] = []
        """Whether some look at later ones, and none at earlier ones but the last: it may be left with nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "softmax" and output.dim() > 2 and output.shape[-2:] == (self._T, self._T):
            self._note(output != 0)
        elif name == "scaled_dot_product_attention":
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            self._by(~mask if mask is not None and mask.dtype == torch.bool else mask, kwargs.get("is_causal", False))
        elif name == "multi_head_attention_forward":
            self._by(kwargs.get("attn_mask"), False)
        return output

    def _by(self, mask: Tensor | None, causal: bool) -> None:
        """mask: True, or far below zero, where a query may not look."""
        seen = torch.ones(self._T, self._T, dtype=torch.bool)
        seen = seen.tril() if causal else seen
        if mask is not None and mask.shape[-1] == self._T:
            seen = seen.to(mask.device) & ~(mask if mask.dtype == torch.bool else mask < -_FAR)
        self._note(seen)

    def _note(self, seen: Tensor) -> None:
        each = seen.reshape(-1, self._T, self._T)
        self.ahead.append(bool(each.triu(1).any()))
        self.back.append(bool(each.diagonal(dim1=-2, dim2=-1).all()) and bool(each.tril(-1).any()))
        self.turned.append(self.ahead[-1] and not bool(each.tril(-1)[:, :-1].any()))


def _seen(prober: Prober, plan: CallPlan) -> _Seen:
    """What attention looks at in one run; nothing where that does not run."""
    T = max(5, prober.length)
    with step_by_step(), _Seen(T) as seen:
        run = prober.try_logits(plan, prober.inputs(plan, 2, T, 1))
    return seen if run is not None else _Seen(T)


def looks_back_alone(prober: Prober, plan: CallPlan) -> bool:
    """Whether every attention that is seen gives later tokens no weight, and earlier ones some."""
    seen = _seen(prober, plan)
    return bool(seen.ahead) and not any(seen.ahead) and all(seen.back)


def looks_ahead_alone(prober: Prober, plan: CallPlan) -> bool:
    """Whether every attention that is seen hides the past and not the future: its mask is the wrong way round."""
    seen = _seen(prober, plan)
    return bool(seen.turned) and all(seen.turned)


def leaves_nothing(prober: Prober, plan: CallPlan) -> bool:
    """Whether with no token hidden an attention over the source gives all keys the same weight."""
    T = max(5, prober.length)
    with step_by_step(), _Weights(T, 2) as weights:
        prober.try_logits(plan, prober.inputs(plan, 2, T, 1))
    return bool(weights.swallowed)


def telling(plan: CallPlan) -> list[Argument]:
    """Arguments that tell which tokens are padding."""
    return [a for a in plan.extras if a.role in ("lengths", "target_lengths", "padding_id")]


def hidden_by_id(prober: Prober, plan: CallPlan) -> bool:
    """Whether rows behind padding, of whose id the module is told, give what they give alone."""
    moved = moved_by_padding(prober, plan)
    return moved is not None and moved <= 1


def moved_by_padding(prober: Prober, plan: CallPlan) -> float | None:
    """How far rows of unequal lengths differ from the same rows alone, in tolerances; None where they do not run.

    Alone they come without their padding, but to a module of one length.
    """
    T = prober.fixed or max(5, prober.length)
    plan = replace(plan, only_length=prober.fixed)
    lengths = (T, T - 1, T - 2)
    inputs, alone = _batch(prober, plan, T, lengths)
    together = prober.try_logits(plan, inputs)
    each = [prober.try_logits(plan, row) for row in alone]
    if together is None or any(e is None for e in each):
        return None
    limit = tolerance(together, 1e-4)
    apart = [difference(together[i : i + 1, : e.shape[1]], e) for i, e in enumerate(each) if e is not None]
    return max(float(a.nan_to_num(nan=1e30).max()) for a in apart) / limit


def _batch(prober: Prober, plan: CallPlan, T: int, lengths: tuple[int, ...]) -> tuple[Inputs, list[Inputs]]:
    """Rows of these lengths behind padding, and each of them alone."""
    inputs = prober.inputs(plan, len(lengths), T, 27, T)
    ends = torch.tensor(lengths, device=inputs.input_ids.device)
    keep = torch.arange(T, device=ends.device) < ends[:, None]
    by_id = any(a.role == "padding_id" for a in plan.extras)
    target = inputs.target_ids
    pad = free_ids(prober, inputs)[0] if by_id else _kept_for_padding(prober)
    cut = target is not None and (by_id or any(a.role == "target_lengths" for a in plan.extras))
    ids = inputs.input_ids if pad is None else inputs.input_ids.masked_fill(~keep, pad)
    read = target if target is None or pad is None or not cut else target.masked_fill(~keep, pad)
    batch = Inputs(ids, keep.long(), read, keep.long() if cut else None)
    if prober.fixed is not None:
        return batch, [row(batch, i) for i in range(len(lengths))]
    alone = [
        Inputs(ids[i : i + 1, :n], target_ids=None if read is None else read[i : i + 1, : n if cut else None])
        for i, n in enumerate(lengths)
    ]
    return batch, alone


def _kept_for_padding(prober: Prober) -> int | None:
    """The id that an embedding keeps for padding, where there is one: a model may hide it by itself."""
    tables = [m.padding_idx for m in prober.module.modules() if isinstance(m, nn.Embedding)]
    return next((p for p in tables if p is not None), None)


def free_ids(prober: Prober, inputs: Inputs) -> list[int]:
    """Some ids that no token has, the one that is kept for padding first."""
    used = {i for ids in (inputs.input_ids, inputs.target_ids) if ids is not None for i in ids.flatten().tolist()}
    kept = _kept_for_padding(prober)
    free = [i for i in range(len(used) + 2) if i not in used]
    return sorted(free, key=lambda i: i != kept)
