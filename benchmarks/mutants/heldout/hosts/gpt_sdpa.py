# small GPT: rmsnorm, sdpa, learned positions, untied head
import torch
from torch import nn
from torch.nn import functional as F


class Config:
    vocab = 100
    ctx = 32
    dim = 32
    heads = 4
    depth = 2
    p = 0.1


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.g


class Attn(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.h = c.heads
        self.p = c.p
        self.qkv = nn.Linear(c.dim, 3 * c.dim, bias=False)
        self.o = nn.Linear(c.dim, c.dim, bias=False)

    def forward(self, x):
        b, t, d = x.size()
        q, k, v = self.qkv(x).split(d, dim=2)
        q = q.view(b, t, self.h, d // self.h).transpose(1, 2)
        k = k.view(b, t, self.h, d // self.h).transpose(1, 2)
        v = v.view(b, t, self.h, d // self.h).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=True)
        y = y.transpose(1, 2).reshape(b, t, d)
        return self.o(y)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n1, self.n2 = RMSNorm(c.dim), RMSNorm(c.dim)
        self.attn = Attn(c)
        self.up = nn.Linear(c.dim, 4 * c.dim)
        self.down = nn.Linear(4 * c.dim, c.dim)
        self.p = c.p

    def forward(self, x):
        x = x + self.attn(self.n1(x))
        h = F.gelu(self.up(self.n2(x)))
        h = F.dropout(self.down(h), self.p, training=self.training)
        return x + h


class GPT(nn.Module):
    def __init__(self, c=Config()):
        super().__init__()
        self.c = c
        self.wte = nn.Embedding(c.vocab, c.dim)
        self.wpe = nn.Embedding(c.ctx, c.dim)
        self.layers = nn.ModuleList([Layer(c) for _ in range(c.depth)])
        self.nf = RMSNorm(c.dim)
        self.lm_head = nn.Linear(c.dim, c.vocab, bias=False)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.02)

    def forward(self, tokens, labels=None):
        """labels: the same ids as tokens; shifted in here."""
        b, t = tokens.shape
        assert t <= self.c.ctx, "text too long"
        x = self.wte(tokens) + self.wpe(torch.arange(t, device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.nf(x))
        if labels is None:
            return logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.size(-1)), labels[:, 1:].reshape(-1))
        return loss, logits
