"""A small GPT-J: attention and MLP in parallel on one norm, rotary positions on part of each head, an untied head."""
import math

import torch
from torch import nn


def fixed_pos_embedding(n_positions, dim):
    inv_freq = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
    angles = torch.outer(torch.arange(n_positions).float(), inv_freq)
    return torch.sin(angles), torch.cos(angles)


def rotate_every_two(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)


def apply_rotary(x, sin, cos):
    # x: (batch, time, heads, rotary_dim); sin, cos: (time, rotary_dim / 2)
    sin = sin.repeat_interleave(2, dim=-1)[None, :, None, :]
    cos = cos.repeat_interleave(2, dim=-1)[None, :, None, :]
    return (x * cos + rotate_every_two(x) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, n_embd, n_head, rotary_dim, n_positions, attn_pdrop):
        super().__init__()
        self.n_head = n_head
        self.head_dim = n_embd // n_head
        self.rotary_dim = rotary_dim
        self.scale_attn = math.sqrt(self.head_dim)
        self.q_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.k_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.v_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.out_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.attn_dropout = nn.Dropout(attn_pdrop)
        mask = torch.tril(torch.ones(n_positions, n_positions, dtype=torch.bool))
        self.register_buffer("bias", mask[None, None], persistent=False)
        sin, cos = fixed_pos_embedding(n_positions, rotary_dim)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("cos", cos, persistent=False)

    def _split_heads(self, x):
        return x.view(x.size(0), x.size(1), self.n_head, self.head_dim)

    def forward(self, x):
        b, t, c = x.shape
        query = self._split_heads(self.q_proj(x))
        key = self._split_heads(self.k_proj(x))
        value = self._split_heads(self.v_proj(x))

        sin, cos = self.sin[:t], self.cos[:t]
        q_rot, q_pass = query[..., :self.rotary_dim], query[..., self.rotary_dim:]
        k_rot, k_pass = key[..., :self.rotary_dim], key[..., self.rotary_dim:]
        query = torch.cat([apply_rotary(q_rot, sin, cos), q_pass], dim=-1)
        key = torch.cat([apply_rotary(k_rot, sin, cos), k_pass], dim=-1)

        query = query.permute(0, 2, 1, 3)
        key = key.permute(0, 2, 1, 3)
        value = value.permute(0, 2, 1, 3)

        scores = torch.matmul(query, key.transpose(-1, -2)) / self.scale_attn
        scores = scores.masked_fill(~self.bias[:, :, :t, :t], torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores.float(), dim=-1).to(value.dtype)
        weights = self.attn_dropout(weights)
        out = torch.matmul(weights, value)
        out = out.permute(0, 2, 1, 3).contiguous().view(b, t, c)
        return self.out_proj(out)


class MLP(nn.Module):
    def __init__(self, n_embd, n_inner, resid_pdrop):
        super().__init__()
        self.fc_in = nn.Linear(n_embd, n_inner)
        self.act = nn.GELU(approximate="tanh")
        self.fc_out = nn.Linear(n_inner, n_embd)
        self.dropout = nn.Dropout(resid_pdrop)

    def forward(self, x):
        return self.dropout(self.fc_out(self.act(self.fc_in(x))))


class Block(nn.Module):
    def __init__(self, n_embd, n_head, rotary_dim, n_positions, pdrop):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd, eps=1e-5)
        self.attn = Attention(n_embd, n_head, rotary_dim, n_positions, pdrop)
        self.mlp = MLP(n_embd, 4 * n_embd, pdrop)

    def forward(self, x):
        residual = x
        h = self.ln_1(x)
        attn_out = self.attn(h)
        mlp_out = self.mlp(h)
        return residual + attn_out + mlp_out


class ParallelRope(nn.Module):
    def __init__(self, vocab_size=96, n_positions=48, n_embd=48, n_layer=2, n_head=4, rotary_dim=8, pdrop=0.1):
        super().__init__()
        self.n_positions = n_positions
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.drop = nn.Dropout(pdrop)
        self.h = nn.ModuleList([Block(n_embd, n_head, rotary_dim, n_positions, pdrop) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd, eps=1e-5)
        self.lm_head = nn.Linear(n_embd, vocab_size)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, input_ids):
        t = input_ids.shape[1]
        if t > self.n_positions:
            raise ValueError(f"{t} tokens, but only {self.n_positions} positions")
        x = self.drop(self.wte(input_ids))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        return self.lm_head(x)
