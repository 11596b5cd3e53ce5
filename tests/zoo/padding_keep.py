"""A causal decoder with an optional padding mask (B, T), 1 = keep, in the Hugging Face manner."""

import torch
from torch import nn


class CausalLMWithPadding(nn.Module):
    def __init__(self, vocab_size=77, hidden_size=32, num_heads=4, max_positions=64):
        super().__init__()
        self.num_heads = num_heads
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.embed_positions = nn.Embedding(max_positions, hidden_size)
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.final = nn.LayerNorm(hidden_size)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, input_ids, attention_mask=None):
        B, T = input_ids.shape
        h = self.embed_tokens(input_ids) + self.embed_positions.weight[:T]
        q, k, v = (p(h).view(B, T, self.num_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        allowed = torch.tril(torch.ones(T, T, device=h.device)).bool()[None, None]
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None, None, :].bool()
        scores = (q @ k.transpose(2, 3)) / (h.size(-1) // self.num_heads) ** 0.5
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        h = h + self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1))
        return self.lm_head(self.final(h))
