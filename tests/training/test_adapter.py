"""The adapter's loss, gradients, optimizer and refusals against computations that share no code with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from anyformer.core.errors import CallError, SettingsError
from anyformer.core.findings import Finding
from anyformer.models.callplan import infer_call_plan
from anyformer.models.example_gpt import GPT
from anyformer.training.adapter import UniversalModelAdapter

V, T, B = 23, 10, 4


class EncoderLM(nn.Module):
    """A TransformerEncoder under a causal mask, with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 16)
        self.positions = nn.Embedding(32, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, V)

    def forward(self, src: Tensor) -> Tensor:
        steps = torch.arange(src.shape[1])
        x = self.embedding(src) + self.positions(steps)
        mask = torch.full((len(steps), len(steps)), float("-inf"), dtype=x.dtype).triu(1)
        return self.head(self.encoder(x, mask=mask))


class TargetsGRU(nn.Module):
    """As nanoGPT: gives the logits of all positions only where targets are given, and a loss beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 16)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, V)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x, _ = self.gru(self.embedding(idx))
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.reshape(-1, V), targets.reshape(-1), ignore_index=-1)


class Copy(nn.Module):
    """Gives the token it sees as the next one, with certainty."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(30.0))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, V).float() * self.scale


class Leaky(nn.Module):
    """Sees the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 8)
        self.head = nn.Linear(8, V)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(torch.roll(tokens, -1, 1)))


class Probabilities(nn.Module):
    """Ends in a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 8)
        self.head = nn.Linear(8, V)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens)).softmax(-1)


def gpt() -> nn.Module:
    return GPT(vocab_size=V, block_size=16, n_layer=2, n_head=2, n_embd=16)


def double_logits(module: nn.Module, ids: Tensor) -> Tensor:
    return module(ids, ids)[0] if isinstance(module, TargetsGRU) else module(ids)


