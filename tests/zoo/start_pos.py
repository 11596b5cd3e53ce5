"""A Llama: forward(tokens, start_pos), a key-value cache that the module keeps in buffers, rotary embedding, RMSNorm."""

from dataclasses import dataclass
from typing import Tuple

import torch
from torch import nn
import torch.nn.functional as F


@dataclass
class ModelArgs:
    dim: int = 32
    n_layers: int = 2
    n_heads: int = 4
    vocab_size: int = 89
    max_batch_size: int = 32
    max_seq_len: int = 64


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope_table(dim: int, end: int) -> torch.Tensor:
    freqs = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
    return torch.polar(torch.ones(end, dim // 2), torch.outer(torch.arange(end).float(), freqs))


def apply_rope(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * table[None, :, None]).flatten(3)


class Attention(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.n_heads, self.head_dim = args.n_heads, args.dim // args.n_heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(args.dim, args.dim, bias=False) for _ in range(4))
        shape = (args.max_batch_size, args.max_seq_len, self.n_heads, self.head_dim)
        self.register_buffer("cache_k", torch.zeros(shape), persistent=False)
        self.register_buffer("cache_v", torch.zeros(shape), persistent=False)

    def forward(self, x, start_pos: int, table, mask):
        B, T, _ = x.shape
        q, k, v = (w(x).view(B, T, self.n_heads, self.head_dim) for w in (self.wq, self.wk, self.wv))
        q, k = apply_rope(q, table), apply_rope(k, table)
        if not self.training:
            self.cache_k[:B, start_pos : start_pos + T] = k.detach()
            self.cache_v[:B, start_pos : start_pos + T] = v.detach()
            if start_pos > 0:
                k, v = self.cache_k[:B, : start_pos + T], self.cache_v[:B, : start_pos + T]
        scores = torch.einsum("bthd,bshd->bhts", q, k) / self.head_dim**0.5
        if mask is not None:
            scores = scores + mask
        out = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
        return self.wo(out.reshape(B, T, -1))


class TransformerBlock(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.attention = Attention(args)
        self.w1, self.w3 = nn.Linear(args.dim, 48, bias=False), nn.Linear(args.dim, 48, bias=False)
        self.w2 = nn.Linear(48, args.dim, bias=False)
        self.attention_norm, self.ffn_norm = RMSNorm(args.dim), RMSNorm(args.dim)

    def forward(self, x, start_pos, table, mask):
        x = x + self.attention(self.attention_norm(x), start_pos, table, mask)
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class Transformer(nn.Module):
    def __init__(self, params: ModelArgs = ModelArgs()):
        super().__init__()
        self.params = params
        self.tok_embeddings = nn.Embedding(params.vocab_size, params.dim)
        self.layers = nn.ModuleList(TransformerBlock(params) for _ in range(params.n_layers))
        self.norm = RMSNorm(params.dim)
        self.output = nn.Linear(params.dim, params.vocab_size, bias=False)
        self.freqs_cis = rope_table(params.dim // params.n_heads, params.max_seq_len)

    def forward(self, tokens: torch.Tensor, start_pos: int):
        T = tokens.shape[1]
        h = self.tok_embeddings(tokens)
        table = self.freqs_cis[start_pos : start_pos + T]
        mask = None
        if T > 1:
            mask = torch.full((T, T), float("-inf"), device=tokens.device).triu(diagonal=1)
            mask = torch.hstack([torch.zeros((T, start_pos), device=tokens.device), mask])
        for layer in self.layers:
            h = layer(h, start_pos, table, mask)
        return self.output(self.norm(h)).float()
