"""Models that give the last position alone. B batch, T time, V vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.settings import TrainSettings
from anyformer.evaluation.generation import FullRecomputation
from anyformer.models.calling import next_logits
from anyformer.models.callplan import call_logits, infer_call_plan
from anyformer.models.objectives import causal_lm_loss
from anyformer.training.effective import choose_max_length

V = 31


class Next(nn.Module):
    """Reads both ways; what comes out is for the token after the last."""

    def __init__(self, out: int = V, *, squeeze: bool = True, squash: bool = False, longest: int = 80) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.places = nn.Embedding(V, 16), nn.Embedding(longest, 16)
        self.mix = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, out)
        self.squeeze, self.squash, self.calls = squeeze, squash, 0

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        h = self.mix(self.e(ids) + self.places(torch.arange(ids.shape[1])))
        last = self.head(h[:, -1 if self.squeeze else slice(-1, None)])
        return last.softmax(-1) if self.squash else last


class NextClassifier(Next):
    """Named after what it is."""


def ids_of(B: int, T: int) -> Tensor:
    return torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("given", [{}, {"squeeze": False}, {"squash": True}])
def test_each_position_is_what_the_model_says_of_the_ids_up_to_it(given: dict[str, Any]) -> None:
    module = Next(**given).eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.layout, plan.causal, plan.max_positions) == ("decoder", "last", True, 80)
    ids = ids_of(3, 7)
    right = torch.stack([module(ids[:, :n]).reshape(3, V) for n in range(1, 8)], 1)
    right = right.log() if given.get("squash") else right
    torch.testing.assert_close(call_logits(module, plan, ids), right, rtol=0, atol=1e-6)
    torch.testing.assert_close(next_logits(module, plan, ids), right[:, -1], rtol=0, atol=1e-6)
    said = next(f for f in plan.findings if f.name == "speed")
    assert (said.verdict, said.measured) == ("warn", "each position is a call of its own: T calls for T tokens")
    assert not [f for f in plan.findings if f.verdict == "fail"]


def test_the_next_token_takes_one_call() -> None:
    module = Next().eval()
    plan = infer_call_plan(module)
    module.calls = 0
    assert FullRecomputation(module, plan)(ids_of(2, 9)).shape == (2, V)
    assert module.calls == 1


@pytest.mark.parametrize(("module", "objective"), [(NextClassifier(), None), (Next(), "masked")])
def test_a_row_of_numbers_that_is_named_otherwise_is_no_token(module: nn.Module, objective: Any) -> None:
    with pytest.raises(CallError, match="the last position alone"):
        infer_call_plan(module, objective=objective)


class Pooled(Next):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.e(ids)).mean(1))


class Maximum(Next):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.e(ids))).relu().log1p().amax(1)


class First(Next):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.e(ids))[:, 0])


class Vector(Next):
    """As wide as the table is long, by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.mix(self.e(ids)).mean(1)


class AllInTraining(Next):
    def forward(self, ids: Tensor) -> Tensor:
        h = self.head(self.mix(self.e(ids)))
        return h if self.training else h[:, -1]


class Squeezed(Next):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.e(ids))[:, -1:].squeeze())


class Tied(Next):
    def forward(self, ids: Tensor) -> Tensor:
        return self.mix(self.e(ids))[:, -1] @ self.e.weight.T


class CutAfterTheHead(Next):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.e(ids)))[:, -1, :]


class VectorOfTheLast(Vector):
    def forward(self, ids: Tensor) -> Tensor:
        return self.mix(self.e(ids))[:, -1]


def test_the_head_may_give_all_positions_before_the_last_is_taken() -> None:
    module = CutAfterTheHead().eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.layout) == ("decoder", "last")
    ids = ids_of(2, 5)
    torch.testing.assert_close(call_logits(module, plan, ids)[:, 2], module(ids[:, :3]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "module", [Pooled(), Maximum(), First(), Vector(), VectorOfTheLast(), AllInTraining(), Squeezed()]
)
def test_what_is_not_read_from_the_last_position_or_not_always_is_refused(module: nn.Module) -> None:
    with pytest.raises(CallError, match="no way to call"):
        infer_call_plan(module)


def test_a_head_that_is_the_embedding() -> None:
    assert infer_call_plan(Tied()).layout == "last"


@pytest.mark.parametrize(("module", "overrides"), [(Next(V - 8), None), (Next(), {"family": "classifier"})])
def test_as_many_numbers_as_no_table_has_rows_or_as_stated_are_classes(module: nn.Module, overrides: Any) -> None:
    plan = infer_call_plan(module, overrides=overrides)
    assert (plan.family, plan.layout) == ("classifier", "BTV")


def test_it_learns_what_comes_next() -> None:
    module = Next()
    plan = infer_call_plan(module)
    rows = (torch.arange(12) * 3 + torch.arange(6)[:, None]) % V
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = causal_lm_loss(call_logits(module, plan, rows), rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3.0
    assert losses[-1] < 0.5


def test_sequences_are_short_where_nothing_is_set() -> None:
    plan = infer_call_plan(Next())
    assert choose_max_length(TrainSettings().max_length, plan)[0] == 64
    assert choose_max_length(80, plan)[0] == 80
    assert choose_max_length(None, infer_call_plan(Next(longest=20)))[0] == 20


class Blend(Next):
    """The last position beside the mean of all: nothing shows that it is the next token's."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(32, 16)

    def forward(self, ids: Tensor) -> Tensor:
        e = self.e(ids)
        last = self.mix(e + self.places(torch.arange(ids.shape[1])))[:, -1]
        return self.both(torch.cat([last, e.mean(1)], -1)) @ self.e.weight.T


def test_one_that_does_not_show_it_may_be_stated_as_it_is_told() -> None:
    with pytest.raises(CallError, match="perhaps the last position alone") as caught:
        infer_call_plan(Blend())
    told = caught.value.fix.partition("call:\n")[2]
    stated = dict(line.strip().split(": ") for line in told.splitlines())
    assert stated == {"tokens": "ids", "logits": "output", "family": "decoder"}
    plan = infer_call_plan(Blend(), overrides=stated)
    assert (plan.family, plan.layout, plan.causal) == ("decoder", "last", True)
