"""Losses of a module's own, beside its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.models.callplan import infer_call_plan

V = 40


class Routed(nn.Module):
    """Gives its logits and something beside them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Embedding(V, 16), nn.Linear(16, 4), nn.Linear(16, V)
        self.kind = kind

    def forward(self, ids: Tensor) -> Any:
        x = self.embed(ids)
        load = self.gate(x).softmax(-1).mean((0, 1))
        logits, loss = self.head(x), 4 * load.square().sum()
        if self.kind == "own":
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        beside = {
            "dict": {"logits": logits, "aux_loss": loss, "z_loss": logits.logsumexp(-1).square().mean()},
            "tuple": (logits, loss),
            "detached": {"logits": logits, "aux_loss": loss.detach()},
            "vector": {"logits": logits, "load": load},
            "training": (logits, loss if self.training else None),
            "own": (logits, loss),
            "alone": logits,
        }
        return beside[self.kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("dict", "aux_loss, z_loss beside the logits"),
        ("tuple", "output[1] beside the logits"),
        ("training", "output[1] beside the logits"),
        ("detached", ""),
        ("vector", ""),
        ("own", ""),
        ("alone", ""),
    ],
)
def test_what_training_leaves_out_is_said(kind: str, says: str) -> None:
    torch.manual_seed(0)
    told = {f.name: f for f in infer_call_plan(Routed(kind)).findings}
    if not says:
        assert "auxiliary losses" not in told
    else:
        assert (told["auxiliary losses"].verdict, told["auxiliary losses"].measured) == ("warn", says)
