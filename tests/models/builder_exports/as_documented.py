"""A model as the visual builder exports it."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """One block, intermediates as parameters, residuals never computed, no projection at the end."""

    def __init__(self):
        super().__init__()

        # node: embedding_0
        self.embedding_0_token = nn.Embedding(61, 24)
        self.embedding_0_pos = nn.Embedding(16, 24)
        self.embedding_0_dropout = nn.Dropout(0.0)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(embed_dim=24, num_heads=3, dropout=0.0, batch_first=True)
        # node: residual_0
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(24)
        # node: ffn_0
        self.ffn_0 = nn.Sequential(
            nn.Linear(24, 96), nn.GELU(), nn.Dropout(0.0), nn.Linear(96, 24), nn.Dropout(0.0)
        )
        # node: residual_1
        # node: layernorm_1
        self.layernorm_1 = nn.LayerNorm(24)
        # node: output_0

    def forward(self, input_0_tokens, mhsa_0_output, residual_0_output, residual_1_output):
        # Embedding: token + position
        batch_size, seq_len = input_0_tokens.shape
        positions = torch.arange(seq_len, device=input_0_tokens.device).unsqueeze(0)
        x = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        embedding_0_output = self.embedding_0_dropout(x)

        # Attention
        mhsa_0_output, _ = self.mhsa_0(embedding_0_output, embedding_0_output, embedding_0_output)

        layernorm_0_output = self.layernorm_0(residual_0_output)  # after the first residual
        ffn_0_output = self.ffn_0(layernorm_0_output)
        layernorm_1_output = self.layernorm_1(residual_1_output)
        return output_0_logits
