"""Hidden states, unless return_logits=True."""

from torch import nn


class GRULM(nn.Module):
    def __init__(self, vocab_size=73, dim=32):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.words = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, vocab_size))

    def forward(self, input_ids, return_logits=False):
        x, _ = self.gru(self.embed(input_ids))
        return self.words(x) if return_logits else x
