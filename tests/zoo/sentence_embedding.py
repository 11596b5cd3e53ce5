import torch.nn.functional as F
from torch import nn


class SentenceEncoder(nn.Module):
    """A text as a point on a sphere, to be compared with others."""

    def __init__(self, vocab_size=80, d=24, out_dim=30):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, d)
        self.rnn = nn.GRU(d, d, batch_first=True)
        self.proj = nn.Linear(d, out_dim)

    def forward(self, input_ids):
        return F.normalize(self.proj(self.rnn(self.embed(input_ids))[0].mean(1)), dim=-1)
