"""A model as the visual builder exports it."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class CustomTransformer(nn.Module):
    """The first block adds in its own text, the second asks for its residuals; the feed-forward parts are split."""

    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(47, 12)
        self.embedding_0_pos = nn.Embedding(24, 12)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(12, 2, batch_first=True)
        # node: residual_0
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(12)
        # node: ffn_0
        self.ffn_0_linear1 = nn.Linear(12, 24)
        self.ffn_0_linear2 = nn.Linear(24, 12)
        # node: residual_1
        # node: layernorm_1
        self.layernorm_1 = nn.LayerNorm(12)
        # node: mhsa_1
        self.mhsa_1 = nn.MultiheadAttention(12, 3, batch_first=True)
        # node: residual_2
        # node: layernorm_2
        self.layernorm_2 = nn.LayerNorm(12)
        # node: ffn_1
        self.ffn_1_linear1 = nn.Linear(12, 24)
        self.ffn_1_linear2 = nn.Linear(24, 12)
        # node: residual_3
        # node: layernorm_3
        self.layernorm_3 = nn.LayerNorm(12)
        # node: output_0
        self.output_0_linear = nn.Linear(12, 47)

    def forward(self, input_0_tokens, mhsa_0_output, mhsa_1_output, residual_2_output, residual_3_output):
        B, T = input_0_tokens.shape
        pos = torch.arange(T, device=input_0_tokens.device).unsqueeze(0).expand(B, T)
        x = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(pos)
        mhsa_0_output, _ = self.mhsa_0(x, x, x, need_weights=False)
        x = self.layernorm_0(x + mhsa_0_output)
        ffn_0_output = self.ffn_0_linear2(F.gelu(self.ffn_0_linear1(x)))
        x = self.layernorm_1(x + ffn_0_output)
        mhsa_1_output, _ = self.mhsa_1(x, x, x, need_weights=False)
        x = self.layernorm_2(residual_2_output)
        ffn_1_output = self.ffn_1_linear2(F.gelu(self.ffn_1_linear1(x)))
        x = self.layernorm_3(residual_3_output)
        return self.output_0_linear(x)
