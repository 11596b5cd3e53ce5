"""BERT's embeddings: segment ids are required beside the ids. Nothing is causal: masked language modelling."""

import torch
from torch import nn


class BertForMaskedLM(nn.Module):
    def __init__(self, vocab_size=71, hidden_size=32, max_position_embeddings=64, type_vocab_size=2):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size)
        self.position_embeddings = nn.Embedding(max_position_embeddings, hidden_size)
        self.token_type_embeddings = nn.Embedding(type_vocab_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.encoder = nn.TransformerEncoderLayer(hidden_size, 4, 64, dropout=0.1, batch_first=True)
        self.cls = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, vocab_size))

    def forward(self, input_ids, token_type_ids):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(places)
        x = x + self.token_type_embeddings(token_type_ids)
        return self.cls(self.encoder(self.norm(x)))
