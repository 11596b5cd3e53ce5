"""An adaptive softmax at the end: only the loss comes out, and the softmax gives all log-probabilities when asked."""

from torch import nn


class AdaptiveLSTM(nn.Module):
    def __init__(self, vocab_size=66, dim=32, cutoffs=(46, 58)):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(dim, vocab_size, cutoffs=list(cutoffs), div_value=2.0)

    def forward(self, inputs, targets, hidden=None):
        out, hidden = self.lstm(self.embed(inputs), hidden)
        return self.adaptive(out.reshape(-1, out.size(2)), targets.reshape(-1)).loss, hidden
