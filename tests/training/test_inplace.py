"""The loss in the logits' own memory, beside float64 computed the plain way. B batch, T time, D width, V vocabulary."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.core.errors import Interrupted
from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.objectives import batch_logits, objective_loss
from anyformer.models.plan import Objective
from anyformer.training import fusedhead, inplace
from anyformer.training.coordinator import TrainResult
from anyformer.training.inplace import _InPlaceLoss, alone, choose_in_place, loss_of_logits
from anyformer.training.losspath import LossPath
from anyformer.training.stopping import StopOnSignal
from tests.training.read_runs import weights
from tests.training.small_models import Small

V, D, B, T = 61, 16, 3, 50


@pytest.fixture(autouse=True)
def in_place_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusedhead, "FUSE_FROM", 0)
    monkeypatch.setattr(inplace, "_CPU_NUMBERS", 7 * V)  # many parts, the last one short


def batch_of(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[1, 20:] = -100
    return {"input_ids": ids, "labels": labels, "next_ids": ids[:, 0].clone()}


class Capped(nn.Module):
    """A recurrent decoder; what follows its head is each test's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.emb = nn.Embedding(V, D)
        self.rnn = nn.GRU(D, D, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(D, V)
        self.after: Callable[[Tensor], Tensor] | None = None
        self.kept: Any = None

    def forward(self, ids: Tensor) -> Any:
        logits = self.tail(self.head(self.drop(self.rnn(self.emb(ids))[0])))
        return logits if self.after is None else self.after(logits)

    def tail(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Scaled(Capped):
    def tail(self, x: Tensor) -> Tensor:
        return x * 0.5


class ScaledWhereItIs(Capped):
    def tail(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


class Masked(Capped):
    def tail(self, x: Tensor) -> Tensor:
        return (x * 2).masked_fill(torch.arange(V) >= V - 2, -1e4)


class OwnLoss(Capped):
    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        logits = super().forward(ids)
        return logits, None if targets is None else F.cross_entropy(logits.view(-1, V), targets.view(-1))


TAKEN = (Capped, Scaled, ScaledWhereItIs, Masked, OwnLoss)


class TanhLast(Capped):
    def tail(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class LogSoftmaxLast(Capped):
    def tail(self, x: Tensor) -> Tensor:
        return torch.log_softmax(x * 2, -1)


class Keeps(Capped):
    def tail(self, x: Tensor) -> Tensor:
        self.kept = super().tail(x)
        return self.kept


class KeepsInAList(Keeps):
    def tail(self, x: Tensor) -> Tensor:
        self.kept = {"logits": [super(Keeps, self).tail(x)]}
        return self.kept["logits"][0]


class KeepsWhatItIsMadeOf(Keeps):
    def tail(self, x: Tensor) -> Tensor:
        logits = super(Keeps, self).tail(x)
        self.kept = logits.detach()[0].numpy()
        return logits


class KeepsAGraph(Keeps):
    def tail(self, x: Tensor) -> Tensor:
        logits = super(Keeps, self).tail(x)
        self.kept = logits.logsumexp(-1).square().mean()  # a loss of its own: its backward pass reads the logits
        return logits


class Sliced(Capped):
    def tail(self, x: Tensor) -> Tensor:
        return F.pad(super().tail(x), (0, 3))[..., :V]


class Viewed(Capped):
    def tail(self, x: Tensor) -> Tensor:
        return super().tail(x).flatten().view(x.shape)


REFUSED = {TanhLast: "last operation", LogSoftmaxLast: "last operation", Keeps: "keeps its logits"}
REFUSED |= {KeepsInAList: "keeps its logits", KeepsWhatItIsMadeOf: "kept elsewhere", KeepsAGraph: "keeps its logits"}
REFUSED |= {Sliced: "view", Viewed: "view"}


@functools.cache
def _plan_of(cls: type[nn.Module]) -> CallPlan:
    return infer_call_plan(cls())


def plan_of(module: nn.Module) -> CallPlan:
    """Inferred once for all that are called alike."""
    own = isinstance(module, OwnLoss | LogSoftmaxLast | Writer)
    return _plan_of(type(module) if own else Capped)


def plain_loss(module: nn.Module, plan: CallPlan, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
    logits = batch_logits(module, plan, batch)
    return objective_loss("causal", logits, batch["labels"], batch["next_ids"], label_smoothing=smoothing)


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_those_of_float64(smoothing: float, share: float, kind: torch.dtype) -> None:
    torch.manual_seed(1)
    given = (torch.randn(4, 25, V) * 4).to(kind)
    given[0, 0, 5] = 60  # as good as certain: a gradient p − 1 of few digits
    given[0, 1, 7] = -torch.inf
    targets = torch.randint(0, V, (100,))
    targets[::7] = -100
    targets[1] = 3
    exact = given.double().requires_grad_()
    expected = F.cross_entropy(exact.flatten(0, 1), targets, label_smoothing=0.0)
    if smoothing:
        exact = given.double().where(given.isfinite(), 0).requires_grad_()
        expected = F.cross_entropy(exact.flatten(0, 1), targets, label_smoothing=smoothing)
        given = given.where(given.isfinite(), 0)
    (expected * share).backward()
    leaf = given.clone().requires_grad_()
    logits = leaf * 1
    loss = _InPlaceLoss.apply(logits, targets, smoothing)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (loss * share).backward()
    digits = {"rtol": 1e-5, "atol": 1e-8} if kind == torch.float32 else {"rtol": 2**-7, "atol": 1e-6}
    torch.testing.assert_close(leaf.grad.double(), exact.grad, **digits)


def test_without_any_target_the_loss_is_nan_and_nothing_is_learnt() -> None:
    leaf = torch.randn(5, V, requires_grad=True)
    loss = _InPlaceLoss.apply(leaf * 1, torch.full((5,), -100), 0.0)
    assert torch.isnan(loss)
    loss.backward()
    assert not leaf.grad.any()  # as of the plain way
    F.cross_entropy(leaf, torch.full((5,), -100)).backward()
    assert not leaf.grad.any()


def test_backward_runs_once_only() -> None:
    leaf = torch.randn(5, V, requires_grad=True)
    loss = _InPlaceLoss.apply(leaf * 1, torch.arange(5), 0.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()


def test_an_id_out_of_range_is_an_error_before_anything_is_written() -> None:
    logits = torch.randn(5, V, requires_grad=True) * 1
    before = logits.detach().clone()
    with pytest.raises(RuntimeError, match="out of bounds"):
        _InPlaceLoss.apply(logits, torch.tensor([0, 1, 2, 3, V]), 0.0)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("last", [torch.tanh, torch.exp, torch.sigmoid, lambda x: torch.softmax(x, -1)])
def test_who_kept_it_for_its_backward_pass_raises_even_if_it_is_not_asked(last: Callable[[Tensor], Tensor]) -> None:
    leaf = torch.randn(5, V, requires_grad=True)
    assert alone(lambda: last(leaf))[1]
    loss = _InPlaceLoss.apply(last(leaf), torch.arange(5), 0.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("cls", TAKEN)
def test_it_is_proven_and_gives_equal_loss_and_gradients(cls: type[Capped]) -> None:
    module, batch = cls(), batch_of()
    plan = plan_of(module)
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    chosen, finding = choose_in_place(module, plan, "causal", batch, 0.1)
    assert chosen, finding
    assert finding is not None
    assert (finding.name, finding.verdict) == ("in-place loss", "ok")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    torch.manual_seed(5)
    expected = plain_loss(module, plan, batch, 0.1)
    right = gradients(module, expected)
    torch.manual_seed(5)
    loss, reason = loss_of_logits(module, plan, "causal", batch, 0.1)
    assert reason == ""
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for a, b in zip(right, gradients(module, loss), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cls", REFUSED)
def test_logits_that_another_holds_are_left_alone_and_said_why(cls: type[Capped]) -> None:
    module, batch = cls(), batch_of()
    plan = plan_of(module)
    module.train()
    chosen, finding = choose_in_place(module, plan, "causal", batch)
    assert finding is not None
    assert (chosen, finding.verdict, finding.measured) == (False, "note", "off")
    assert REFUSED[cls] in finding.reason
    loss, reason = loss_of_logits(module.eval(), plan, "causal", batch)  # nor where a run goes on with it
    assert REFUSED[cls] in reason
    expected = plain_loss(module, plan, batch)
    assert torch.equal(loss, expected)
    for a, b in zip(gradients(module, expected), gradients(module, loss), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0)


def test_few_logits_classes_and_float64_are_computed_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = Capped(), batch_of()
    plan = plan_of(module)
    monkeypatch.setattr(fusedhead, "FUSE_FROM", B * T * V)
    assert choose_in_place(module, plan, "causal", batch)[0]
    assert choose_in_place(module, plan, "classification", batch) == (False, None)
    monkeypatch.setattr(fusedhead, "FUSE_FROM", B * T * V + 1)
    assert choose_in_place(module, plan, "causal", batch) == (False, None)
    path = LossPath()
    path.loss(module, plan, "causal", batch)
    assert (path.head, path.in_place, len(path.findings)) == ("", False, 1)
    for kind in (torch.float16, torch.float64):
        assert str(kind)[6:] in alone(lambda kind=kind: torch.ones(2, requires_grad=True).to(kind))[1]  # type: ignore[misc]
    assert "no gradient" in alone(lambda: torch.ones(2))[1]


def test_in_bfloat16_it_is_proven_and_used_there() -> None:
    module, batch = Capped(), batch_of()
    plan = plan_of(module)
    module.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen, finding = choose_in_place(module, plan, "causal", batch)
        assert chosen, finding
        loss, reason = loss_of_logits(module, plan, "causal", batch)
        expected = plain_loss(module, plan, batch)
    assert reason == ""
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=5e-3)
    for a, b in zip(gradients(module, expected), gradients(module, loss), strict=True):
        assert a is not None
        assert b is not None
        assert float((a - b).norm() / a.norm()) < 0.05


class Writer(nn.Module):
    """An encoder-decoder with capped logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.emb = nn.Embedding(V, D)
        self.read, self.write = nn.GRU(D, D, batch_first=True), nn.GRU(D, D, batch_first=True)
        self.head = nn.Linear(D, V)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        state = self.read(self.emb(src))[1]
        return 3 * torch.tanh(self.head(self.write(self.emb(tgt), state)[0]) / 3)


@pytest.mark.parametrize("objective", ["seq2seq", "masked"])
def test_other_objectives_are_computed_as_the_plain_way_does(objective: Objective) -> None:
    module: nn.Module = Writer() if objective == "seq2seq" else Capped().eval()
    plan, batch = plan_of(module), batch_of()
    if objective == "seq2seq":
        assert plan.objective == "seq2seq"
        del batch["next_ids"]
        batch |= {"target_ids": batch["input_ids"][:, :30].roll(3, 1), "labels": batch["labels"][:, :30]}
    chosen, finding = choose_in_place(module, plan, objective, batch)
    assert chosen, finding
    loss, reason = loss_of_logits(module, plan, objective, batch)
    logits = batch_logits(module, plan, batch).double()
    targets = batch["labels"].roll(-1, 1) if objective == "seq2seq" else batch["labels"]
    if objective == "seq2seq":
        targets[:, -1] = -100
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert reason == ""
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for a, b in zip(gradients(module, expected), gradients(module, loss), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7)


class _Live(TorchDispatchMode):
    """How many bytes of large tensors are there at once at most."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._there: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() >= B * T * V * 4:
                store = tensor.untyped_storage()
                self._there[store.data_ptr()] = (torch.multiprocessing.reductions.StorageWeakRef(store), store.nbytes())
        self._there = {at: one for at, one in self._there.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._there.values()))
        return result


def test_it_takes_two_tensors_of_logits_less_than_the_plain_way() -> None:
    most = []
    for way in ("plain", "in place"):
        leaf = torch.randn(B, T, V, requires_grad=True)
        targets = torch.zeros(B * T, dtype=torch.int64)
        with _Live() as seen:
            if way == "plain":
                loss = F.cross_entropy((leaf * 2).flatten(0, 1), targets)
            else:
                loss = _InPlaceLoss.apply(leaf * 2, targets, 0.0)
            loss.backward()
        most.append(seen.most // (B * T * V * 4))
    # logits and log-probabilities, the gradients of both; logits that become their gradient, and the leaf's
    assert most[1] == 2
    assert most[0] >= 3


def test_batches_whose_logits_another_holds_are_computed_the_plain_way_and_said() -> None:
    module, batch, path = Capped().eval(), batch_of(), LossPath()
    plan = plan_of(module)
    path.loss(module, plan, "causal", batch)
    assert (path.head, path.in_place) == ("", True)
    assert [finding.verdict for finding in path.findings] == ["note", "ok"]

    def keep(logits: Tensor) -> Tensor:
        module.kept = logits
        return logits

    for after in (keep, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), torch.tanh):
        module.after = after  # type: ignore[assignment]
        expected = plain_loss(module, plan, batch)
        loss = path.loss(module, plan, "causal", batch)
        assert torch.equal(loss, expected)
        for a, b in zip(gradients(module, expected), gradients(module, loss), strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=0)
        assert path.findings[1].verdict == "warn"
    module.after = None
    kept = module.kept
    torch.testing.assert_close(kept, batch_logits(module, plan, batch), rtol=0, atol=0)  # not written to
    module.kept = None
    assert alone(lambda: batch_logits(module, plan, batch))[1] == ""
    assert path.in_place


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["cuda", "python"])
@pytest.mark.parametrize("first", [True, False])
def test_a_lack_of_memory_does_not_turn_it_off(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, first: bool
) -> None:
    module, batch, path = Capped().eval(), batch_of(), LossPath()
    plan = plan_of(module)
    if not first:
        path.loss(module, plan, "causal", batch)
    with monkeypatch.context() as patch:

        def lacking(*args: Any) -> Any:
            raise error

        patch.setattr(inplace, "_held", lacking)
        with pytest.raises(type(error)):
            path.loss(module, plan, "causal", batch)
    path.loss(module, plan, "causal", batch)
    assert path.in_place


class CappedSmall(Small):
    def forward(self, tokens: Tensor) -> Tensor:
        return 5 * torch.tanh(super().forward(tokens) / 5)


def test_a_run_of_a_capped_model_goes_on_bit_for_bit(
    fit: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(seed: int = 5) -> CappedSmall:
        torch.manual_seed(seed)
        return CappedSmall()

    given = {"max_steps": 10, "eval_every": 5, "accumulate_grad_batches": 2}
    unbroken = fit(made(), name="unbroken", **given)
    assert [(f.name, f.verdict) for f in unbroken.findings if f.name in ("fused head", "in-place loss")] == [
        ("fused head", "note"),
        ("in-place loss", "ok"),
    ]

    sent = []

    def begin(self: StopOnSignal, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 6 and not sent:  # a step has two batches; a second signal would leave at once
            sent.append(trainer.global_step)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_train_batch_start", begin, raising=False)
        with pytest.raises(Interrupted):
            fit(made(), **given)
    with monkeypatch.context() as patch:
        patch.setattr(fusedhead, "FUSE_FROM", 1 << 40)  # the run, not its settings, says how it goes on
        run = tmp_path / "runs" / "run"
        result = fit(made(99), resume=str(run), **given)
        assert weights(result.run_path) == weights(unbroken.run_path)
        manifest = json.loads((run / "run.json").read_text())
        assert [f["reason"] for f in manifest["findings"] if f["name"] == "in-place loss"] == ["as the run began"]
        plain = fit(made(), name="plain", **given)
    assert plain.results["val_loss"] == pytest.approx(unbroken.results["val_loss"], rel=1e-5)
