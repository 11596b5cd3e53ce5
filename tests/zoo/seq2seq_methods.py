"""No forward: encode, decode and project are called one after the other."""

import torch
from torch import nn


class SubLayer(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h = h
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, q, k, v, mask):
        B, d = q.shape[0], q.shape[-1]
        q, k, v = (w(t).view(B, -1, self.h, d // self.h).transpose(1, 2) for w, t in zip((self.w_q, self.w_k, self.w_v), (q, k, v)))
        scores = (q @ k.transpose(-2, -1)) / (d // self.h) ** 0.5
        if mask is not None:
            scores.masked_fill_(mask == 0, -1e9)
        return self.w_o((scores.softmax(dim=-1) @ v).transpose(1, 2).contiguous().view(B, -1, d))


class Transformer(nn.Module):
    def __init__(self, src_vocab_size: int = 62, tgt_vocab_size: int = 49, d_model: int = 32, seq_len: int = 64):
        super().__init__()
        self.src_embed = nn.Embedding(src_vocab_size, d_model)
        self.tgt_embed = nn.Embedding(tgt_vocab_size, d_model)
        self.src_pos = nn.Embedding(seq_len, d_model)
        self.tgt_pos = nn.Embedding(seq_len, d_model)
        self.self_attention = SubLayer(d_model, 4)
        self.decoder_attention = SubLayer(d_model, 4)
        self.cross_attention = SubLayer(d_model, 4)
        self.norm = nn.LayerNorm(d_model)
        self.projection_layer = nn.Linear(d_model, tgt_vocab_size)

    def encode(self, src, src_mask):
        x = self.src_embed(src) + self.src_pos.weight[: src.shape[1]]
        return x + self.self_attention(x, x, x, src_mask)

    def decode(self, encoder_output: torch.Tensor, src_mask: torch.Tensor, tgt: torch.Tensor, tgt_mask: torch.Tensor):
        y = self.tgt_embed(tgt) + self.tgt_pos.weight[: tgt.shape[1]]
        y = y + self.decoder_attention(y, y, y, tgt_mask)
        return self.norm(y + self.cross_attention(y, encoder_output, encoder_output, src_mask))

    def project(self, x):
        return self.projection_layer(x)
