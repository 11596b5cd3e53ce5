"""Examples as padded batches of like length, in an order that is a function of (seed, epoch) and can be resumed.

B batch, T time (source), S time (target).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from anyformer.core.errors import DataError
from anyformer.core.findings import Finding
from anyformer.data.blocks import Block, BlockBatch, collate_blocks
from anyformer.data.examples import Examples, Kind
from anyformer.data.loader import EpochBatches, ResumableLoader, align_progress, consumed_by
from anyformer.data.order import EpochOrder
from anyformer.data.shares import ListedBatches, SharedLoader, place_of, share
from anyformer.models.objectives import IGNORE_INDEX
from anyformer.tokenization.base import encode_texts

_WIDTH = 4
"""Lengths that differ by less than this come into one batch, where the model is told of padding."""
_BATCH_TEXTS = 4096


@dataclass(frozen=True)
class Ragged:
    """Rows of ids, one after the other."""

    ids: NDArray[np.uint32]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """From lists."""
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        ids = np.fromiter((token for row in rows for token in row), dtype=np.uint32, count=int(ends[-1]))
        return cls(ids, ends)

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, index: int) -> NDArray[np.uint32]:
        """One row."""
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of each row."""
        return np.diff(self.ends, prepend=0)


class PaddedExamples(Dataset[Block]):
    """Encoded examples; a batch is padded on the right to its longest row.

    length: pad what is read to this many tokens instead, for a model that runs at no other length.
    first: ids that are read. second: ids to write, <bos> y <eos> each, or the class of each, int64 (N,).
    A batch is {"input_ids", "attention_mask"}, int64 (B, T), with "labels" (B,) for classes, or with {"target_ids",
    "target_mask", "labels"} (B, S); labels are unshifted, −100 on padding. "tokens": how many are no padding, an int.
    """

    def __init__(
        self, first: Ragged, second: Ragged | NDArray[np.int64], pad_id: int, length: int | None = None
    ) -> None:
        self.first, self.second, self.pad_id, self.length = first, second, pad_id, length

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> Block:
        row: Block = self.__getitems__([range(len(self))[index]])[0]
        return row

    def __getitems__(self, indices: Sequence[int]) -> BlockBatch:
        """The examples at ``indices`` as one batch."""
        ids, mask = padded([self.first.row(i) for i in indices], self.pad_id, self.length)
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        tokens = int(mask.sum())
        if isinstance(self.second, Ragged):
            targets, target_mask = padded([self.second.row(i) for i in indices], self.pad_id)
            labels = targets.masked_fill(target_mask == 0, IGNORE_INDEX)
            batch |= {"target_ids": targets, "target_mask": target_mask, "labels": labels}
            tokens += int(target_mask.sum())
        else:
            batch["labels"] = torch.from_numpy(self.second[np.asarray(indices)])
        return BlockBatch({**batch, "tokens": tokens})  # type: ignore[dict-item]

    def padded(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One text as the model reads it: (1, T) ids and mask, 1 = keep."""
        return padded([ids], self.pad_id, self.length)

    def keys(self, exact: bool) -> NDArray[np.int64]:
        """What examples of one batch have in common: the length of what is read, or about that of the longer part."""
        lengths = self.first.lengths
        if exact:
            return lengths
        if self.length is not None and not isinstance(self.second, Ragged):
            return np.zeros_like(lengths)
        if isinstance(self.second, Ragged):
            lengths = np.maximum(lengths, self.second.lengths)
        return -(-lengths // _WIDTH)


def pad_id_of(tokenizer: Any) -> int:
    """The id that stands for padding; the end of a text's where there is none."""
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id or 0)


