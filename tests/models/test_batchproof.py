"""Leaks that tiny batches in eval mode do not show."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    assert "norm (BatchNorm1d)" in trained.reason
    assert "nn.LayerNorm" in trained.reason
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


# what hides behind rounding, random states and what a call leaves behind


class SmallGate(Past):
    """What leaks is too small for float32; its norm computes in float32 on its own account."""

    size = 1e-7

    def forward(self, ids: Tensor) -> Tensor:
        x = self.past(ids) + self.size * self.embedding(ids).mean(1, keepdim=True)
        return self.head((x.float() * x.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()).type_as(x))


class NoGate(SmallGate):
    size = 0.0


class Float32Fourier(Past):
    """Causal, by a convolution in the frequency domain that rounds in float32, whatever it is given."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).detach().transpose(1, 2).contiguous().type("torch.FloatTensor")
        n = 2 * x.shape[-1]
        mixed = torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(torch.ones_like(x) / n, n), n)[..., : n // 2]
        return self.head(self.embedding(ids) + mixed.transpose(1, 2))


def test_a_leak_that_float32_rounds_away_is_found_in_float64() -> None:
    torch.manual_seed(0)
    plan = replace(infer_call_plan(Past()), findings=())
    with pytest.raises(CallError, match="in float64"):
        prove_on_batch(SmallGate(), plan, batch())
    assert not infer_call_plan(SmallGate()).causal
    assert infer_call_plan(NoGate()).causal
    findings = prove_on_batch(NoGate(), plan, batch())
    assert all(f.verdict == "ok" and "in float64" in f.measured for f in findings)


def test_rounding_in_float32_is_no_leak() -> None:
    torch.manual_seed(0)
    plan = replace(infer_call_plan(Past()), findings=())
    findings = prove_on_batch(Float32Fourier(), plan, batch())
    assert [f.verdict for f in findings] == ["ok", "ok"]
    assert "in float32" in findings[0].measured


class Averaging(InTraining):
    """Its buffer moves in training mode: two calls differ, which must not excuse the leak."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(V))

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        if self.training:
            self.average = 0.9 * self.average + 0.1 * logits.detach().mean((0, 1))
        return logits - self.average


class OwnGenerator(InTraining):
    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return logits * torch.from_numpy(self.random.random(logits.shape).astype("float32"))


class Sometimes(Past):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.past(ids)
        leaks = self.training and torch.rand(()).item() < 0.3
        return self.head(x + self.embedding(ids).mean(1, keepdim=True) if leaks else x)


class NormedAndLeaking(InTraining):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(V)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(super().forward(ids).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("leaky", [Averaging, OwnGenerator, Sometimes, NormedAndLeaking])
def test_a_leak_in_training_mode_has_no_excuse(leaky: type[Past]) -> None:
    torch.manual_seed(0)
    with pytest.raises(CallError, match="sees the future"):
        prove_on_batch(leaky(), replace(infer_call_plan(Past()), findings=()), batch())


class Unseeded(Past):
    def forward(self, ids: Tensor) -> Tensor:
        noise = torch.rand(ids.shape[1], V, generator=torch.Generator().manual_seed(time.monotonic_ns()))
        return super().forward(ids) + noise * self.training


class Remembering(Past):
    """In training mode it adds what the last batch held."""

    last: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        x = self.past(ids)
        if self.training:
            before, self.last = self.last, x.detach()
            x = x if before is None else x + before
        return self.head(x)


def test_what_cannot_be_measured_or_depends_on_the_last_batch_is_a_warning() -> None:
    torch.manual_seed(0)
    plan = replace(infer_call_plan(Past()), findings=())
    for module, name in ((Unseeded(), "causality in training mode"), (Remembering(), "state in training mode")):
        assert name in [f.name for f in prove_on_batch(module, plan, batch()) if f.verdict == "warn"]


class ShiftsInTraining(Past):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(F.pad(ids[:, :-1], (1, 0)) if self.training else ids)


class ShiftsLong(Past):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(F.pad(ids[:, :-1], (1, 0)) if ids.shape[1] > 40 else ids)


@pytest.mark.parametrize(("shifting", "where"), [(ShiftsInTraining, "in training mode"), (ShiftsLong, "at T = 48")])
def test_a_shift_in_one_mode_or_at_one_length_is_refused(shifting: type[Past], where: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(CallError, match=f"do not see token t {where}"):
        prove_on_batch(shifting(), replace(infer_call_plan(Past()), findings=()), batch())


class Grows(Past):
    def forward(self, ids: Tensor) -> Tensor:
        if not hasattr(self, "extra"):
            self.extra = nn.Linear(V, V)
        return self.extra(super().forward(ids))


def test_weights_that_forward_adds_are_named() -> None:
    module = Grows()
    with pytest.raises(CallError, match=r"extra\.weight, extra\.bias"):
        prove_on_batch(module, replace(infer_call_plan(Past()), findings=()), batch())
    assert not hasattr(module, "extra")


class NoTrain(Past):
    def train(self, mode: bool = True) -> NoTrain:
        raise NotImplementedError


def test_a_train_method_that_fails_is_passed_over() -> None:
    module = NoTrain()
    findings = prove_on_batch(module, replace(infer_call_plan(Past()), findings=()), batch())
    assert [f.verdict for f in findings] == ["ok", "ok"]
    assert all(m.training for m in module.modules())


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


class OtherHead(Past):
    """The plan takes the output of an auxiliary layer; the head stays idle."""

    def __init__(self, main: str) -> None:
        super().__init__()
        del self.head
        self.main = main
        self.add_module(main, nn.Linear(16, V))
        self.side = nn.Linear(16, V)

    def forward(self, ids: Tensor) -> Tensor:
        return self.side(self.past(ids))


class MostlyIdle(Past):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(16, 400)


def test_an_idle_head_and_an_idle_model_are_refused_and_an_idle_second_head_is_not() -> None:
    plan = replace(infer_call_plan(Past()), findings=())
    with pytest.raises(CallError, match="no gradient reaches lm_head"):
        prove_on_batch(OtherHead("lm_head"), plan, batch())
    with pytest.raises(CallError, match="of the parameters get no gradient"):
        prove_on_batch(MostlyIdle(), plan, batch())
    second = Past()
    second.mtp_head = nn.Linear(16, V)
    assert [f.verdict for f in prove_on_batch(second, plan, batch())] == ["ok", "ok", "warn"]
    assert prove_on_batch(OtherHead("later"), plan, batch())[-1].verdict == "warn"


class _StartsAtZero(nn.Module):
    """A table of token pairs that starts at zero, and a mean over the future behind a weight that does, too."""

    def __init__(self, leaks: bool) -> None:
        super().__init__()
        self.pairs = nn.Parameter(torch.zeros(30, 30))
        self.late = nn.Linear(30, 30, bias=False)
        nn.init.zeros_(self.late.weight)
        self.leaks = leaks

    def forward(self, idx: Tensor) -> Tensor:
        seen = F.one_hot(idx, 30).float()
        if self.leaks and idx.shape[1] > 40:  # beyond the lengths at which a call is planned
            seen = seen.mean(1, keepdim=True)
        return self.pairs[idx] + self.late(seen)


def test_weights_at_zero_hide_no_leak_and_are_no_fault() -> None:
    batch = torch.randint(0, 30, (8, 48), generator=torch.Generator().manual_seed(0))
    healthy, leaking = _StartsAtZero(leaks=False), _StartsAtZero(leaks=True)
    plan = infer_call_plan(healthy)
    assert {f.verdict for f in prove_on_batch(healthy, plan, batch) if f.name.startswith("causality")} == {"ok"}
    with pytest.raises(CallError, match="sees the future"):
        prove_on_batch(leaking, plan, batch)
    assert not leaking.late.weight.any()


@pytest.mark.parametrize(("logits", "rows"), [(1 << 23, 16), (T * V * 5, 5), (1, 2)])
def test_a_large_vocabulary_is_looked_at_in_fewer_rows(monkeypatch: pytest.MonkeyPatch, logits: int, rows: int) -> None:
    seen: list[int] = []

    class Counts(Past):
        def forward(self, ids: Tensor) -> Tensor:
            seen.append(len(ids))
            return super().forward(ids)  # type: ignore[no-any-return]

    monkeypatch.setattr("anyformer.models.batchproof.PROOF_LOGITS", logits)
    module = Counts()
    plan = infer_call_plan(module)
    seen.clear()
    assert all(finding.verdict == "ok" for finding in prove_on_batch(module, plan, batch()[:16]))
    assert max(seen) == min(rows, len(batch()))
