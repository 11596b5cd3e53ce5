"""The logits always come flattened: (B·T, V)."""

from torch import nn


class LSTMFlat(nn.Module):
    def __init__(self, n_vocab=70, n_hidden=32):
        super().__init__()
        self.embed = nn.Embedding(n_vocab, n_hidden)
        self.lstm = nn.LSTM(n_hidden, n_hidden, 1, batch_first=True)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(n_hidden, n_vocab)

    def forward(self, x):
        out, _ = self.lstm(self.embed(x))
        out = self.dropout(out).contiguous().view(-1, out.size(-1))
        return self.fc(out)
