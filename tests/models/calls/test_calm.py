"""Dropout that is on in eval mode: what it hides is measured without it. B batch, T time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.models.callplan import infer_call_plan
from anyformer.models.calls.calm import calm
from anyformer.training.objective import require_trainable


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "nn": nn.Dropout(0.5)(x),
            "functional": F.dropout(x, 0.5),
            "named": F.dropout(input=x, p=0.5),
            "alpha": nn.AlphaDropout(0.5)(x),
            "attention": F.scaled_dot_product_attention(x, x, x, dropout_p=0.5, is_causal=True),
            "multi-head": self.attention(x, x, x, need_weights=False)[0],
        }


def test_nothing_is_dropped_and_torch_is_as_before() -> None:
    functions, module, x = dict(vars(F)), Drops(), torch.randn(2, 4, 8)
    with calm():
        found, again = module(x), module(x)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert all(torch.equal(found[name], x) for name in ("nn", "functional", "named", "alpha"))
    assert torch.allclose(found["attention"], F.scaled_dot_product_attention(x, x, x, is_causal=True), atol=1e-6)
    assert torch.allclose(found["multi-head"], module.eval()(x)["multi-head"], atol=1e-6)
    with pytest.raises(ValueError, match="stop"), calm():
        raise ValueError("stop")
    assert all(vars(F)[name] is function for name, function in functions.items())


class TimeFirst(nn.Module):
    """The parts of a classifier whose attention is time-first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.positions = nn.Embedding(40, 16), nn.Embedding(64, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0), 1, enable_nested_tensor=False)
        self.classifier = nn.Linear(16, 3)


class MixesRows(TimeFirst):
    """Time-first attention that is given (B, T, D), behind a new nn.Dropout, which is on in eval mode."""

    def forward(self, ids: Tensor) -> Tensor:
        x = nn.Dropout(0.2)(self.e(ids) + self.positions(torch.arange(ids.shape[1])))
        return self.classifier(self.encoder(x)[:, 0])  # type: ignore[no-any-return]


def test_rows_that_mix_are_seen_through_the_dropout() -> None:
    plan = infer_call_plan(MixesRows())
    batch = next(f for f in plan.findings if f.name == "batch")
    assert batch.verdict == "fail"
    with pytest.raises(CallError, match="the rows see one another"):
        require_trainable(plan)


class PlacesRows(TimeFirst):
    """Time-first inside, with the positions of (B, T, D): they are added along the batch."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids.transpose(0, 1))
        x = x + self.positions(torch.arange(x.shape[1]))
        return self.classifier(self.encoder(x).mean(0))  # type: ignore[no-any-return]


def test_rows_that_their_place_alone_changes_do_not_see_one_another() -> None:
    plan = infer_call_plan(PlacesRows())
    batch = next(f for f in plan.findings if f.name == "batch")
    assert batch.verdict == "warn"
    assert "its place in the batch" in batch.measured
    assert require_trainable(plan)[0] == "classification"


class CountsRows(TimeFirst):
    """What a row alone gives is far from what it gives among others, wherever it stands: as cancellation does."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.classifier(x.mean(1)) * (1.0 if ids.shape[0] > 1 else 1.2)  # type: ignore[no-any-return]


def test_rows_that_their_number_alone_changes_are_not_said_to_stand_elsewhere() -> None:
    batch = next(f for f in infer_call_plan(CountsRows()).findings if f.name == "batch")
    assert batch.verdict == "warn"
    assert "wherever it stands" in batch.measured
