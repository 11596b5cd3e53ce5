"""A leak that begins while the model trains; what looking for it costs and leaves behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anyformer.core.errors import CallError
from anyformer.models.batchproof import prove_again
from anyformer.models.callplan import infer_call_plan
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.coordinator import TrainResult
from anyformer.training.watch import CausalityWatch
from tests.training.small_models import VOCABULARY, Small

T, B = 12, 16


class LateLeak(Small):
    """Sees the whole text in training mode, after some calls in it; counts them in a plain attribute."""

    def __init__(self, after: int, size: float = 1.0) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.after, self.size, self.calls = after, size, 0

    def count(self) -> int:
        self.calls += self.training
        return self.calls

    def forward(self, tokens: Tensor) -> Tensor:
        logits = super().forward(tokens)
        if self.count() > self.after and self.training:
            logits = logits + self.size * self.head(self.embedding(tokens).mean(1, keepdim=True))
        return logits


class InABuffer(LateLeak):
    def __init__(self, after: int) -> None:
        super().__init__(after)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def count(self) -> int:
        self.seen += self.training
        return int(self.seen)


class Shifts(LateLeak):
    """Shifts its input right, after some calls: logits[t] no longer see token t."""

    def forward(self, tokens: Tensor) -> Tensor:
        shifted = torch.cat([tokens[:, :1] * 0, tokens[:, :-1]], 1)
        return Small.forward(self, shifted if self.count() > self.after and self.training else tokens)


class Normed(LateLeak):
    """BatchNorm over rows and time: its statistics tell of the future in training mode, by right; a warning."""

    def __init__(self) -> None:
        super().__init__(10**9)
        self.norm = nn.BatchNorm1d(VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(super().forward(tokens).transpose(1, 2)).transpose(1, 2)


class Warming(LateLeak):
    """A schedule that changes how strongly it sees its past, and nothing else."""

    def forward(self, tokens: Tensor) -> Tensor:
        return Small.forward(self, tokens) * min(1.0, 0.1 + self.count() / 20)


def batches(steps: int, rows: int = B) -> Any:
    ids = torch.randint(0, VOCABULARY, (steps, rows, T), generator=torch.Generator().manual_seed(1))
    keep = torch.ones(rows, T, dtype=torch.int64)
    return DataLoader([{"input_ids": i, "attention_mask": keep, "labels": i} for i in ids], batch_size=None)  # type: ignore[arg-type]


def train(module: nn.Module, steps: int, *, evaluate: bool = False, **keywords: Any) -> UniversalModelAdapter:
    adapter = UniversalModelAdapter(module, 1e-2, call_plan=infer_call_plan(Small()), _proven=True)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=steps,
        enable_model_summary=False, num_sanity_val_steps=0, **keywords,
    )  # fmt: skip
    trainer.fit(adapter, batches(steps), batches(1) if evaluate else None)
    return adapter


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [LateLeak, InABuffer])
def test_a_leak_that_begins_while_it_trains_stops_the_run(model: type[LateLeak]) -> None:
    module = model(after=9)
    with pytest.raises(CallError, match="at step 15 the model sees the future") as caught:
        train(module, 60)
    text = str(caught.value)
    found = re.search(r"changing token (\d+) of row \d+ changes the logits at (\d+)", text)
    assert found is not None
    assert int(found[2]) < int(found[1])
    assert "at step 7 nothing moved" in text
    assert module.count() - module.training == 15  # it was put back to what 15 batches left


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("evaluate", "keywords"), [(True, {"val_check_interval": 29}), (False, {})])
def test_it_is_found_at_the_next_evaluation_or_at_the_end(evaluate: bool, keywords: dict[str, Any]) -> None:
    step = 29 if evaluate else 30
    with pytest.raises(CallError, match=f"at step {step} the model sees the future"):
        train(LateLeak(after=20), 30, evaluate=evaluate, **keywords)  # after 16, before 32


@pytest.mark.filterwarnings("ignore")
def test_a_small_leak_is_told_from_rounding_in_float64() -> None:
    with pytest.raises(CallError, match="sees the future"):
        train(LateLeak(after=1, size=2e-4), 6)


@pytest.mark.filterwarnings("ignore")
def test_an_input_that_is_shifted_from_some_step_on_stops_the_run() -> None:
    with pytest.raises(CallError, match="do not see token t in training mode"):
        train(Shifts(after=5), 20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", [Small(), Normed(), Warming(10**9)], ids=["plain", "batch norm", "schedule"])
def test_honest_models_train_on(module: nn.Module) -> None:
    assert train(module, 40).global_step == 40


@pytest.mark.filterwarnings("ignore")
def test_the_weights_are_those_of_a_run_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return {name: t.clone() for name, t in train(LateLeak(after=10**9), 40).model.state_dict().items()}

    watched = weights()
    monkeypatch.setattr(CausalityWatch, "look", lambda *_: None)
    assert all(torch.equal(watched[name], t) for name, t in weights().items())


def test_it_costs_less_than_a_hundredth() -> None:
    """In rows that go forward; a training step is a forward and a backward pass, which is two more."""
    module = Small()
    plan, watch, rows = infer_call_plan(module), CausalityWatch(), [0]

    def count(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows[0] += len(given[0] if given else named["tokens"])

    module.register_forward_pre_hook(count, with_kwargs=True)
    steps = 100
    for step, batch in enumerate(batches(steps)):
        watch.batch(module, plan, "causal", batch, step)
    watch.look(module, plan, steps)
    assert 0 < rows[0] < 0.01 * 3 * B * steps


def test_a_resumed_run_is_looked_at_at_once() -> None:
    module = LateLeak(after=50)
    module.train().calls = 60  # as a checkpoint restores it
    watch, batch = CausalityWatch(), next(iter(batches(1)))
    with pytest.raises(CallError, match="at step 60"):
        watch.batch(module, infer_call_plan(Small()), "causal", batch, 60)


def test_it_leaves_gradients_and_modes_alone_and_works_where_gradients_are_off() -> None:
    module = Small()
    plan, ids = infer_call_plan(module), next(iter(batches(1)))["input_ids"]
    module.eval()
    module(ids).sum().backward()
    grads = [(p.grad, p.grad.clone()) for p in module.parameters() if p.grad is not None]
    state = torch.get_rng_state()
    with torch.inference_mode():
        prove_again(module, plan, ids, step=3, proven=0)
    assert not module.training
    assert torch.equal(state, torch.get_rng_state())
    after = [p.grad for p in module.parameters() if p.grad is not None]
    assert len(after) == len(grads) > 0
    assert all(now is grad and torch.equal(now, value) for now, (grad, value) in zip(after, grads, strict=True))


def test_the_run_of_the_house_stops_too(fit: Callable[..., TrainResult]) -> None:
    with pytest.raises(CallError, match="at step 40 the model sees the future"):
        fit(LateLeak(after=40), max_steps=60)
