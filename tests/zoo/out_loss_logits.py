"""(loss, logits) with labels, (logits,) without; the labels are shifted inside."""

import torch
from torch import nn


class HeadModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.vocab = 60
        self.wte = nn.Embedding(60, 24)
        self.rnn = nn.GRU(24, 24, batch_first=True)
        self.ln_f = nn.LayerNorm(24)
        self.lm_head = nn.Linear(24, 60, bias=False)

    def forward(self, input_ids, labels=None):
        hidden, _ = self.rnn(self.wte(input_ids))
        logits = self.lm_head(self.ln_f(hidden))
        if labels is None:
            return (logits,)
        shift_logits = logits[..., :-1, :].contiguous()
        shift_labels = labels[..., 1:].contiguous()
        loss = nn.CrossEntropyLoss()(shift_logits.view(-1, self.vocab), shift_labels.view(-1))
        return loss, logits
