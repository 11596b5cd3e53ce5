"""Positions (1, T) are required; rotary angles are made of them."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class RotaryLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.size = 2, 12
        self.embed = nn.Embedding(59, 24)
        self.qkv = nn.Linear(24, 72)
        self.mix = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(24)
        self.lm_head = nn.Linear(24, 59)
        self.register_buffer("freq", 100.0 ** (-torch.arange(0, 12, 2) / 12.0), persistent=False)

    def forward(self, input_ids, position_ids):
        assert position_ids.size(0) == 1 and position_ids.dim() == 2, "position_ids must be (1, T)"
        B, T = input_ids.shape
        x = self.embed(input_ids)
        angle = position_ids[0, :, None].float() * self.freq
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, angle.cos(), angle.sin()), rotate(k, angle.cos(), angle.sin())
        y = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, -1)
        return self.lm_head(self.norm(x + self.mix(y)))
