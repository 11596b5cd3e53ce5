"""The optimizer, its schedule, and a whole trajectory against a loop written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from transformers import get_wsd_schedule

from anyformer.core.errors import SettingsError
from anyformer.core.settings import ScheduleName
from anyformer.training.coordinator import TrainResult
from anyformer.training.optim import (
    RateSchedule,
    default_learning_rate,
    make_optimizer,
    rate_factor,
    suggested_learning_rate,
)
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 11),  # the first of 10 steps of warm-up: never 0, so that no step is wasted
        (4, 5 / 11),
        (9, 10 / 11),
        (10, 1.0),
        (35, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # an eighth of the circle
        (60, 0.1 + 0.9 / 2),
        (110, 0.1),
        (500, 0.1),
    ],
)
def test_warmup_and_cosine_at_closed_form_points(step: int, factor: float) -> None:
    found = rate_factor("cosine", step, warmup_steps=10, total_steps=110, min_lr_ratio=0.1)
    assert found == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_without_warmup_or_end(kind: ScheduleName) -> None:
    assert rate_factor(kind, 0, warmup_steps=0, total_steps=10, min_lr_ratio=0.0) == 1.0
    assert rate_factor(kind, 10**6, warmup_steps=5, total_steps=None, min_lr_ratio=0.1) == 1.0


STEPS = 240


def independent(kind: ScheduleName, warmup: int, ratio: float) -> list[float]:
    """The rates of torch's own schedulers, of transformers' for the form that torch lacks; no code of ours."""
    rate = 1.0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    rest = STEPS - warmup
    if kind == "cosine":
        after: LRScheduler = CosineAnnealingLR(optimizer, rest, eta_min=ratio)
    elif kind == "linear":
        after = LinearLR(optimizer, 1.0, ratio or 1e-300, rest)
    elif kind == "constant":
        after = ConstantLR(optimizer, 1.0)
    else:
        down = STEPS // 5
        after = get_wsd_schedule(
            optimizer, 0, down, num_stable_steps=rest - down, decay_type="1-sqrt", min_lr_ratio=ratio
        )
    schedule = after
    if warmup:
        rise = LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
        schedule = SequentialLR(optimizer, [rise, after], [warmup])
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("warmup", "ratio"), [(0, 0.0), (24, 0.1), (1, 1.0)])
@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_schedules_equal_those_of_other_libraries(kind: ScheduleName, warmup: int, ratio: float) -> None:
    ours = [
        rate_factor(kind, step, warmup_steps=warmup, total_steps=STEPS, min_lr_ratio=ratio) for step in range(STEPS)
    ]
    assert ours == pytest.approx(independent(kind, warmup, ratio), abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "step", "factor"),
    [
        ("linear", 60, 0.1 + 0.9 / 2),
        ("linear", 110, 0.1),
        ("wsd", 88, 1.0),  # 110 − a fifth
        ("wsd", 88 + 22 // 2, 0.1 + 0.9 * (1 - math.sqrt(0.5))),
        ("wsd", 110, 0.1),
        ("constant", 109, 1.0),
    ],
)
def test_schedules_at_closed_form_points(kind: ScheduleName, step: int, factor: float) -> None:
    found = rate_factor(kind, step, warmup_steps=10, total_steps=110, min_lr_ratio=0.1)
    assert found == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_schedules_of_very_short_runs_stay_within_their_bounds(kind: ScheduleName, total: int) -> None:
    for warmup in range(total + 2):
        for step in range(total + 2):
            assert 0.1 <= rate_factor(kind, step, warmup_steps=warmup, total_steps=total, min_lr_ratio=0.1) <= 1.0


def test_defaults_fit_the_optimizer() -> None:
    module = nn.Linear(10, 1, bias=False)
    assert default_learning_rate("sgd", module, None)[0] == 0.1
    assert default_learning_rate("adafactor", module, None)[0] == 0.01
    assert default_learning_rate("adamw", module, None)[0] == suggested_learning_rate(module, None)


def test_suggested_learning_rate_is_kaplans() -> None:
    module = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 100), nn.Linear(100, 50, bias=False))
    # the head has as many rows as the embedding and is left out as well: 8 · 100 + 100 remain
    assert suggested_learning_rate(module, 50) == pytest.approx(0.003239 - 0.0001395 * math.log(900), rel=1e-12)
    assert suggested_learning_rate(nn.Linear(10, 1, bias=False), None) == pytest.approx(
        0.003239 - 0.0001395 * math.log(10)
    )


def test_twenty_steps_equal_a_loop_written_by_hand(fit: Callable[..., TrainResult]) -> None:
    torch.manual_seed(7)
    module, twin = Small(dropout=0.0), Small(dropout=0.0)
    twin.load_state_dict(module.state_dict())
    settings = {"warmup_steps": 5, "weight_decay": 0.2, "beta2": 0.9, "gradient_clip_val": 0.3, "min_lr_ratio": 0.2}
    result = fit(module, max_steps=20, batch_size=24, accumulate_grad_batches=2, eval_every=20, **settings)

    loader = result.trainer.datamodule  # the same batches, epoch after epoch
    matrices = [p for p in twin.parameters() if p.dim() >= 2]
    vectors = [p for p in twin.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.9)
    )
    step, epoch = 0, 0
    order = loader.train_dataloader()._batches.order
    blocks = loader.train_dataloader().dataset
    while step < 20:
        places = [order.index(epoch, i) for i in range(order.size)]
        batches = [blocks.__getitems__(places[i : i + 24]).tensors for i in range(0, order.size, 24)]
        assert len(batches) % 2  # the last step of an epoch has one batch
        for start in range(0, len(batches), 2):
            if step == 20:
                break
            for batch in batches[start : start + 2]:
                logits = twin(batch["input_ids"])
                targets = torch.cat([batch["input_ids"][:, 1:], batch["next_ids"][:, None]], 1)
                (F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / 2).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.3)
            ratio = (step + 1) / 6 if step < 5 else 0.2 + 0.8 * (1 + math.cos(math.pi * (step - 5) / 15)) / 2
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * ratio
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        epoch += 1
    assert epoch > 1
    assert result.results["steps"] == 20
    for name, value in result.adapter.model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=0, atol=1e-6)


def trained_by_hand(
    module: nn.Module, result: TrainResult, optimizer: torch.optim.Optimizer, clip: float, rate: float, steps: int
) -> None:
    """Steps at a constant rate on the very batches of a run."""
    loader = result.trainer.datamodule.train_dataloader()
    order, blocks = loader._batches.order, loader.dataset
    places = [order.index(0, i) for i in range(order.size)]
    for step in range(steps):
        batch = blocks.__getitems__(places[8 * step : 8 * step + 8]).tensors
        targets = torch.cat([batch["input_ids"][:, 1:], batch["next_ids"][:, None]], 1)
        optimizer.zero_grad()
        F.cross_entropy(module(batch["input_ids"]).flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()


def adafactor_step(module: nn.Module, state: dict[str, tuple[Tensor, ...]], step: int, rate: float) -> None:
    """Shazeer & Stern 2018, algorithm 4 and 5, in float64 from the formulas; eps as torch has them."""
    for name, parameter in module.named_parameters():
        gradient, value = parameter.grad.double(), parameter.data.double()  # type: ignore[union-attr]
        new = step**-0.8
        if gradient.dim() == 2:
            row, column = state.get(name, (torch.zeros(()), torch.zeros(())))
            row = (1 - new) * row + new * gradient.pow(2).mean(1)
            column = (1 - new) * column + new * gradient.pow(2).mean(0)
            state[name] = row, column
            variance = torch.outer(row, column) / row.mean()
        else:
            (before,) = state.get(name, (torch.zeros(()),))
            variance = (1 - new) * before + new * gradient.pow(2)
            state[name] = (variance,)
        eps = torch.finfo(torch.float32).eps
        update = gradient / variance.clamp(min=eps * eps).sqrt()
        size = max(1e-3, value.pow(2).mean().sqrt().item())
        alpha = size * min(rate, step**-0.5)
        update = update / max(1.0, update.pow(2).mean().sqrt().item())
        parameter.data.copy_(value - alpha * update)


class ByFormula(torch.optim.Optimizer):
    """SGD with momentum and L2 decay of matrices, or Adafactor, written from their papers."""

    def __init__(self, module: nn.Module, kind: str, rate: float, decay: float) -> None:
        super().__init__(module.parameters(), {"lr": rate})
        self.module, self.kind, self.rate, self.decay, self.count = module, kind, rate, decay, 0
        self.kept: dict[str, Any] = {}

    def step(self, closure: Any = None) -> None:
        self.count += 1
        if self.kind == "adafactor":
            return adafactor_step(self.module, self.kept, self.count, self.rate)
        for name, parameter in self.module.named_parameters():
            gradient = parameter.grad + (self.decay * parameter.data if parameter.dim() >= 2 else 0)
            self.kept[name] = 0.7 * self.kept.get(name, 0) + gradient
            parameter.data -= self.rate * self.kept[name]
        return None


@pytest.mark.parametrize(("kind", "rate"), [("sgd", 0.05), ("adafactor", 0.02)])
def test_sgd_and_adafactor_equal_their_formulas(fit: Callable[..., TrainResult], kind: str, rate: float) -> None:
    torch.manual_seed(7)
    module, twin = Small(dropout=0.0), Small(dropout=0.0)
    twin.load_state_dict(module.state_dict())
    decay = {"weight_decay": 0.3, "beta1": 0.7} if kind == "sgd" else {}
    result = fit(module, max_steps=20, optimizer=kind, schedule="constant", learning_rate=rate, warmup_steps=0,
                 eval_every=20, **decay)  # fmt: skip
    trained_by_hand(twin, result, ByFormula(twin, kind, rate, 0.3), 1.0, rate, 20)
    for name, value in result.adapter.model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("before", "now"), [(False, True), (True, True), (False, False)])
def test_the_count_of_steps_lies_where_the_kernel_of_now_reads_it(before: bool, now: bool) -> None:
    """float16 (nothing fused) → 32 on another device than the CPU: meta stands for it; from there is no way back."""
    module = nn.Linear(3, 2, device="meta")

    def made(fused: bool) -> tuple[torch.optim.Optimizer, RateSchedule]:
        kind = {"learning_rate": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.95)}
        optimizer = make_optimizer(module, "adamw", fused=fused, **kind)  # type: ignore[arg-type]
        schedule = RateSchedule(optimizer, "cosine", warmup_steps=2, total_steps=9, min_lr_ratio=0.1)
        for parameter in module.parameters():
            step = torch.tensor(5.0, device="meta" if fused else "cpu")
            optimizer.state[parameter] = {"step": step, "exp_avg": torch.empty_like(parameter)}
        return optimizer, schedule

    saved, at = made(before)
    optimizer, schedule = made(now)
    optimizer.load_state_dict(saved.state_dict())
    schedule.load_state_dict(at.state_dict())  # Lightning restores it after the optimizer
    assert [group["fused"] for group in optimizer.param_groups] == [now, now]
    for parameter in module.parameters():
        assert optimizer.state[parameter]["step"].device.type == ("meta" if now else "cpu")
        assert optimizer.state[parameter]["exp_avg"].device.type == "meta"


class Spectral(Small):
    """The running mean is turned by complex weights, as in a state space model."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.turn = nn.Parameter(torch.randn(16, dtype=torch.cfloat))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        past = (x.cumsum(1) * self.turn).real / torch.arange(1, x.shape[1] + 1)[:, None]
        logits: Tensor = self.head(torch.tanh(self.hidden(torch.cat([x, past], -1))))
        return logits


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_complex_weights_are_trained_saved_and_gone_on_from(fit: Fit, kind: Any) -> None:
    settings: dict[str, Any] = {"optimizer": kind, "eval_every": 6, "learning_rate": 0.01}
    torch.manual_seed(0)
    module = Spectral()
    before = module.turn.detach().clone()
    whole = fit(module, max_steps=12, name="whole", **settings)
    assert float((whole.adapter.model.turn.detach() - before).abs().min()) > 0
    torch.manual_seed(0)
    fit(Spectral(), max_steps=6, name="part", schedule="constant", **settings)
    on = fit(Spectral(), max_steps=12, resume=str(whole.run_path.parent / "part"), schedule="constant", **settings)
    torch.manual_seed(0)
    same = fit(Spectral(), max_steps=12, name="same", schedule="constant", **settings)
    assert torch.equal(on.adapter.model.turn, same.adapter.model.turn)


def test_adafactor_refuses_complex_weights(fit: Fit) -> None:
    with pytest.raises(SettingsError, match=r"adafactor, which has no rule for complex weights \(turn\)"):
        fit(Spectral(), optimizer="adafactor")
