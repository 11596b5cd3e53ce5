"""(logits, (h, c)); the state of the call before may be given and need not be."""

from torch import nn


class CharLSTM(nn.Module):
    def __init__(self, n_chars=64, hidden=40):
        super().__init__()
        self.embed = nn.Embedding(n_chars, 24)
        self.lstm = nn.LSTM(24, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_chars)

    def forward(self, x, state=None):
        out, state = self.lstm(self.embed(x), state)
        return self.fc(out), state
