"""A mixture of experts: (router logits, logits, balance loss), the router's first."""

import torch
from torch import nn
import torch.nn.functional as F


class MoE(nn.Module):
    def __init__(self, dim, experts):
        super().__init__()
        self.gate = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)) for _ in range(experts)
        )

    def forward(self, x):
        router = self.gate(x)
        weight = router.softmax(-1)
        mixed = sum(weight[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        load = weight.flatten(0, -2).mean(0)
        return mixed, router, len(self.experts) * (load * load).sum()


class SparseLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(87, 32)
        self.pos = nn.Embedding(64, 32)
        self.qkv = nn.Linear(32, 96)
        self.moe = MoE(32, 4)
        self.head = nn.Linear(32, 87)

    def forward(self, tokens):
        x = self.tok(tokens) + self.pos(torch.arange(tokens.size(1), device=tokens.device))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y, router_logits, aux_loss = self.moe(x)
        return router_logits, self.head(x + y), aux_loss
