"""A model as the visual builder exports it."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """A head for masked tokens: it looks at both sides."""

    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(45, 12)
        self.embedding_0_pos = nn.Embedding(24, 12)
        self.embedding_0_norm = nn.LayerNorm(12)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(12, 3, batch_first=True)
        # node: residual_0
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(12)
        # node: ffn_0
        self.ffn_0 = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 12))
        # node: residual_1
        # node: layernorm_1
        self.layernorm_1 = nn.LayerNorm(12)
        # node: mlm_head_0
        self.mlm_head_0 = nn.Linear(12, 45)

    def forward(self, input_0_tokens, residual_0_output, residual_1_output, attention_mask=None):
        positions = torch.arange(input_0_tokens.size(1), device=input_0_tokens.device)
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        embedding_0_output = self.embedding_0_norm(embedding_0_output)
        padding = attention_mask == 0 if attention_mask is not None else None
        mhsa_0_output, _ = self.mhsa_0(
            embedding_0_output, embedding_0_output, embedding_0_output, key_padding_mask=padding
        )
        layernorm_0_output = self.layernorm_0(residual_0_output)
        ffn_0_output = self.ffn_0(layernorm_0_output)
        layernorm_1_output = self.layernorm_1(residual_1_output)
        mlm_head_0_logits = self.mlm_head_0(layernorm_1_output)
        return mlm_head_0_logits
