"""Blocks: each token a target exactly once, whatever the length, and batches that equal their items."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from anyformer.core.errors import DataError
from anyformer.data import PackedBlocks, collate_blocks
from anyformer.models.objectives import IGNORE_INDEX, next_token_targets


def targets_of(blocks: PackedBlocks) -> list[int]:
    """The tokens that are targets, as training and evaluation see them, in order."""
    found: list[int] = []
    for index in range(len(blocks)):
        item = blocks[index]
        row = next_token_targets(item["labels"][None], item["next_ids"][None])[0]
        found += row[row != IGNORE_INDEX].tolist()
    return found


@given(count=st.integers(2, 200), block_size=st.integers(2, 50))
def test_every_held_out_token_after_the_first_is_a_target_once(count: int, block_size: int) -> None:
    blocks = PackedBlocks(np.arange(count, dtype=np.uint16), block_size, keep_tail=True)
    assert targets_of(blocks) == list(range(1, count))
    assert all(len(blocks[i]["input_ids"]) == min(block_size, count - 1) for i in range(len(blocks)))


@given(count=st.integers(1, 200), block_size=st.integers(2, 50))
def test_training_drops_only_the_tail(count: int, block_size: int) -> None:
    blocks = PackedBlocks(np.arange(count, dtype=np.uint16), block_size)
    assert targets_of(blocks) == list(range(1, (count - 1) // block_size * block_size + 1))


def test_item() -> None:
    tokens = np.arange(100, 130, dtype=np.uint16)
    blocks = PackedBlocks(tokens, 8)
    item = blocks[2]
    assert item["input_ids"].tolist() == tokens[16:24].tolist()
    assert item["next_ids"].item() == tokens[24]
    assert torch.equal(item["labels"], item["input_ids"])
    assert item["attention_mask"].tolist() == [1] * 8
    assert {t.dtype for t in item.values()} == {torch.int64}
    assert torch.equal(blocks[-1]["input_ids"], blocks[len(blocks) - 1]["input_ids"])
    with pytest.raises(IndexError, match="block 3 of 3"):
        blocks[3]


@pytest.mark.parametrize("keep_tail", [False, True])
def test_a_batch_is_its_items(keep_tail: bool) -> None:
    blocks = PackedBlocks(np.random.default_rng(0).integers(0, 99, 100).astype(np.uint32), 9, keep_tail=keep_tail)
    order = [len(blocks) - 1, 0, 5]
    batch = collate_blocks(blocks.__getitems__(order))
    for name, tensor in batch.items():
        assert torch.equal(tensor, torch.stack([blocks[i][name] for i in order]))
    # torch's own collation, which knows nothing of ours
    plain = next(iter(DataLoader(blocks, batch_size=3)))
    assert torch.equal(plain["labels"], collate_blocks(blocks.__getitems__([0, 1, 2]))["labels"])
    batch["input_ids"][:] = -5  # the labels are no view of the ids, nor the ids of the file
    assert int(batch["labels"].max()) >= 0
    assert int(blocks[0]["input_ids"].min()) >= 0


def test_a_mapped_file_is_not_copied_into_a_worker(tmp_path: Path) -> None:
    np.arange(50_000, dtype=np.uint16).tofile(tmp_path / "t.bin")
    blocks = PackedBlocks(np.memmap(tmp_path / "t.bin", dtype=np.uint16, mode="r"), 16)
    data = pickle.dumps(blocks)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data)[77]["input_ids"], blocks[77]["input_ids"])


def test_a_block_of_one_token_predicts_nothing() -> None:
    with pytest.raises(DataError, match="block of 1"):
        PackedBlocks(np.arange(9), 1)


def test_too_few_tokens() -> None:
    assert len(PackedBlocks(np.arange(7), 8)) == 0
    assert len(PackedBlocks(np.arange(0), 8, keep_tail=True)) == 0
    assert len(PackedBlocks(np.arange(1), 8, keep_tail=True)) == 0
