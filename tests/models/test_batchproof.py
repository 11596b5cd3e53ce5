"""Leaks that tiny batches in eval mode do not show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.models.batchproof import prove_on_batch
from anyformer.models.callplan import infer_call_plan

V, T = 50, 48


class Past(nn.Module):
    """Causal: an embedding and the mean of the past. Subclasses leak in one way each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 16)
        self.head = nn.Linear(16, V)
        self.dropout = nn.Dropout(0.2)

    def past(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.dropout(x + x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None])

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.past(ids))


class LateBlock(Past):
    """Each second block of 16 sees its own end: invisible where a changed token lies on a block's edge."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.past(ids)
        if ids.shape[1] >= 32:
            x = torch.cat([x[:, :16], x[:, 16:32] + self.embedding(ids[:, 24:25]), x[:, 32:]], 1)
        return self.head(x)


class LaterRows(Past):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.past(ids)
        leak = self.embedding(ids).mean(1, keepdim=True) * (torch.arange(len(ids)) >= 3)[:, None, None]
        return self.head(x + leak)


class InTraining(Past):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.past(ids)
        return self.head(x + self.embedding(ids).mean(1, keepdim=True) if self.training else x)


class MaskedColumn(Past):
    """One logit is always −1e9, as a masked part of a vocabulary is; the others leak."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.head(self.past(ids) + self.embedding(ids).mean(1, keepdim=True))
        return torch.cat([logits[..., :-1], torch.full_like(logits[..., :1], -1e9)], -1)


def batch() -> Tensor:
    return torch.randint(0, V, (6, T), generator=torch.Generator().manual_seed(0))


def test_a_causal_model_is_proven_in_both_modes_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = Past()
    plan = infer_call_plan(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    findings = prove_on_batch(model, plan, batch())
    assert [f.verdict for f in findings] == ["ok", "ok"]
    assert f"{T - 1} positions" in findings[0].measured
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


@pytest.mark.parametrize("leaky", [LateBlock, LaterRows, InTraining])
def test_a_leak_that_the_plan_does_not_see_is_found(leaky: type[Past]) -> None:
    torch.manual_seed(0)
    model = leaky()
    plan = infer_call_plan(Past())  # as where the plan's own batches show nothing
    assert plan.causal
    with pytest.raises(CallError, match="sees the future") as caught:
        prove_on_batch(model, plan, batch())
    assert ("training mode only" in str(caught.value)) == (leaky is InTraining)


def test_one_huge_logit_does_not_excuse_the_others() -> None:
    torch.manual_seed(0)
    assert not infer_call_plan(MaskedColumn()).causal


def test_batch_norm_is_a_warning() -> None:
    class Normed(Past):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(16)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.norm(self.past(ids).transpose(1, 2)).transpose(1, 2))

    model = Normed()
    before = model.norm.running_mean.clone()  # type: ignore[union-attr]
    evaluated, trained = prove_on_batch(model, infer_call_plan(model), batch())
    assert (evaluated.verdict, trained.verdict) == ("ok", "warn")
    assert torch.equal(before, model.norm.running_mean)  # type: ignore[arg-type]


def test_what_cannot_be_trained_is_refused() -> None:
    class Detached(Past):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids).detach()

    class Failing(Past):
        def forward(self, ids: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("only in training")
            return super().forward(ids)

    frozen = Past().requires_grad_(False)
    for model, words in ((Detached(), "detaches"), (Failing(), "only in training"), (frozen, "requires a gradient")):
        with pytest.raises(CallError, match=words):
            prove_on_batch(model, infer_call_plan(model), batch())


class Capacity(Past):
    """A mixture of experts whose capacity is filled row after row: a token may take the place of one in a later row."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.embedding(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        flat = x.flatten(0, 1)
        chosen = (flat.detach()[:, 0] > 0).nonzero().flatten()[: len(flat) // 8]
        return self.head(flat.index_add(0, chosen, flat[chosen] ** 2).view_as(x))


def test_rows_that_share_a_capacity_see_no_future() -> None:
    torch.manual_seed(0)
    module = Capacity()
    plan = replace(infer_call_plan(Past()), findings=())
    findings = prove_on_batch(module, plan, batch())
    assert [f.verdict for f in findings if f.name.startswith("causality")] == ["ok", "ok"]


class SparseExpert(Past):
    """An expert that only some tokens go through, with dropout: how many numbers it draws depends on the tokens."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        flat = x.flatten(0, 1)
        chosen = (flat.detach()[:, 0] > 0).nonzero().flatten()
        flat = flat.index_add(0, chosen, self.dropout(flat[chosen] ** 2))
        return self.head(self.dropout(flat.view_as(x)))


def test_dropout_in_an_expert_is_no_leak() -> None:
    torch.manual_seed(0)
    findings = prove_on_batch(SparseExpert(), replace(infer_call_plan(Past()), findings=()), batch())
    assert [f.verdict for f in findings if f.name.startswith("causality")] == ["ok", "ok"]


class Reverse(Capacity):
    """The capacity is filled from the end: a later token of its own row takes an earlier one's place."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        flat = x.flatten(0, 1).flip(0)
        chosen = (flat.detach()[:, 0] > 0).nonzero().flatten()[: len(flat) // 8]
        return self.head(flat.index_add(0, chosen, flat[chosen] ** 2).flip(0).view_as(x))


def test_a_capacity_that_is_filled_from_the_end_is_a_leak() -> None:
    torch.manual_seed(0)
    with pytest.raises(CallError, match="sees the future"):
        prove_on_batch(Reverse(), replace(infer_call_plan(Past()), findings=()), batch())


# the backward pass


class ListOfLayers(Past):
    def __init__(self) -> None:
        super().__init__()
        self.layers = {"first": [nn.Linear(16, 16)]}

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers["first"][0](self.past(ids)))


class MadeInForward(Past):
    def forward(self, ids: Tensor) -> Tensor:
        torch.manual_seed(5)  # equal at each call: no other proof sees it
        return self.head(nn.Linear(16, 16)(self.past(ids)))


class InPlace(Past):
    def forward(self, ids: Tensor) -> Tensor:
        gate = torch.sigmoid(self.past(ids))
        gate += 1.0
        return self.head(gate)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (ListOfLayers, "self.layers is a Python dict, which hides its weights"),
        (MadeInForward, "2 weights of MadeInForward would neither be trained nor saved"),
        (InPlace, "test_batchproof.py:"),
    ],
)
def test_weights_out_of_reach_and_a_backward_pass_that_fails_are_refused(broken: type[Past], words: str) -> None:
    module = broken()
    plan = replace(infer_call_plan(Past()), findings=())
    with pytest.raises(CallError) as caught:
        prove_on_batch(module, plan, batch())
    assert words in str(caught.value)
    assert all(p.grad is None for p in module.parameters())


def test_parameters_that_the_logits_do_not_need_are_named() -> None:
    module = Past()
    module.pooler = nn.Linear(16, 2)
    findings = prove_on_batch(module, infer_call_plan(module), batch())
    assert [f.measured for f in findings if f.name == "gradients"] == [
        "2 parameters get none: pooler.weight, pooler.bias"
    ]
    assert not [f for f in prove_on_batch(Past(), infer_call_plan(Past()), batch()) if f.name == "gradients"]
