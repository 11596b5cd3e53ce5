"""Out of memory while training: the same steps in smaller parts, beside runs that never lacked any."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anyformer.core.errors import Interrupted, SettingsError, TrainingError
from anyformer.core.settings import TrainSettings
from anyformer.models.callplan import infer_call_plan
from anyformer.training import UniversalModelAdapter, autobatch
from anyformer.training.autobatch import fitting_rows
from anyformer.training.coordinator import TrainResult
from anyformer.training.microbatch import MicroBatched
from anyformer.training.stopping import StopOnSignal
from tests.training.read_runs import rows, untimed_rows, weights
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]
ALLOCATOR = "can't allocate memory: you tried to allocate 9 bytes."
GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class _Fails(torch.autograd.Function):
    """The identity, whose backward pass finds no memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Exception) -> Tensor:
        ctx.error = error
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise ctx.error


class Limited(Small):
    """Has memory for ``rows`` sequences from its call ``since`` on; notes what it was trained on."""

    def __init__(self, rows: int, *, since: int = 0, where: str = "forward", error: Exception = GPU,
                 dropout: float = 0.0) -> None:  # fmt: skip
        torch.manual_seed(5)
        super().__init__(dropout=dropout)
        self.rows, self.since, self.where, self.error = rows, since, where, error
        self.armed = False
        self.calls = 0
        self.seen: list[str] = []
        self.sizes: list[int] = []
        self.interrupt_at: int | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        trains = self.armed and self.training and torch.is_grad_enabled()  # others are proofs and evaluations
        if not trains and not (self.armed and self.where == "evaluation"):
            return super().forward(tokens)
        self.calls += 1
        self.sizes.append(len(tokens))
        lacks = len(tokens) > self.rows and self.calls > self.since
        if lacks and self.where in ("forward", "evaluation"):
            raise self.error
        logits = super().forward(tokens)
        if lacks:
            return _Fails.apply(logits, self.error)  # type: ignore[no-any-return, no-untyped-call]
        self.seen += [str(row) for row in tokens.tolist()]
        if self.interrupt_at is not None and len(self.seen) >= self.interrupt_at:
            self.interrupt_at = None
            os.kill(os.getpid(), signal.SIGINT)
        return logits


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds beside what other tests have imported."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.fixture(autouse=True)
def _armed_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    start, end = StopOnSignal.on_train_start, StopOnSignal.on_train_end

    def on_train_start(self: StopOnSignal, trainer: Any, pl_module: Any) -> None:
        start(self, trainer, pl_module)
        pl_module.model.armed = True

    def on_train_end(self: StopOnSignal, trainer: Any, pl_module: Any) -> None:
        pl_module.model.armed = False
        end(self, trainer, pl_module)

    monkeypatch.setattr(StopOnSignal, "on_train_start", on_train_start)
    monkeypatch.setattr(StopOnSignal, "on_train_end", on_train_end)


def apart(first: nn.Module, second: nn.Module) -> float:
    """Largest difference of any weight."""
    other = dict(second.named_parameters())
    return max(float((p - other[name]).abs().max().detach()) for name, p in first.named_parameters())


SOAK = pytest.mark.soak


@SOAK
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_ends_as_a_run_that_began_with_the_small_batch(fit: Fit, where: str, accumulate: int) -> None:
    small = Limited(4)
    began = fit(small, name="small", batch_size=4, accumulate_grad_batches=2 * accumulate)
    module = Limited(4, where=where)
    result = fit(module, accumulate_grad_batches=accumulate)
    assert weights(result.run_path) == weights(began.run_path)
    assert module.sizes[:2] == [8, 4]
    assert set(module.sizes[1:]) == {4}
    # of backward's failures the rows do not count: no gradient came of them
    assert module.seen == small.seen
    (told,) = [f for f in result.findings if f.name == "micro-batch"]
    assert (told.verdict, told.measured) == ("warn", "4 sequences at once")
    assert "8 at once at step 1" in told.reason
    assert "not verified on a GPU" in told.reason
    record = json.loads((result.run_path / "run.json").read_text())
    assert record["effective"]["micro_batch"] == 4
    assert record["settings"]["batch_size"] == 8
    assert told.to_dict() in record["findings"]


