"""A head that is the embedding itself, applied in a method that the forward does not call."""

from __future__ import annotations

import linecache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.models.calling import call_logits
from anyformer.models.callplan import infer_call_plan
from anyformer.models.proofs import prove_plan
from anyformer.models.source import load_model

BODY = """
import torch
from torch import nn
from torch.nn import functional as F

class Items(nn.Module):
    def __init__(self, num_items=60):
        super().__init__()
        self.items, self.other = nn.Embedding(num_items, 16), nn.Embedding(num_items, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, ids):
        return self.norm(self.rnn(self.items(ids))[0])

    def rank(self, ids):
        states = self(ids)[:, -1]
        {rank}
"""


def model(tmp_path: Path, rank: str):
    path = tmp_path / "model.py"
    path.write_text(BODY.replace("{rank}", rank))
    linecache.checkcache()
    torch.manual_seed(0)
    return load_model(path).module


@pytest.mark.parametrize(
    "rank",
    [
        "return states @ self.items.weight.T",
        "return torch.matmul(states, self.items.weight.transpose(0, 1))[:, 1:]",
        "return F.linear(states, self.items.weight)",
    ],
)
def test_the_table_by_whose_weight_a_method_multiplies_is_the_head(tmp_path: Path, rank: str) -> None:
    module = model(tmp_path, rank)
    plan = infer_call_plan(module)
    assert (plan.head, plan.vocab_size, plan.causal) == ("items", 60, True)
    ids = torch.arange(12).reshape(2, 6)
    assert torch.allclose(call_logits(module, plan, ids), F.linear(module(ids), module.items.weight))
    assert all(f.verdict in ("ok", "note") for f in prove_plan(module, plan) if f.name in ("head", "logits", "tokens"))


@pytest.mark.parametrize("rank", ["return states", "return states @ states.T", "return self.items.weight.sum()"])
def test_without_a_product_there_is_no_head(tmp_path: Path, rank: str) -> None:
    with pytest.raises(CallError, match="gives hidden states, no logits"):
        infer_call_plan(model(tmp_path, rank))
