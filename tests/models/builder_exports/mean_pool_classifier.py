"""A model as the visual builder exports it."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """Classes per text: two post-norm blocks, a mean over the text, a linear head; no residual is computed."""

    def __init__(self):
        super().__init__()
        # embedding: embedding_0
        self.embedding_0_token = nn.Embedding(31, 12)
        self.embedding_0_pos = nn.Embedding(20, 12)
        # dropout: dropout_0
        self.dropout_0 = nn.Dropout(0.0)
        # mhsa: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(embed_dim=12, num_heads=3, dropout=0.0, batch_first=True)
        # residual: residual_0
        # layernorm: layernorm_0
        self.layernorm_0 = nn.LayerNorm(12)
        # ffn: ffn_0
        self.ffn_0_fc1 = nn.Linear(12, 30)
        self.ffn_0_act = nn.ReLU()
        self.ffn_0_fc2 = nn.Linear(30, 12)
        # residual: residual_1
        # layernorm: layernorm_1
        self.layernorm_1 = nn.LayerNorm(12)
        # pooling: pooling_0
        # classifier: classifier_0
        self.classifier_0 = nn.Linear(12, 4)

    def forward(self, input_0_tokens, ffn_0_output, residual_0_output, residual_1_output, pooling_0_output):
        positions = torch.arange(input_0_tokens.size(1), device=input_0_tokens.device)
        # embedding: embedding_0
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        # dropout: dropout_0
        dropout_0_output = self.dropout_0(embedding_0_output)
        # mhsa: mhsa_0
        mhsa_0_output, _ = self.mhsa_0(dropout_0_output, dropout_0_output, dropout_0_output)
        # layernorm: layernorm_0
        layernorm_0_output = self.layernorm_0(residual_0_output)
        # layernorm: layernorm_1
        layernorm_1_output = self.layernorm_1(residual_1_output)
        # pooling: pooling_0
        pooling_0_output = layernorm_1_output.mean(dim=1)
        # classifier: classifier_0
        classifier_0_logits = self.classifier_0(pooling_0_output)
        return classifier_0_logits
