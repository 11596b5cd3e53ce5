"""A model as the visual builder exports it."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """A newer export: ids in, logits out, but each position sees the tokens after it."""

    def __init__(self):
        super().__init__()
        self.embedding_0_token = nn.Embedding(43, 16)
        self.embedding_0_pos = nn.Embedding(24, 16)
        self.mhsa_0 = nn.MultiheadAttention(embed_dim=16, num_heads=2, batch_first=True)
        self.layernorm_0 = nn.LayerNorm(16)
        self.ffn_0 = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.layernorm_1 = nn.LayerNorm(16)
        self.output_0 = nn.Linear(16, 43)

    def forward(self, input_ids, attention_mask=None):
        positions = torch.arange(input_ids.size(1), device=input_ids.device).unsqueeze(0)
        x = self.embedding_0_token(input_ids) + self.embedding_0_pos(positions)
        key_padding_mask = None if attention_mask is None else attention_mask == 0
        attended, _ = self.mhsa_0(x, x, x, key_padding_mask=key_padding_mask)  # self-attention
        x = self.layernorm_0(x + attended)
        x = self.layernorm_1(x + self.ffn_0(x))
        return self.output_0(x)
