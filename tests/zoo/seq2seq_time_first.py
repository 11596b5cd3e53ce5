"""nn.Transformer as translation tutorials use it: time-first ids, six masks given by the caller."""

import torch
import torch.nn as nn
from torch import Tensor


class TranslationTransformer(nn.Module):
    def __init__(self, src_vocab_size=64, tgt_vocab_size=47, emb_size=32, nhead=4):
        super().__init__()
        self.transformer = nn.Transformer(emb_size, nhead, 1, 1, dim_feedforward=64, dropout=0.1)
        self.generator = nn.Linear(emb_size, tgt_vocab_size)
        self.src_tok_emb = nn.Embedding(src_vocab_size, emb_size)
        self.tgt_tok_emb = nn.Embedding(tgt_vocab_size, emb_size)
        self.pos_embedding = nn.Parameter(0.5 * torch.randn(80, 1, emb_size))

    def forward(
        self,
        src: Tensor,
        trg: Tensor,
        src_mask: Tensor,
        tgt_mask: Tensor,
        src_padding_mask: Tensor,
        tgt_padding_mask: Tensor,
        memory_key_padding_mask: Tensor,
    ):
        src_emb = self.src_tok_emb(src) + self.pos_embedding[: src.size(0)]
        tgt_emb = self.tgt_tok_emb(trg) + self.pos_embedding[: trg.size(0)]
        outs = self.transformer(
            src_emb, tgt_emb, src_mask, tgt_mask, None, src_padding_mask, tgt_padding_mask, memory_key_padding_mask
        )
        return self.generator(outs)
