"""A decoder-only language model with the parts of T5 v1.1: relative position buckets, RMSNorm, gated GELU, one table for
embedding and head. With labels (the same ids, -100 where nothing is asked) it shifts and gives the loss."""
import math

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.eps).to(x.dtype)
        return self.weight * x


class RelativeBias(nn.Module):
    """A learned number per head and bucket of the distance from the query back to the key."""

    def __init__(self, num_heads, num_buckets=16, max_distance=32):
        super().__init__()
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.relative_attention_bias = nn.Embedding(num_buckets, num_heads)

    def bucket(self, relative_position):
        # relative_position = key place - query place; what lies ahead falls into bucket 0
        distance = -torch.min(relative_position, torch.zeros_like(relative_position))
        max_exact = self.num_buckets // 2
        is_small = distance < max_exact
        large = max_exact + (
            torch.log(distance.float().clamp(min=1) / max_exact)
            / math.log(self.max_distance / max_exact)
            * (self.num_buckets - max_exact)
        ).long()
        large = torch.min(large, torch.full_like(large, self.num_buckets - 1))
        return torch.where(is_small, distance, large)

    def forward(self, length, device):
        query_pos = torch.arange(length, device=device)[:, None]
        key_pos = torch.arange(length, device=device)[None, :]
        buckets = self.bucket(key_pos - query_pos)
        values = self.relative_attention_bias(buckets)
        return values.permute(2, 0, 1).unsqueeze(0)


class SelfAttention(nn.Module):
    def __init__(self, d_model, num_heads, dropout):
        super().__init__()
        self.num_heads = num_heads
        self.d_kv = d_model // num_heads
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.o = nn.Linear(d_model, d_model, bias=False)
        self.dropout = dropout

    def forward(self, x, position_bias, causal):
        b, n, _ = x.shape

        def shape(states):
            return states.view(b, n, self.num_heads, self.d_kv).transpose(1, 2)

        q, k, v = shape(self.q(x)), shape(self.k(x)), shape(self.v(x))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * self.d_kv ** -0.5
        scores = scores + position_bias
        scores = scores.masked_fill(~causal, float("-inf"))
        attn = F.softmax(scores, dim=-1)
        attn = F.dropout(attn, p=self.dropout, training=self.training)
        out = torch.einsum("bhqk,bhkd->bhqd", attn, v)
        return self.o(out.transpose(1, 2).reshape(b, n, -1))


class GatedGelu(nn.Module):
    def __init__(self, d_model, d_ff, dropout):
        super().__init__()
        self.wi_0 = nn.Linear(d_model, d_ff, bias=False)
        self.wi_1 = nn.Linear(d_model, d_ff, bias=False)
        self.wo = nn.Linear(d_ff, d_model, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        return self.wo(self.drop(hidden))


class T5Block(nn.Module):
    def __init__(self, d_model, d_ff, num_heads, dropout):
        super().__init__()
        self.attn_norm = RMSNorm(d_model)
        self.attn = SelfAttention(d_model, num_heads, dropout)
        self.ff_norm = RMSNorm(d_model)
        self.ff = GatedGelu(d_model, d_ff, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, position_bias, causal):
        x = x + self.dropout(self.attn(self.attn_norm(x), position_bias, causal))
        x = x + self.dropout(self.ff(self.ff_norm(x)))
        return x


class T5Decoder(nn.Module):
    def __init__(self, vocab_size=100, max_length=48, d_model=48, d_ff=96, num_layers=2, num_heads=4, dropout=0.1):
        super().__init__()
        self.d_model = d_model
        self.max_length = max_length
        self.shared = nn.Embedding(vocab_size, d_model)
        self.position_bias = RelativeBias(num_heads)
        self.block = nn.ModuleList(T5Block(d_model, d_ff, num_heads, dropout) for _ in range(num_layers))
        self.final_norm = RMSNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()
        self.lm_head.weight = self.shared.weight

    def init_weights(self):
        nn.init.normal_(self.shared.weight, std=0.02)
        nn.init.normal_(self.position_bias.relative_attention_bias.weight, std=0.02)
        for block in self.block:
            for linear in (block.attn.q, block.attn.k, block.attn.v, block.attn.o):
                nn.init.normal_(linear.weight, std=self.d_model ** -0.5 * 0.5)
            for linear in (block.ff.wi_0, block.ff.wi_1, block.ff.wo):
                nn.init.normal_(linear.weight, std=linear.in_features ** -0.5 * 0.5)

    def forward(self, input_ids, labels=None):
        b, n = input_ids.shape
        if n > self.max_length:
            raise ValueError(f"at most {self.max_length} tokens, not {n}")
        x = self.dropout(self.shared(input_ids) * math.sqrt(self.d_model))
        position_bias = self.position_bias(n, input_ids.device)
        causal = torch.ones(n, n, dtype=torch.bool, device=input_ids.device).tril()
        for block in self.block:
            x = block(x, position_bias, causal)
        logits = self.lm_head(self.final_norm(x))
        loss = None
        if labels is not None:
            shift_logits = logits[:, :-1, :]
            shift_labels = labels[:, 1:]
            loss = F.cross_entropy(
                shift_logits.reshape(-1, shift_logits.size(-1)), shift_labels.reshape(-1), ignore_index=-100)
        return {"loss": loss, "logits": logits}
