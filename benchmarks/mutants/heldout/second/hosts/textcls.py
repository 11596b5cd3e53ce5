"""A text classifier: a learned class token before the text, an encoder that never looks at padding (id 0), and the mean over what
is no padding. forward(ids) gives (batch, classes) logits."""
import torch
import torch.nn as nn
import torch.nn.functional as F

PAD = 0


class FeedForward(nn.Module):
    def __init__(self, dim, hidden, dropout):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        return self.net(x)


class EncoderBlock(nn.Module):
    def __init__(self, dim, heads, hidden, dropout):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, hidden, dropout)

    def forward(self, x, hidden):
        h = self.norm1(x)
        a, _ = self.attn(h, h, h, key_padding_mask=hidden, need_weights=False)
        x = x + a
        x = x + self.ff(self.norm2(x))
        return x


class TextEmbedding(nn.Module):
    def __init__(self, vocab_size, max_len, dim, dropout):
        super().__init__()
        self.max_len = max_len
        self.tok = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        self.pos = nn.Embedding(max_len, dim)
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.tok.weight, std=0.02)
        nn.init.normal_(self.pos.weight, std=0.02)
        with torch.no_grad():
            self.tok.weight[PAD].zero_()

    def forward(self, ids):
        b, n = ids.shape
        if n > self.max_len:
            raise ValueError(f"a text of {n} tokens, at most {self.max_len}")
        positions = torch.arange(n, device=ids.device).unsqueeze(0)
        x = self.tok(ids) + self.pos(positions)
        x = torch.cat([self.cls.expand(b, -1, -1), x], dim=1)
        return self.drop(self.norm(x))


class TextClassifier(nn.Module):
    def __init__(self, vocab_size=96, num_classes=4, max_len=48, dim=32, depth=2, heads=4, dropout=0.1):
        super().__init__()
        self.embed = TextEmbedding(vocab_size, max_len, dim, dropout)
        self.blocks = nn.ModuleList([EncoderBlock(dim, heads, 2 * dim, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def padding_mask(self, ids):
        hidden = ids == PAD
        return F.pad(hidden, (1, 0), value=False)

    def pool(self, x, hidden):
        keep = (~hidden).unsqueeze(-1).to(x.dtype)
        return (x * keep).sum(dim=1) / keep.sum(dim=1)

    def forward(self, ids):
        hidden = self.padding_mask(ids)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, hidden)
        x = self.norm(x)
        pooled = self.pool(x, hidden)
        return self.head(self.drop(pooled))
