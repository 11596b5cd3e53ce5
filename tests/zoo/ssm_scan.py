"""A selective state space model: the recurrence is a loop over time."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class SSMBlock(nn.Module):
    def __init__(self, d_model: int, d_state: int = 4):
        super().__init__()
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(d_model, 1))
        self.x_proj = nn.Linear(d_model, 2 * d_state)
        self.dt_proj = nn.Linear(d_model, d_model)
        self.D = nn.Parameter(torch.ones(d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, u):
        delta = F.softplus(self.dt_proj(u))
        B, C = self.x_proj(u).chunk(2, dim=-1)
        A = -torch.exp(self.A_log)
        h = u.new_zeros(u.shape[0], *A.shape)
        ys = []
        for t in range(u.shape[1]):
            h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
            ys.append((h * C[:, t, None, :]).sum(-1) + self.D * u[:, t])
        return self.out_proj(torch.stack(ys, dim=1))


class MambaLike(nn.Module):
    def __init__(self, vocab_size: int = 50, d_model: int = 24):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.mixer = SSMBlock(d_model)
        self.norm_f = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        return self.lm_head(self.norm_f(x + self.mixer(x)))
