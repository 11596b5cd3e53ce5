"""A model as the visual builder exports it."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """Two inputs: an encoder block, and a decoder block whose cross attention reads it; no mask, no residual."""

    def __init__(self):
        super().__init__()
        # input: input_0
        # embedding: embedding_0
        self.embedding_0_token = nn.Embedding(33, 12)
        self.embedding_0_pos = nn.Embedding(24, 12)
        # mhsa: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(embed_dim=12, num_heads=3, batch_first=True)
        # residual: residual_0
        # layernorm: layernorm_0
        self.layernorm_0 = nn.LayerNorm(12)
        # input: input_1
        # embedding: embedding_1
        self.embedding_1_token = nn.Embedding(39, 12)
        self.embedding_1_pos = nn.Embedding(24, 12)
        # mhsa: mhsa_1
        self.mhsa_1 = nn.MultiheadAttention(embed_dim=12, num_heads=2, batch_first=True)
        # residual: residual_1
        # layernorm: layernorm_1
        self.layernorm_1 = nn.LayerNorm(12)
        # crossattn: crossattn_0
        self.crossattn_0 = nn.MultiheadAttention(embed_dim=12, num_heads=3, batch_first=True)
        # residual: residual_2
        # layernorm: layernorm_2
        self.layernorm_2 = nn.LayerNorm(12)
        # ffn: ffn_0
        self.ffn_0 = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 12))
        # residual: residual_3
        # layernorm: layernorm_3
        self.layernorm_3 = nn.LayerNorm(12)
        # output: output_0
        self.output_0_linear = nn.Linear(12, 39)

    def forward(
        self,
        input_0_tokens,
        input_1_tokens,
        residual_0_output,
        residual_1_output,
        residual_2_output,
        residual_3_output,
    ):
        src_pos = torch.arange(input_0_tokens.size(1), device=input_0_tokens.device)
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(src_pos)
        mhsa_0_output, _ = self.mhsa_0(embedding_0_output, embedding_0_output, embedding_0_output)
        layernorm_0_output = self.layernorm_0(residual_0_output)
        tgt_pos = torch.arange(input_1_tokens.size(1), device=input_1_tokens.device)
        embedding_1_output = self.embedding_1_token(input_1_tokens) + self.embedding_1_pos(tgt_pos)
        mhsa_1_output, _ = self.mhsa_1(embedding_1_output, embedding_1_output, embedding_1_output)
        layernorm_1_output = self.layernorm_1(residual_1_output)
        crossattn_0_output, _ = self.crossattn_0(layernorm_1_output, layernorm_0_output, layernorm_0_output)
        layernorm_2_output = self.layernorm_2(residual_2_output)
        ffn_0_output = self.ffn_0(layernorm_2_output)
        layernorm_3_output = self.layernorm_3(residual_3_output)
        output_0_logits = self.output_0_linear(layernorm_3_output)
        return output_0_logits
