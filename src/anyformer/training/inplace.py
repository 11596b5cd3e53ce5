"""Cross-entropy in the logits' own memory: it is turned into their gradient, and no second (N, V) tensor is ever there.

For logits that are more than a linear map of hidden states (capped, scaled), and that nobody else holds: whether that
is so is asked for each batch, before anything is written. Proven on the module itself before it is used.

Legend: B batch, T time, N = B·T rows, R rows at a time, V vocabulary.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.objectives import IGNORE_INDEX, batch_logits, objective_loss, objective_targets
from anyformer.models.plan import CallPlan, Objective
from anyformer.training import fusedhead
from anyformer.training.equal import computed_in, different, passed, some_rows
from anyformer.training.microbatch import lacks_memory

NAME = "in-place loss"
_CPU_NUMBERS = 1 << 18
"""Logits at a time on a CPU, 1 MB: what its cache holds (benchmarks/results/fused_head.md)."""
_DEVICE_NUMBERS = 1 << 25
"""Logits at a time elsewhere, where bfloat16 needs a copy in float32."""
_TYPES = (torch.float32, torch.bfloat16)
"""Not float16: exponentials and gradients are too small for it."""


def choose_in_place(
    module: nn.Module, plan: CallPlan, objective: Objective, batch: Mapping[str, Any], label_smoothing: float = 0.0
) -> tuple[bool, Finding | None]:
    """Whether the loss of batches like this one is computed in place, and why; for models whose head is not fused.

    Proven on some rows of the batch, in two passes one after the other: equal loss, and equal gradients of every
    parameter. The module is left as it was. No finding where the logits are too few for the fused head, which says so.
    """
    if objective == "classification" or batch["labels"].numel() * plan.vocab_size < fusedhead.FUSE_FROM:
        return False, None
    if plan.logits_from != "output":
        return False, _off("the logits are not what the model returns")
    try:
        return _proven(module, plan, objective, some_rows(batch, plan), label_smoothing)
    except Exception as error:
        if lacks_memory(error):
            raise
        return False, _off("the model does not train so: " + blame(error).replace("\n", ": "))


def _off(reason: str) -> Finding:
    return Finding(NAME, "note", "off", reason=reason)


def loss_of_logits(
    module: nn.Module,
    plan: CallPlan,
    objective: Objective,
    batch: Mapping[str, Any],
    label_smoothing: float = 0.0,
) -> tuple[Tensor, str]:
    """The loss of ``objective_loss``, in place where that harms nobody; else the plain way, and why so.

    One can go backward from the first kind once only.
    """
    labels, next_ids = batch["labels"], batch.get("next_ids")
    logits, reason = alone(lambda: batch_logits(module, plan, batch))
    if reason or labels.shape != logits.shape[:-1]:
        return objective_loss(objective, logits, labels, next_ids, label_smoothing=label_smoothing), reason
    targets = objective_targets(objective, labels, next_ids).flatten()
    loss: Tensor = _InPlaceLoss.apply(logits, targets, label_smoothing)  # type: ignore[no-untyped-call]
    return loss, ""


def alone(make: Callable[[], Tensor]) -> tuple[Tensor, str]:
    """What ``make`` gives, and why its memory must not be written to; empty where it may be.

    Whoever keeps the tensor, a view of it, its values for another backward pass or an array of them is counted: by
    Python as a holder of the object, or by torch as one of its memory.
    """
    if _uses_of is None:
        return make(), "this torch does not say who holds a tensor's memory"
    tensor, holders, uses = _held(make)
    if type(tensor) is not Tensor or tensor.dtype not in _TYPES:
        return tensor, f"the logits are a {type(tensor).__name__} of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.grad_fn is None:
        return tensor, "the logits have no gradient"
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    if tensor._base is not None or not (whole and tensor.is_contiguous()):
        return tensor, "the logits are a view of something else"
    nobody, free = _held_by_nobody()
    if uses > free:
        return tensor, "the logits' memory is kept elsewhere, or by the model's last operation for its backward pass"
    return tensor, "the model keeps its logits" if holders > nobody else ""


_uses_of: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)
"""How many tensors and handles share a memory; torch's own CUDA graphs ask it, too."""


def _held(make: Callable[[], Tensor]) -> tuple[Tensor, int, int]:
    """A tensor, how often the object is held while we have it here, and its memory."""
    assert _uses_of is not None
    tensor = make()
    return tensor, sys.getrefcount(tensor), _uses_of(tensor.untyped_storage()._cdata)


@functools.cache
def _held_by_nobody() -> tuple[int, int]:
    """The same counts for a tensor that nobody else can hold: they depend on the versions of Python and torch."""
    _, holders, uses = _held(lambda: torch.zeros(1) + 1)
    return holders, uses


