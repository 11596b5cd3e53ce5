"""The precision is what was measured to be fastest, and the measuring leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.training import precision
from anyformer.training.precision import choose_precision
from tests.training.small_models import VOCABULARY, Small

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan() -> CallPlan:
    return infer_call_plan(Small())


def choose(plan: CallPlan, setting: str = "auto", module: nn.Module | None = None) -> tuple[str, str]:
    ids = torch.randint(0, VOCABULARY, (8, 16))
    chosen, finding = choose_precision(setting, module or Small(), plan, {"input_ids": ids, "labels": ids}, CPU)  # type: ignore[arg-type]
    assert finding.measured == chosen
    return chosen, finding.reason


@pytest.mark.parametrize(
    ("full", "low", "finite", "chosen", "reason"),
    [
        (0.030, 0.010, True, "bf16", "3.0 × faster here: a step takes 10 ms, in float32 30 ms"),
        (0.010, 0.016, True, "32", "bf16 is 1.6 × slower here: a step takes 16 ms, in float32 10 ms"),
        (0.0105, 0.010, True, "32", "bf16 gains less than 1.1 ×"),
        (0.030, 0.010, False, "32", "the loss in bf16 is not finite"),
    ],
)
def test_the_faster_one_is_chosen(
    plan: CallPlan, monkeypatch: pytest.MonkeyPatch, full: float, low: float, finite: bool, chosen: str, reason: str
) -> None:
    monkeypatch.setattr(
        precision, "_step", lambda module, plan, ids, dtype: (full, True) if dtype is None else (low, finite)
    )
    found, why = choose(plan)
    assert found == chosen
    assert reason in why


def test_a_model_that_cannot_run_in_it_trains_in_float32(plan: CallPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(module: nn.Module, plan: CallPlan, ids: torch.Tensor, dtype: torch.dtype | None) -> tuple[float, bool]:
        if dtype is not None:
            raise RuntimeError("no kernel for this\nand more")
        return 0.01, True

    monkeypatch.setattr(precision, "_step", step)
    found, why = choose(plan)
    assert found == "32"
    assert why.endswith("cannot run in it: no kernel for this")


def test_float16_is_not_for_a_cpu(plan: CallPlan) -> None:
    found, why = choose(plan, "16")
    assert found == "32"
    assert "float16 is for GPUs" in why


@pytest.mark.parametrize("setting", ["32", "bf16"])
def test_what_is_set_is_taken(plan: CallPlan, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_step", lambda *args: pytest.fail("measured"))
    assert choose(plan, setting) == (setting, "as set")


def test_the_module_is_left_as_it_was(plan: CallPlan) -> None:
    module = Small()
    module.eval()
    module.register_buffer("calls", torch.zeros(()))
    module.register_forward_hook(lambda m, args, out: m.calls.add_(1) and None)  # type: ignore[operator]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    ids = torch.randint(0, VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(0))
    choose_precision("auto", module, plan, {"input_ids": ids, "labels": ids}, CPU)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not module.training
