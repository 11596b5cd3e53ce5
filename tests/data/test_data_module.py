"""The data module in a plain trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from anyformer.core.errors import DataError, DataNotFound
from anyformer.core.view import QuietView
from anyformer.data import AdaptiveTokenizerDataModule
from anyformer.tokenization import CharacterLevelTokenizer, TextTokenizer

TEXT = "".join(f"line {n} of the text\n" for n in range(200))


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return CharacterLevelTokenizer(300, texts=[TEXT])


def module(
    tokenizer: TextTokenizer, tmp_path: Path, data: Any = (TEXT,), **options: Any
) -> AdaptiveTokenizerDataModule:
    return AdaptiveTokenizerDataModule(data, tokenizer, cache_dir=tmp_path, **{"max_length": 16, **options})


class Counter(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_shapes: list[tuple[int, ...]] = []
        self.val_targets = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        assert set(batch) == {"input_ids", "attention_mask", "labels", "next_ids"}
        self.train_shapes.append(tuple(batch["input_ids"].shape))
        return self.weight.sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.val_targets += int((batch["labels"][:, 1:] != -100).sum() + (batch["next_ids"] != -100).sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_plain_trainer(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    data = module(tokenizer, tmp_path, batch_size=10)
    counter = Counter()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(counter, data)
    train_tokens, val_tokens = data.cache.meta["train"]["tokens"], data.cache.meta["val"]["tokens"]
    assert sum(rows for rows, _ in counter.train_shapes) == (train_tokens - 1) // 16
    assert set(counter.train_shapes) == {(10, 16), ((train_tokens - 1) // 16 % 10, 16)}
    assert counter.val_targets == val_tokens - 1
    assert train_tokens + val_tokens == len(TEXT)


def test_a_plain_trainer_is_told_of_bad_text_and_of_blocks_that_are_shared(
    tokenizer: TextTokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = [f"text {n % 40}: some words of it" for n in range(100)]  # 60 of them said before
    data = module(tokenizer, tmp_path, texts)
    data.setup("fit")
    said = capfd.readouterr().err
    assert "data quality" in said
    assert "duplicate" in said
    assert "several may share a block" in said
    data.setup("fit")
    assert "data quality" not in capfd.readouterr().err


def test_seed_decides_the_order(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    def first(seed: int) -> list[int]:
        batch = next(iter(module(tokenizer, tmp_path, seed=seed).train_dataloader()))
        ids: list[int] = batch["input_ids"].flatten().tolist()
        return ids

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_every_batch_of_an_epoch(world: int) -> None:
    from anyformer.data.loader import EpochBatches
    from anyformer.data.order import EpochOrder
    from anyformer.data.shares import Spare

    order = EpochOrder(103, 0)
    one = list(EpochBatches(order, 6))
    parts = [list(EpochBatches(order, 6, rank=rank, world_size=world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(one)} == {18}  # the last one holds one item
    for batch, shares in zip(one, zip(*parts, strict=True), strict=True):
        counted = [share for share in shares if not isinstance(share, Spare)]
        assert [item for share in counted for item in share] == batch
        assert max(map(len, counted)) - min(map(len, counted)) <= 1
        assert all(share == batch[:1] for share in shares if isinstance(share, Spare))
    assert not isinstance(parts[0][-1], Spare)


class Two:
    """What a data module asks a trainer: who it is among two processes."""

    fit_loop = type("", (), {"epoch_progress": type("", (), {"current": type("", (), {"processed": 0})})})
    strategy = type("", (), {"root_device": torch.device("cpu")})
    lightning_module = None
    world_size = 2

    def __init__(self, rank: int) -> None:
        self.global_rank = rank


@pytest.mark.parametrize("workers", [0, 1])
def test_held_out_blocks_are_shared_each_target_once(tokenizer: TextTokenizer, tmp_path: Path, workers: int) -> None:
    def loaded(rank: int | None) -> list[dict[str, torch.Tensor]]:
        data = module(tokenizer, tmp_path, batch_size=4, val_limit=9)
        data.trainer = None if rank is None else Two(rank)  # type: ignore[assignment]
        data.num_workers = workers
        data.setup()
        return list(data.val_dataloader())

    one, parts = loaded(None), [loaded(0), loaded(1)]
    assert [len(part) for part in parts] == [len(one)] * 2 == [3, 3]
    for batch, (first, second) in zip(one, zip(*parts, strict=True), strict=True):
        last = len(batch["input_ids"]) == 1
        for name in ("input_ids", "labels", "next_ids"):
            together = first[name] if last else torch.cat([first[name], second[name]])
            torch.testing.assert_close(together, batch[name])
        assert bool((second["labels"] == -100).all()) == bool((second["next_ids"] == -100).all()) == last


def test_held_out_text_of_its_own(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text("held out text of its own\n" * 4)
    data = module(tokenizer, tmp_path / "c", val_dataset=held)
    assert tokenizer.decode(data.cache.val.tolist()) == held.read_text()
    assert data.cache.meta["train"]["tokens"] == len(TEXT)
    with pytest.raises(DataNotFound):
        module(tokenizer, tmp_path, val_dataset=tmp_path / "nothing.txt")


def test_too_short(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    data = module(tokenizer, tmp_path, ["x" * 100], max_length=64)
    with pytest.raises(DataError) as caught:
        data.prepare_data()
    message = str(caught.value)
    assert "90 tokens in blocks of 64" in message
    assert "129 tokens" in message  # 2 · 64, and the one that follows
    assert "max_length of at most 44" in message
    module(tokenizer, tmp_path, ["x" * 100], max_length=44).prepare_data()
    with pytest.raises(DataError, match="too short"):
        module(tokenizer, tmp_path, ["x" * 100], max_length=45).prepare_data()


def test_without_held_out_text(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    data = module(tokenizer, tmp_path, val_split=0.0)
    data.setup()
    assert data.val_dataloader() == []


def test_settings_that_cannot_be(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    for options in ({"batch_size": 0}, {"max_length": 1}, {"num_workers": -1}):
        with pytest.raises(DataError, match="cannot be used"):
            module(tokenizer, tmp_path, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_only_the_first_pass_begins_where_the_state_says(
    tokenizer: TextTokenizer, tmp_path: Path, workers: int
) -> None:
    data = module(tokenizer, tmp_path, num_workers=workers)
    whole = [batch["input_ids"][:, 0].tolist() for batch in module(tokenizer, tmp_path).train_dataloader()]
    loader = data.train_dataloader()
    loader.load_state_dict({"position": 5 * data.batch_size})
    assert len(loader) == len(whole)
    assert loader.state_dict() == {"position": 5 * data.batch_size}
    assert [batch["input_ids"][:, 0].tolist() for batch in loader] == whole[5:]
    assert [batch["input_ids"][:, 0].tolist() for batch in loader] == whole


def test_without_a_view_it_says_itself_what_it_read_once(
    tokenizer: TextTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"question": ["why?"] * 60, "answer": [f"because of {n} and more\n" for n in range(60)]}
    data = module(tokenizer, tmp_path, table)
    data.prepare_data()
    data.setup()
    data.setup("fit")
    said = "".join(capsys.readouterr())
    assert said.count("text column: answer") == 1
    assert "padding share: 0.0%" in said
    assert f"{len(data.cache.train) + len(data.cache.val):,} tokens" in said
    quiet = module(tokenizer, tmp_path, table, view=QuietView())
    quiet.setup()
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize(
    "wrong", [{"batch_size": "4"}, {"batch_size": 2.5}, {"max_length": True}, {"num_workers": "0"}]
)
def test_sizes_are_whole_numbers(tokenizer: TextTokenizer, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="whole numbers"):
        module(tokenizer, tmp_path, **wrong)
