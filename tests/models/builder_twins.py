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


class Sinusoidal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token = nn.Embedding(43, 16)
        self.register_buffer("posenc_0_pe", torch.zeros(1, 32, 16))
        self.mhsa_0 = nn.MultiheadAttention(16, 4, batch_first=True)
        self.layernorm_0, self.layernorm_1, self.layernorm_2 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.ffn_0 = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 16))
        self.linear_0 = nn.Linear(16, 43)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = 4 * self.embedding_0_token(ids) + self.posenc_0_pe[:, : ids.shape[1]]
        x = x + attend(self.mhsa_0, self.layernorm_0(x), mask)
        x = x + self.ffn_0(self.layernorm_1(x))
        return self.linear_0(self.layernorm_2(x))


class TwoResidualStyles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(47, 12), nn.Embedding(24, 12)
        self.mhsa_0 = nn.MultiheadAttention(12, 2, batch_first=True)
        self.mhsa_1 = nn.MultiheadAttention(12, 3, batch_first=True)
        for i in range(4):
            setattr(self, f"layernorm_{i}", nn.LayerNorm(12))
        for i in range(2):
            setattr(self, f"ffn_{i}_linear1", nn.Linear(12, 24))
            setattr(self, f"ffn_{i}_linear2", nn.Linear(24, 12))
        self.output_0_linear = nn.Linear(12, 47)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = self.layernorm_0(x + attend(self.mhsa_0, x, mask))
        x = self.layernorm_1(x + self.ffn_0_linear2(F.gelu(self.ffn_0_linear1(x))))
        x = self.layernorm_2(x + attend(self.mhsa_1, x, mask))
        x = self.layernorm_3(x + self.ffn_1_linear2(F.gelu(self.ffn_1_linear1(x))))
        return self.output_0_linear(x)


class GraphGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(53, 16), nn.Embedding(24, 16)
        for i in range(5):
            setattr(self, f"layernorm_{i}", nn.LayerNorm(16))
        for i in range(2):
            setattr(self, f"attention_{i}_qkv", nn.Linear(16, 48, bias=False))
            setattr(self, f"attention_{i}_proj", nn.Linear(16, 16, bias=False))
            setattr(self, f"ffn_{i}", nn.Sequential(nn.Linear(16, 64), nn.GELU("tanh"), nn.Linear(64, 16)))
        self.output_0_proj = nn.Linear(16, 53, bias=False)
        self.output_0_proj.weight = self.embedding_0_token.weight

    def attend(self, x: Tensor, i: int, mask: Tensor | None) -> Tensor:
        B, T, _ = x.shape
        hidden = later(T).expand(B, 1, T, T)
        if mask is not None:
            hidden = hidden | (mask == 0)[:, None, None, :]
        q, k, v = getattr(self, f"attention_{i}_qkv")(x).view(B, T, 3, 4, 4).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.mT) / 2).masked_fill(hidden, -torch.inf).softmax(-1)
        return getattr(self, f"attention_{i}_proj")((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = x + self.attend(self.layernorm_0(x), 0, mask)
        x = x + self.ffn_0(self.layernorm_1(x))
        x = x + self.attend(self.layernorm_2(x), 1, mask)
        x = x + self.ffn_1(self.layernorm_3(x))
        return self.output_0_proj(self.layernorm_4(x))


class ConvSwiglu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(41, 16), nn.Embedding(24, 16)
        self.conv1d_0 = nn.Conv1d(16, 16, 5)
        self.rmsnorm_0, self.rmsnorm_1 = nn.RMSNorm(16), nn.RMSNorm(16)
        self.mhsa_0 = nn.MultiheadAttention(16, 4, batch_first=True)
        self.swiglu_0_gate, self.swiglu_0_up = nn.Linear(16, 40, bias=False), nn.Linear(16, 40, bias=False)
        self.swiglu_0_down = nn.Linear(40, 16, bias=False)
        self.output_0_norm, self.output_0_proj = nn.LayerNorm(16), nn.Linear(16, 41, bias=False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        embedded = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        empty = embedded.new_zeros(len(ids), 4, 16)  # four tokens before the first: it sees five, its own the last
        x = self.conv1d_0(torch.cat([empty, embedded], 1).mT).mT
        x = x + attend(self.mhsa_0, self.rmsnorm_0(x), mask)
        h = self.rmsnorm_1(x)
        x = x + self.swiglu_0_down(F.silu(self.swiglu_0_gate(h)) * self.swiglu_0_up(h))
        return self.output_0_proj(self.output_0_norm(x))


class GruLinearHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token = nn.Embedding(37, 12)
        self.gru_0, self.lstm_0 = nn.GRU(12, 12, batch_first=True), nn.LSTM(12, 18, batch_first=True)
        self.layernorm_0, self.linear_0 = nn.LayerNorm(12), nn.Linear(18, 37)
        self.mhsa_0 = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x, _ = self.gru_0(self.embedding_0_token(ids))
        x = x + attend(self.mhsa_0, self.layernorm_0(x), mask)
        return self.linear_0(self.lstm_0(x)[0])


class MeanPoolClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(31, 12), nn.Embedding(20, 12)
        self.mhsa_0 = nn.MultiheadAttention(12, 3, batch_first=True)
        self.layernorm_0, self.layernorm_1 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.ffn_0_fc1, self.ffn_0_fc2 = nn.Linear(12, 30), nn.Linear(30, 12)
        self.classifier_0 = nn.Linear(12, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        x = self.layernorm_0(x + self.mhsa_0(x, x, x, key_padding_mask=None if mask is None else mask == 0)[0])
        x = self.layernorm_1(x + self.ffn_0_fc2(F.relu(self.ffn_0_fc1(x))))
        return self.classifier_0(x.mean(1))


class MaskedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(45, 12), nn.Embedding(24, 12)
        self.embedding_0_norm, self.layernorm_0, self.layernorm_1 = (nn.LayerNorm(12) for _ in range(3))
        self.mhsa_0 = nn.MultiheadAttention(12, 3, batch_first=True)
        self.ffn_0 = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 12))
        self.mlm_head_0 = nn.Linear(12, 45)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding_0_norm(self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]])
        x = self.layernorm_0(x + self.mhsa_0(x, x, x, key_padding_mask=None if mask is None else mask == 0)[0])
        return self.mlm_head_0(self.layernorm_1(x + self.ffn_0(x)))


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_0_token, self.embedding_0_pos = nn.Embedding(33, 12), nn.Embedding(24, 12)
        self.embedding_1_token, self.embedding_1_pos = nn.Embedding(39, 12), nn.Embedding(24, 12)
        self.mhsa_0 = nn.MultiheadAttention(12, 3, batch_first=True)
        self.mhsa_1 = nn.MultiheadAttention(12, 2, batch_first=True)
        self.crossattn_0 = nn.MultiheadAttention(12, 3, batch_first=True)
        for i in range(4):
            setattr(self, f"layernorm_{i}", nn.LayerNorm(12))
        self.ffn_0 = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 12))
        self.output_0_linear = nn.Linear(12, 39)

    def forward(
        self, ids: Tensor, target: Tensor, mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor:
        hidden = None if mask is None else mask == 0
        x = self.embedding_0_token(ids) + self.embedding_0_pos.weight[: ids.shape[1]]
        memory = self.layernorm_0(x + self.mhsa_0(x, x, x, key_padding_mask=hidden)[0])
        y = self.embedding_1_token(target) + self.embedding_1_pos.weight[: target.shape[1]]
        y = self.layernorm_1(y + attend(self.mhsa_1, y, target_mask))
        y = self.layernorm_2(y + self.crossattn_0(y, memory, memory, key_padding_mask=hidden)[0])
        return self.output_0_linear(self.layernorm_3(y + self.ffn_0(y)))


TWINS: dict[str, type[nn.Module]] = {
    "one_block": OneBlock,
    "two_blocks_pre_norm": TwoBlocksPreNorm,
    "two_blocks_post_norm": TwoBlocksPostNorm,
    "time_first": TimeFirst,
    "single_nodes": SingleNodes,
    "custom_attention": CustomAttention,
    "sinusoidal": Sinusoidal,
    "two_residual_styles": TwoResidualStyles,
    "graph_gpt": GraphGPT,
}
"""Decoders that mix tokens by attention alone."""
MIXERS: dict[str, type[nn.Module]] = {"conv_swiglu": ConvSwiglu, "gru_linear_head": GruLinearHead}
"""Decoders in which a token reaches others by convolution or recurrence, too; no mask hides padding there."""
BOTH_SIDES: dict[str, type[nn.Module]] = {
    "mean_pool_classifier": MeanPoolClassifier,
    "masked_head": MaskedHead,
}
"""No causal mask is meant."""
