"""Source and target under names that no list holds, with the lengths of both, from which masks are made."""

import torch
from torch import nn


class LengthsTransformer(nn.Module):
    def __init__(self, vocab_size=54, d_model=32):
        super().__init__()
        self.source_embedding = nn.Embedding(61, d_model)
        self.input_embedding = nn.Embedding(vocab_size, d_model)
        self.position = nn.Parameter(0.5 * torch.randn(64, d_model))
        self.transformer = nn.Transformer(d_model, 4, 1, 1, 64, dropout=0.1, batch_first=True)
        self.readout = nn.Linear(d_model, vocab_size)

    def forward(self, sources, inputs, source_lengths, input_lengths):
        S = inputs.size(1)
        hidden = torch.arange(sources.size(1)) >= source_lengths[:, None]
        return self.readout(
            self.transformer(
                self.source_embedding(sources) + self.position[: sources.size(1)],
                self.input_embedding(inputs) + self.position[:S],
                tgt_mask=torch.ones(S, S, dtype=torch.bool).triu(1),
                src_key_padding_mask=hidden,
                tgt_key_padding_mask=torch.arange(S) >= input_lengths[:, None],
                memory_key_padding_mask=hidden,
            )
        )
