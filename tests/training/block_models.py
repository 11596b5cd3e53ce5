"""Models of repeated blocks, and a pass through them. B batch, T time, V vocabulary, D width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.callplan import CallPlan
from anyformer.training.blocks import BlockPath
from anyformer.training.losspath import LossPath

V, D, T = 40, 16, 16
IDS = torch.randint(0, V, (4, T), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": IDS}


class Block(nn.Module):
    """Looks at its own token alone; counts its calls where told to."""

    def __init__(self, dropout: float = 0.2, norm: bool = False, counts: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.BatchNorm1d(D) if norm else None
        self.counts = counts
        self.calls = 0

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += self.counts
        y = self.down(self.drop(F.gelu(self.up(x))))
        if self.norm is not None:
            y = self.norm(y.flatten(0, 1)).view_as(y)
        return x + scale * y


class Stack(nn.Module):
    """An embedding, blocks, a head."""

    def __init__(self, **block: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.emb = nn.Embedding(V, D)
        self.layers = nn.ModuleList(Block(**block) for _ in range(3))
        self.head = nn.Linear(D, V, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x, scale=0.5)
        return self.head(x)  # type: ignore[no-any-return]


class InSequence(Stack):
    """As nn.Sequential, with something else at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*self.layers, nn.LayerNorm(D))  # type: ignore[assignment]

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.emb(ids)))  # type: ignore[no-any-return]


class InPairs(Stack):
    """A list of lists, as lucidrains writes them; their forward is called by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([Block(), Block()]) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        for first, second in self.layers:  # type: ignore[misc]
            x = second(first.forward(x))
        return self.head(x)  # type: ignore[no-any-return]


def path(**asked: Any) -> tuple[LossPath, list[Finding]]:
    """A way to the loss, and what it says."""
    said: list[Finding] = []
    blocks = BlockPath(**asked)
    blocks.told = said.append
    return LossPath(blocks), said


def trained(module: nn.Module, plan: CallPlan, way: LossPath) -> list[Tensor]:
    """Loss and gradients of a batch from one random state."""
    module.train().zero_grad()
    torch.manual_seed(7)
    loss = way.loss(module, plan, "causal", BATCH)
    loss.backward()  # type: ignore[no-untyped-call]
    return [loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]
