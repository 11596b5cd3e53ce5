"""AdamW as language models are trained with it, and linear warm-up followed by a cosine."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices (two axes or more) decay, biases and norm scales do not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool,
) -> torch.optim.AdamW:
    """AdamW over the module's trainable parameters; ``fused`` updates them in one kernel."""
    return torch.optim.AdamW(decay_groups(module, weight_decay), lr=learning_rate, betas=betas, fused=fused)


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int | None, min_lr_ratio: float) -> float:
    """Factor on the peak learning rate for the update after ``step`` updates.

    Rises linearly to 1 at update ``warmup_steps``, then falls on a half cosine to ``min_lr_ratio`` at
    ``total_steps`` (Loshchilov & Hutter 2017); constant after the warm-up where ``total_steps`` is unknown.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if total_steps is None:
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_cosine_schedule(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, total_steps: int | None, min_lr_ratio: float
) -> LambdaLR:
    """The schedule of ``warmup_cosine`` as a torch scheduler, stepped once per optimizer step."""

    def factor(step: int) -> float:
        return warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, min_lr_ratio=min_lr_ratio)

    return LambdaLR(optimizer, factor)


def suggested_learning_rate(module: nn.Module, embedding_rows: int | None) -> float:
    """Peak learning rate from the number of parameters N outside the token embedding.

    0.003239 − 0.0001395 · ln N (Kaplan et al. 2020, Scaling Laws, eq. D.1), never below 1e-5.
    """
    counted = sum(
        parameter.numel()
        for parameter in module.parameters()
        if not (parameter.dim() == 2 and parameter.shape[0] == embedding_rows)
    )
    return max(1e-5, 0.003239 - 0.0001395 * math.log(max(counted, 1)))
