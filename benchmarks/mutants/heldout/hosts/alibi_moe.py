# decoder: ALiBi + einsum attention + top-2 MoE (dense evaluation)
import torch, torch.nn as nn, torch.nn.functional as F
from torch import einsum


class MoE(nn.Module):
    def __init__(self, dim, n_experts=4, mult=2, top_k=2):
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(dim, n_experts, bias=False)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(dim, mult * dim), nn.SiLU(), nn.Linear(mult * dim, dim)) for _ in range(n_experts)]
        )

    def forward(self, x):
        scores = self.gate(x)
        top, idx = scores.topk(self.top_k, dim=-1)
        w = torch.zeros_like(scores).scatter(-1, idx, top.softmax(dim=-1))
        outs = torch.stack([e(x) for e in self.experts], dim=-2)
        return einsum("b n e, b n e d -> b n d", w, outs)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.register_buffer("slopes", 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (f(x).reshape(b, n, self.heads, -1) for f in (self.to_q, self.to_k, self.to_v))
        sim = einsum("b i h d, b j h d -> b h i j", q, k) * self.scale
        r = torch.arange(n, device=x.device)
        sim = sim - self.slopes.view(1, -1, 1, 1) * (r[:, None] - r[None, :]).abs()
        sim = sim.masked_fill(r[None, :] > r[:, None], -torch.finfo(sim.dtype).max)
        attn = sim.softmax(dim=-1)
        out = einsum("b h i j, b j h d -> b i h d", attn, v)
        return self.to_out(out.reshape(b, n, d))


class Model(nn.Module):
    def __init__(self, num_tokens=90, dim=32, depth=2, heads=4, max_len=32):
        super().__init__()
        self.max_len = max_len
        self.emb = nn.Embedding(num_tokens, dim)
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), Attention(dim, heads), nn.LayerNorm(dim), MoE(dim)]))
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_tokens, bias=False)
        nn.init.normal_(self.emb.weight, std=0.02)
        nn.init.normal_(self.to_logits.weight, std=0.02)

    def forward(self, ids):
        if ids.shape[1] > self.max_len:
            raise ValueError("too long")
        x = self.emb(ids)
        for n1, attn, n2, moe in self.layers:
            x = attn(n1(x)) + x
            x = moe(n2(x)) + x
        return self.to_logits(self.norm(x))
