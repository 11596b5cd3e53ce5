"""The residual stream, where no block can be called alone: what one norm reads, beside what the norm before it read.

Of models whose blocks are lists of parts that their own forward calls. B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_EXACT = 1e-3
"""Of what is read, the part that a sum of two tensors leaves unexplained: rounding, if it is that sum."""
_SAME = 0.1
"""Around 1: how often the stream is passed on."""
_AHEAD = 2
"""Norms further on in which the stream may come back: a norm on the branch itself reads the branch alone."""


@dataclass
class _Norm:
    """One call of a norm."""

    name: str
    read: Tensor
    made: Tensor
    outputs: list[Tensor] = field(default_factory=list)
    """What modules that began after it gave, before the next norm."""


@dataclass(frozen=True)
class Lost:
    """Where the stream is not passed on once."""

    name: str
    """Of the norm that reads what is wrong."""
    times: float
    """0: dropped, 2: doubled."""


def lost(norms: list[_Norm]) -> tuple[Lost | None, int]:
    """The first place where a norm reads the branch alone, or the stream more than once; and how many were told."""
    told = 0
    for number, one in enumerate(norms[:-2]):  # the last one may belong to a head
        times = [_times(one, later, between) for later, between in _after(norms, number)]
        if not times or times[0] is None:
            continue
        told += 1
        if not any(t is not None and abs(t - 1) < _SAME for t in times):
            return Lost(norms[number + 1].name, times[0]), told
    return None, told


def _after(norms: list[_Norm], number: int) -> Iterator[tuple[_Norm, list[Tensor]]]:
    """The next norms, each with all that was given since this one."""
    between: list[Tensor] = []
    for at in range(number + 1, min(number + 1 + _AHEAD, len(norms))):
        between = between + norms[at - 1].outputs + ([norms[at - 1].made] if at - 1 > number else [])
        yield norms[at], between


def _times(one: _Norm, later: _Norm, between: list[Tensor]) -> float | None:
    """How often what the first norm read, or gave, stands in what the later one reads; None where it cannot be told."""
    read = later.read.double().flatten()
    size = float(read.norm())
    if not size:
        return None
    found = []
    for base in (one.read, one.made):
        x = base.double().flatten()
        if x.shape != read.shape:  # of the other text
            continue
        if float((read - x).norm()) < _EXACT * size:
            return 1.0
        for given in between:
            if given.shape != later.read.shape:
                continue
            pair = torch.stack([x, given.double().flatten()], 1)
            fit = torch.linalg.lstsq(pair, read[:, None]).solution
            if float((read - (pair @ fit)[:, 0]).norm()) < _EXACT * size and abs(float(fit[1])) > _SAME:
                found.append(float(fit[0]))
    return min(found, key=lambda times: abs(times - 1), default=None)


@contextmanager
def norms_of(module: nn.Module) -> Iterator[list[_Norm]]:
    """While open, the calls of norms that read (B, T, D), and what is given between them."""
    found: list[_Norm] = []
    begun: list[int] = []
    handles = []

    def enter(part: nn.Module, given: Any) -> None:
        begun.append(len(found))

    def leaving(name: str) -> Any:
        def leave(part: nn.Module, given: Any, made: Any) -> None:
            since = begun.pop()
            read = given[0] if given else None
            made = made[0] if isinstance(made, tuple) and made else made
            if not isinstance(made, Tensor) or made.dim() != 3:
                return
            norm = "norm" in type(part).__name__.lower()
            if norm and isinstance(read, Tensor) and read.shape == made.shape and since == len(found):
                found.append(_Norm(name, read.detach().clone(), made.detach().clone()))
            elif found and since == len(found) and made.shape == found[-1].read.shape:
                found[-1].outputs.append(made.detach().clone())

        return leave

    for name, part in module.named_modules():
        if name:
            handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leaving(name))]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
