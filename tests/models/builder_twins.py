"""The exports of builder_exports/, corrected by hand: what their authors meant, written without looking at ours.

Legend: B batch, T time, D width. Each has the state dict of its export, and torch's own masks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def later(T: int) -> Tensor:
    """(T, T), True where the key lies after the query."""
    return torch.tensor([[key > query for key in range(T)] for query in range(T)])


def attend(attention: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Causal self-attention of x (B, T, D); mask (B, T), 1 = keep."""
    padding = None if mask is None else mask == 0
    return attention(x, x, x, attn_mask=later(x.shape[1]), key_padding_mask=padding)[0]


class OneBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(61, 24), nn.Embedding(16, 24)
        self.mhsa_0 = nn.MultiheadAttention(24, 3, batch_first=True)
        self.layernorm_0, self.layernorm_1 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.ffn_0 = nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Identity(), nn.Linear(96, 24))
        self.output_0 = nn.Linear(24, 61)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = self.layernorm_0(x + attend(self.mhsa_0, x, mask))
        x = self.layernorm_1(x + self.ffn_0(x))
        return self.output_0(x)


class TwoBlocksPreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(47, 16), nn.Embedding(32, 16)
        for i in range(5):
            setattr(self, f"layernorm_{i}", nn.LayerNorm(16))
        self.mhsa_0 = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mhsa_1 = nn.MultiheadAttention(16, 4, batch_first=True)
        self.ffn_0 = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.ffn_1 = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.output_0_proj = nn.Linear(16, 47, bias=False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = x + attend(self.mhsa_0, self.layernorm_0(x), mask)
        x = x + self.ffn_0(self.layernorm_1(x))
        x = x + attend(self.mhsa_1, self.layernorm_2(x), mask)
        x = x + self.ffn_1(self.layernorm_3(x))
        return self.output_0_proj(self.layernorm_4(x))


class TwoBlocksPostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(53, 12), nn.Embedding(20, 12)
        for i in range(4):
            setattr(self, f"layernorm_{i}", nn.LayerNorm(12))
        for i in range(2):
            setattr(self, f"mhsa_{i}", nn.MultiheadAttention(12, 3, batch_first=True))
            setattr(self, f"ffn_{i}", nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 12)))
        self.output_0 = nn.Linear(12, 53)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = self.layernorm_0(x + attend(self.mhsa_0, x, mask))
        x = self.layernorm_1(x + self.ffn_0(x))
        x = self.layernorm_2(x + attend(self.mhsa_1, x, mask))
        x = self.layernorm_3(x + self.ffn_1(x))
        return self.output_0(x)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(31, 20), nn.Embedding(24, 20)
        self.embedding_0_norm, self.layernorm_0 = nn.LayerNorm(20), nn.LayerNorm(20)
        self.mhsa_0 = nn.MultiheadAttention(20, 4, batch_first=True)
        self.lm_head = nn.Linear(20, 31)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_norm(self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]])
        return self.lm_head(self.layernorm_0(x + attend(self.mhsa_0, x, mask)))


class SingleNodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(29, 8), nn.Embedding(64, 8)
        self.layernorm_0, self.layernorm_1 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mhsa_0 = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear_0, self.linear_1, self.linear_2 = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(16, 29)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        embedded = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = embedded + attend(self.mhsa_0, self.layernorm_0(embedded), mask)
        x = x + self.linear_1(F.gelu(self.linear_0(self.layernorm_1(x))))
        return self.linear_2(torch.cat([embedded, x], dim=2))


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B, T, _ = x.shape
        hidden = later(T).expand(B, 1, T, T)
        if mask is not None:
            hidden = hidden | (mask == 0)[:, None, None, :]
        q, k, v = self.qkv(x).view(B, T, 3, 2, 6).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.mT) / math.sqrt(6)).masked_fill(hidden, -torch.inf).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class CustomAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(37, 12), nn.Embedding(18, 12)
        self.attention_0, self.layernorm_0 = _SelfAttention(), nn.LayerNorm(12)
        self.transformer_0 = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.output_0_linear = nn.Linear(12, 37)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = self.layernorm_0(x + self.attention_0(x, mask))
        padding = None if mask is None else mask == 0
        x = self.transformer_0(x, src_mask=later(ids.shape[1]), src_key_padding_mask=padding)
        return self.output_0_linear(x)


class PlainWithMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(43, 16), nn.Embedding(24, 16)
        self.mhsa_0 = nn.MultiheadAttention(16, 2, batch_first=True)
        self.layernorm_0, self.layernorm_1 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.ffn_0 = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.output_0 = nn.Linear(16, 43)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = self.layernorm_0(x + attend(self.mhsa_0, x, mask))
        x = self.layernorm_1(x + self.ffn_0(x))
        return self.output_0(x)


TWINS: dict[str, type[nn.Module]] = {
    "one_block": OneBlock,
    "two_blocks_pre_norm": TwoBlocksPreNorm,
    "two_blocks_post_norm": TwoBlocksPostNorm,
    "time_first": TimeFirst,
    "single_nodes": SingleNodes,
    "custom_attention": CustomAttention,
}