IDS = torch.randint(0, 40, (120, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def train() -> Callable[..., UniversalModelAdapter]:
    """Train a module on IDS in order, in a plain trainer."""
    plan = infer_call_plan(Small())

    def run(
        module: nn.Module, size: int, steps: int, accumulate: int = 1, micro: int | None = None, **trainer: Any
    ) -> UniversalModelAdapter:
        adapter = UniversalModelAdapter(
            module, 0.5, optimizer="sgd", weight_decay=0.0, schedule="constant", call_plan=plan, _proven=True
        )
        adapter.proven = True
        adapter.micro.rows = micro
        torch.manual_seed(11)
        module.armed = True
        batches = [{"input_ids": ids, "labels": ids} for ids in IDS.split(size)]
        pl.Trainer(max_steps=steps, accumulate_grad_batches=accumulate, accelerator="cpu", logger=False,
                   enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                   **trainer).fit(adapter, DataLoader(batches, batch_size=None))  # fmt: skip
        module.armed = False
        return adapter

    return run


Train = Callable[..., UniversalModelAdapter]


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("rows", "size", "then"), [(2, 8, 2), (3, 5, 3)])
def test_in_the_middle_of_an_accumulated_step(train: Train, where: str, rows: int, size: int, then: int) -> None:
    enough = Limited(size)
    train(enough, size, 5, accumulate=3)
    module = Limited(rows, since=7, where=where)  # the second batch of the third step
    adapter = train(module, size, 5, accumulate=3)
    assert apart(enough, module) < 1e-6
    # what was dropped is run again from the step's first sample on, in order
    third = 6 * size
    assert module.seen == [*enough.seen[: third + size], *enough.seen[third:]]
    assert adapter.micro.rows == then


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_as_lightning_accumulates(train: Train, precision: str) -> None:
    """Bit for bit, the precision's own way to compute included."""
    began, module = Limited(4), Limited(4, where="backward")
    train(began, 4, 4, accumulate=4, precision=precision)
    train(module, 8, 4, accumulate=2, precision=precision)
    assert apart(began, module) == 0.0


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_dropout_is_that_of_a_run_in_parts_from_the_start(train: Train, where: str) -> None:
    """Wherever in its step the memory ended: the random numbers begin anew with it."""
    parts, module = Limited(4, dropout=0.2), Limited(4, since=1, where=where, dropout=0.2)
    train(parts, 8, 3, accumulate=2, micro=4)
    train(module, 8, 3, accumulate=2)
    assert module.sizes[:2] == [8, 8]
    assert apart(parts, module) == 0.0


def test_the_loss_is_that_of_the_whole_batch(train: Train) -> None:
    whole, parts = Limited(8), Limited(3)
    means = [train(module, 8, 1, log_every_n_steps=1).last_train_loss for module in (whole, parts)]
    assert means[0] == pytest.approx(means[1], rel=1e-6)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_one_sequence_that_does_not_fit(train: Train, where: str) -> None:
    with pytest.raises(TrainingError, match="one sequence of 16 tokens does not fit") as caught:
        train(Limited(0, where=where), 8, 1)
    assert "CUDA out of memory" in caught.value.detail
    assert "--max_length" in caught.value.fix
    assert "--activation_checkpointing" in caught.value.fix


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(f"DefaultCPUAllocator: {ALLOCATOR}")])
def test_a_lack_of_the_machines_own_memory_is_explained(train: Train, where: str, error: Exception) -> None:
    module = Limited(4, error=error, where=where)
    with pytest.raises(TrainingError, match="not enough memory for 8 sequences of 16 tokens") as caught:
        train(module, 8, 1)
    assert module.calls == 1
    assert "--batch_size 4 with twice the --accumulate_grad_batches" in caught.value.fix


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_other_errors_stay_what_they_are(train: Train, where: str) -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        train(Limited(4, error=RuntimeError("a bug"), where=where), 8, 1)


