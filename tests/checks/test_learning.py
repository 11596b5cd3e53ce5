"""What a copy learns in some hundred steps, and what it must not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from anyformer.checks import CheckResult, Limits, run_checks
from anyformer.checks.stepper import Steps
from tests.checks.hosts import GPT


def found(module: nn.Module, limits: Limits | None = None) -> dict[str, CheckResult]:
    return {result.name: result for result in run_checks(module, tiers=(2,), limits=limits).results}


class Capped(GPT):
    """Logits within a twentieth of each other: nothing can be said."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).clamp(-0.05, 0.05)


class Counted(GPT):
    """A number that training changes and that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, ids: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return super().forward(ids) * (1 + 0.01 * self.steps)


class LeakyInTraining(GPT):
    """In training mode each place is told the token that follows."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(self.places(ids))
        if self.training:
            x = torch.cat((x[:, :-1] + self.tokens(ids[:, 1:]), x[:, -1:]), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def test_a_right_model_learns_its_tasks_and_no_noise() -> None:
    given = found(GPT())
    names = ("overfit", "noise", "previous token", "copy", "save and go on", "checkpointing")
    assert {name: given[name].verdict for name in names} == dict.fromkeys(names, "ok")


def test_what_cannot_be_learned_is_told() -> None:
    given = found(Capped(), Limits(steps=40))
    assert given["overfit"].verdict == "warn"
    assert given["previous token"].verdict == "warn"


def test_a_model_that_beats_chance_on_noise_sees_its_targets() -> None:
    assert [cause.name for cause in run_checks(LeakyInTraining()).causes] == ["future"]
    result = found(LeakyInTraining(), Limits(steps=150))["noise"]
    assert result.verdict == "fail"
    assert float(result.measured.split(" ")[0]) < math.log(8) - 0.15


def test_a_state_that_is_not_saved_is_told() -> None:
    given = found(Counted(), Limits(steps=5))
    assert given["save and go on"].verdict == "warn"
    assert given["checkpointing"].verdict == "warn"


def test_the_module_itself_is_not_trained() -> None:
    module = Counted().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found(module, Limits(steps=3))
    assert module.steps == 0
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_steps_are_those_of_adamw() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    done = Steps.of(layer, 0.1).go(4, lambda m, _: m(x).square().mean())
    twin = nn.Linear(3, 2)
    twin.load_state_dict(layer.state_dict())
    optimizer = torch.optim.AdamW(twin.parameters(), 0.1, weight_decay=0.0)
    losses = []
    for _ in range(4):
        loss = twin(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert done.losses == pytest.approx(losses)
    assert torch.equal(done.module.weight, twin.weight)


def test_steps_end_at_an_aim_and_in_time() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    assert len(Steps.of(layer).go(50, lambda m, _: m(x).square().mean(), until=1e9).losses) == 1
    assert len(Steps.of(layer).go(50, lambda m, _: m(x).square().mean(), seconds=-1.0).losses) == 1
