"""A run from outside: its directory, its end, what it keeps, and that every setting is read."""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from anyformer import api
from anyformer.core import settings as core_settings
from anyformer.core.errors import DataError
from anyformer.core.settings import DemoSettings, EvaluateSettings, GenerateSettings, TrainSettings
from anyformer.core.view import QuietView
from anyformer.runs.checkpoints import read_weights
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.coordinator import TrainResult
from anyformer.training.reference import TrainingCoordinator
from tests.training.read_runs import rows
from tests.training.small_models import Small, small_text

Fit = Callable[..., TrainResult]
REFERENCE_KEYS = {"best_model_path", "final_metrics", "trainer", "model", "tokenizer"}


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text(), parse_constant=pytest.fail)


def val_losses(run: Path) -> dict[int, float]:
    return {int(row["step"]): float(row["val_loss"]) for row in rows(run) if row["val_loss"]}


def test_the_run_directory_is_complete(fit: Fit) -> None:
    result = fit()
    run = result.run_path
    names = {path.name for path in run.iterdir()} - {"model", ".lock"}
    assert names == {"run.json", "settings.yaml", "tokenizer", "checkpoints", "metrics", "samples.jsonl"}
    record = manifest(run)
    assert record["state"] == "finished"
    for key in ("created", "finished", "seconds", "versions", "machine", "seed", "model", "data", "tokenizer"):
        assert record[key] is not None, key
    assert set(record["settings"]) == {field.name for field in dataclasses.fields(TrainSettings)}
    assert record["settings"]["resume"] is None
    assert record["effective"]["total_steps"] == record["results"]["steps"] == 12
    assert record["call_plan"]["token_arg"] == "tokens"
    assert record["findings"] == [finding.to_dict() for finding in result.findings]
    assert {"val_loss", "perplexity", "bits_per_byte", "unigram_entropy", "bigram_entropy", "beats_bigram"} <= set(
        record["results"]
    )
    steps = [json.loads(line)["step"] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert steps == [0] * 3 + [6] * 3 + [12] * 3
    assert fit().run_path.name == "run-2"


def test_a_failing_run_says_so(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(Small):
        def forward(self, tokens: Tensor) -> Tensor:
            if self.training and torch.is_grad_enabled() and getattr(self, "armed", False):
                raise RuntimeError("a model's own trouble")
            return super().forward(tokens)

    module = Fails()
    monkeypatch.setattr(UniversalModelAdapter, "on_train_start", lambda self: setattr(module, "armed", True))
    with pytest.raises(RuntimeError, match="own trouble"):
        fit(module, name="failing")
    record = manifest(tmp_path / "runs" / "failing")
    assert (record["state"], record["error"]) == ("failed", "a model's own trouble")
    assert record["finished"] is not None


class BestAt12(Small):
    """Judged by itself, it is best after its 12th training step."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.steps += 1
            return super().forward(tokens)
        return super().forward(tokens) / (1 + (self.steps - 12).abs())


def test_the_best_k_and_the_two_newest_are_kept(fit: Fit) -> None:
    result = fit(BestAt12(), max_steps=30, eval_every=3, save_top_k=2)
    losses = val_losses(result.run_path)
    assert sorted(losses) == list(range(3, 31, 3))
    best = sorted(losses, key=losses.__getitem__)[:2]
    kept = {int(path.name[5:]) for path in (result.run_path / "checkpoints").iterdir()}
    assert kept == {*best, 27, 30}
    assert best[0] == 12
    assert result.results["best_checkpoint"] == f"checkpoints/step-{best[0]:08d}"
    assert any(finding.name == "weights" and finding.measured == f"of step {best[0]}" for finding in result.findings)
    stored = read_weights(result.run_path / result.results["best_checkpoint"])
    assert all(torch.equal(stored[name], value) for name, value in result.adapter.model.state_dict().items())
    assert not result.adapter.model.training


def test_none_is_removed_before_its_successor_was_read_back(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyformer.core.errors import CheckpointError
    from anyformer.runs import checkpoints

    plain = checkpoints.read_back

    def lost(path: Path, expected: str) -> None:
        plain(path, expected if "step-00000008" not in str(path) else "0" * 64)

    monkeypatch.setattr(checkpoints, "read_back", lost)
    with pytest.raises(CheckpointError, match="step-00000008 could not be written"):
        fit(max_steps=12, eval_every=2, save_top_k=1)
    kept = sorted(path.name for path in (tmp_path / "runs/run/checkpoints").iterdir())
    assert {"step-00000004", "step-00000006"} <= set(kept)
    assert len(kept) <= 3  # the best one, where it is another
    assert all(checkpoints.verify_checkpoint(tmp_path / "runs/run/checkpoints" / name) for name in kept)


def test_early_stopping(fit: Fit) -> None:
    result = fit(
        max_steps=200, eval_every=2, early_stopping_patience=2, learning_rate=1.0, min_lr_ratio=1.0, warmup_steps=0
    )
    losses = val_losses(result.run_path)
    assert result.results["stopped_early"]
    assert result.results["steps"] == max(losses) < 200
    best = min(losses, key=losses.__getitem__)
    assert max(losses) == best + 4  # two evaluations without a better one


@pytest.mark.parametrize(
    ("epochs", "steps", "accumulate", "expected"),
    [(1, None, 1, "E"), (2, None, 1, "2E"), (2, 5, 1, "5"), (1, 10_000, 1, "E"), (2, None, 4, "2A"), (None, 7, 3, "7")],
)
def test_epochs_and_steps(fit: Fit, epochs: int | None, steps: int | None, accumulate: int, expected: str) -> None:
    result = fit(max_epochs=epochs, max_steps=steps, accumulate_grad_batches=accumulate, batch_size=32, eval_every=4)
    batches = len(result.trainer.datamodule.train_dataloader())
    per_step = -(-batches // accumulate)
    wanted = {"E": batches, "2E": 2 * batches, "5": 5, "2A": 2 * per_step, "7": 7}[expected]
    assert result.results["steps"] == wanted
    evaluated = set(val_losses(result.run_path))
    assert evaluated == {*range(4, wanted + 1, 4), wanted}  # the last step always, wherever the interval falls


def test_the_evaluated_part_is_spread(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.training.effective.EVAL_TOKENS", 16 * 4)
    result = fit(val_split=0.3)
    module = result.trainer.datamodule
    assert module.val_limit == 4
    read = [index for batch in module.val_dataloader().batch_sampler for index in batch]
    assert read == [module.val_blocks * i // 4 for i in range(4)]
    assert result.results["evaluated_tokens"] == module.cache.meta["val"]["tokens"] - 1


def test_the_users_random_state_is_left_alone(tmp_path: Path, corpus: Path) -> None:
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    model = Small()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    out = str(tmp_path / "r")
    api.train(model, str(corpus), max_steps=2, max_length=16, output_dir=out, precision="auto", view=QuietView())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """(class, field) for every field of a settings object that code outside of it reads by name."""
    found: set[tuple[str, str]] = set()
    own = (core_settings.__file__, dataclasses.__file__)

    def watch(cls: type) -> None:
        names = {field.name for field in dataclasses.fields(cls)}

        def read(self: Any, name: str) -> Any:
            if name in names and sys._getframe(1).f_code.co_filename not in own:
                found.add((cls.__name__, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", read, raising=False)

    for cls in (TrainSettings, EvaluateSettings, GenerateSettings, DemoSettings):
        watch(cls)
    return found


def test_every_setting_is_read(
    reads: set[tuple[str, str]], tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyformer.core.settings import TrainSettings as Train

    quiet = QuietView()
    values = Train(
        data=str(corpus), max_steps=2, max_length=16, batch_size=8, output_dir=str(tmp_path / "runs"), precision="32"
    )
    file = tmp_path / "tiny.py"
    file.write_text(Path(sys.modules["tests.training.small_models"].__file__ or "").read_text())
    result = api.train(str(file), settings=values, view=quiet)
    api.evaluate(result.run_path, settings=EvaluateSettings(data=str(corpus)), view=quiet)
    api.generate_text(result.run_path, settings=GenerateSettings(max_tokens=2))
    monkeypatch.setattr(api, "train", lambda *args, **keywords: None)
    api.demo(DemoSettings(max_steps=1))
    for cls in (TrainSettings, EvaluateSettings, GenerateSettings, DemoSettings):
        unread = {field.name for field in dataclasses.fields(cls)} - {
            name for owner, name in reads if owner == cls.__name__
        }
        assert not unread, f"nothing reads {unread} of {cls.__name__}"


def test_the_keywords_of_train_are_the_settings() -> None:
    own = {"model", "settings", "config", "overrides", "trust", "approve", "view", "command"}
    assert set(inspect.signature(api.train).parameters) - own == {
        field.name for field in dataclasses.fields(TrainSettings)
    }


class Batches(pl.LightningDataModule):
    """A datamodule that is none of ours."""

    def __init__(self, rows: Any = None) -> None:
        super().__init__()
        ids = torch.randint(0, 40, (24, 16), generator=torch.Generator().manual_seed(0))
        self.rows = [{"input_ids": row, "labels": row.clone()} for row in ids] if rows is None else rows

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows[:8], batch_size=4)


def coordinator(tmp_path: Path) -> TrainingCoordinator:
    return TrainingCoordinator(output_dir=tmp_path / "runs", use_gpu=False, precision="32", view=QuietView())


def test_a_foreign_datamodule(tmp_path: Path) -> None:
    result = coordinator(tmp_path).train(Small(), datamodule=Batches(), max_length=16, max_epochs=2)
    assert set(result) >= REFERENCE_KEYS
    assert result["trainer"].global_step == 12
    assert result["tokenizer"] is None
    assert result["final_metrics"]["val_perplexity"] == pytest.approx(np.exp(result["final_metrics"]["val_loss"]))
    assert Path(result["best_model_path"]).is_dir()


@pytest.mark.parametrize("items", [[torch.zeros(16, dtype=torch.long)] * 8, [{"x": torch.zeros(3)}] * 8, []])
def test_a_foreign_datamodule_without_batches_of_tokens(tmp_path: Path, items: Any) -> None:
    with pytest.raises(DataError, match="Batches"):
        coordinator(tmp_path).train(Small(), datamodule=Batches(items), max_length=16, max_steps=2)
    assert not (tmp_path / "runs").exists()


def test_the_references_doors(tmp_path: Path) -> None:
    import datasets

    from anyformer.tokenization import CharacterLevelTokenizer

    texts = [small_text(4)[i:] + str(i) for i in range(40)]
    data = datasets.Dataset.from_dict({"text": texts})
    trainer = coordinator(tmp_path)
    result = trainer.train(
        Small(), data, tokenizer=CharacterLevelTokenizer(40, special_tokens=["<unk>"], texts=texts), max_steps=3,
        max_length=16, save_top_k=1,
    )  # fmt: skip
    assert set(result) >= REFERENCE_KEYS
    assert set(result["final_metrics"]) >= {"train_loss", "val_loss", "val_perplexity"}
    assert all(np.isfinite(value) for value in result["final_metrics"].values())
    assert isinstance(result["model"], UniversalModelAdapter)
    quick = trainer.quick_train(Small(), texts, max_steps=2)
    assert quick["trainer"].global_step == 2
    again = trainer.resume_training(result["run_path"], model=Small(), dataset=data)
    assert again["final_metrics"]["val_loss"] == result["final_metrics"]["val_loss"]  # finished: measured anew
    whole = api.train_model(
        Small(), dataset=texts, vocab_size=40, max_epochs=1, batch_size=4, max_length=16, output_dir=tmp_path / "m",
        precision="32", use_gpu=False,
    )  # fmt: skip
    assert set(whole) == REFERENCE_KEYS | {"run_path", "report_path"}
    assert Path(whole["report_path"]).is_file()
