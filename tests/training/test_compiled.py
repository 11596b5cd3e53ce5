"""Compiled blocks: proven, measured, kept or not, and why. Backends that do nothing stand in for the compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.example_gpt import GPT
from anyformer.training import blocks, fusedhead
from anyformer.training.coordinator import TrainResult
from anyformer.training.losspath import LossPath
from tests.training.block_models import IDS, Stack, V, path, trained
from tests.training.read_runs import untimed_rows, weights

Fit = Callable[..., TrainResult]


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """What was compiled in other tests plays no part."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plan() -> CallPlan:
    return infer_call_plan(Stack(dropout=0.0))


class Backend:
    """Runs what it is given as it is, and counts it; ``change`` what comes out."""

    def __init__(self, change: Callable[[Any], Any] = lambda out: out) -> None:
        self.count = 0
        self._change = change

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return lambda *args: self._change(graph(*args))


def timed(monkeypatch: pytest.MonkeyPatch, slow: float, quick: float) -> None:
    monkeypatch.setattr(blocks, "seconds", lambda module, ways: [slow, quick])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("lean", [False, True])
def test_the_same_pass_compiled_once(fused: bool, lean: bool, plan: CallPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusedhead, "FUSE_FROM", 0 if fused else 1 << 62)
    timed(monkeypatch, 2.0, 1.0)
    module = Stack()
    names = list(module.state_dict())
    expected = trained(module, plan, LossPath())
    backend = Backend()
    way, said = path(compiling="auto", checkpointing=lean, backend=backend)
    found = trained(module, plan, way)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert bool(way.head) == fused
    assert said[-1].verdict == "ok"
    assert said[-1].measured == "3 × Block in layers"
    assert "1e+03 ms instead of 2e+03 (2.00 ×)" in said[-1].reason
    assert way.blocks.effective() == {"compile": True} | ({"activation_checkpointing": True} if lean else {})
    assert backend.count == 1  # for three blocks
    for _ in range(3):
        trained(module, plan, way)
    assert backend.count == 1
    assert list(module.state_dict()) == names
    assert not any("forward" in vars(part) for part in module.modules())


@pytest.mark.parametrize(("asked", "kept"), [("auto", False), ("always", True)])
def test_what_is_not_faster_is_kept_only_where_asked_for(
    asked: str, kept: bool, plan: CallPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 1.0, 0.97)
    way, said = path(compiling=asked, backend="eager")
    trained(Stack(), plan, way)
    assert (said[0].measured != "off") == kept
    assert "(1.03 ×)" in said[0].reason
    assert way.blocks.effective() == {"compile": kept}


def test_it_is_really_timed(plan: CallPlan) -> None:
    def slowly(out: Any) -> Any:
        torch.linalg.svd(torch.ones(200, 200))
        return out

    way, said = path(compiling="auto", backend=Backend(slowly))
    trained(Stack(), plan, way)
    assert said[0].measured == "off"
    assert "(0." in said[0].reason


def _no_compiler(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("No working C++ compiler found")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (_no_compiler, "No working C++ compiler found"),
        (Backend(lambda out: tuple(o * 1.01 for o in out)), "its loss is another"),
        (Backend(lambda out: tuple(o.detach() + 0 * o for o in out)), "its gradients are others"),
    ],
)
def test_off_and_why(backend: Any, reason: str, plan: CallPlan) -> None:
    module = Stack()
    expected = trained(module, plan, LossPath())
    way, said = path(compiling="always", backend=backend)
    found = trained(module, plan, way)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert (said[0].verdict, said[0].measured) == ("warn", "off")
    assert reason in said[0].reason
    assert way.blocks.effective() == {"compile": False}


def test_other_dropout_is_compared_without(plan: CallPlan) -> None:
    def draws(out: Any) -> Any:
        torch.rand(1)
        return out

    way, said = path(compiling="always", backend=Backend(draws))
    trained(Stack(), plan, way)
    assert said[0].verdict == "ok"
    assert said[0].reason.startswith("without dropout equal loss")
    way, said = path(compiling="always", backend=Backend(lambda out: tuple(o * 1.01 for o in map(_drawn, out))))
    trained(Stack(), plan, way)
    assert said[0].measured == "off"


def _drawn(out: Tensor) -> Tensor:
    torch.rand(1)
    return out


def test_a_later_batch_that_does_not_compile_runs_plainly(plan: CallPlan) -> None:
    def first_only(graph: Any, inputs: Any) -> Any:
        if any(isinstance(i, Tensor) and i.shape[0] == 2 for i in inputs):
            raise RuntimeError("no such shape")
        return graph

    module = Stack(dropout=0.0)
    way, said = path(compiling="always", backend=first_only)
    trained(module, plan, way)
    assert said[0].verdict == "ok"
    ids = IDS[:2]
    found = way.loss(module, plan, "causal", {"input_ids": ids, "labels": ids})
    assert torch.equal(found, LossPath().loss(module, plan, "causal", {"input_ids": ids, "labels": ids}))
    assert [f.measured for f in said[1:]] == ["off"]
    assert "no such shape" in said[1].reason
    assert way.blocks.effective() == {"compile": False}


def test_a_run_that_goes_on_keeps_to_it(plan: CallPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow, kept in ((2.0, True), (1.0, False)):
        timed(monkeypatch, slow, 1.0)
        way, _ = path(compiling="auto", backend="eager")
        trained(Stack(), plan, way)
        timed(monkeypatch, 3.0 - slow, 1.0)  # now it would be decided otherwise
        later, said = path(compiling="auto", backend="eager")
        later.blocks.load_state_dict(way.blocks.state_dict())
        trained(Stack(), plan, later)
        assert later.blocks.effective() == {"compile": kept}
        assert "as the run began" in said[0].reason
        other, said = path(compiling="always", backend="eager")  # asked for anew
        other.blocks.load_state_dict(way.blocks.state_dict())
        trained(Stack(), plan, other)
        assert "as the run began" not in said[0].reason


@pytest.mark.soak
def test_with_the_compiler(fit: Fit, tmp_path: Path) -> None:
    """GPT, dropout on: a run that is stopped and goes on ends as one that was not."""

    def gpt() -> nn.Module:
        torch.manual_seed(5)
        return GPT(vocab_size=V, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.1)

    settings: dict[str, Any] = {"compile": "always", "schedule": "constant", "warmup_steps": 0}
    unbroken = fit(gpt(), name="unbroken", max_steps=8, **settings)
    (told,) = [f for f in unbroken.findings if f.name == "compile"]
    assert told.measured.startswith("2 × Block"), told.reason
    fit(gpt(), max_steps=4, **settings)
    torch._dynamo.reset()
    result = fit(gpt(), max_steps=8, resume=str(tmp_path / "runs" / "run"), **settings)
    assert weights(result.run_path) == weights(unbroken.run_path)
    assert untimed_rows(result.run_path) == untimed_rows(unbroken.run_path)
    plain = fit(gpt(), name="plain", max_steps=8, schedule="constant", warmup_steps=0)
    assert plain.results["val_loss"] == pytest.approx(result.results["val_loss"], rel=0.05)
