"""Masked language modelling: unshifted labels, -100 where nothing is to be predicted."""

from collections import OrderedDict

import torch
from torch import nn


class TinyBertForMaskedLM(nn.Module):
    def __init__(self, vocab_size=82, dim=32):
        super().__init__()
        self.vocab_size = vocab_size
        self.embeddings = nn.ModuleDict({"word": nn.Embedding(vocab_size, dim), "position": nn.Embedding(64, dim)})
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(dim, 4, 64, batch_first=True, activation="gelu"), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, input_ids, attention_mask=None, labels=None):
        places = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.embeddings["word"](input_ids) + self.embeddings["position"](places)
        padding = None if attention_mask is None else attention_mask == 0
        logits = self.head(self.encoder(x, src_key_padding_mask=padding))
        result = OrderedDict(logits=logits)
        if labels is not None:
            loss_fct = nn.CrossEntropyLoss(ignore_index=-100)
            result["loss"] = loss_fct(logits.view(-1, self.vocab_size), labels.view(-1))
        return result
