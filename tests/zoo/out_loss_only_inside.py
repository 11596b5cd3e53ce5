"""forward(x) gives the loss alone: the ids are cut into inputs and targets inside, cross-entropy on (B, V, T-1)."""

import torch
import torch.nn.functional as F
from torch import nn


class Decoder(nn.Module):
    def __init__(self, num_tokens, dim, max_seq_len):
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = nn.Embedding(max_seq_len, dim)
        self.attn = nn.MultiheadAttention(dim, 4, batch_first=True, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_tokens)

    def forward(self, x):
        n = x.shape[1]
        x = self.token_emb(x) + self.pos_emb(torch.arange(n, device=x.device))
        mask = torch.ones((n, n), device=x.device).triu(1).bool()
        x = self.norm(x + self.attn(x, x, x, attn_mask=mask, need_weights=False)[0])
        return self.to_logits(x)


class AutoregressiveWrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Decoder(num_tokens=81, dim=32, max_seq_len=64)

    def forward(self, x):
        inp, target = x[:, :-1], x[:, 1:]
        logits = self.net(inp)
        return F.cross_entropy(logits.transpose(1, 2), target)
