"""A mask that does something is not told to be missing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anyformer.checks import CheckResult, run_checks
from anyformer.checks.text import way_on
from tests.checks.hosts import GPT, Attention, Block, D, H, NoMask


class Hiding(Attention):
    """What is filled in, from which place on, before or after the softmax."""

    value, ahead, late, merged = -math.inf, 1, False, "transpose"

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, H, D // H).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        later = torch.ones(T, T, dtype=torch.bool).triu(self.ahead)
        scores = self.scores(q, k)
        if self.late:
            weights = scores.softmax(-1).masked_fill(later, 0.0)
        else:
            weights = scores.masked_fill(later, self.value).softmax(-1)
        out = weights @ v
        return self.out((out.transpose(1, 2) if self.merged == "transpose" else out).reshape(B, T, D))


def hiding(**how: object) -> type[nn.Module]:
    attention = type("CausalSelfAttention", (Hiding,), how)
    return type("MyGPT", (GPT,), {"stack": lambda self: nn.ModuleList(Block(attention) for _ in range(2))})


def future(module: nn.Module) -> CheckResult:
    (result,) = [r for r in run_checks(module, only=("future",)).results if r.name == "future"]
    return result


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"value": -1.0}, "the mask is there, and hides too little"),
        ({"value": 0.0}, "the mask is there, and hides too little"),
        ({"ahead": 2}, "the mask begins 2 places ahead"),
        ({"late": True}, "the mask comes after the softmax"),
        ({"merged": "view"}, "the mask is right, each query weighs no later key"),
    ],
)
def test_what_the_mask_does_is_told(how: dict[str, object], says: str) -> None:
    result = future(hiding(**how)())
    assert result.verdict == "fail"
    assert says in result.cause
    assert "causal mask is missing" not in result.cause
    assert "--objective" not in result.cause  # a flag of train


def test_a_mask_that_is_not_there_is_missing_and_repair_may_help() -> None:
    class Bare(GPT):
        attention: Callable[[], nn.Module] = type("SelfAttention", (NoMask,), {})

    report = run_checks(Bare(), only=("future",))
    assert "a causal mask is missing" in report.causes[0].cause
    assert "anyformer repair model.py" in way_on(report, "model.py")
    assert "repair" not in way_on(run_checks(hiding(late=True)(), only=("future",)), "model.py")


def test_a_right_mask_leaks_nothing() -> None:
    assert future(hiding()()).verdict == "ok"


class ByHand(Attention):
    """Shares of each key, made in another way than by softmax."""

    def shares(self, scores: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, H, D // H).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = self.shares(self.masked(self.scores(q, k)))
        return self.out((weights @ v).transpose(1, 2).reshape(B, T, D))


def _softmax(s: Tensor) -> Tensor:
    e = (s - s.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("shares", "verdict", "says"),
    [
        (_softmax, "ok", "2 × a softmax over the keys"),
        (lambda s: s.exp() / (1 + s.exp().sum(-1, keepdim=True)), "note", "no softmax seen, yet numbers from 0 on"),
        (torch.sigmoid, "note", "no softmax seen, yet numbers from 0 on"),
        (lambda s: s.exp() / s.exp().sum(-2, keepdim=True), "warn", "a softmax over the queries"),
        (lambda s: s.nan_to_num(neginf=0.0), "warn", "scores are multiplied with the values"),
    ],
)
def test_a_softmax_by_hand_is_one(shares: Callable[[Tensor], Tensor], verdict: str, says: str) -> None:
    attention = type("Shares", (ByHand,), {"shares": lambda self, scores: shares(scores)})

    class Model(GPT):
        def stack(self) -> nn.ModuleList:
            return nn.ModuleList(Block(attention) for _ in range(2))

    (result,) = [r for r in run_checks(Model(), only=("attention",)).results if r.name == "attention"]
    assert (result.verdict, says in result.measured) == (verdict, True), result.measured
