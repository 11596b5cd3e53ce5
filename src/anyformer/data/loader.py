"""A training loader whose place in the data is one integer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

from anyformer.core.errors import DataError
from anyformer.data.blocks import collate_blocks
from anyformer.data.order import EpochOrder
from anyformer.data.shares import SharedLoader, share

_AHEAD = 4096  # positions of the order computed at a time


class EpochBatches(DistributedSampler[list[int]]):
    """Batches of item numbers in an epoch's order; which ones is a function of (seed, epoch, place) alone.

    A DistributedSampler by its kind, so that Lightning puts none of its own in its place.

    rank, world_size: each process takes its part of every batch, the last and smaller one, too; a process that none of
    its items is left for gets a ``Spare``, so that all make the same steps, those that a single process would make.
    """

    def __init__(
        self, order: EpochOrder, batch_size: int, *, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        # not super().__init__(): it asks torch's process group for what is given here
        self.order = order
        self.batch_size = batch_size
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self._resume: tuple[int, int] | None = None  # (epoch, place) that the next pass begins with
        self.begun = epoch, 0  # epoch and first place of the pass begun last

    @property
    def sampler(self) -> EpochBatches:
        """Lightning looks here for ``set_epoch``."""
        return self

    @property
    def step(self) -> int:
        """Places of the order that one batch takes."""
        return self.batch_size

    @property
    def bound_to(self) -> dict[str, int]:
        """What the order depends on beside the seed, by name; nothing here."""
        return {}

    @property
    def done(self) -> int:
        """Batches of an epoch that the pass begun last does not give."""
        return len(self) - self._count(self.begun[1])

    def __len__(self) -> int:
        return self._count(0)

    def _count(self, first: int) -> int:
        return -(-(self.order.size - first) // self.step)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next pass gives. A pass that has begun keeps its own."""
        self.epoch = epoch

    def resume_at(self, epoch: int, place: int) -> None:
        """The next pass gives ``epoch`` from that place of its order on, whatever batches it came in before."""
        self.epoch = epoch
        self._resume = self.begun = (epoch, place)

    def __iter__(self) -> Iterator[list[int]]:
        # not a generator: the epoch is fixed here, before Lightning or a worker's prefetching can change it
        first = 0
        if self._resume is not None and self._resume[0] == self.epoch:
            first = self._resume[1]
        self.begun = self.epoch, first
        return self._pass(self.epoch, first)

    def _pass(self, epoch: int, first: int) -> Iterator[list[int]]:
        self._resume = None  # only now: a loader with workers asks twice for an iterator and uses the second
        step, count = self.step, self._count(first)
        ahead = max(1, _AHEAD // step)
        for batch in range(0, count, ahead):
            last = min(batch + ahead, count)
            items = self.order.indices(epoch, first + batch * step, first + last * step).tolist()
            for number in range(last - batch):
                yield share(items[number * step : (number + 1) * step], self.rank, self.world_size)


class ResumableLoader(SharedLoader):
    """Reads blocks in an epoch's order; ``state_dict`` says how far training, not prefetching, has come.

    consumed: (batches of the current epoch that were trained on, batches in it), from the trainer.
    align: told at a resumption how many batches of now stand for what was consumed before.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: EpochBatches,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        consumed: Callable[[], tuple[int, int]],
        align: Callable[[int], None],
    ) -> None:
        super().__init__(
            dataset,
            batches,
            collate_fn=collate_blocks,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # of its own: each pass draws a seed, and the global one belongs to the model's dropout
            generator=torch.Generator().manual_seed(0),
        )
        self._batches = batches
        self._consumed = consumed
        self._align = align

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
        """{"position"}: of the next sample to train on, counted from the first epoch's first."""
        epoch, first = self._batches.begun
        done, total = self._consumed()
        since = max(0, done - self._batches.done)  # just resumed: nothing trained on yet
        # a finished epoch is the start of the next
        place = self._batches.order.size if done >= total else first + since * self._batches.step
        return {"position": epoch * self._batches.order.size + place, **self._batches.bound_to}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass where ``state_dict`` was taken, with whatever batch size and number of processes.

        Raises DataError where the order depends on the batch size, and that has changed.
        """
        for name, now in self._batches.bound_to.items():
            if state.get(name, now) != now:
                raise DataError(
                    f"the run was stopped with {name} {state[name]}, and goes on with {now}",
                    "examples of like length share a batch: which ones do depends on it",
                    f"{name} {state[name]}",
                )
        epoch, place = divmod(state["position"], self._batches.order.size)
        self._batches.resume_at(epoch, place)
        if place:
            self._align(self._batches.done)


def consumed_by(trainer: Any, batches: EpochBatches) -> tuple[int, int]:
    """(batches of the current pass that a trainer has trained on, batches in a pass); what was begun without one."""
    if trainer is None:
        return batches.done, len(batches)
    # "processed" and not "ready": a batch in the middle of its step when the run stops is trained on again
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed), int(trainer.num_training_batches)


def align_progress(trainer: Any, batches: int) -> None:
    """Let a trainer count that many batches as done in this epoch, so that it ends with the loader."""
    if trainer is None:
        return
    current = trainer.fit_loop.epoch_loop.batch_progress.current
    more = batches - current.processed
    current.ready += more
    current.started += more
    current.processed += more
    current.completed += more  # one less while a batch ends: the trainer sees by it where it was stopped


def trained_by(trainer: Any) -> int:
    """Batches that a trainer has trained on in all, through all epochs and resumptions."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
