"""What each training setting does: measured on small runs, in the optimizer, the batches and the run directory."""

from __future__ import annotations

import csv
import inspect
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import api, cli
from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.runs import tracking
from anyformer.tokenization import CharacterLevelTokenizer
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.coordinator import TrainResult
from anyformer.training.reference import TrainingCoordinator
from tests.training.small_models import Small, small_text

Fit = Callable[..., TrainResult]
FAKES = Path(__file__).parents[1] / "runs" / "fake_trackers.py"
CONSTANT = {"warmup_steps": 0, "min_lr_ratio": 1.0}


@dataclass
class Step:
    """One batch of training as the adapter saw it."""

    batch: dict[str, Tensor]
    rate: float
    """Learning rate of the update that the batch belongs to."""
    norm: float = math.nan
    """Norm of the gradient that the optimizer was given."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Filled by every run of the test, one entry per batch."""
    seen: list[Step] = []
    end = UniversalModelAdapter.on_train_batch_end

    def started(self: UniversalModelAdapter, batch: dict[str, Tensor], batch_idx: int) -> None:
        copy = {name: value.clone() for name, value in batch.items()}
        seen.append(Step(copy, self.trainer.optimizers[0].param_groups[0]["lr"]))

    def ended(self: UniversalModelAdapter, outputs: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        seen[-1].norm = float(
            torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]).norm()
        )
        end(self, outputs, batch, batch_idx)

    assert "on_train_batch_start" not in vars(UniversalModelAdapter)
    monkeypatch.setattr(UniversalModelAdapter, "on_train_batch_start", started)
    monkeypatch.setattr(UniversalModelAdapter, "on_train_batch_end", ended)
    return seen


def small(dropout: float = 0.0) -> Small:
    torch.manual_seed(5)
    return Small(dropout=dropout)


def rows(run: Path, column: str) -> dict[int, float]:
    """A column of the metrics by step, where it is filled."""
    with (run / "metrics" / "metrics.csv").open() as stream:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(stream) if row[column]}


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


# the optimizer and its schedule


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 2.0])
def test_weight_decay_shrinks_matrices_only(fit: Fit, weight_decay: float) -> None:
    module = small()
    row = module.embedding.weight[39].detach().clone()  # a token that the text lacks: decay alone moves it
    result = fit(module, max_steps=6, eval_every=6, weight_decay=weight_decay, learning_rate=1e-2, **CONSTANT)
    matrices, vectors = result.trainer.optimizers[0].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (weight_decay, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    torch.testing.assert_close(result.adapter.model.embedding.weight[39], row * (1 - 1e-2 * weight_decay) ** 6)


@pytest.mark.parametrize("given", [{}, {"beta1": 0.6, "beta2": 0.7}])
def test_betas(fit: Fit, given: dict[str, float]) -> None:
    result = fit(max_steps=1, **given)
    expected = (given.get("beta1", 0.9), given.get("beta2", 0.95))
    assert [group["betas"] for group in result.trainer.optimizers[0].param_groups] == [expected] * 2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_update_is_fused(fit: Fit, optimizer: str) -> None:
    groups = fit(max_steps=1, optimizer=optimizer).trainer.optimizers[0].param_groups
    assert all(group["fused"] for group in groups)


@pytest.mark.parametrize(
    ("optimizer", "kind", "rate", "decay"),
    [
        ("adamw", torch.optim.AdamW, 0.00236, 0.1),
        ("sgd", torch.optim.SGD, 0.1, 1e-4),
        ("adafactor", torch.optim.Adafactor, 0.01, 0.0),
    ],
)
def test_the_optimizer_and_what_fits_it(fit: Fit, optimizer: str, kind: type, rate: float, decay: float) -> None:
    result = fit(max_steps=1, optimizer=optimizer, learning_rate=None)
    record = json.loads((result.run_path / "run.json").read_text())["effective"]
    assert (record["learning_rate"], record["weight_decay"]) == (pytest.approx(rate, rel=0.01), decay)
    (used,) = result.trainer.optimizers
    used = getattr(used, "optimizer", used)
    assert type(used) is kind
    assert [group["weight_decay"] for group in used.param_groups] == [decay, 0.0]
    assert optimizer != "sgd" or {group["momentum"] for group in used.param_groups} == {0.9}


def test_what_an_optimizer_or_a_schedule_lacks_is_said(fit: Fit) -> None:
    result = fit(max_steps=1, optimizer="adafactor", beta1=0.8, beta2=0.9, schedule="constant", min_lr_ratio=0.5)
    said = {f.name: f.measured for f in result.findings if f.verdict == "warn"}
    assert said == {name: f"{value} is not used" for name, value in
                    (("beta1", 0.8), ("beta2", 0.9), ("min_lr_ratio", 0.5))}  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("linear", [1 - 0.75 * step / 10 for step in range(10)]),
        ("wsd", [1.0] * 9 + [0.25 + 0.75 * (1 - math.sqrt(0.5))]),
        ("constant", [1.0] * 10),
    ],
)
def test_the_schedule(fit: Fit, steps: list[Step], schedule: str, factors: list[float]) -> None:
    fit(max_steps=10, eval_every=10, learning_rate=2e-2, warmup_steps=0, min_lr_ratio=0.25, schedule=schedule)
    assert [step.rate for step in steps] == pytest.approx([2e-2 * factor for factor in factors], abs=1e-12)


