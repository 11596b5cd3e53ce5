"""A dataclass of its own as output."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn


@dataclasses.dataclass
class ModelOutput:
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None


class ForCausalLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(94, 28)
        self.rnn = nn.RNN(28, 28, batch_first=True, nonlinearity="tanh")
        self.head = nn.Linear(28, 94)

    def forward(self, input_ids, labels=None) -> ModelOutput:
        states = self.rnn(self.embed(input_ids))[0]
        logits = self.head(states)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return ModelOutput(loss, logits, states)
