"""A language model of its time: the state from init_hidden(bsz), flattened states out, the head left to the caller."""

import torch
from torch import nn


class RNNModel(nn.Module):
    def __init__(self, ntoken=62, ninp=20, nhid=28, nlayers=2):
        super().__init__()
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnns = nn.ModuleList(nn.LSTM(ninp if n == 0 else nhid, nhid) for n in range(nlayers))
        self.decoder = nn.Linear(nhid, ntoken)
        self.nhid, self.nlayers = nhid, nlayers

    def forward(self, input, hidden):
        output, carried = self.encoder(input), []
        for rnn, state in zip(self.rnns, hidden):
            output, last = rnn(output, state)
            carried.append(last)
        return output.view(-1, self.nhid), carried

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        return [(weight.new_zeros(1, bsz, self.nhid), weight.new_zeros(1, bsz, self.nhid)) for _ in range(self.nlayers)]
