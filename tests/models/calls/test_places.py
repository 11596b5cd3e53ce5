"""A causal mask is found, too, where what a row gives depends on its place in the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from anyformer.models.callplan import call_logits, infer_call_plan


class AlongTheBatch(nn.Module):
    """Layers that want (T, B), and sinusoids along the second axis: (T, B) ids get their positions by row."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.e = nn.Embedding(50, 16)
        angle = torch.arange(500.0)[:, None] * torch.exp(torch.arange(0, 16, 2) * (-math.log(1e4) / 16))
        self.register_buffer("places", torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None])
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, 0.0), 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 50)

    def forward(self, src: Tensor, src_mask: Tensor) -> Tensor:
        x = self.e(src) * 4 + self.places[:, : src.size(1)]
        return self.head(self.layers(x, src_mask))


@pytest.mark.parametrize("seed", range(4))  # the weights' draw decides nothing
def test_one_verdict_whatever_the_weights(seed: int) -> None:
    module = AlongTheBatch(seed).eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.causal, plan.time_first) == ("decoder", True, True)
    told = {f.name: f.verdict for f in plan.findings}
    assert (told["batch"], told["causality"], told["causal mask"]) == ("warn", "ok", "ok")
    assert "fail" not in told.values()
    ids = torch.randint(0, 50, (3, 7))
    right = module(ids.t(), torch.ones(7, 7).triu(1).bool()).transpose(0, 1)
    torch.testing.assert_close(call_logits(module, plan, ids), right)