def _proven(
    module: nn.Module, plan: CallPlan, objective: Objective, batch: Mapping[str, Any], label_smoothing: float
) -> tuple[bool, Finding]:
    """Equal loss and gradients in the second of two passes, with the same dropout: after the first overwrote."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    reasons = [""]

    def plain() -> Tensor:
        logits = batch_logits(module, plan, batch)
        return objective_loss(
            objective, logits, batch["labels"], batch.get("next_ids"), label_smoothing=label_smoothing
        )

    def in_place() -> Tensor:
        loss, reason = loss_of_logits(module, plan, objective, batch, label_smoothing)
        reasons[0] = reasons[0] or reason
        return loss

    def second(way: Callable[[], Tensor]) -> Tensor | None:
        torch.autograd.grad(way(), parameters, allow_unused=True)
        return None if reasons[0] else way()

    found = passed(module, lambda: second(in_place))
    if reasons[0]:
        return False, _off(reasons[0])
    expected = passed(module, lambda: second(plain))
    problem = different(expected, found, computed_in(next(module.parameters())))
    if problem:
        return False, _off(f"in place {problem}")
    why = "equal loss and gradients; the gradient takes the memory of the logits, which nobody else holds"
    return True, Finding(NAME, "ok", "in the logits' own memory", "equal loss and gradients", why)


def _parts(rows_NV: Tensor) -> Iterator[slice]:
    """Rows at a time: as many as a CPU's cache holds; elsewhere all that need no copy."""
    N, V = rows_NV.shape
    if rows_NV.device.type == "cpu":
        step = max(1, _CPU_NUMBERS // V)
    else:
        step = N if rows_NV.dtype == torch.float32 else max(1, _DEVICE_NUMBERS // V)
    for start in range(0, N, max(1, step)):
        yield slice(start, start + step)


class _InPlaceLoss(torch.autograd.Function):
    """Mean cross-entropy of logits (…, V) with targets (N,). Forward leaves exp(logits − largest) in their place.

    Backward makes the gradient of that, g·(p − (1 − s)·y − s/V) / targets with p the softmax, y the targets, s the
    smoothing and g what comes in: in one go, so that an accumulated or weighted loss costs no pass more. The input is
    not marked as changed, since its history stays as it is; its version counter is raised all the same, so that an
    operation that kept it for its own backward pass raises.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets_N: Tensor, smoothing: float) -> Tensor:
        """A scalar in float32; NaN where nothing is a target."""
        logits_NV = logits.flatten(0, -2)
        keep_N = targets_N != IGNORE_INDEX
        count = keep_N.sum()
        scale_N1 = (keep_N.float() / count.clamp(min=1))[:, None]  # where nothing is a target, gradients are zero
        index_N1 = targets_N.where(keep_N, 0)[:, None]
        target_N1 = logits_NV.gather(1, index_N1).float()  # an id out of range raises before anything is written
        factor_N1 = torch.empty_like(scale_N1)
        loss = torch.zeros((), dtype=torch.float32, device=logits.device)
        for part in _parts(logits_NV):
            rows, scale, target = logits_NV[part], scale_N1[part], target_N1[part]
            work = rows.float()  # itself in float32
            largest = work.amax(1, keepdim=True)
            mean = work.mean(1, keepdim=True) if smoothing else target
            total = work.sub_(largest).exp_().sum(1, keepdim=True)
            if work is not rows:
                rows.copy_(work)
            nats = total.log() + largest - (1 - smoothing) * target - smoothing * mean
            loss += torch.where(scale > 0, nats * scale, 0).sum()
            torch.div(scale, total, out=factor_N1[part])
        ctx.smoothing, ctx.spent = smoothing, False
        ctx.save_for_backward(logits.detach(), factor_N1, scale_N1, index_N1)
        return loss + torch.zeros_like(loss) / count  # NaN where there is no target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The logits' memory, with their gradient in it. Raises RuntimeError the second time."""
        if ctx.spent:
            raise RuntimeError("the loss was computed in the logits' memory: one can go backward from it once only")
        ctx.spent, smoothing = True, ctx.smoothing
        logits, factor_N1, scale_N1, index_N1 = ctx.saved_tensors
        logits_NV = logits.flatten(0, -2)
        factor_N1, scale_N1 = factor_N1 * grad, scale_N1 * grad
        for part in _parts(logits_NV):
            rows, scale = logits_NV[part], scale_N1[part]
            work = rows.float().mul_(factor_N1[part])
            if smoothing:
                work.sub_(scale * (smoothing / logits_NV.shape[1]))
            work.scatter_add_(1, index_N1[part], (smoothing - 1) * scale)
            if rows.dtype != work.dtype:
                rows.copy_(work)
        return logits, None, None
