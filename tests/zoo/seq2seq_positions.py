import torch
from torch import nn


class Transformer(nn.Module):
    """Positions of both sides are the caller's."""

    def __init__(self, n_src_vocab=66, n_tgt_vocab=70, d=24, n_position=50):
        super().__init__()
        self.src_word_emb = nn.Embedding(n_src_vocab, d)
        self.tgt_word_emb = nn.Embedding(n_tgt_vocab, d)
        self.position_enc = nn.Embedding(n_position, d)
        self.layers = nn.Transformer(d, 4, 1, 1, 48, 0.1, batch_first=True)
        self.tgt_word_prj = nn.Linear(d, n_tgt_vocab)

    def forward(self, src_seq, src_pos, tgt_seq, tgt_pos):
        src = self.src_word_emb(src_seq) + self.position_enc(src_pos)
        tgt = self.tgt_word_emb(tgt_seq) + self.position_enc(tgt_pos)
        mask = torch.triu(torch.ones(tgt.size(1), tgt.size(1), dtype=torch.bool, device=tgt.device), 1)
        return self.tgt_word_prj(self.layers(src, tgt, tgt_mask=mask))
