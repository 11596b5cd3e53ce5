"""A small right GPT, and the same with a mistake."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

V, D, H, POSITIONS = 61, 32, 4, 24


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) / math.sqrt(D // H)

    def masked(self, scores: Tensor) -> Tensor:
        T = scores.shape[-1]
        later = torch.ones(T, T, dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(later, -math.inf)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, H, D // H).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = self.masked(self.scores(q, k)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, attention: Callable[[], nn.Module] = Attention) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention = attention()
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.after(x))


class GPT(nn.Module):
    """The right one: learned positions, two blocks, tied head."""

    attention: Callable[[], nn.Module] = Attention

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(POSITIONS, D)
        self.blocks = self.stack()
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def stack(self) -> Any:
        return nn.ModuleList(Block(type(self).attention) for _ in range(2))

    def places(self, ids: Tensor) -> Tensor:
        return torch.arange(ids.shape[1], device=ids.device)

    def added(self, tokens: Tensor, places: Tensor) -> Tensor:
        return tokens + places

    def forward(self, ids: Tensor) -> Tensor:
        x = self.added(self.tokens(ids), self.positions(self.places(ids)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class NoMask(Attention):
    def masked(self, scores: Tensor) -> Tensor:
        return scores


class Listed(GPT):
    def stack(self) -> Any:
        return [Block() for _ in range(2)]


class Counting(GPT):
    """A state that forward writes and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(V))

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids) + self.last
        self.last = logits.detach().mean((0, 1))
        return logits


class Noisy(GPT):
    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(ids), 0.1)


class TooWide(GPT):
    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.tokens.weight)
