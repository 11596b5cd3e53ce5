"""Repeated blocks that are computed again in the backward pass, beside the plain way. B batch, T time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.settings import TrainSettings
from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.example_gpt import GPT
from anyformer.training import autobatch, fusedhead
from anyformer.training.blocks import repeated_blocks
from anyformer.training.coordinator import TrainResult
from anyformer.training.losspath import LossPath
from tests.training.block_models import BATCH, IDS, Block, D, InPairs, InSequence, Stack, T, V, path, trained
from tests.training.read_runs import untimed_rows, weights

Fit = Callable[..., TrainResult]


class Shared(Stack):
    """Each block twice."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        for layer in (*self.layers, *self.layers):
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]


class Plain(nn.Module):
    """No repeated block: what repeats has no parts."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(V, D)
        self.mlp = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        self.head = nn.Linear(D, V)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mlp(self.emb(ids)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def plan() -> CallPlan:
    """The same for all of them."""
    return infer_call_plan(Stack(dropout=0.0))


def calls_of_blocks(module: nn.Module, run: Callable[[], Any]) -> int:
    """How often linear layers of blocks are computed."""
    count = 0

    def seen(*_: Any) -> None:
        nonlocal count
        count += 1

    hooks = [m.up.register_forward_hook(seen) for m in module.modules() if isinstance(m, Block)]
    run()
    for hook in hooks:
        hook.remove()
    return count


@pytest.mark.parametrize(("build", "count", "name"), [(Stack, 3, "3 × Block in layers"), (InSequence, 3, "3 × Block"),
                                                      (InPairs, 4, "4 × Block in layers")])  # fmt: skip
@pytest.mark.parametrize("fused", [False, True])
def test_the_same_loss_and_gradients(
    build: type[Stack], count: int, name: str, fused: bool, plan: CallPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, dropout included; alone and with the fused head."""
    monkeypatch.setattr(fusedhead, "FUSE_FROM", 0 if fused else 1 << 62)
    module = build()
    names, state = list(module.state_dict()), copy.deepcopy(module.state_dict())
    expected = trained(module, plan, LossPath())
    way, said = path(checkpointing=True)
    found = trained(module, plan, way)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert bool(way.head) == fused
    assert [f.verdict for f in said] == ["ok"]
    assert said[0].measured.startswith(name)
    assert calls_of_blocks(module, lambda: trained(module, plan, way)) == 2 * count  # forward, and once more
    assert list(module.state_dict()) == names
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())
    assert not any("forward" in vars(m) for m in module.modules())
    assert calls_of_blocks(module, lambda: module(IDS)) == count


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Plain(), "no list of the model"),
        (Shared(), "not called once each"),
        (Stack(norm=True), "norm.running_mean is written to once more"),
        (Stack(counts=True), "calls is written to once more"),
    ],
)
def test_off_and_why(module: nn.Module, reason: str, plan: CallPlan) -> None:
    way, said = path(checkpointing=True)
    trained(module, plan, way)
    (finding,) = said
    assert (finding.verdict, finding.measured) == ("warn", "off")
    assert reason in finding.reason
    assert way.blocks.effective() == {"activation_checkpointing": False}
    if isinstance(module, Stack) and module.layers[0].counts:  # type: ignore[union-attr]
        assert [layer.calls for layer in module.layers] == [1, 1, 1]  # type: ignore[union-attr]


class Fickle(Stack):
    """Random numbers of its own generator, which recomputation does not put back."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(1)
        for layer in self.layers:
            layer.register_forward_pre_hook(lambda m, args: None)

    def forward(self, ids: Tensor) -> Tensor:
        for layer in self.layers:
            vars(layer)["own"] = self.own
        return super().forward(ids)


def test_another_gradient_is_seen(plan: CallPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Fickle()

    def forward(self: Block, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.down(self.up(x) * torch.rand(1, generator=self.own))  # type: ignore[arg-type]

    monkeypatch.setattr(Block, "forward", forward)
    way, said = path(checkpointing=True)
    trained(module, plan, way)
    assert said[0].measured == "off"
    assert "its gradients are others" in said[0].reason


def test_where_the_plain_way_has_no_memory(plan: CallPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Stack()
    way, said = path(checkpointing=True)
    plain = Block.forward

    def forward(self: Block, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() and "forward" not in vars(self):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Block, "forward", forward)
    monkeypatch.setattr("anyformer.training.blocks.recomputed", lambda block, f: lambda *a, **k: plain(block, *a, **k))
    trained(module, plan, way)
    assert said[0].verdict == "warn"
    assert "no memory" in said[0].reason
    assert way.blocks.effective() == {"activation_checkpointing": True}


def test_it_keeps_less(plan: CallPlan) -> None:
    plan = replace(plan, token_arg="input_ids")
    gpt = GPT(vocab_size=V, block_size=T, n_layer=6, n_head=2, n_embd=D)
    kept = [
        autobatch._kept_bytes(
            TrainSettings(activation_checkpointing=asked), gpt, replace(plan, token_arg="input_ids"), "causal", BATCH
        )
        for asked in (False, True)
    ]
    assert len(repeated_blocks(gpt, lambda: gpt(IDS))[0][0].blocks) == 6
    # a block keeps about 15 times what goes into it: norms, q, k, v, attention, four widths before and after the GELU
    assert 12 < (kept[0] - kept[1]) / (6 * IDS.numel() * D * 4) < 18


@pytest.mark.soak
def test_a_run_with_it_equals_one_without_and_goes_on(fit: Fit, tmp_path: Path) -> None:
    lean = fit(Stack(), max_steps=4, activation_checkpointing=True, schedule="constant", warmup_steps=0)
    record = json.loads((lean.run_path / "run.json").read_text())
    assert record["effective"]["activation_checkpointing"] is True
    told = [f["measured"] for f in record["findings"] if f["name"] == "activation checkpointing"]
    assert told == ["3 × Block in layers"]
    settings: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0, "max_steps": 8}
    plain = fit(Stack(), name="plain", **settings)
    fit(Stack(), activation_checkpointing=True, resume=str(tmp_path / "runs" / "run"), **settings)
    assert weights(tmp_path / "runs" / "run") == weights(plain.run_path)
    assert untimed_rows(tmp_path / "runs" / "run") == untimed_rows(plain.run_path)
    assert "activation_checkpointing" not in json.loads((plain.run_path / "run.json").read_text())["effective"]