@pytest.mark.parametrize(("warmup", "ratio"), [(3, 0.25), (0, 0.6), (4, 1.0), (2, 0.0)])
def test_the_rate_of_every_step(fit: Fit, steps: list[Step], warmup: int, ratio: float) -> None:
    result = fit(max_steps=10, eval_every=10, learning_rate=2e-2, warmup_steps=warmup, min_lr_ratio=ratio)
    cosine = [(1 + math.cos(math.pi * (step - warmup) / (10 - warmup))) / 2 for step in range(warmup, 11)]
    factors = [(step + 1) / (warmup + 1) for step in range(warmup)] + [ratio + (1 - ratio) * c for c in cosine]
    assert [step.rate for step in steps] == pytest.approx([2e-2 * factor for factor in factors[:10]], abs=1e-12)
    assert result.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-2 * ratio, abs=1e-12)


def test_gradients_are_clipped(fit: Fit, steps: list[Step]) -> None:
    result = fit(small(), max_steps=2, gradient_clip_val=0.01)
    assert result.trainer.gradient_clip_val == 0.01
    assert [step.norm for step in steps] == pytest.approx([0.01, 0.01], rel=1e-3)
    assert min(rows(result.run_path, "grad_norm").values()) > 0.1  # what is recorded is the norm before


def test_a_clip_value_of_0_clips_nothing(fit: Fit, steps: list[Step]) -> None:
    with torch.no_grad():
        (module := small()).head.weight *= 30
    result = fit(module, max_steps=2, gradient_clip_val=0.0)
    assert not result.trainer.gradient_clip_val
    norms = rows(result.run_path, "grad_norm")
    assert [step.norm for step in steps] == pytest.approx([norms[1], norms[2]], rel=1e-5)
    assert min(norms.values()) > 1  # the default would have clipped


