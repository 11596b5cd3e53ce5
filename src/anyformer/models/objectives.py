"""Losses in nats, and the one place where labels are shifted against logits.

B batch, T time (source), S time (target), V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.models.calling import call_logits
from anyformer.models.plan import CallPlan, Objective

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
    return objective_loss("causal", logits, labels, next_ids, label_smoothing=label_smoothing)


def causal_lm_total(logits: Tensor, labels: Tensor, next_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the next-token cross-entropies in nats and the number of targets, for averages over many batches.

    logits: (B, T, V). labels: (B, T) int64, unshifted. next_ids: (B,), what follows each row, where it is known.
    Returns two scalars, float64 and int64, so that sums over millions of tokens keep their digits; on the logits'
    device where it has float64, else on the CPU.
    """
    return objective_total("causal", logits, labels, next_ids)


def objective_loss(
    objective: Objective,
    logits: Tensor,
    labels: Tensor,
    next_ids: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy in nats per target of any objective; a scalar, NaN where there is no target at all.

    logits: (B, T, V), (B, S, V) of seq2seq, (B, C) of classification. labels, IGNORE_INDEX = no target: causal (B, T)
    and seq2seq (B, S) unshifted, shifted here; masked (B, T), classification (B,) as they stand. next_ids: causal only.
    """
    flat, targets = _aligned(objective, logits, labels, next_ids)
    return F.cross_entropy(flat, targets, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing)


def objective_total(
    objective: Objective, logits: Tensor, labels: Tensor, next_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies in nats and the number of targets; shapes as in ``objective_loss``.

    Returns two scalars, float64 and int64; on the logits' device where it has float64, else on the CPU.
    """
    flat, targets = _aligned(objective, logits, labels, next_ids)
    nats_N = F.cross_entropy(flat, targets, ignore_index=IGNORE_INDEX, reduction="none")
    if nats_N.device.type == "mps":  # has no float64
        nats_N = nats_N.cpu()
    return nats_N.sum(dtype=torch.float64), (targets != IGNORE_INDEX).sum()


def batch_logits(module: nn.Module, plan: CallPlan, batch: Mapping[str, Any]) -> Tensor:
    """Logits of the module for a batch {"input_ids", "attention_mask", "target_ids", "target_mask", "segment_ids"}.

    All but the ids may be missing. Of an encoder-decoder, target_ids (B, S) are <bos> y … <eos>.
    """
    return call_logits(
        module,
        plan,
        batch["input_ids"],
        batch.get("attention_mask"),
        target_ids=batch.get("target_ids") if plan.family == "encoder_decoder" else None,
        target_mask=batch.get("target_mask") if plan.family == "encoder_decoder" else None,
        segment_ids=batch.get("segment_ids"),
    )


def objective_targets(objective: Objective, labels: Tensor, next_ids: Tensor | None = None) -> Tensor:
    """The target opposite each place of the logits: of causal and seq2seq the label after it, else its own label.

    labels and next_ids as in ``objective_loss``; returns labels' shape, IGNORE_INDEX = no target.
    """
    return next_token_targets(labels, next_ids) if objective in ("causal", "seq2seq") else labels


def target_count(objective: Objective, labels: Tensor, next_ids: Tensor | None = None) -> Tensor:
    """How many targets a batch has, int64: what ``objective_loss`` is the mean over."""
    return (objective_targets(objective, labels, next_ids) != IGNORE_INDEX).sum()


def _aligned(objective: Objective, logits: Tensor, labels: Tensor, next_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and targets (N,) that stand opposite each other."""
    if labels.shape != logits.shape[:-1] or (labels.dim() != 2 and objective in ("causal", "seq2seq")):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit together")
    return _wide(logits).flatten(0, -2), objective_targets(objective, labels, next_ids).flatten()


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
