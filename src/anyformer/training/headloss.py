"""The loss of a linear head and its gradients, for some rows at a time: of (N, V) logits R rows exist at once.

Legend: N rows, R of them at once, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anyformer.models.objectives import IGNORE_INDEX
from anyformer.training.equal import computed_in

_CPU_ROWS = 128
"""Rows at a time: of 64 … 512 the fastest on a CPU, V 8,192 and 50,257 (benchmarks/results/fused_head.md)."""
_LEAST_SUM, _LARGEST_SUM = 1e-15, 1e15
"""Of the exponentials of a row of logits, unshifted: in float32 (1e-38 … 3e38) nothing of such a sum is lost, nor of
what is divided by it. Nearly all models stay within; from the logits of others the largest is taken away first."""


def rows_at_once(hidden: Tensor, weight: Tensor) -> int:
    """How many rows' logits exist at once: on other devices than a CPU about as many numbers as the hidden states.

    That is the rule of Liger Kernel (Hsu et al. 2024, arXiv:2410.10989, §3.2), whose kernels need rows by the hundred.
    """
    if hidden.device.type == "cpu":
        return _CPU_ROWS
    share = -(-len(weight) // hidden.shape[-1])
    return max(_CPU_ROWS, 1 << (-(-len(hidden) // share) - 1).bit_length())


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of hidden (N, D) @ weightᵀ (V, D) + bias (V,) with targets (N,), and all gradients at once.

    With p the softmax, y the targets and s the smoothing, the gradient of the logits is p − (1 − s)·y − s/V.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float
    ) -> Tensor:
        """A scalar, in float32 at least; NaN where nothing is a target."""
        kind = computed_in(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            loss, gradients = loss_and_gradients(
                hidden.to(kind),
                weight.to(kind),
                None if bias is None else bias.to(kind),
                targets,
                smoothing,
                trained=ctx.needs_input_grad[1],
            )
        given = (hidden, weight, bias)
        ctx.save_for_backward(
            *(None if g is None or o is None else g.to(o.dtype) for g, o in zip(gradients, given, strict=True))
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of ``forward``, scaled."""
        kept = ctx.saved_tensors
        if grad.device.type != "cpu" or float(grad) != 1.0:
            kept = tuple(None if g is None else g * grad.to(g.dtype) for g in kept)
        return (*kept, None, None)


def _logits(hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, into: Tensor) -> Tensor:
    """The first rows of ``into``, written anew."""
    out = into[: len(hidden_RD)]
    if bias_V is None:
        return torch.mm(hidden_RD, weight_VD.t(), out=out)
    return torch.addmm(bias_V, hidden_RD, weight_VD.t(), out=out)


def loss_and_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, smoothing: float, *, trained: bool
) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
    """Mean nats per target, and its gradients by hidden states, weight and bias; targets (N,) int64.

    trained: whether the weight's gradient is asked for. NaN where nothing is a target, with gradients of zero.
    """
    V, kind = len(weight_VD), hidden_ND.dtype
    wide = torch.promote_types(kind, torch.float32)
    exact = wide == kind
    keep_N = targets_N != IGNORE_INDEX
    count = keep_N.sum()
    scale_N = keep_N.to(wide) / count.clamp(min=1)  # where nothing is a target, its gradients are zero
    index_N1 = targets_N.where(keep_N, 0)[:, None]
    d_hidden = torch.empty_like(hidden_ND)
    d_weight = torch.zeros_like(weight_VD, dtype=wide) if trained else None
    d_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=wide)
    loss = torch.zeros((), dtype=wide, device=hidden_ND.device)
    step = max(1, min(rows_at_once(hidden_ND, weight_VD), len(hidden_ND)))
    # one piece of memory for all parts: on a CPU fresh pages for each cost a tenth of the whole
    logits_RV = hidden_ND.new_empty(step, V)
    unshifted = hidden_ND.device.type == "cpu"  # elsewhere to look at a sum would wait for the device
    for start in range(0, len(hidden_ND), step):
        part = slice(start, start + step)
        scale_R1, index_R1 = scale_N[part, None], index_N1[part]
        logits = _logits(hidden_ND[part], weight_VD, bias_V, logits_RV).to(wide)
        target = logits.gather(1, index_R1)
        mean = logits.mean(1, keepdim=True) if smoothing else target
        # no logsumexp and softmax: these passes write where they read
        shift = torch.zeros_like(target)
        if unshifted:
            total = logits.exp_().sum(1, keepdim=True)
            unshifted = bool(((total > _LEAST_SUM) & (total < _LARGEST_SUM)).all())
            if not unshifted:
                logits = _logits(hidden_ND[part], weight_VD, bias_V, logits_RV).to(wide)
        if not unshifted:
            shift = logits.amax(1, keepdim=True)
            total = logits.sub_(shift).exp_().sum(1, keepdim=True)
        nats = total.log() + shift - (1 - smoothing) * target - smoothing * mean
        loss += torch.where(scale_R1 > 0, nats * scale_R1, 0).sum()
        # softmax times total: what it lacks is a factor a row, for which the products with (R, D) are the cheaper place
        factor_R1 = scale_R1 / total
        if not exact:  # there the products would be rounded once more
            logits.mul_(factor_R1)
            total, factor_R1 = scale_R1, torch.ones_like(factor_R1)
        if smoothing:
            logits.sub_(total * (smoothing / V))
        logits.scatter_add_(1, index_R1, -(1 - smoothing) * total)
        if d_bias is not None:
            d_bias += logits.t() @ factor_R1[:, 0]
        low = logits.to(kind)
        torch.mm(low, weight_VD, out=d_hidden[part])
        d_hidden[part].mul_(factor_R1)
        if d_weight is None:
            continue
        rows = (hidden_ND[part] * factor_R1).to(kind)
        if exact:
            d_weight.addmm_(low.t(), rows)
        else:
            d_weight += low.t() @ rows
    return loss + torch.zeros_like(loss) / count, (d_hidden, d_weight, d_bias)  # NaN where there is no target