def test_gradients_are_clipped_at_1_where_nothing_is_said(fit: Fit, steps: list[Step]) -> None:
    with torch.no_grad():
        (module := small()).head.weight *= 30
    fit(module, max_steps=2)
    assert [step.norm for step in steps] == pytest.approx([1.0, 1.0], rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_label_smoothing_is_in_the_training_loss_only(fit: Fit, steps: list[Step], share: float) -> None:
    module = small()
    with torch.no_grad():
        module.head.weight *= 10
    start = Small(dropout=0.0)
    start.load_state_dict(module.state_dict())
    result = fit(module, max_steps=1, label_smoothing=share, learning_rate=1e-9)
    assert result.adapter.label_smoothing == share
    batch = steps[0].batch
    targets = torch.cat([batch["input_ids"][:, 1:], batch["next_ids"][:, None]], 1)
    log_p = start(batch["input_ids"]).detach().log_softmax(-1)
    plain = -log_p.gather(-1, targets[..., None]).mean().item()
    spread = -log_p.mean().item()  # over the vocabulary, of every target
    assert abs(spread - plain) > 0.1
    assert rows(result.run_path, "train_loss")[1] == pytest.approx((1 - share) * plain + share * spread, rel=1e-5)
    module = result.trainer.datamodule
    blocks = [(b["input_ids"], b["labels"], b["next_ids"]) for b in module.val_dataloader()]
    nats = [
        F.cross_entropy(start(ids).flatten(0, 1), _targets(labels, following), ignore_index=-100, reduction="none")
        for ids, labels, following in blocks
    ]
    counted = sum(int((_targets(labels, following) != -100).sum()) for _, labels, following in blocks)
    held_out = sum(float(part.detach().sum()) for part in nats) / counted
    assert rows(result.run_path, "val_loss")[1] == pytest.approx(held_out, rel=1e-5)


def _targets(labels: Tensor, following: Tensor) -> Tensor:
    return torch.cat([labels[:, 1:], following[:, None]], 1).flatten()


# batches and steps


@pytest.mark.parametrize("accumulate", [1, 3])
def test_accumulated_batches(fit: Fit, steps: list[Step], accumulate: int) -> None:
    result = fit(max_steps=4, accumulate_grad_batches=accumulate)
    assert result.trainer.accumulate_grad_batches == accumulate
    assert result.results["steps"] == 4
    assert len(steps) == 4 * accumulate
    assert len({step.rate for step in steps}) == 4


@pytest.mark.parametrize(("batch_size", "max_length"), [(8, 16), (5, 12)])
def test_the_shape_of_batches(fit: Fit, steps: list[Step], batch_size: int, max_length: int) -> None:
    result = fit(max_steps=1, batch_size=batch_size, max_length=max_length)
    assert steps[0].batch["input_ids"].shape == (batch_size, max_length)
    first = next(iter(result.trainer.datamodule.val_dataloader()))
    assert first["input_ids"].shape == (batch_size, max_length)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_share_held_out(fit: Fit, corpus: Path, share: float) -> None:
    result = fit(max_steps=1, val_split=share)
    assert result.results["evaluated_tokens"] == pytest.approx(share * corpus.stat().st_size, rel=0.02)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_read_the_batches(fit: Fit, workers: int) -> None:
    trainer = fit(max_steps=2, eval_every=2, num_workers=workers).trainer
    assert trainer.train_dataloader.num_workers == workers
    assert trainer.val_dataloaders.num_workers == workers


def test_rows_and_evaluations_fall_where_they_were_asked_for(fit: Fit) -> None:
    run = fit(max_steps=12, log_every=5, eval_every=3).run_path
    assert {*rows(run, "train_loss")} - {1, 12} == {5, 10}
    assert {*rows(run, "val_loss")} == {3, 6, 9, 12}


@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.soak), 4])
def test_as_many_checkpoints_as_asked_for(fit: Fit, keep: int) -> None:
    result = fit(max_steps=6, eval_every=1, save_top_k=keep)
    losses = rows(result.run_path, "val_loss")
    assert len(losses) == 6
    best = sorted(losses, key=losses.__getitem__)[:keep]
    kept = {int(path.name[5:]) for path in (result.run_path / "checkpoints").iterdir()}
    assert kept == {*best, 5, 6}  # the two newest stay, whatever they are worth


# seeds


def test_the_seed_orders_the_data(fit: Fit, steps: list[Step]) -> None:
    epochs: list[Tensor] = []
    for seed in (1, 1, 2):
        steps.clear()
        fit(max_epochs=1, max_steps=None, seed=seed, eval_every=1000)
        epochs.append(torch.cat([step.batch["input_ids"] for step in steps]))
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0][:8], epochs[2][:8])
    assert sorted(epochs[0].tolist()) == sorted(epochs[2].tolist())  # another order of the same blocks


def test_the_seed_makes_the_weights(tmp_path: Path, corpus: Path) -> None:
    file = model_file(tmp_path)
    for seed in (3, 4):
        result = api.train(
            file, str(corpus), seed=seed, learning_rate=1e-9, max_steps=1, max_length=16, precision="32",
            output_dir=str(tmp_path / "runs"), view=QuietView(),
        )  # fmt: skip
        torch.manual_seed(seed)
        for name, value in Small().state_dict().items():
            torch.testing.assert_close(result.adapter.model.state_dict()[name], value, rtol=0, atol=1e-7)


