"""(logits, [the states after every layer])."""

import torch
from torch import nn


class DeepLM(nn.Module):
    def __init__(self, vocab=78, d=24, depth=2):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab, d), nn.Embedding(64, d)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            self.layers.append(nn.TransformerEncoderLayer(d, 2, 2 * d, dropout=0.1, batch_first=True))
        self.final = nn.Linear(d, vocab)

    def forward(self, src):
        x = self.emb(src) + self.pos(torch.arange(src.shape[1], device=src.device))
        mask = nn.Transformer.generate_square_subsequent_mask(src.shape[1])
        states = [x]
        for layer in self.layers:
            x = layer(x, mask)
            states.append(x)
        return self.final(x), states
