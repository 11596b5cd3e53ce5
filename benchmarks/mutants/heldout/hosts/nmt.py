import math

import torch
import torch.nn as nn

PAD = 0


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len=32):
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1).float()
        div_term = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, d_model)
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(0))

    def forward(self, x):
        return x + self.pe[:, : x.size(1)]


class Seq2Seq(nn.Module):
    def __init__(self, src_vocab=100, tgt_vocab=100, d_model=32, nhead=4, layers=2, ff=64, dropout=0.1):
        super().__init__()
        self.d_model = d_model
        self.src_emb = nn.Embedding(src_vocab, d_model)
        self.tgt_emb = nn.Embedding(tgt_vocab, d_model)
        self.pos = PositionalEncoding(d_model)
        self.transformer = nn.Transformer(d_model, nhead, layers, layers, ff, dropout, batch_first=True)
        self.transformer.encoder.use_nested_tensor = False  # keeps the length of padded sources
        self.generator = nn.Linear(d_model, tgt_vocab)
        nn.init.normal_(self.src_emb.weight, std=d_model ** -0.5)
        nn.init.normal_(self.tgt_emb.weight, std=d_model ** -0.5)
        nn.init.normal_(self.generator.weight, std=0.02)

    def causal(self, n, device):
        return torch.triu(torch.ones(n, n, dtype=torch.bool, device=device), diagonal=1)

    def forward(self, src, tgt):
        src_pad = src == PAD
        tgt_pad = tgt == PAD
        s = self.pos(self.src_emb(src) * math.sqrt(self.d_model))
        t = self.pos(self.tgt_emb(tgt) * math.sqrt(self.d_model))
        tgt_mask = self.causal(tgt.size(1), tgt.device)
        memory = self.transformer.encoder(s, src_key_padding_mask=src_pad)
        out = self.transformer.decoder(t, memory, tgt_mask=tgt_mask, tgt_key_padding_mask=tgt_pad,
                                       memory_key_padding_mask=src_pad)
        return self.generator(out)
