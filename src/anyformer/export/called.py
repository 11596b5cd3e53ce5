"""The module behind its one call, as an exporter takes it: ids in, logits out, no Python objects beside tensors.

B batch, T time (source), S time (target), V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anyformer.models.calling import call_logits, next_logits
from anyformer.models.inputs import hides_padding
from anyformer.models.plan import CallPlan
from anyformer.models.probes import set_mode, step_by_step, untouched

_LONGEST = 4096
"""Tokens that an artefact is made for where the model names no limit."""


class Called(nn.Module):
    """``module`` called by its plan: ``forward(input_ids[, attention_mask])`` gives logits (B, T, V).

    Of an encoder-decoder ``forward(input_ids, target_ids)`` gives (B, S, V), of a classifier (B, C); of a model that
    gives the last position alone (B, V), the next token's.
    """

    def __init__(self, module: nn.Module, plan: CallPlan) -> None:
        super().__init__()
        self.module = module
        self.plan = plan

    def forward(self, input_ids: Tensor, second: Tensor | None = None) -> Tensor:
        """``second`` is the attention mask (1 = keep), or the decoder's ids, as ``Shapes.of(plan).names`` says."""
        if self.plan.family == "encoder_decoder":
            return call_logits(self.module, self.plan, input_ids, target_ids=second)
        if self.plan.layout == "last":
            return next_logits(self.module, self.plan, input_ids)
        return call_logits(self.module, self.plan, input_ids, second)


@dataclass(frozen=True)
class Shapes:
    """What goes in and comes out, and which axes may differ from call to call."""

    names: tuple[str, ...]
    """input_ids (B, T), then attention_mask (B, T) where the plan proved one, or target_ids (B, S); all int64."""
    axes: tuple[str, ...]
    """Of the logits: batch, time, vocabulary."""
    rows: int | None
    """The one batch size that runs; None for any."""
    length: int | None
    """The one length that runs; None for any."""
    longest: int

    @classmethod
    def of(cls, plan: CallPlan) -> Shapes:
        """As the plan has them."""
        names: tuple[str, ...] = ("input_ids",)
        if plan.family == "encoder_decoder":
            names = ("input_ids", "target_ids")
        elif plan.mask_arg is not None and hides_padding(plan) and plan.layout != "last":
            names = ("input_ids", "attention_mask")
        time = "target_time" if plan.family == "encoder_decoder" else "time"
        axes = ("batch", "vocabulary") if plan.family == "classifier" or plan.layout == "last" else ("batch", time, "V")
        rows = 1 if plan.packed else plan.only_rows
        return cls(names, axes, rows, plan.only_length, min(plan.max_positions or _LONGEST, _LONGEST))

    def named(self) -> dict[str, dict[int, str]]:
        """The axes of each input that are free, by name."""
        batch = {} if self.rows is not None else {0: "batch"}

        def axes(time: str) -> dict[int, str]:
            return batch if self.length is not None else {**batch, 1: time}

        return {name: axes("target_time" if name == "target_ids" else "time") for name in self.names}

    def example(self) -> tuple[int, int, int]:
        """B, T and S with which it is traced; no two alike, so that none is taken for another."""
        B = self.rows or 2
        T = self.length or max(2, min(12, self.longest - 1))
        return B, T, self.length or max(2, min(9, self.longest - 1))

    def unseen(self) -> list[tuple[int, int, int]]:
        """Shapes (B, T, S) with which it was not traced, up to the longest text."""
        longest = min(self.longest, 64)
        tried = [(1, 7, 5), (3, 13, 11), (5, 4, 6), (4, 21, 17), (1, longest, longest), (2, 2, 3)]
        if self.length is not None:
            tried = [(b, self.length, self.length) for b, _, _ in tried]
        tried = [(self.rows or b, min(t, longest), min(s, longest)) for b, t, s in tried]
        seen = self.example()
        return [shape for shape in dict.fromkeys(tried) if shape != seen]


def example_inputs(plan: CallPlan, shape: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Random ids of this shape for each input; a mask hides the end of every row but the first."""
    shapes, (B, T, S) = Shapes.of(plan), shape
    generator = torch.Generator().manual_seed(seed)

    def ids(limit: int | None, length: int) -> Tensor:
        most = limit or plan.vocab_size
        return torch.randint(min(1, most - 1), most, (B, length), generator=generator)

    given = [ids(plan.embedding_rows, T)]
    if "attention_mask" in shapes.names:
        keep = torch.ones(B, T, dtype=torch.int64)
        for row in range(1, B):
            keep[row, max(1, T - row) :] = 0
        given.append(keep)
    if "target_ids" in shapes.names:
        given.append(ids(plan.target_vocab, S))
    return tuple(given)


@contextmanager
def traceable(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, layer by layer, no decision of torch's own hung on values; unchanged afterwards."""
    with untouched(module), torch.no_grad(), step_by_step(), _hints_alone():
        set_mode(module, False)
        yield


@contextmanager
def _hints_alone() -> Iterator[None]:
    """torch.nn's encoder compares its mask with the causal one to choose a kernel; both give the same."""
    from torch.nn.modules import transformer

    before = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = before
