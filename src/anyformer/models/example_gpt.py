"""A small GPT to start from: an ordinary model file that needs nothing but torch.

Pre-norm decoder with learned positions and a tied head, as GPT-2 (Radford et al. 2019).
Legend: B batch, T time, V vocabulary, D model, H heads, K head size (D = H·K).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal self-attention with H heads: (B, T, D) → (B, T, D)."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.proj = nn.Linear(n_embd, n_embd, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD).view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, dropout_p=p, is_causal=True)
        return F.dropout(self.proj(y_BHTK.transpose(1, 2).reshape(B, T, D)), self.dropout, self.training)


class Block(nn.Module):
    """One layer: attention, then a feed-forward of four times the width, each behind a norm: (B, T, D) → (B, T, D)."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.norm_attn = nn.LayerNorm(n_embd, bias=bias)
        self.attn = Attention(n_embd, n_head, dropout, bias)
        self.norm_mlp = nn.LayerNorm(n_embd, bias=bias)
        self.up = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.down = nn.Linear(4 * n_embd, n_embd, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm_attn(x_BTD))
        hidden = F.gelu(self.up(self.norm_mlp(x_BTD)), approximate="tanh")
        out_BTD: Tensor = x_BTD + self.drop(self.down(hidden))
        return out_BTD


class GPT(nn.Module):
    """Decoder-only language model: ids (B, T) int64 → logits (B, T, V).

    vocab_size: V. block_size: longest T. n_layer, n_head, n_embd: depth, H, D. dropout: share of activations dropped in
    training. bias: biases in linear layers and norms. Raises ValueError if n_head does not divide n_embd.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        block_size: int = 256,
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 192,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f"n_embd {n_embd} is not a multiple of n_head {n_head}")
        self.block_size = block_size
        self.tokens = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(block_size, n_embd)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout, bias) for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd, bias=bias)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        # GPT-2's 0.02 belongs to its width, 768; a sum over D inputs keeps its size when the weights go as 1/√D
        std = 0.02 * math.sqrt(768 / n_embd)
        for name, parameter in self.named_parameters():
            if name.endswith(("attn.proj.weight", "down.weight")):
                # each block adds twice to the residual stream; scaled so that its variance does not grow with depth
                nn.init.normal_(parameter, std=std / math.sqrt(2 * n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, input_ids: Tensor) -> Tensor:
        T = input_ids.shape[1]
        if self.block_size < T:
            raise ValueError(f"a sequence of {T} tokens is longer than block_size {self.block_size}")
        x_BTD = self.drop(self.tokens(input_ids) + self.positions(torch.arange(T, device=input_ids.device)))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV
