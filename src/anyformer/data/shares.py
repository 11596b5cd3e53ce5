"""One batch divided among processes: together they train on what one process would. B batch, W processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from anyformer.data.blocks import Block, BlockBatch
from anyformer.models.objectives import IGNORE_INDEX


class Spare(list[int]):
    """An item for a process that a small batch has none left for: it is read, to keep step, and counts nothing.

    A list by its kind, so that it comes through a loader and its workers as any other.
    """


def bounds(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last (exclusive) row of a batch that a process takes; sizes differ by one at most."""
    return -(-rows * rank // world_size), -(-rows * (rank + 1) // world_size)


def share(items: list[int], rank: int, world_size: int) -> list[int]:
    """A process' part of the items of a batch, in their order; a ``Spare`` where there are fewer than processes."""
    if world_size == 1:
        return items
    first, last = bounds(len(items), rank, world_size)
    return items[first:last] if first < last else Spare(items[:1])


def share_rows(batch: Block, rank: int, world_size: int) -> Block:
    """As ``share``, of a batch that is read already: (B, …) tensors, of which a process takes its rows."""
    if world_size == 1:
        return batch
    first, last = bounds(len(batch["input_ids"]), rank, world_size)
    if first < last:
        return {name: rows[first:last].contiguous() for name, rows in batch.items()}
    return _uncounted({name: rows[:1].clone() for name, rows in batch.items()})


def _uncounted(batch: Block) -> Block:
    """The same rows with nothing to learn from them."""
    for name in ("labels", "next_ids"):
        if name in batch:
            batch[name].fill_(IGNORE_INDEX)
    return {**batch, "tokens": 0} if "tokens" in batch else batch  # type: ignore[dict-item]


class SharedItems(Dataset[Any]):
    """A dataset that reads a ``Spare`` as rows without labels."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Block:
        row: Block = self.dataset[index]
        return row

    def __getitems__(self, indices: Sequence[int]) -> BlockBatch:
        """The items at ``indices`` as one batch."""
        batch: BlockBatch = self.dataset.__getitems__(indices)
        return BlockBatch(_uncounted(batch.tensors)) if isinstance(indices, Spare) else batch


class ListedBatches(DistributedSampler[list[int]]):
    """Batches as they are listed, each divided among the processes.

    A DistributedSampler by its kind, so that Lightning puts none of its own in its place.
    """

    def __init__(self, batches: Sequence[list[int]], *, rank: int = 0, world_size: int = 1) -> None:
        # not super().__init__(): it asks torch's process group for what is given here
        self.batches = batches
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (share(items, self.rank, self.world_size) for items in self.batches)


class SharedLoader(DataLoader[Any]):
    """A loader of batches that processes share; given a batch sampler that knows its rank."""

    def __init__(self, dataset: Any, batches: Any, **given: Any) -> None:
        shared = SharedItems(dataset) if batches.world_size > 1 else dataset
        super().__init__(shared, batch_sampler=batches, **given)

    @property
    def sampler(self) -> Any:
        """The batches themselves, where Lightning looks for one that shares an epoch among processes."""
        return self.batch_sampler

    @sampler.setter
    def sampler(self, unused: Any) -> None:
        """DataLoader sets one of its own, which plays no part beside a batch sampler."""


def place_of(trainer: Any) -> dict[str, int]:
    """{"rank", "world_size"} of the process that a trainer runs in; those of a single one where there is no trainer."""
    if trainer is None:
        return {"rank": 0, "world_size": 1}
    return {"rank": trainer.global_rank, "world_size": trainer.world_size}
