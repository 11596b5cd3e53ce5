"""A stream of tokens as blocks of one length, without padding. B batch, T block length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anyformer.core.errors import DataError
from anyformer.models.objectives import IGNORE_INDEX

Block = dict[str, Tensor]


class BlockBatch(Sequence[Block]):
    """Blocks that were read together: (B, T) tensors at once in ``tensors``, (T,) rows one by one."""

    def __init__(self, tensors: Block) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["input_ids"])

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))


class PackedBlocks(Dataset[Block]):
    """Consecutive blocks of ``block_size`` tokens, each with the token that follows it.

    Labels are unshifted, so a block alone has T − 1 targets; with ``next_ids``, the token after it, every position has
    one and every token after the first is a target exactly once. The tail that fills no block is dropped, or, with
    ``keep_tail``, is the last block: it overlaps the one before, with labels −100 where that one counted already.
    An item is {"input_ids", "attention_mask", "labels"}, int64 (T,), and "next_ids", int64 ().
    """

    def __init__(self, tokens: Any, block_size: int, *, keep_tail: bool = False) -> None:
        if block_size < 2:
            raise DataError(f"a block of {block_size} tokens is too short; it needs at least 2")
        self.tokens = tokens
        self.count = len(tokens)
        # held-out text shorter than a block is one short block
        self.block_size = max(1, min(block_size, self.count - 1)) if keep_tail else block_size
        self._whole = max(0, self.count - 1) // self.block_size
        self._counted = self._whole * self.block_size  # the last token that is a target of a whole block
        self._has_tail = keep_tail and self._whole > 0 and self._counted < self.count - 1

    def __len__(self) -> int:
        return self._whole + self._has_tail

    def __getitem__(self, index: int) -> Block:
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        row: Block = self.__getitems__([index % len(self)])[0]
        return row

    def __getitems__(self, indices: Sequence[int]) -> BlockBatch:
        """The blocks at ``indices`` as one gather; torch's loader asks for whole batches this way."""
        starts = np.asarray(indices, dtype=np.int64) * self.block_size
        if self._has_tail:
            starts = np.minimum(starts, self.count - self.block_size)
        places = starts[:, None] + np.arange(self.block_size + 1)
        read = torch.from_numpy(self.tokens[np.minimum(places, self.count - 1)].astype(np.int64))
        input_ids, next_ids = read[:, :-1].contiguous(), read[:, -1].clone()
        labels = input_ids.clone()
        if self._has_tail:
            for row, index in enumerate(indices):
                if index == self._whole:
                    labels[row, : self._counted + 1 - int(starts[row])] = IGNORE_INDEX
                    next_ids[row] = IGNORE_INDEX  # nothing follows the last token
        mask = torch.ones_like(input_ids)
        return BlockBatch({"input_ids": input_ids, "attention_mask": mask, "labels": labels, "next_ids": next_ids})

    def __getstate__(self) -> dict[str, Any]:
        # pickling a memory map would copy all tokens into every worker that is not forked
        state = dict(self.__dict__)
        if isinstance(self.tokens, np.memmap) and self.tokens.filename is not None:
            state["tokens"] = _MappedFile(str(self.tokens.filename), self.tokens.dtype, self.count, self.tokens.offset)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.tokens, _MappedFile):
            self.tokens = self.tokens.open()


class _MappedFile:
    """Where a memory map lies."""

    def __init__(self, path: str, dtype: np.dtype[Any], size: int, offset: int) -> None:
        self.path, self.dtype, self.size, self.offset = path, dtype, size, offset

    def open(self) -> Any:
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.size,), offset=self.offset)


def collate_blocks(batch: BlockBatch | Sequence[Block]) -> Block:
    """A batch as {"input_ids", "attention_mask", "labels"}, int64 (B, T), and "next_ids", int64 (B,)."""
    if isinstance(batch, BlockBatch):
        return batch.tensors
    return {name: torch.stack([block[name] for block in batch]) for name in batch[0]}
