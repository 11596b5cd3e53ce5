"""A step that goes wrong is left out or ends the run, as asked for; its batch is kept either way."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anyformer.core.errors import Interrupted, TrainingError
from anyformer.report import write_report
from anyformer.training import adapter as adapter_module
from anyformer.training import badsteps
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.badsteps import BadSteps
from anyformer.training.coordinator import TrainResult
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]


class Odd(Small):
    """Goes wrong in one training step: in its loss, in its gradient, or by a loss far above the others."""

    def __init__(self, at: int, where: str, *, until: int | None = None, stop_at: int | None = None) -> None:
        super().__init__(dropout=0.2)
        self.at, self.where, self.until, self.stop_at = at, where, until or at, stop_at
        self.begin = 0
        self.armed = False
        self.seen: list[Tensor] = []

    def forward(self, tokens: Tensor) -> Tensor:
        logits = super().forward(tokens)
        if not (self.armed and self.training and torch.is_grad_enabled()):
            return logits
        self.seen.append(tokens.clone())
        step = self.begin + len(self.seen)
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        if not self.at <= step <= self.until:
            return logits
        if self.where == "loss":
            return logits * float("nan")
        if self.where == "spike":
            return logits * 40
        logits.register_hook(lambda gradient: gradient * float("inf"))
        return logits


State = tuple[dict[str, Tensor], dict[Any, Any]]


@pytest.fixture(autouse=True)
def states(monkeypatch: pytest.MonkeyPatch) -> dict[int, State]:
    """Weights and what the optimizer remembers, after each step."""
    seen: dict[int, State] = {}
    end = UniversalModelAdapter.on_train_batch_end

    def ended(self: UniversalModelAdapter, outputs: Any, batch: Any, batch_idx: int) -> None:
        end(self, outputs, batch, batch_idx)
        optimizer = self.trainer.optimizers[0].state_dict()["state"]
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        seen[self.global_step] = weights, copy.deepcopy(optimizer)

    def start(self: UniversalModelAdapter) -> None:
        self.model.armed, self.model.begin = True, self.global_step

    monkeypatch.setattr(UniversalModelAdapter, "on_train_batch_end", ended)
    monkeypatch.setattr(UniversalModelAdapter, "on_train_start", start)
    return seen


def odd(*args: Any, seed: int = 5, **keywords: Any) -> Odd:
    torch.manual_seed(seed)
    return Odd(*args, **keywords)


def same(one: State, other: State) -> bool:
    weights = all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    states = zip(one[1].values(), other[1].values(), strict=True)
    return weights and all(torch.equal(a[key], b[key]) for a, b in states for key in a)


def rows(run: Path) -> dict[int, dict[str, str]]:
    with (run / "metrics" / "metrics.csv").open() as stream:
        return {int(row["step"]): row for row in csv.DictReader(stream)}


def kept(run: Path, step: int) -> dict[str, Any]:
    return json.loads((run / "bad_batches" / f"step-{step:08d}.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("optimizer", "where"), [("adamw", "loss"), ("adamw", "gradient"), ("sgd", "gradient"), ("adafactor", "loss")]
)
def test_the_update_of_a_bad_step_is_left_out(fit: Fit, states: dict[int, State], optimizer: str, where: str) -> None:
    module = odd(6, where)
    result = fit(module, bad_steps="skip", optimizer=optimizer, learning_rate=None)
    assert same(states[5], states[6])
    for step in (2, 5, 7, 12):
        assert not same(states[step - 1], states[step])
    assert result.results["steps"] == 12
    record = kept(result.run_path, 6)
    assert (record["step"], record["action"]) == (6, "skipped")
    assert record["reason"] == ("the loss is nan" if where == "loss" else "the gradient is not finite")
    assert record["input_ids"] == module.seen[5].tolist()
    assert record["text"] == [result.tokenizer.decode(row) for row in module.seen[5].tolist()]
    (said,) = [finding for finding in result.findings if finding.name == "skipped"]
    assert (said.measured, said.reason) == ("the updates of 1 step", "steps 6; their batches: bad_batches/")
    table = rows(result.run_path)
    assert list(table) == list(range(1, 13))
    assert (table[6]["train_loss"] == "nan") == (where == "loss")
    assert table[6]["grad_norm"] in ("nan", "inf")
    assert "NaN" not in write_report(result.run_path).read_text()
    assert [path.name for path in (result.run_path / "bad_batches").iterdir()] == ["step-00000006.json"]


def test_all_batches_of_an_accumulated_step_are_left_out_and_kept(fit: Fit, states: dict[int, State]) -> None:
    module = odd(11, "loss")  # the first half of step 6
    result = fit(module, bad_steps="skip", accumulate_grad_batches=2)
    assert same(states[5], states[6])
    assert not same(states[6], states[7])
    assert kept(result.run_path, 6)["input_ids"] == [*module.seen[10].tolist(), *module.seen[11].tolist()]
    assert kept(result.run_path, 6)["losses"][0] == "nan"


@pytest.mark.parametrize("skip", [True, False])
def test_a_leap_of_the_loss(
    fit: Fit, states: dict[int, State], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, skip: bool
) -> None:
    monkeypatch.setattr(badsteps, "ENOUGH", 8)
    settings: dict[str, Any] = {"max_steps": 16, "spike_sigma": 6.0, "learning_rate": 1e-4}
    module = odd(13, "spike")
    if skip:
        result = fit(module, bad_steps="skip", **settings)
        assert same(states[12], states[13])
        assert not same(states[13], states[14])
        assert result.adapter.bad_steps.skipped == [13]
    else:
        with pytest.raises(TrainingError, match=r"the loss leaps to .* at step 13") as caught:
            fit(module, **settings)
        assert "--bad_steps skip" in caught.value.fix
        assert "bad_batches/step-00000013.json" in caught.value.detail
    record = kept(tmp_path / "runs" / "run", 13)
    assert record["action"] == ("skipped" if skip else "stopped")
    assert record["input_ids"] == module.seen[12].tolist()
    fit(odd(13, "spike"), name="unwatched", **{**settings, "spike_sigma": None})  # the default: nothing happens
    assert not (tmp_path / "runs" / "unwatched" / "bad_batches").exists()


def test_a_run_with_skipped_steps_resumes_exactly(fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(badsteps, "ENOUGH", 8)  # more than the resumed part sees by itself
    settings: dict[str, Any] = {"max_steps": 16, "spike_sigma": 6.0, "bad_steps": "skip", "learning_rate": 1e-4}
    whole = fit(odd(13, "spike"), name="unbroken", **settings)
    assert whole.adapter.bad_steps.skipped == [13]
    with pytest.raises(Interrupted):
        fit(odd(13, "spike", stop_at=10), **settings)
    result = fit(odd(13, "spike", seed=99), resume=str(tmp_path / "runs" / "run"), **settings)
    assert result.adapter.bad_steps.skipped == [13]
    newest = [
        load_file(run.run_path / "checkpoints" / "step-00000016" / "model.safetensors") for run in (whole, result)
    ]
    assert all(torch.equal(newest[0][name], newest[1][name]) for name in newest[0])
    assert kept(result.run_path, 13) == kept(whole.run_path, 13)


def test_ten_in_a_row_end_the_run(fit: Fit, states: dict[int, State], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="10 steps in a row were skipped, the last is step 15"):
        fit(odd(6, "gradient", until=99), bad_steps="skip", max_steps=40)
    assert same(states[5], states[14])
    fit(odd(6, "gradient", until=14), bad_steps="skip", max_steps=40, name="nine")


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("free", [True, False])
def test_the_batch_of_a_run_that_stops_is_kept(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, free: bool
) -> None:
    monkeypatch.setattr(adapter_module, "reading_is_free", lambda tensor: free)  # not free: as on a GPU
    module = odd(5, where)
    with pytest.raises(TrainingError, match="at step 5") as caught:
        fit(module, max_steps=40, log_every=10, eval_every=40)
    run = tmp_path / "runs" / "run"
    assert f"its batch: {run / 'bad_batches' / 'step-00000005.json'}" in caught.value.detail
    assert kept(run, 5)["input_ids"] == module.seen[4].tolist()
    assert kept(run, 5)["action"] == "stopped"


def test_weights_that_are_no_numbers_are_not_skipped(fit: Fit) -> None:
    module = odd(99, "loss")
    plain = module.forward

    def forward(tokens: Tensor) -> Tensor:
        if len(module.seen) == 4:
            with torch.no_grad():
                module.head.weight[0, 0] = float("nan")
        return plain(tokens)

    module.forward = forward  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="the loss is nan at step 5") as caught:
        fit(module, bad_steps="skip", eval_every=12)
    assert "head.weight" in caught.value.detail


def test_how_far_a_leap_is() -> None:
    """Against Python's statistics: a step 5.9 deviations above is good, 6.1 is bad, one far below is good."""
    before = [3.0 + 0.01 * ((7 * i) % 13) for i in range(badsteps.WINDOW)]
    mean, spread = statistics.fmean(before), statistics.stdev(before)
    for sigmas, bad in ((5.9, False), (6.1, True), (-50.0, False)):
        for which in (0, 1):
            judge = BadSteps(sigma=6.0)
            judge.load_state_dict({"history": [before, before], "in_a_row": 0, "skipped": []})
            figures = [mean, mean]
            figures[which] += sigmas * spread
            assert (judge._reason(*figures) is not None) == bad
    judge = BadSteps(sigma=6.0)
    judge.load_state_dict({"history": [before[:63], before[:63]], "in_a_row": 0, "skipped": []})
    assert judge._reason(99.0, 99.0) is None  # too few to compare with
    assert judge._reason(9999.0, 1.0) is not None
