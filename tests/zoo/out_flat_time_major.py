"""Ids (B, T) in, logits (T·B, V) out: the rows vary fastest."""

from torch import nn
from torch.nn import functional as F


class RNNLM(nn.Module):
    def __init__(self, vocab_size=59, num_hiddens=32):
        super().__init__()
        self.vocab_size = vocab_size
        self.rnn = nn.GRU(vocab_size, num_hiddens)
        self.linear = nn.Linear(num_hiddens, vocab_size)

    def forward(self, inputs, state=None):
        y, state = self.rnn(F.one_hot(inputs.T.long(), self.vocab_size).float(), state)
        return self.linear(y.reshape(-1, y.shape[-1])), state
