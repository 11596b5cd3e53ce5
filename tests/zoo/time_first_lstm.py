"""nn.LSTM as it is by default: ids (T, B) in, logits (T, B, V) out."""

from torch import nn


class RNNModel(nn.Module):
    def __init__(self, ntoken=52, ninp=24, nhid=32):
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid)
        self.decoder = nn.Linear(nhid, ntoken)

    def forward(self, input):
        output, _ = self.rnn(self.drop(self.encoder(input)))
        return self.decoder(self.drop(output))
