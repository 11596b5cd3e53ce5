"""What the processes of one run agree on while they train: one loss, one decision, one head. B batch, T time.

Where there is only one process, each of these is what that process says, and costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from anyformer.models.objectives import IGNORE_INDEX, objective_targets
from anyformer.models.plan import Objective

_Value = TypeVar("_Value")


def process_count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this one is, from 0 on."""
    return dist.get_rank() if process_count() > 1 else 0


def leads() -> bool:
    """Whether this is the first of them, which writes and speaks."""
    return process_rank() == 0


def shared_loss(loss: Tensor, objective: Objective, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(what this process runs backward from, the mean over the targets of all processes), nats per target.

    loss: mean over this process' own targets, NaN where it has none. DDP averages gradients over processes; where their
    parts hold different numbers of targets, the mean of their means is another than the mean of all. So each one's loss
    is weighted by its share of the targets, times the number of processes: the average is the gradient of the mean.
    """
    size = process_count()
    if size == 1:
        return loss, loss
    targets = objective_targets(objective, batch["labels"], batch.get("next_ids"))
    count = (targets != IGNORE_INDEX).sum().to(torch.float64)
    own = torch.where(count > 0, loss.detach().to(torch.float64) * count, 0.0)
    total = torch.stack([own, count])
    dist.all_reduce(total)
    weight = count * size / total[1]
    return loss * weight.to(loss.dtype), (total[0] / total[1]).to(loss.dtype)


def agreed(value: int) -> int:
    """The largest value that a process gives: where one has reason to stop or to save, all do."""
    if process_count() == 1:
        return value
    told = torch.tensor([value])
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def from_first(value: _Value) -> _Value:
    """What the first process gives, in every process."""
    if process_count() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def of_all(value: _Value) -> list[_Value]:
    """What each process gives, by rank."""
    if process_count() == 1:
        return [value]
    told: list[Any] = [None] * process_count()
    dist.all_gather_object(told, value)
    return told


def stream_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout of a process from a step on; the first process' at the beginning is ``seed`` itself."""
    if rank == 0 and step == 0:
        return seed
    digest = hashlib.sha256(f"anyformer random stream {seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
