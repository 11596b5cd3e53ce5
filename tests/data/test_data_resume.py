"""Stopping mid-epoch and going on gives the very sequence of an uninterrupted run."""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DistributedSampler

from anyformer.data import AdaptiveTokenizerDataModule
from anyformer.data.loader import EpochBatches
from anyformer.data.order import EpochOrder
from anyformer.data.shares import Spare
from anyformer.tokenization import CharacterLevelTokenizer

BLOCK, BATCH = 8, 4
TEXT = "".join(chr(0x4E00 + n) for n in range(8 * 45 + 1))  # every character occurs once: a block names itself
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Recorder(pl.LightningModule):
    """Notes the first id of every block it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(tuple(batch["input_ids"][:, 0].tolist()))
        return (self.weight - 1).square().sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        assert batch["input_ids"].shape[1] == BLOCK

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stopped(Exception):
    pass


class SaveAt(pl.Callback):
    """Saves in a hook at a given number of trained batches, then kills the run."""

    def __init__(self, batches: int, path: Path, hook: str) -> None:
        self.batches, self.path = batches, path
        setattr(self, hook, self._save)

    def _save(self, trainer: pl.Trainer, module: Recorder, *args: Any) -> None:
        if len(module.seen) == self.batches and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            raise Stopped


def run(
    folder: Path,
    *,
    workers: int = 0,
    batch: int = BATCH,
    callbacks: list[pl.Callback] | None = None,
    resume: Path | None = None,
    **trainer: Any,
) -> Recorder:
    module = Recorder()
    tokenizer = CharacterLevelTokenizer(600, special_tokens=[], texts=[TEXT])
    data = AdaptiveTokenizerDataModule(
        [TEXT], tokenizer, batch_size=batch, max_length=BLOCK, num_workers=workers, cache_dir=folder / "cache"
    )
    options: dict[str, Any] = {"max_epochs": 2, "num_sanity_val_steps": 0, **trainer}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_ = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks or [],
            **options,
        )
        with contextlib.suppress(Stopped):
            trainer_.fit(module, data, ckpt_path=resume, weights_only=False)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> list[tuple[int, ...]]:
    return run(folder).seen


def test_an_epoch_sees_every_block_once_and_the_next_in_another_order(uninterrupted: list[tuple[int, ...]]) -> None:
    per_epoch = len(uninterrupted) // 2
    first = [i for batch in uninterrupted[:per_epoch] for i in batch]
    second = [i for batch in uninterrupted[per_epoch:] for i in batch]
    assert len(set(first)) == len(first) == 40  # (8·45+1 characters, a tenth held out) in blocks of 8
    assert set(first) == set(second)
    assert first != second


def test_workers_do_not_change_the_sequence(folder: Path, uninterrupted: list[tuple[int, ...]]) -> None:
    assert run(folder, workers=2).seen == uninterrupted


@pytest.mark.parametrize(
    ("hook", "batches", "before", "after"),
    [
        ("on_train_batch_end", 1, 0, 0),
        ("on_train_batch_end", 4, 2, 2),
        ("on_train_batch_end", 7, 0, 2),
        ("on_train_batch_end", 10, 0, 0),  # the last batch of the first epoch
        ("on_train_batch_end", 13, 2, 0),  # in the second epoch
        ("on_validation_end", 5, 0, 0),
        ("on_validation_end", 10, 0, 0),
        ("on_train_epoch_end", 10, 0, 0),
    ],
)
def test_resumed_sequence_equals_uninterrupted(
    folder: Path,
    tmp_path: Path,
    uninterrupted: list[tuple[int, ...]],
    hook: str,
    batches: int,
    before: int,
    after: int,
) -> None:
    options: dict[str, Any] = {"val_check_interval": 5} if batches == 5 else {}
    checkpoint = tmp_path / "stop.ckpt"
    stopped = run(folder, workers=before, callbacks=[SaveAt(batches, checkpoint, hook)], **options)
    assert checkpoint.exists()
    assert len(stopped.seen) == batches
    resumed = run(folder, workers=after, resume=checkpoint, **options)
    assert stopped.seen + resumed.seen == uninterrupted


def test_stopped_twice(folder: Path, tmp_path: Path, uninterrupted: list[tuple[int, ...]]) -> None:
    one, two = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    a = run(folder, callbacks=[SaveAt(3, one, "on_train_batch_end")])
    b = run(folder, callbacks=[SaveAt(2, two, "on_train_batch_end")], resume=one)
    c = run(folder, resume=two)
    assert a.seen + b.seen + c.seen == uninterrupted


def test_accumulation_and_limits(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "limit_train_batches": 6}
    whole = run(folder, **options)
    assert len(whole.seen) == 12
    checkpoint = tmp_path / "stop.ckpt"
    for batches in (4, 6, 8):
        stopped = run(folder, callbacks=[SaveAt(batches, checkpoint, "on_train_batch_end")], **options)
        assert stopped.seen + run(folder, resume=checkpoint, **options).seen == whole.seen


def test_stopped_inside_a_step_trains_that_batch_again(
    folder: Path, tmp_path: Path, uninterrupted: list[tuple[int, ...]]
) -> None:
    checkpoint = tmp_path / "stop.ckpt"
    saver = SaveAt(4, checkpoint, "on_before_zero_grad")  # within the step, before the optimizer has moved
    stopped = run(folder, callbacks=[saver])
    resumed = run(folder, resume=checkpoint)
    assert stopped.seen[:3] + resumed.seen == uninterrupted


def at_step(epoch: int, samples: int, batch_size: int, world_size: int, size: int = 1003) -> list[int]:
    """Items from a place of an epoch on, those of all processes in the order of global batches."""
    order = EpochOrder(size, 7)
    parts = []
    for rank in range(world_size):
        batches = EpochBatches(order, batch_size, rank=rank, world_size=world_size)
        batches.resume_at(epoch, samples)
        parts.append([[] if isinstance(items, Spare) else items for items in batches])
    return [item for together in zip(*parts, strict=True) for part in together for item in part]


def test_a_place_in_the_epoch_means_the_same_with_any_batch_size_and_number_of_processes() -> None:
    rng = random.Random(3)
    for _ in range(200):
        epoch, samples = rng.randrange(3), rng.randrange(1003)
        whole = EpochOrder(1003, 7).indices(epoch, samples, 1003).tolist()
        assert at_step(epoch, samples, rng.randrange(1, 40), 1) == whole
        batch, world = rng.randrange(1, 20), rng.randrange(2, 5)
        assert at_step(epoch, samples, batch, world) == whole


@pytest.mark.parametrize(("stop", "before", "after"), [(3, 4, 2), (3, 2, 4), (7, 2, 3), (5, 3, 8), (1, 5, 1)])
def test_another_batch_size_goes_on_at_the_same_sample(
    folder: Path, tmp_path: Path, uninterrupted: list[tuple[int, ...]], stop: int, before: int, after: int
) -> None:
    checkpoint = tmp_path / "stop.ckpt"
    stopped = run(folder, batch=before, callbacks=[SaveAt(stop, checkpoint, "on_train_batch_end")])
    resumed = run(folder, batch=after, resume=checkpoint)
    together = [i for batch in stopped.seen + resumed.seen for i in batch]
    assert together == [i for batch in uninterrupted for i in batch]
    assert {len(batch) for batch in stopped.seen} == {before}


@pytest.mark.soak
def test_a_hundred_random_places(folder: Path, tmp_path: Path, uninterrupted: list[tuple[int, ...]]) -> None:
    rng = random.Random(11)
    for number in range(100):
        stop, before, after = rng.randrange(1, 20), rng.choice((0, 1, 2, 3)), rng.choice((0, 1, 2, 3))
        checkpoint = tmp_path / f"{number}.ckpt"
        stopped = run(folder, workers=before, callbacks=[SaveAt(stop, checkpoint, "on_train_batch_end")])
        assert len(stopped.seen) == stop
        assert stopped.seen + run(folder, workers=after, resume=checkpoint).seen == uninterrupted, (stop, before, after)


def test_lightning_puts_no_sampler_of_its_own_in_the_loaders_place(folder: Path) -> None:
    tokenizer = CharacterLevelTokenizer(600, special_tokens=[], texts=[TEXT])
    data = AdaptiveTokenizerDataModule(
        [TEXT], tokenizer, batch_size=BATCH, max_length=BLOCK, cache_dir=folder / "cache"
    )
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, DistributedSampler)  # what it asks of a loader that several processes share
    assert loader.sampler is loader.batch_sampler


TWO = """
import pytorch_lightning as pl, sys
from test_data_resume import BATCH, BLOCK, TEXT, Recorder
from anyformer.data import AdaptiveTokenizerDataModule
from anyformer.tokenization import CharacterLevelTokenizer
class Telling(Recorder):
    def on_train_end(self):
        print(f"rank {self.trainer.global_rank}: {self.seen}\\n", end="", flush=True)
if __name__ == "__main__":
    tokenizer = CharacterLevelTokenizer(600, special_tokens=[], texts=[TEXT])
    data = AdaptiveTokenizerDataModule([TEXT], tokenizer, BATCH, BLOCK, cache_dir=sys.argv[1])  # BATCH of both
    pl.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(Telling(), data)
"""


@pytest.mark.soak
def test_two_processes_share_an_epoch(folder: Path, uninterrupted: list[tuple[int, ...]]) -> None:
    script = folder / "two.py"
    script.write_text(TWO)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "cache")], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = {int(r): ast.literal_eval(seen) for r, seen in re.findall(r"rank (\d): (\[.*\])", done.stdout)}
    together = [(*first, *second) for first, second in zip(ranks[0], ranks[1], strict=True)]
    assert together == uninterrupted[: len(together)]
    assert len(together) == len(uninterrupted) // 2