def test_the_seed_draws_the_dropout(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []
    for seed in (1, 1, 2):
        module, seen = small(dropout=0.5), []
        hook = module.dropout.register_forward_hook
        monkeypatch.setattr(
            UniversalModelAdapter, "on_train_start", lambda self, hook=hook, seen=seen: hook(_masks(seen)) and None
        )
        fit(module, max_steps=1, seed=seed)
        masks.append(seen[0])
    assert torch.equal(masks[0], masks[1])
    assert 0.4 < (masks[0] != masks[2]).float().mean() < 0.6  # two masks of one half each


def _masks(seen: list[Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        if module.training and torch.is_grad_enabled():
            seen.append(out.detach() == 0)

    return keep


def test_the_seed_draws_the_samples(fit: Fit) -> None:
    texts = [[s["text"] for s in samples(fit(small(), max_steps=1, seed=seed).run_path)[:3]] for seed in (1, 1, 20)]
    assert texts[0] == texts[1]
    assert not set(texts[0]) & set(texts[2])
    assert len(set(texts[0])) == 3


def test_the_prompt_begins_every_sample(fit: Fit) -> None:
    result = fit(prompt="mat and", max_steps=2)
    assert [(sample["step"], sample["prompt"]) for sample in samples(result.run_path)] == [
        (step, "mat and") for step in (0, 1, 2) for _ in range(3)
    ]
    assert [sample["prompt"] for sample in result.samples] == ["mat and"] * 3
    assert {sample["prompt"] for sample in fit(max_steps=2).samples} != {"mat and"}


# text


def table(file: Path, repeat: int = 60) -> Path:
    """Rows with two columns of text; a column named "text" is taken where nothing is said."""
    words = small_text(repeat).split()
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "other"])
        writer.writeheader()
        for i in range(0, len(words), 5):
            line = " ".join(words[i : i + 5])
            writer.writerow({"text": f"{line.upper()} {i}", "other": f"{line} {i}"})
    return file


@pytest.mark.parametrize("column", [None, "other"])
@pytest.mark.parametrize("held_out", [False, True])
def test_the_column_of_the_text(fit: Fit, tmp_path: Path, column: str | None, held_out: bool) -> None:
    data = table(tmp_path / "data.csv", 120)
    own = {"val_data": str(table(tmp_path / "held_out.csv", 40))} if held_out else {}
    result = fit(data=str(data), text_column=column, max_steps=1, **own)
    cache = result.trainer.datamodule.cache
    for tokens in (cache.train, cache.val):
        letters = {
            c for c in result.tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True) if c.isalpha()
        }
        assert letters
        assert all(letter.isupper() for letter in letters) == (column is None)
        assert all(letter.islower() for letter in letters) == (column == "other")


@pytest.mark.parametrize(("tokenizer", "size"), [("char", None), ("bpe", 280), ("bpe", 270)])
def test_the_tokenizer_and_its_size(fit: Fit, tokenizer: str, size: int | None) -> None:
    result = fit(Small(vocab_size=300), tokenizer=tokenizer, vocab_size=size, max_steps=1)
    assert json.loads((result.run_path / "run.json").read_text())["tokenizer"]["kind"] == tokenizer
    assert size is None or len(result.tokenizer) == size


# every road to the settings


def model_file(folder: Path) -> str:
    file = folder / "tiny.py"
    file.write_text(Path(sys.modules["tests.training.small_models"].__file__ or "").read_text())
    return str(file)


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, Any]:
    """Every setting but ``resume`` and the number of devices, each with a value that is not its default."""
    weights = tmp_path / "weights.pt"
    torch.save(small().state_dict(), weights)
    values: dict[str, Any] = {
        "data": str(table(tmp_path / "data.csv")),
        "val_data": str(table(tmp_path / "held_out.csv", 30)),
        "text_column": "other",
        "objective": "causal",
        "label_column": "label",
        "source_column": "source",
        "target_column": "target",
        "target_data": "train.de",
        "val_split": 0.2,
        "stream": True,
        "shuffle_buffer": 64,
        "tokenizer": "char",
        "vocab_size": 39,
        "max_length": 12,
        "batch_size": 7,
        "accumulate_grad_batches": 2,
        "activation_checkpointing": True,
        "compile": "auto",
        "max_epochs": 5,
        "max_steps": 3,
        "optimizer": "sgd",
        "schedule": "linear",
        "learning_rate": 0.003,
        "min_lr_ratio": 0.25,
        "warmup_steps": 1,
        "weight_decay": 0.3,
        "beta1": 0.8,
        "beta2": 0.85,
        "gradient_clip_val": 0.5,
        "label_smoothing": 0.15,
        "bad_steps": "skip",
        "spike_sigma": 5.5,
        "early_stopping_patience": 4,
        "save_top_k": 2,
        "save_every": "30m",
        "max_time": "2h",
        "eval_every": 2,
        "log_every": 3,
        "tensorboard": True,
        "wandb": "offline",
        "mlflow": True,
        "precision": "32",
        "use_gpu": False,
        "strategy": "ddp",
        "num_workers": 1,
        "seed": 9,
        "deterministic": True,
        "prompt": "cat",
        "weights": str(weights),
        "name": "everything",
        "output_dir": str(tmp_path / "everywhere"),
        "backup": str(tmp_path / "backup"),
        "skip_checks": "for this test",
    }
    assert set(values) == {field.name for field in fields(TrainSettings)} - {"resume", "devices", "num_nodes"}
    assert set(TrainSettings(**values).changed()) == set(values)
    return values