def padded(
    rows: Sequence[NDArray[np.uint32] | Sequence[int]], pad_id: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """(B, T) ids and mask, 1 = keep; T is ``length``, or that of the longest row."""
    ids = torch.full((len(rows), length or max(len(row) for row in rows)), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
        mask[number, : len(row)] = 1
    return ids, mask


class LengthBatches(EpochBatches):
    """Batches of items with one key; which ones is a function of (seed, epoch, place) alone.

    keys: (N,), one per item. Each key's items are permuted anew in every epoch and cut into batches, the last of which
    may be smaller; then the batches of all keys are permuted.
    """

    def __init__(
        self,
        keys: NDArray[np.int64],
        batch_size: int,
        seed: int,
        *,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        by_key = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(np.diff(keys[by_key])) + 1
        self._groups = np.split(by_key, cuts)
        self._orders = [EpochOrder(len(group), seed * 1_000_003 + n) for n, group in enumerate(self._groups)]
        self._ends = np.cumsum([-(-len(group) // batch_size) for group in self._groups])
        order = EpochOrder(int(self._ends[-1]), seed)
        super().__init__(order, batch_size, epoch=epoch, rank=rank, world_size=world_size)

    @property
    def step(self) -> int:
        """Places of the order that one batch takes: each of them is a batch."""
        return 1

    @property
    def bound_to(self) -> dict[str, int]:
        """The batches of a key are cut by their size before they are permuted."""
        return {"batch_size": self.batch_size}

    def _pass(self, epoch: int, first: int) -> Iterator[list[int]]:
        self._resume = None
        for number in range(self._count(first)):
            yield share(self.batch(epoch, first + number), self.rank, self.world_size)

    def batch(self, epoch: int, place: int) -> list[int]:
        """The items of one batch of an epoch."""
        number = self.order.index(epoch, place)
        group = int(np.searchsorted(self._ends, number, side="right"))
        begin = (number - int(self._ends[group - 1] if group else 0)) * self.batch_size
        items: list[int] = self._groups[group][
            self._orders[group].indices(epoch, begin, begin + self.batch_size)
        ].tolist()
        return items


class PairDataModule(pl.LightningDataModule):
    """Training and held-out examples for ``trainer.fit(model, datamodule)``.

    exact: only texts of one length in a batch, without padding, for a model that would read the padding.
    val_limit: evaluate on this many held-out examples, spread evenly; on all where not given.
    """

    def __init__(
        self,
        train: PaddedExamples,
        val: PaddedExamples,
        batch_size: int = 16,
        num_workers: int = 0,
        *,
        exact: bool = False,
        seed: int = 42,
        classes: tuple[str, ...] = (),
        start_end: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.train_examples = train
        self.val_examples = val
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.exact = exact
        self.seed = seed
        self.classes = classes
        """Name of each class id."""
        self.start_end = start_end
        """Ids that begin and end what is written."""
        self.val_limit: int | None = None

    def train_dataloader(self) -> ResumableLoader:
        """Batches in the epoch's order."""
        trainer: Any = self.trainer
        batches = LengthBatches(
            self.train_examples.keys(self.exact),
            self.batch_size,
            self.seed,
            epoch=trainer.fit_loop.epoch_progress.current.processed if trainer is not None else 0,
            **place_of(trainer),
        )
        return ResumableLoader(
            self.train_examples,
            batches,
            num_workers=self.num_workers,
            pin_memory=self._pins(),
            consumed=lambda: consumed_by(self.trainer, batches),
            align=lambda done: align_progress(self.trainer, done),
        )

    def val_dataloader(self) -> SharedLoader:
        """The held-out examples, each once, the shortest first."""
        count = len(self.val_examples)
        kept = count if self.val_limit is None else min(self.val_limit, count)
        chosen = np.asarray([count * i // kept for i in range(kept)])
        batches = like_batches(self.val_examples, self.batch_size, self.exact, chosen)
        return SharedLoader(
            self.val_examples,
            ListedBatches(batches, **place_of(self.trainer)),
            collate_fn=collate_blocks,
            num_workers=self.num_workers,
            pin_memory=self._pins(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator().manual_seed(0),
        )

    def _pins(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def like_batches(
    examples: PaddedExamples, batch_size: int, exact: bool, chosen: NDArray[np.int64] | None = None
) -> list[list[int]]:
    """Items (all, or the chosen ones) in batches of one key, the shortest first."""
    items = np.arange(len(examples)) if chosen is None else chosen
    keys = examples.keys(exact)[items]
    order = np.argsort(keys, kind="stable")
    groups = np.split(items[order], np.flatnonzero(np.diff(keys[order])) + 1)
    return [group[i : i + batch_size].tolist() for group in groups for i in range(0, len(group), batch_size)]


def padding_finding(examples: PaddedExamples, batch_size: int, exact: bool) -> Finding:
    """What share of the tokens in a batch is padding, and what it would be in batches of any lengths."""
    shown = EpochOrder(len(examples), 0).indices(0, 0, len(examples))
    mixed = [shown[i : i + batch_size].tolist() for i in range(0, len(shown), batch_size)]
    ours = padding_share(examples, like_batches(examples, batch_size, exact))
    why = f"texts of like length come together; {padding_share(examples, mixed):.1%} in batches of any lengths"
    return Finding("padding share", "note", f"{ours:.1%} of the tokens in a batch", reason=why)


def padding_share(examples: PaddedExamples, batches: Sequence[Sequence[int]]) -> float:
    """Tokens of padding among all tokens of these batches, both parts of an example counted."""
    parts = [(examples.first.lengths, examples.length)]
    parts += [(examples.second.lengths, None)] if isinstance(examples.second, Ragged) else []
    held = wide = 0
    for items in map(np.asarray, batches):
        for lengths, fixed in parts:
            held += int(lengths[items].sum())
            wide += len(items) * (fixed or int(lengths[items].max()))
    return 1 - held / wide


def encode_examples(
    examples: Examples,
    tokenizer: Any,
    max_length: int,
    *,
    classes: Sequence[str] = (),
    start_end: tuple[int, int] | None = None,
    pad_to: int | None = None,
) -> tuple[PaddedExamples, dict[str, int], list[Finding]]:
    """(padded examples, {"documents", "bytes", "tokens", "truncated"}, findings).

    Texts are cut to ``max_length`` tokens; what is to be written has its start and end within them, and no end where it
    was cut: it does not end there. pad_to: the one length that the model reads, if there is one.
    Raises DataError where no example is left that has tokens on both sides.
    """
    first = _encoded(tokenizer, examples.first)
    cut = [len(row) > max_length for row in first]
    if examples.kind == "seq2seq":
        assert start_end is not None
        start, end = start_end
        written = [[start, *row, end] for row in _encoded(tokenizer, examples.second)]
        cut = [was or len(row) > max_length for was, row in zip(cut, written, strict=True)]
        keep = [bool(row) and len(target) > 2 for row, target in zip(first, written, strict=True)]
    else:
        keep = [bool(row) for row in first]
    if not any(keep):
        raise DataError(f"no example of {examples.name} has any token", fix="another tokenizer, or other data")
    kept = [number for number, is_kept in enumerate(keep) if is_kept]
    rows = Ragged.of([first[i][:max_length] for i in kept])
    second: Ragged | NDArray[np.int64]
    if examples.kind == "seq2seq":
        second = Ragged.of([written[i][:max_length] for i in kept])
    else:
        number = {name: i for i, name in enumerate(classes)}
        second = np.asarray([number[examples.second[i]] for i in kept], dtype=np.int64)
    padded = PaddedExamples(rows, second, pad_id_of(tokenizer), pad_to)
    texts = [*examples.first, *(examples.second if examples.kind == "seq2seq" else ())]
    facts = {
        "documents": len(kept),
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": len(rows.ids) + (len(second.ids) if isinstance(second, Ragged) else 0),
    }
    notes = []
    if (truncated := sum(cut[i] for i in kept)) > 0:
        measured = f"{truncated:,} of {len(kept):,} examples of {examples.name} cut to {max_length:,} tokens"
        notes.append(Finding("long examples", "note", measured, reason="--max_length; the model's positions at most"))
    return padded, facts, notes


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    rows: list[list[int]] = []
    for begin in range(0, len(texts), _BATCH_TEXTS):
        rows += encode_texts(tokenizer, list(texts[begin : begin + _BATCH_TEXTS]))
    return rows


__all__ = ["Kind", "LengthBatches", "PaddedExamples", "PairDataModule", "Ragged", "encode_examples", "like_batches"]
