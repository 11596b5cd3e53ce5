"""What all contenders share: the bare loop that each is timed beside, the optimizer, batches that alternate the two.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset

WARMUP_STEPS, LEARNING_RATE = 10, 3e-4


def make_optimizer(module: nn.Module) -> torch.optim.AdamW:
    """AdamW (fused) with weight decay on matrices alone."""
    matrices = [p for p in module.parameters() if p.dim() >= 2]
    others = [p for p in module.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def warm_up(step: int) -> float:
    """Factor on the learning rate for the update after ``step`` updates."""
    return min(1.0, (step + 1) / (WARMUP_STEPS + 1))


def make_schedule(optimizer: torch.optim.Optimizer) -> LambdaLR:
    """The warm-up as a scheduler."""
    return LambdaLR(optimizer, warm_up)


class BareLoop:
    """What one writes by hand: AdamW (fused), warm-up, clipping."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.train()
        self.optimizer = make_optimizer(module)
        self.step = 0
        self.losses: list[Tensor] = []

    def __call__(self, input_ids: Tensor, targets: Tensor) -> None:
        """One optimizer step on ids and next tokens, both (B, T)."""
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm_up(self.step)
        logits = self.module(input_ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.detach())


class WithLoss(nn.Module):
    """The module with its loss, for trainers that want it so; keeps the losses."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.losses: list[Tensor] = []

    def forward(self, input_ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """{"loss"}: mean nats of ``targets`` (B, T) after ``input_ids`` (B, T)."""
        loss = F.cross_entropy(self.module(input_ids).flatten(0, 1), targets.flatten())
        self.losses.append(loss.detach())
        return {"loss": loss}


class Pace(IterableDataset[dict[str, Tensor]]):
    """Gives each batch to the bare loop and then to the contender, and notes the CPU time of both.

    From one batch asked for to the next passes one step of the contender, also where it reads one ahead.
    """

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]], bare: BareLoop) -> None:
        self.batches = batches
        self.bare = bare
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        resumed = time.process_time()
        for input_ids, targets in self.batches:
            self.ours.append(time.process_time() - resumed)
            begin = time.process_time()
            self.bare(input_ids.clone(), targets.clone())
            self.theirs.append(time.process_time() - begin)
            resumed = time.process_time()
            yield {"input_ids": input_ids.clone(), "targets": targets.clone()}