@pytest.mark.parametrize("road", ["flags", "keywords"])
def test_every_setting_arrives(
    road: str, everything: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers = ("tensorboard", "wandb", "mlflow")  # the real ones are in tests/runs/test_trackers.py
    kinds = [f"{name}=keeping_{name}" for name in trackers]
    monkeypatch.setattr(tracking, "COMMAND", (sys.executable, str(FAKES), *kinds))
    if road == "flags":
        flags = [word for name, value in everything.items() for word in (f"--{name}", _spelled(value))]
        assert cli.main(["train", model_file(tmp_path), *flags, "--quiet"]) == 0
    else:
        api.train(model_file(tmp_path), **everything, view=QuietView())
    run = tmp_path / "everywhere" / "everything"
    record = json.loads((run / "run.json").read_text())
    for kept in (yaml.safe_load((run / "settings.yaml").read_text()), record["settings"]):
        assert kept == {**everything, "resume": None, "devices": 1, "num_nodes": 1}  # more: test_distributed.py
    derived = ("max_length", "warmup_steps", "learning_rate", "eval_every", "log_every", "precision")
    assert {name: record["effective"][name] for name in derived} == {name: everything[name] for name in derived}
    assert record["effective"]["total_steps"] == record["results"]["steps"] == 3
    copies = sorted((tmp_path / "backup" / "everything" / "checkpoints").iterdir())
    assert [copy.name for copy in copies] == sorted(path.name for path in (run / "checkpoints").iterdir())
    for name in trackers:
        lines = [json.loads(line) for line in (run / "metrics" / f"keeping_{name}.jsonl").read_text().splitlines()]
        assert lines[-1]["state"] == "finished"


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("door", ["train_model", "TrainingCoordinator"])
def test_every_argument_of_the_reference_arrives(door: str, everything: dict[str, Any], tmp_path: Path) -> None:
    own = {"output_dir", "use_gpu", "precision", "gradient_clip_val"}  # the coordinator's constructor takes these
    not_settings = {"model", "dataset", "dataset_path", "config_name", "datamodule", "resume_from_checkpoint"}
    names = set(inspect.signature(api.train_model).parameters) - not_settings
    method = set(inspect.signature(TrainingCoordinator.train).parameters) - not_settings - {"self"}
    assert method == names - own
    given = {name: everything[name] for name in names - {"tokenizer"}}
    tokenizer = CharacterLevelTokenizer(39, special_tokens=["<unk>"], texts=[small_text(9) + "0123456789"])
    arguments: dict[str, Any] = {"dataset_path": everything["data"], "tokenizer": tokenizer}
    if door == "train_model":
        result = api.train_model(Small(), **arguments, **given)
    else:
        coordinator = TrainingCoordinator(**{name: given.pop(name) for name in sorted(own)}, view=QuietView())
        result = coordinator.train(Small(), **arguments, **given)
    kept = json.loads((Path(result["run_path"]) / "run.json").read_text())["settings"]
    defaults = TrainSettings(data=everything["data"]).to_dict()
    assert kept == {**defaults, **{name: everything[name] for name in names - {"tokenizer"}}}
    assert result["tokenizer"] is tokenizer