@SOAK
def test_an_evaluation_is_run_in_parts_too(fit: Fit) -> None:
    whole = fit(Limited(8), name="whole")
    module = Limited(3, where="evaluation", since=4)  # four steps, then the evaluation
    result = fit(module)
    assert result.adapter.micro.rows == 2
    assert apart(whole.adapter.model, result.adapter.model) < 1e-5
    scores = [[float(row["val_loss"]) for row in rows(r.run_path) if row["val_loss"]] for r in (whole, result)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_an_optimizer_without_room_for_its_state(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: Any, closure: Any = None) -> None:
        closure()
        raise GPU

    monkeypatch.setattr(torch.optim.SGD, "step", update)
    with pytest.raises(TrainingError, match="the optimizer's state do not fit") as caught:
        train(Limited(8), 8, 1)
    assert "adafactor" in caught.value.fix


@pytest.mark.parametrize(
    ("where", "stop"),  # optimizer steps; memory ends in the seventh
    [("forward", 9), *(pytest.param(*case, marks=SOAK) for case in (("forward", 5), ("backward", 5), ("backward", 9)))],
)
def test_an_interrupted_run_ends_as_if_it_never_stopped(fit: Fit, tmp_path: Path, where: str, stop: int) -> None:
    def module() -> Limited:
        return Limited(4, since=13, where=where, dropout=0.2)

    settings: dict[str, Any] = {"max_steps": 12, "accumulate_grad_batches": 2}
    unbroken = module()
    fit(unbroken, name="unbroken", **settings)
    first = module()
    first.interrupt_at = 16 * stop
    with pytest.raises(Interrupted):
        fit(first, **settings)
    second = module()
    second.since = max(0, 13 - first.calls) if stop < 7 else 0
    result = fit(second, resume=str(tmp_path / "runs" / "run"), **settings)
    assert weights(result.run_path) == weights(tmp_path / "runs" / "unbroken")
    assert untimed_rows(result.run_path) == untimed_rows(tmp_path / "runs" / "unbroken")
    assert stop < 7 or set(second.sizes) == {4}  # the checkpoint knows
    record = json.loads((tmp_path / "runs" / "unbroken" / "run.json").read_text())
    assert (record["effective"]["micro_batch"], record["settings"]["batch_size"]) == (4, 8)
    assert [f["measured"] for f in record["findings"] if f["name"] == "micro-batch"] == ["4 sequences at once"]


class _Two(MicroBatched):
    """A linear model in a plain trainer; its second and third row have no target."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1, bias=False)
        self.gradient: Tensor | None = None

    def prepared(self, arrived: Any) -> dict[str, Any]:
        return dict(arrived)

    def part_targets(self, batch: dict[str, Any]) -> Tensor:
        return batch["keep"].sum()

    def part_loss(self, batch: dict[str, Any]) -> Tensor:
        kept = batch["keep"].bool()
        return (self.layer(batch["input_ids"])[:, 0] * kept).sum() / kept.sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.gathered_loss(batch, batch_idx)[0]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.layer.weight.grad is not None
        self.gradient = self.layer.weight.grad.clone()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_part_without_targets_adds_nothing() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    keep = torch.tensor([1, 0, 0, 1, 1])
    module = _Two()
    module.micro.rows = 1
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DataLoader([{"input_ids": x, "keep": keep}], batch_size=None))
    assert module.gradient is not None
    torch.testing.assert_close(module.gradient[0], x[keep.bool()].mean(0))


# --batch_size auto


def state_of(module: nn.Module) -> str:
    """sha256 of all that a trial must not touch."""
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    digest.update(str([(m.training, sorted(vars(m))) for m in module.modules()]).encode())
    digest.update(str([p.grad for p in module.parameters()]).encode())
    return digest.hexdigest()


class Counting(Limited):
    """With a running mean in a buffer, and −0 among its weights."""

    tried: ClassVar[list[int]] = []  # of the class: what a module holds is put back

    def __init__(self, rows: int) -> None:
        super().__init__(rows, dropout=0.1)
        self.tried.clear()
        self.norm = nn.BatchNorm1d(16)
        with torch.no_grad():
            self.hidden.weight[:4] = -0.0

    def forward(self, tokens: Tensor) -> Tensor:
        self.tried.append(len(tokens))
        self.norm(self.embedding(tokens).flatten(0, 1))
        return super().forward(tokens)


@pytest.mark.parametrize(("rows", "found", "precision"), [(100, 16, "32"), (15, 8, "bf16"), (1, 1, "32")])
def test_a_trial_finds_what_fits_and_leaves_no_trace(rows: int, found: int, precision: str) -> None:
    plan = infer_call_plan(Small())
    module = Counting(rows)
    module.armed = True
    before = state_of(module)
    ids = torch.randint(0, 40, (5, 16), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids, "next_ids": ids[:, 0]}
    got, finding = autobatch._by_trial(
        TrainSettings(batch_size="auto"),
        module,
        plan,
        "causal",
        batch,
        precision,
        torch.device("cpu"),
        [16, 8, 4, 2, 1],
    )
    assert got == found
    assert ("do not" in finding.reason) == (found < 16)
    assert module.tried[-2:] == [found, found]  # the second beside the optimizer's state
    assert state_of(module) == before


def test_a_trial_where_nothing_fits() -> None:
    plan = infer_call_plan(Small())
    module = Counting(0)
    module.armed = True
    ids = torch.zeros(2, 16, dtype=torch.int64)
    with pytest.raises(TrainingError, match="one sequence of 16 tokens"):
        autobatch._by_trial(TrainSettings(batch_size="auto"), module, plan, "causal", {"input_ids": ids, "labels": ids},
                            "32", torch.device("cpu"), [2, 1])  # fmt: skip


def test_on_a_cpu_memory_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Small(vocab_size=200)
    plan = infer_call_plan(module)
    ids = torch.randint(0, 200, (3, 16))
    before = state_of(module)
    batch = {"input_ids": ids, "labels": ids}
    settings = TrainSettings(batch_size="auto")
    # by hand: kept for backward are the log-probabilities (B·T, V) of the loss, and little beside them
    kept = autobatch._kept_bytes(settings, module, plan, "causal", {"input_ids": ids, "labels": ids})
    assert 1.0 <= kept / (3 * 16 * 200 * 4) < 1.6
    state = 4 * sum(4 * p.numel() for p in module.parameters())
    for free, found in ((1 << 40, 16), (2 * (state + 2 * kept * 8.1 / 3), 8), (2 * state, 1)):
        monkeypatch.setattr(autobatch, "available_memory", lambda free=free: free)
        got, finding = fitting_rows(settings, module, plan, "causal", batch, "32", torch.device("cpu"))
        assert got == found
        assert "GB" in finding.reason
    monkeypatch.setattr(autobatch, "available_memory", lambda: None)
    got, finding = fitting_rows(settings, module, plan, "causal", batch, "32", torch.device("cpu"))
    assert (got, finding.reason) == (16, "the system does not say how much memory is free")
    assert state_of(module) == before


@SOAK
def test_auto_keeps_the_steps_and_is_kept_on_resume(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fit(Limited(16), name="plain", batch_size=16, max_steps=8)
    monkeypatch.setattr(autobatch, "available_memory", lambda: 1)
    module = Limited(16)
    result = fit(module, batch_size="auto", max_steps=4)
    assert set(module.sizes) == {1}
    record = json.loads((result.run_path / "run.json").read_text())
    assert (record["effective"]["micro_batch"], record["settings"]["batch_size"]) == (1, "auto")
    assert any(
        f["name"] == "micro-batch" and "1 sequences at once of the 16" in f["measured"] for f in record["findings"]
    )
    monkeypatch.setattr(autobatch, "available_memory", lambda: 1 << 50)  # it is not found out anew
    second = Limited(16)
    result = fit(second, batch_size=16, resume=str(tmp_path / "runs" / "run"), max_steps=8)
    assert set(second.sizes) == {1}
    assert module.seen + second.seen == plain.adapter.model.seen
    with pytest.raises(SettingsError, match="batch_size is 8"):
        fit(Limited(16), batch_size=8, resume=str(tmp_path / "runs" / "run"), max_steps=9)


def test_auto_is_the_only_word() -> None:
    assert TrainSettings(batch_size="auto").sequences == 16
    for value in ("8", "large", 0, True, 2.0):
        with pytest.raises(SettingsError, match="batch_size is"):
            TrainSettings(batch_size=value)  # type: ignore[arg-type]
