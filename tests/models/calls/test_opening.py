"""Arguments that open the head. B batch, T time, V vocabulary, D width of hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.models.callplan import call_logits, infer_call_plan

V, D = 23, 16


class Core(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(V, D)
        self.gru = nn.GRU(D, D, batch_first=True)
        self.top = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, V))

    def states(self, x: Tensor) -> Tensor:
        return self.gru(self.tokens(x))[0]


class UnlessFeatures(Core):
    def forward(self, x: Tensor, features_only: bool = True) -> Tensor:
        h = self.states(x)
        return h if features_only else self.top(h)


class WithLabels(Core):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        h = self.states(x)
        if labels is None:
            return {"last_hidden_state": h}
        scores = self.top(h)
        return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten()), "scores": scores}


class Neither(Core):
    """A switch that opens a head of two classes, and one that changes nothing."""

    def forward(self, x: Tensor, return_dict: bool = False, use_classes: bool = False) -> Any:
        h = self.states(x)
        h = h[..., :2] if use_classes else h
        return {"h": h} if return_dict else h


@pytest.mark.parametrize("model", [UnlessFeatures, WithLabels])
def test_the_argument_that_opens_the_head_is_given(model: type[Core]) -> None:
    module = model().eval()
    plan = infer_call_plan(module)
    ids = torch.randint(0, V, (3, 8))
    assert (plan.family, plan.vocab_size) == ("decoder", V)
    torch.testing.assert_close(call_logits(module, plan, ids), module.top(module.states(ids)))
    assert not [f for f in plan.findings if f.verdict == "fail"]


def test_an_argument_that_only_changes_the_wrapping_is_passed_over() -> None:
    class Wrapped(Core):
        def forward(self, x: Tensor, return_dict: bool = False, return_logits: bool = False) -> Any:
            h = self.states(x)
            h = self.top(h) if return_logits else h
            return {"h": h} if return_dict else h

    plan = infer_call_plan(Wrapped())
    assert [(a.name, a.value) for a in plan.extras] == [("return_logits", True)]


def test_what_opened_it_is_said() -> None:
    (head,) = [f for f in infer_call_plan(UnlessFeatures()).findings if f.name == "head"]
    assert "features_only = False" in head.measured
    assert "hidden states" in head.reason


def test_hidden_states_that_nothing_opens_stay_refused() -> None:
    with pytest.raises(CallError, match="gives hidden states, no logits"):
        infer_call_plan(Neither())


def test_a_head_of_a_few_positions_is_no_head_for_every_position() -> None:
    class First(Core):
        def forward(self, x: Tensor, masked_positions: Tensor | None = None) -> Any:
            h = self.states(x)
            return h, None if masked_positions is None else self.top(h[:, :1])

    with pytest.raises(CallError, match="gives hidden states, no logits"):
        infer_call_plan(First())


def test_an_adaptive_softmax_is_left_without_a_hook() -> None:
    class Adaptive(Core):
        def __init__(self) -> None:
            super().__init__()
            self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(D, V, [8, 16])

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.adaptive(self.states(x).flatten(0, 1), y.flatten()).loss

    module = Adaptive()
    plan = infer_call_plan(module)
    ids = torch.randint(0, V, (2, 6))
    logits = call_logits(module, plan, ids)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), ids.flatten()), module.tokens.weight)
    (theirs,) = torch.autograd.grad(module(ids, ids), module.tokens.weight)
    torch.testing.assert_close(gradient, theirs)
    assert not module.adaptive._forward_pre_hooks
    assert not [f for f in plan.findings if f.verdict == "fail"]
