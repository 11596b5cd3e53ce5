"""Out of memory on a GPU: the batch is run in smaller parts from there on, and nothing is lost or seen twice.

A batch of B sequences goes through the model ``rows`` at a time (the micro-batch). The gradient is that of the whole
batch, each part weighed by its targets; samples, their order and the number of steps do not depend on it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

from anyformer.core.errors import AnyformerError, TrainingError
from anyformer.core.findings import Finding
from anyformer.core.view import PlainView

LESS = "a shorter --max_length, --activation_checkpointing, --optimizer adafactor, or a smaller model"
"""What is left to do once a single sequence is too much."""
_DEVICE = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_HOST = ("can't allocate memory", "not enough memory: you tried to allocate")
"""What torch's allocator of the CPU says on Linux and on Windows."""

MEMORY = (RuntimeError, MemoryError)
"""What is raised where memory is not enough; a RuntimeError may be anything else, too."""
Batch = dict[str, Any]


def is_device_memory(error: BaseException) -> bool:
    """Whether an accelerator had no memory left: a smaller batch may fit."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    torchs = isinstance(error, RuntimeError) and not isinstance(error, AnyformerError)
    return torchs and any(sign in str(error) for sign in _DEVICE)


def is_host_memory(error: BaseException) -> bool:
    """Whether this machine's own memory was not enough."""
    torchs = isinstance(error, RuntimeError) and not isinstance(error, AnyformerError)
    return isinstance(error, MemoryError) or (torchs and any(sign in str(error) for sign in _HOST))


def lacks_memory(error: BaseException) -> bool:
    """Whether memory was not enough, of a device or of this machine: no fault of what was tried."""
    return is_device_memory(error) or is_host_memory(error)


def rows_of(batch: Mapping[str, Any]) -> int:
    """Sequences in a batch, B."""
    return len(batch["input_ids"])


def in_parts(batch: Batch, rows: int) -> list[Batch]:
    """The batch in parts of at most ``rows`` sequences, in order; what does not belong to a sequence is in each."""
    size = rows_of(batch)
    if rows >= size:
        return [batch]
    ours = {name for name, value in batch.items() if isinstance(value, Tensor) and value.dim() and len(value) == size}
    return [
        {name: value[start : start + rows] if name in ours else value for name, value in batch.items()}
        for start in range(0, size, rows)
    ]


def free_memory() -> None:
    """Give back what a failed attempt still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def host_error(batch: Mapping[str, Any], error: BaseException) -> TrainingError:
    """The machine's own memory was not enough: the system may end the process next, so nothing is tried again."""
    size = rows_of(batch)
    half = f"--batch_size {-(-size // 2)} with twice the --accumulate_grad_batches gives the same steps; else "
    return TrainingError(
        f"this machine has not enough memory for {size} sequences of {batch['input_ids'].shape[1]:,} tokens at once",
        str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        (half if size > 1 else "") + LESS,
    )


