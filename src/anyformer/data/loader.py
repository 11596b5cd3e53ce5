"""A training loader whose place in the data is two integers: the epoch and the batches consumed in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from anyformer.data.blocks import collate_blocks
from anyformer.data.order import EpochOrder

_AHEAD = 4096  # positions of the order computed at a time


class EpochBatches(Sampler[list[int]]):
    """Batches of item numbers in an epoch's order; which ones is a function of (seed, epoch, place) alone.

    rank, world_size: each process takes its own part of every global batch; with more than one, the last
    incomplete global batch is left out so that all make the same number of steps.
    """

    def __init__(
        self, order: EpochOrder, batch_size: int, *, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self._resume: tuple[int, int] | None = None  # (epoch, batches) that the next pass begins with
        self.begun = epoch, 0  # epoch and first batch of the pass begun last

    @property
    def sampler(self) -> EpochBatches:
        """Lightning looks here for ``set_epoch``."""
        return self

    def __len__(self) -> int:
        step = self.batch_size * self.world_size
        return self.order.size // step if self.world_size > 1 else -(-self.order.size // step)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next pass gives. A pass that has begun keeps its own."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batches: int) -> None:
        """The next pass gives ``epoch`` from its batch number ``batches`` on."""
        self.epoch = epoch
        self._resume = self.begun = (epoch, batches)

    def __iter__(self) -> Iterator[list[int]]:
        # not a generator: the epoch is fixed here, before Lightning or a worker's prefetching can change it
        first = 0
        if self._resume is not None and self._resume[0] == self.epoch:
            first = self._resume[1]
        self.begun = self.epoch, first
        return self._pass(self.epoch, first)

    def _pass(self, epoch: int, first: int) -> Iterator[list[int]]:
        self._resume = None  # only now: a loader with workers asks twice for an iterator and uses the second
        step = self.batch_size * self.world_size
        ahead = max(1, _AHEAD // step)
        for batch in range(first, len(self), ahead):
            last = min(batch + ahead, len(self))
            items = self.order.indices(epoch, batch * step, last * step).tolist()
            for number in range(last - batch):
                begin = number * step + self.rank * self.batch_size
                yield items[begin : begin + self.batch_size]


class ResumableLoader(DataLoader[Any]):
    """Reads blocks in an epoch's order; ``state_dict`` says how far training, not prefetching, has come.

    consumed: (batches of the current pass that were trained on, batches in a pass), from the trainer.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: EpochBatches,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        consumed: Callable[[], tuple[int, int]],
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=collate_blocks,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # of its own: each pass draws a seed, and the global one belongs to the model's dropout
            generator=torch.Generator().manual_seed(0),
        )
        self._batches = batches
        self._consumed = consumed

    def __iter__(self) -> Any:
        if self.num_workers == 0 or "TOKENIZERS_PARALLELISM" in os.environ:
            return super().__iter__()
        # tokenizers warns in every forked worker unless this is set; the workers only read tokens
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            return super().__iter__()
        finally:
            del os.environ["TOKENIZERS_PARALLELISM"]

    def state_dict(self) -> dict[str, int]:
        """{"epoch", "batches"}: the next batch to train on; a finished epoch is the start of the next."""
        epoch, first = self._batches.begun
        done, total = self._consumed()
        done = max(done, first)  # just resumed: nothing trained on yet
        return {"epoch": epoch + 1, "batches": 0} if done >= total else {"epoch": epoch, "batches": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass where ``state_dict`` was taken."""
        self._batches.resume_at(state["epoch"], state["batches"])


def consumed_by(trainer: Any, batches: EpochBatches) -> tuple[int, int]:
    """(batches of the current pass that a trainer has trained on, batches in a pass); what was begun without one."""
    if trainer is None:
        return batches.begun[1], len(batches)
    # "processed" and not "ready": a batch in the middle of its step when the run stops is trained on again
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed), int(trainer.num_training_batches)
