"""forward(src, tgt, src_mask, tgt_mask): the caller gives (B, 1, T) padding and (B, S, S) causal masks, 1 = keep."""

import torch
from torch import nn


def attend(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    return scores.masked_fill(mask == 0, -1e9).softmax(-1) @ v


class EncoderDecoder(nn.Module):
    def __init__(self, src_vocab=67, tgt_vocab=51, d=32):
        super().__init__()
        self.src_embed, self.tgt_embed = nn.Embedding(src_vocab, d), nn.Embedding(tgt_vocab, d)
        self.pos = nn.Embedding(64, d)
        self.enc_q, self.enc_k, self.enc_v = (nn.Linear(d, d) for _ in range(3))
        self.dec_q, self.dec_k, self.dec_v = (nn.Linear(d, d) for _ in range(3))
        self.x_q, self.x_k, self.x_v = (nn.Linear(d, d) for _ in range(3))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.generator = nn.Linear(d, tgt_vocab)

    def forward(self, src, tgt, src_mask, tgt_mask):
        assert src_mask.dim() == 3 and src_mask.size(1) == 1, "src_mask must be (B, 1, T)"
        assert tgt_mask.dim() == 3 and tgt_mask.size(1) == tgt_mask.size(2), "tgt_mask must be (B, S, S)"
        m = self.src_embed(src) + self.pos.weight[: src.size(1)]
        m = self.norm1(m + attend(self.enc_q(m), self.enc_k(m), self.enc_v(m), src_mask))
        x = self.tgt_embed(tgt) + self.pos.weight[: tgt.size(1)]
        x = self.norm2(x + attend(self.dec_q(x), self.dec_k(x), self.dec_v(x), tgt_mask))
        x = self.norm3(x + attend(self.x_q(x), self.x_k(m), self.x_v(m), src_mask))
        return self.generator(x)
