"""A model as the visual builder exports it."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class CustomTransformer(nn.Module):
    """Attention in single parts, two blocks, a head that shares the embedding's weights; a graph beside."""

    def __init__(self):
        super().__init__()
        # embedding: embedding_0
        self.embedding_0_token = nn.Embedding(53, 16)
        self.embedding_0_pos = nn.Embedding(24, 16)
        nn.init.normal_(self.embedding_0_token.weight, std=0.02)
        # layernorm: layernorm_0
        self.layernorm_0 = nn.LayerNorm(16)
        # attention: attention_0
        self.attention_0_qkv = nn.Linear(16, 48, bias=False)
        self.attention_0_proj = nn.Linear(16, 16, bias=False)
        # residual: residual_0
        # layernorm: layernorm_1
        self.layernorm_1 = nn.LayerNorm(16)
        # ffn: ffn_0
        self.ffn_0 = nn.Sequential(nn.Linear(16, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 16))
        # residual: residual_1
        # layernorm: layernorm_2
        self.layernorm_2 = nn.LayerNorm(16)
        # attention: attention_1
        self.attention_1_qkv = nn.Linear(16, 48, bias=False)
        self.attention_1_proj = nn.Linear(16, 16, bias=False)
        # residual: residual_2
        # layernorm: layernorm_3
        self.layernorm_3 = nn.LayerNorm(16)
        # ffn: ffn_1
        self.ffn_1 = nn.Sequential(nn.Linear(16, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 16))
        # residual: residual_3
        # layernorm: layernorm_4
        self.layernorm_4 = nn.LayerNorm(16)
        # output: output_0
        self.output_0_proj = nn.Linear(16, 53, bias=False)
        self.output_0_proj.weight = self.embedding_0_token.weight

    def forward(self, input_0_tokens, residual_0_output, residual_1_output, residual_2_output, residual_3_output):
        # embedding: embedding_0
        B, T = input_0_tokens.shape
        positions = torch.arange(T, device=input_0_tokens.device)
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        # layernorm: layernorm_0
        layernorm_0_output = self.layernorm_0(embedding_0_output)
        # attention: attention_0
        attention_0_q, attention_0_k, attention_0_v = self.attention_0_qkv(layernorm_0_output).chunk(3, dim=-1)
        attention_0_q = attention_0_q.view(B, T, 4, 4).transpose(1, 2)
        attention_0_k = attention_0_k.view(B, T, 4, 4).transpose(1, 2)
        attention_0_v = attention_0_v.view(B, T, 4, 4).transpose(1, 2)
        attention_0_heads = F.scaled_dot_product_attention(attention_0_q, attention_0_k, attention_0_v)
        attention_0_output = self.attention_0_proj(attention_0_heads.transpose(1, 2).reshape(B, T, 16))
        # layernorm: layernorm_1
        layernorm_1_output = self.layernorm_1(residual_0_output)
        # ffn: ffn_0
        ffn_0_output = self.ffn_0(layernorm_1_output)
        # layernorm: layernorm_2
        layernorm_2_output = self.layernorm_2(residual_1_output)
        # attention: attention_1
        attention_1_q, attention_1_k, attention_1_v = self.attention_1_qkv(layernorm_2_output).chunk(3, dim=-1)
        attention_1_q = attention_1_q.view(B, T, 4, 4).transpose(1, 2)
        attention_1_k = attention_1_k.view(B, T, 4, 4).transpose(1, 2)
        attention_1_v = attention_1_v.view(B, T, 4, 4).transpose(1, 2)
        attention_1_heads = F.scaled_dot_product_attention(attention_1_q, attention_1_k, attention_1_v)
        attention_1_output = self.attention_1_proj(attention_1_heads.transpose(1, 2).reshape(B, T, 16))
        # layernorm: layernorm_3
        layernorm_3_output = self.layernorm_3(residual_2_output)
        # ffn: ffn_1
        ffn_1_output = self.ffn_1(layernorm_3_output)
        # layernorm: layernorm_4
        layernorm_4_output = self.layernorm_4(residual_3_output)
        # output: output_0
        output_0_logits = self.output_0_proj(layernorm_4_output)
        return output_0_logits
