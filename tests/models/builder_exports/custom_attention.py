"""A model as the visual builder exports it."""

import torch
import torch.nn as nn
import math


class SelfAttention(nn.Module):
    """The builder's own attention; mask: 1 = may be looked at."""

    def __init__(self, d_model, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x, mask=None):
        B, T, D = x.shape
        q, k, v = (t.view(B, T, self.num_heads, D // self.num_heads).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(D // self.num_heads)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D))


class CustomTransformer(nn.Module):
    """A custom attention and torch's own encoder layer after it."""

    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(37, 12)
        self.embedding_0_pos = nn.Embedding(18, 12)
        # node: attention_0
        self.attention_0 = SelfAttention(12, 2)
        # node: residual_0
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(12)
        # node: transformer_0
        self.transformer_0 = nn.TransformerEncoderLayer(12, 2, dim_feedforward=24, dropout=0.0)
        # node: output_0
        self.output_0_linear = nn.Linear(12, 37)

    def forward(self, input_0_tokens, residual_0_output, attention_mask=None):
        position_ids = torch.arange(input_0_tokens.shape[1], device=input_0_tokens.device)
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(position_ids)
        attention_0_output = self.attention_0(embedding_0_output)
        layernorm_0_output = self.layernorm_0(residual_0_output)
        transformer_0_output = self.transformer_0(layernorm_0_output)
        return self.output_0_linear(transformer_0_output)
