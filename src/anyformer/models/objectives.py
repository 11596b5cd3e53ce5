"""Losses in nats, and the one place where labels are shifted against logits.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that is no target; the default ignore_index of torch.nn.functional.cross_entropy."""


def next_token_targets(labels: Tensor, next_ids: Tensor | None = None) -> Tensor:
    """Targets of next-token prediction: labels moved left by one.

    labels: (B, T) int64, unshifted, IGNORE_INDEX where a token is no target. next_ids: (B,) int64, the token that
    follows each row, the last column's target; IGNORE_INDEX where it is not known. Returns a new (B, T) int64 tensor.
    The targets move, not the logits, so that (B, T, V) logits are never copied.
    """
    targets = torch.full_like(labels, IGNORE_INDEX)
    targets[:, :-1] = labels[:, 1:]
    if next_ids is not None:
        targets[:, -1] = next_ids
    return targets


def causal_lm_loss(
    logits: Tensor, labels: Tensor, next_ids: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of the next token, in nats per target.

    logits: (B, T, V), half precision is computed in float32. labels: (B, T) int64, unshifted, IGNORE_INDEX = no target.
    next_ids: (B,), what follows each row, where it is known.
    label_smoothing: share of the target probability spread evenly over all V entries (Szegedy et al. 2016, §7).
    Returns a scalar; NaN where there is no target at all.
    """
    flat_NV, targets_N = _flatten(logits, labels, next_ids)
    return F.cross_entropy(flat_NV, targets_N, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing)


def causal_lm_total(logits: Tensor, labels: Tensor, next_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the next-token cross-entropies in nats and the number of targets, for averages over many batches.

    logits: (B, T, V). labels: (B, T) int64, unshifted. next_ids: (B,), what follows each row, where it is known.
    Returns two scalars, float64 and int64, so that sums over millions of tokens keep their digits; on the logits'
    device where it has float64, else on the CPU.
    """
    flat_NV, targets_N = _flatten(logits, labels, next_ids)
    nats_N = F.cross_entropy(flat_NV, targets_N, ignore_index=IGNORE_INDEX, reduction="none")
    if nats_N.device.type == "mps":  # has no float64
        nats_N = nats_N.cpu()
    return nats_N.sum(dtype=torch.float64), (targets_N != IGNORE_INDEX).sum()


def _flatten(logits: Tensor, labels: Tensor, next_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B·T, V) view of the logits and (B·T,) shifted targets."""
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} are not (B, T, V) and (B, T)")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits.flatten(0, 1), next_token_targets(labels, next_ids).flatten()
