"""An encoder-decoder by hand: padding id 0, both masks made inside, norms before."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_head, dropout):
        super().__init__()
        self.n_head = n_head
        self.head_size = d_model // n_head
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, memory, mask):
        B, T, C = x.shape
        S = memory.shape[1]
        q = self.q_proj(x).view(B, T, self.n_head, self.head_size).transpose(1, 2)
        k = self.k_proj(memory).view(B, S, self.n_head, self.head_size).transpose(1, 2)
        v = self.v_proj(memory).view(B, S, self.n_head, self.head_size).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_size)
        scores = scores.masked_fill(~mask, float("-inf"))
        weights = F.softmax(scores, dim=-1)
        weights = self.drop(weights)
        y = weights @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.out_proj(y)


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, dropout):
        super().__init__()
        self.fc = nn.Linear(d_model, d_ff)
        self.proj = nn.Linear(d_ff, d_model)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        x = self.fc(x)
        x = F.relu(x)
        return self.drop(self.proj(x))


class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_head, d_ff, dropout):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = MultiHeadAttention(d_model, n_head, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = FeedForward(d_model, d_ff, dropout)

    def forward(self, x, src_mask):
        h = self.norm1(x)
        x = x + self.attn(h, h, src_mask)
        x = x + self.mlp(self.norm2(x))
        return x


class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_head, d_ff, dropout):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = MultiHeadAttention(d_model, n_head, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.cross_attn = MultiHeadAttention(d_model, n_head, dropout)
        self.norm3 = nn.LayerNorm(d_model)
        self.mlp = FeedForward(d_model, d_ff, dropout)

    def forward(self, x, memory, src_mask, tgt_mask):
        h = self.norm1(x)
        x = x + self.self_attn(h, h, tgt_mask)
        x = x + self.cross_attn(self.norm2(x), memory, src_mask)
        x = x + self.mlp(self.norm3(x))
        return x


class Transformer(nn.Module):
    def __init__(
        self, src_vocab_size=96, tgt_vocab_size=80, d_model=32, n_head=4, n_layers=2, d_ff=64, max_len=32, dropout=0.1,
        pad_id=0,
    ):  # fmt: skip
        super().__init__()
        self.d_model = d_model
        self.pad_id = pad_id
        self.src_tokens = nn.Embedding(src_vocab_size, d_model)
        self.tgt_tokens = nn.Embedding(tgt_vocab_size, d_model)
        self.positions = nn.Embedding(max_len, d_model)
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.ModuleList([EncoderLayer(d_model, n_head, d_ff, dropout) for _ in range(n_layers)])
        self.decoder = nn.ModuleList([DecoderLayer(d_model, n_head, d_ff, dropout) for _ in range(n_layers)])
        self.enc_norm = nn.LayerNorm(d_model)
        self.dec_norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, tgt_vocab_size)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def embed(self, table, ids):
        T = ids.shape[1]
        pos = torch.arange(T, device=ids.device)
        x = table(ids)
        x = x + self.positions(pos)
        return self.drop(x)

    def forward(self, src, tgt):
        T = tgt.shape[1]
        src_mask = (src != self.pad_id)[:, None, None, :]
        causal = torch.ones(T, T, dtype=torch.bool, device=tgt.device).tril()
        tgt_mask = causal
        memory = self.embed(self.src_tokens, src)
        for layer in self.encoder:
            memory = layer(memory, src_mask)
        memory = self.enc_norm(memory)
        x = self.embed(self.tgt_tokens, tgt)
        for layer in self.decoder:
            x = layer(x, memory, src_mask, tgt_mask)
        x = self.dec_norm(x)
        logits = self.head(x)
        return logits