class MicroBatch:
    """How many sequences go through the model at once."""

    def __init__(self, rows: int | None = None, told: Callable[[Finding], None] | None = None) -> None:
        self.rows = rows
        """None: as many as a batch has."""
        self.told = told or PlainView().finding
        """Called with a finding when it was halved."""

    def of(self, batch: Batch) -> list[Batch]:
        """The batch in parts that fit."""
        return [batch] if self.rows is None else in_parts(batch, self.rows)

    def halve(self, error: BaseException, batch: Batch, step: int) -> None:
        """Half as many from here on.

        Raises TrainingError where nothing is left to halve, or where it is not the memory of a GPU; an error of another
        kind is raised as it is.
        """
        if is_host_memory(error):
            raise host_error(batch, error) from error
        if not is_device_memory(error):
            raise error
        size = rows_of(batch)
        before = size if self.rows is None else min(self.rows, size)
        if before == 1:
            what = f"one sequence of {batch['input_ids'].shape[1]:,} tokens does not fit into the memory of the device"
            raise TrainingError(what, str(error).strip().splitlines()[0], LESS) from error
        self.rows = -(-before // 2)
        where = "" if batch["input_ids"].is_cuda else "; not verified on a GPU"
        why = f"out of memory with {before} at once at step {step:,}; the {size} of a batch stay the same{where}"
        self.told(Finding("micro-batch", "warn", f"{self.rows} sequences at once", reason=why))


class MicroBatched(pl.LightningModule):
    """What a Lightning module does about memory: see ``gathered_loss`` and ``gathered_total``.

    A batch that fits runs as ever: one forward pass here, Lightning's backward. One that does not is run in parts, with
    their backward passes here, from the first batch since the last update on: what was gathered until then is dropped.
    On one device only; of several, each would have to know of the other's lack.
    """

    def __init__(self) -> None:
        super().__init__()
        self.micro = MicroBatch()
        self._window: list[Any] = []
        """The batches since the last update, as they arrived."""
        self._random: tuple[Tensor, Tensor | None] | None = None
        """Random state when the first of them came."""
        self._graph: Tensor | None = None
        """The loss that Lightning's backward leads to; held here alone, so that it can be let go."""
        self._leaf: Tensor | None = None
        self._gathered = False
        """Whether the gradient of this batch is there before Lightning asks for it."""

    # what the module itself gives

    def arrived(self, batch: Batch) -> Any:
        """What has to be kept of a batch to prepare it again; called once for each batch."""
        return batch

    def prepared(self, arrived: Any) -> Batch:
        """The batch that the model is trained on. May draw random numbers."""
        raise NotImplementedError

    def part_loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch or of a part of one, with its graph."""
        raise NotImplementedError

    def part_targets(self, batch: Batch) -> Tensor:
        """Number of targets of which ``part_loss`` is the mean."""
        raise NotImplementedError

    def part_total(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and number of targets of a held-out batch or of a part of one."""
        raise NotImplementedError

    # what it gets

    def gathered_loss(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Batch]:
        """Mean loss of a batch for Lightning to go backward from, and the batch as the model was given it."""
        self._graph, self._gathered = None, False
        if not self._recovers():
            batch = self.prepared(self.arrived(batch))
            try:
                return self.part_loss(batch), batch
            except MEMORY as error:
                self._explain(error, batch)
                raise
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # as Lightning decides where a step begins
            self._window.clear()
            self._random = _random_state(self.device)
        self._window.append(self.arrived(batch))
        if self.micro.rows is not None and self.micro.rows < rows_of(batch):
            return self._in_parts(batch_idx)
        ready = self.prepared(self._window[-1])
        try:
            self._graph = self.part_loss(ready)
        except MEMORY as error:
            self.micro.halve(error, batch, self.global_step + 1)
        else:
            self._leaf = self._graph.detach().requires_grad_()
            return self._leaf, ready
        return self._anew()

    def gathered_total(self, batch: Batch) -> tuple[float, int]:
        """Summed loss and number of targets of a held-out batch, in parts where it must be."""
        while True:
            try:
                totals = [self.part_total(part) for part in self.micro.of(batch)]
                return sum(float(total) for total, _ in totals), sum(int(count) for _, count in totals)
            except MEMORY as error:
                self.micro.halve(error, batch, self.global_step)
            free_memory()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, and on from the leaf that it was given to the graph that is kept here."""
        graph, self._graph = self._graph, None
        if graph is None:
            try:
                super().backward(loss, *args, **kwargs)
            except MEMORY as error:
                if not self._recovers():
                    self._explain(error, None)
                raise
            return
        super().backward(loss, *args, **kwargs)
        assert self._leaf is not None
        try:
            graph.backward(self._leaf.grad)  # type: ignore[no-untyped-call]
        except MEMORY as error:
            self.micro.halve(error, self._last(), self.global_step + 1)
        else:
            return
        del graph  # with it goes what it holds
        self._anew()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Lightning clears gradients between forward and backward: not those that are there already."""
        if not self._gathered:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; an optimizer that finds no room for its state is explained, since smaller parts do not help."""
        try:
            super().optimizer_step(*args, **kwargs)
        except MEMORY as error:
            if is_device_memory(error) or is_host_memory(error):
                what = "weights, gradients and the optimizer's state do not fit into memory"
                fix = "--optimizer adafactor (as good as no state), sgd (half of adamw's), or a smaller model"
                raise TrainingError(what, str(error).strip().splitlines()[0], fix) from error
            raise

    def _recovers(self) -> bool:
        trainer = self._trainer
        return trainer is not None and trainer.training and isinstance(trainer.strategy, SingleDeviceStrategy)

    def _explain(self, error: BaseException, batch: Batch | None) -> None:
        if is_host_memory(error) and batch is not None:
            raise host_error(batch, error) from error
        if is_device_memory(error) and self._trainer is not None and self.trainer.world_size > 1:
            what = "a device is out of memory; of several, none can halve its batch alone"
            fix = "half the --batch_size with twice the --accumulate_grad_batches gives the same steps"
            raise TrainingError(what, str(error).strip().splitlines()[0], fix) from error

    def _in_parts(self, batch_idx: int) -> tuple[Tensor, Batch]:
        """One more batch of a step, in parts from the start."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._drop_gradients()
        try:
            result = self._gather(self._window[-1])
        except MEMORY as error:
            self.micro.halve(error, self._last(), self.global_step + 1)
        else:
            self._gathered = True
            return result
        return self._anew()

    def _anew(self) -> tuple[Tensor, Batch]:
        """All batches since the last update once more, in parts that fit; the loss is that of the last one."""
        while True:
            self._drop_gradients()
            free_memory()
            _restore(self._random, self.device)
            try:
                results = [self._gather(arrived) for arrived in self._window]
            except MEMORY as error:
                self.micro.halve(error, self._last(), self.global_step + 1)
            else:
                self._gathered = True
                return results[-1]

    def _gather(self, arrived: Any) -> tuple[Tensor, Batch]:
        """Add the gradient of one batch, part by part; its loss and the batch as the model was given it."""
        batch = self.prepared(arrived)
        parts = self.micro.of(batch)
        counts = torch.stack([self.part_targets(part) for part in parts]).tolist()
        every = sum(counts)
        value: Tensor | None = None
        for part, count in zip(parts, counts, strict=True):
            if every and not count:
                continue  # the mean of nothing is NaN
            share = count / every if every else 1 / len(parts)
            with self.trainer.precision_plugin.train_step_context():
                loss = self.part_loss(part) * share
            with torch.autocast(self.device.type, enabled=False):  # as Lightning goes backward
                self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, None)
            value = loss.detach() if value is None else value + loss.detach()
            del loss
        assert value is not None
        return value.requires_grad_(), batch

    def _last(self) -> Batch:
        """The batch that came last, for its size."""
        last = self._window[-1]
        return dict(last[0] if isinstance(last, tuple) else last)

    def _drop_gradients(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(state: tuple[Tensor, Tensor | None] | None, device: torch.device) -> None:
    if state is None:
        return
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