def batch_of(rows: int = B, seed: int = 0, ignore: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(0, V, (rows, T), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    if ignore:
        labels[0, 3:6] = -100
        labels[1, 0] = -100  # is nobody's target
        labels[2, -1] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def reference_gradient(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Next-token cross-entropy and its derivative by the logits, position by position in float64."""
    gradient, total, count = np.zeros_like(logits), 0.0, 0
    for row in range(labels.shape[0]):
        for place in range(labels.shape[1] - 1):
            target = labels[row, place + 1]
            if target == -100:
                continue
            shifted = logits[row, place] - logits[row, place].max()
            p = np.exp(shifted) / np.exp(shifted).sum()
            total -= math.log(p[target])
            gradient[row, place] = p
            gradient[row, place, target] -= 1.0
            count += 1
    return total / count, gradient / count


@pytest.mark.parametrize("build", [gpt, EncoderLM, TargetsGRU])
def test_loss_and_gradients_equal_a_float64_computation(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    module = build().double().train()
    batch = batch_of(ignore=True)
    adapter = UniversalModelAdapter(module)
    loss = adapter.training_step(batch, 0)
    loss.backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    logits = double_logits(module, batch["input_ids"])
    expected, by_logits = reference_gradient(logits.detach().numpy(), batch["labels"].numpy())
    logits.backward(torch.from_numpy(by_logits))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert len(found) == len(list(module.parameters()))
    for name, parameter in module.named_parameters():
        difference = (found[name] - parameter.grad).norm() / parameter.grad.norm()
        assert difference < 1e-6, name
    assert adapter(batch["input_ids"], labels=batch["labels"])["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_float32_stays_within_its_precision() -> None:
    torch.manual_seed(1)
    module, batch = gpt(), batch_of(ignore=True)
    loss = UniversalModelAdapter(module).training_step(batch, 0).item()
    expected, _ = reference_gradient(module.double()(batch["input_ids"]).detach().numpy(), batch["labels"].numpy())
    assert loss == pytest.approx(expected, rel=1e-6)


def test_a_model_that_copies_its_input_does_not_score_well() -> None:
    adapter = UniversalModelAdapter(Copy())
    batch = batch_of(rows=64)
    repeated = (batch["labels"][:, 1:] == batch["labels"][:, :-1]).double().mean().item()
    loss = adapter.training_step(batch, 0).item()
    assert loss == pytest.approx(30.0 * (1 - repeated), rel=1e-3)
    assert loss > math.log(V)


def test_probabilities_are_trained_on_minus_log_p() -> None:
    torch.manual_seed(1)
    module = Probabilities()
    batch = batch_of()
    loss = UniversalModelAdapter(module).training_step(batch, 0).item()
    p = module.double()(batch["input_ids"]).detach().numpy()
    ids = batch["input_ids"].numpy()
    expected = -np.mean([math.log(p[b, t, ids[b, t + 1]]) for b in range(B) for t in range(T - 1)])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_is_for_training_only() -> None:
    torch.manual_seed(1)
    module, batch = gpt(), batch_of()
    adapter = UniversalModelAdapter(module, label_smoothing=0.2)
    logits = module(batch["input_ids"])[:, :-1].reshape(-1, V)
    targets = batch["labels"][:, 1:].reshape(-1)
    plain, smoothed = (F.cross_entropy(logits, targets, label_smoothing=s).item() for s in (0.0, 0.2))
    assert adapter.training_step(batch, 0).item() == pytest.approx(smoothed, rel=1e-5)
    assert abs(plain - smoothed) > 1e-4
    trainer = lightning(adapter, [batch], max_steps=1)
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(fitted_loss(module, batch), rel=1e-5)


def fitted_loss(module: nn.Module, batch: dict[str, Tensor]) -> float:
    logits = module.eval()(batch["input_ids"])[:, :-1].reshape(-1, V)
    return F.cross_entropy(logits, batch["labels"][:, 1:].reshape(-1)).item()


def lightning(adapter: pl.LightningModule, batches: list[Any], **keywords: Any) -> pl.Trainer:
    loader: Any = DataLoader(batches, batch_size=None, shuffle=False)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **keywords,
    )  # fmt: skip
    trainer.fit(adapter, loader, loader)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_it_works_in_a_plain_trainer_with_the_references_defaults(tmp_path: Path) -> None:
    adapter = UniversalModelAdapter(gpt(), vocab_size=V)
    assert (adapter.learning_rate, adapter.warmup_steps, adapter.weight_decay) == (1e-4, 0, 0.01)
    optimizers, schedules = configured = adapter.configure_optimizers()
    assert isinstance(configured, tuple)
    assert isinstance(optimizers[0], torch.optim.AdamW)
    assert optimizers[0].param_groups[0]["lr"] == 1e-4
    assert schedules[0]["interval"] == "step"
    trainer = lightning(adapter, [batch_of(seed=s) for s in range(3)], max_epochs=2, default_root_dir=str(tmp_path))
    assert trainer.global_step == 6
    assert {"train_loss", "val_loss", "val_perplexity"} <= set(trainer.callback_metrics)
    loss = float(trainer.callback_metrics["val_loss"])
    assert float(trainer.callback_metrics["val_perplexity"]) == pytest.approx(math.exp(loss), rel=1e-5)
    out = adapter.generate(torch.tensor([[1, 2, 3]]), max_length=9, top_k=5, top_p=0.9, seed=1)
    assert isinstance(out, Tensor)
    assert (out.shape, out.dtype) == ((1, 9), torch.int64)
    assert out[0, :3].tolist() == [1, 2, 3]


@pytest.mark.filterwarnings("ignore")
def test_val_loss_weighs_tokens_not_batches() -> None:
    torch.manual_seed(2)
    module = gpt()
    batches = [batch_of(rows=7, ignore=True), batch_of(rows=1, seed=9)]
    trainer = lightning(UniversalModelAdapter(module), batches, max_epochs=1)
    module.eval().double()
    sums, counts = 0.0, 0
    for batch in batches:
        loss, _ = reference_gradient(module(batch["input_ids"]).detach().numpy(), batch["labels"].numpy())
        targets = int((batch["labels"][:, 1:] != -100).sum())
        sums, counts = sums + loss * targets, counts + targets
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(sums / counts, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_accumulated_gradients_equal_one_large_batch() -> None:
    whole = batch_of(rows=16)
    parts = [{name: tensor[i : i + 4] for name, tensor in whole.items()} for i in range(0, 16, 4)]
    results = []
    for batches, accumulate in ((parts, 4), ([whole], 1)):
        torch.manual_seed(3)
        module = gpt().double()  # AdamW magnifies the rounding of small gradients
        trainer = lightning(
            UniversalModelAdapter(module, learning_rate=1e-2), batches,
            max_steps=1, accumulate_grad_batches=accumulate, gradient_clip_val=0.5,
        )  # fmt: skip
        assert trainer.global_step == 1
        results.append(module.state_dict())
    start = gpt().double().state_dict()
    for name, one in results[0].items():
        torch.testing.assert_close(one, results[1][name], rtol=0, atol=1e-9)
    assert any(not torch.equal(results[0][name], start[name]) for name in start)


def test_only_matrices_decay() -> None:
    module = gpt()
    next(p for p in module.parameters() if p.dim() == 1).requires_grad_(False)
    ([optimizer], _) = UniversalModelAdapter(module, weight_decay=0.3).configure_optimizers()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in module.parameters():
        expected = (0.3 if parameter.dim() >= 2 else 0.0) if parameter.requires_grad else None
        assert decay.get(id(parameter)) == expected


def test_a_model_that_sees_the_future_is_refused() -> None:
    with pytest.raises(CallError, match="sees the future"):
        UniversalModelAdapter(Leaky())


def test_a_failing_finding_is_refused() -> None:
    module = gpt()
    plan = infer_call_plan(module)
    bad = Finding("batch", "fail", "rows of a batch change each other's logits", "independent rows", "say why")
    UniversalModelAdapter(module, call_plan=plan)
    with pytest.raises(CallError, match="rows of a batch change"):
        UniversalModelAdapter(module, call_plan=replace(plan, findings=(*plan.findings, bad)))


def test_more_ids_than_logits_are_refused() -> None:
    with pytest.raises(SettingsError, match=f"vocab_size is 24, but the model's logits cover {V}"):
        UniversalModelAdapter(gpt(), vocab_size=V + 1)


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_of_a_plain_trainer_have_the_steps_that_they_hold(tmp_path: Path) -> None:
    every = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=7, save_top_k=-1, filename="{step}")
    loader: Any = DataLoader([batch_of()] * 30, batch_size=None)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[every], max_steps=30, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=10,
    )  # fmt: skip
    trainer.fit(UniversalModelAdapter(gpt(), vocab_size=V), loader)
    held = {p.stem: torch.load(p, weights_only=False)["global_step"] for p in tmp_path.glob("*.ckpt")}
    assert held == {f"step={n}": n for n in (7, 14, 21, 28)}


@pytest.mark.parametrize("given", ["the model", "the adapter"])
def test_what_comes_in_eval_mode_is_trained_in_training_mode(given: str, tmp_path: Path) -> None:
    """As from_pretrained leaves a model, and an evaluation an adapter: Lightning alone would train without dropout."""
    modes = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.drop, self.head = nn.Embedding(V, 8), nn.Dropout(0.5), nn.Linear(8, V)

        def forward(self, ids: Tensor) -> Tensor:
            if torch.is_grad_enabled() and self.watched:
                modes.append((self.training, self.drop.training))
            return self.head(self.drop(self.table(ids)))

        watched = False

    model = Watched()
    adapter = UniversalModelAdapter(model.eval() if given == "the model" else model)
    if given == "the adapter":
        adapter.eval()
    ids = torch.randint(1, V, (4, 6))
    loader = DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=2)
    model.watched = True
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_steps": 2}
    pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **settings).fit(
        adapter, loader
    )
    assert modes
    assert set(modes) == {(True, True)}
