"""Modules that run at certain sizes alone: one row, multiples of a block, one length, one number of rows.

B batch, T time, V vocabulary, C classes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from anyformer.models.calls.locating import SIZES, Found, Size, blank, is_convincing, out_of_time, run_at, with_targets
from anyformer.models.calls.names import held, hint, required, token_candidates
from anyformer.models.calls.options import given_arguments, targets_of
from anyformer.models.calls.outputs import rows_alone
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.positions import CONFIGS, candidates, mixing_sizes
from anyformer.models.calls.probing import Prober
from anyformer.models.plan import CallPlan

_MULTIPLES: tuple[tuple[Size, Size], ...] = tuple(((2, T, T), (3, 2 * T, 2 * T)) for T in (8, 16, 32, 64))
"""For modules that take lengths from a few on, or multiples of a block, alone."""
_SECONDS_LENGTHS = 6.0  # after which one call is tried at no further length
_LENGTHS_TRIED = 3  # of those that the module names
_ROWS = re.compile(r"_?(n_?)?(train_?)?(batch|bs|bsz|b|batch_?size|batch_?num|mini_?batch(_?size)?)", re.IGNORECASE)
_ROWS_TOLD = (
    re.compile(r"shape '\[(\d+)(), "),
    re.compile(r"[Ee]xpected size (\d+) but got size (\d+)"),
    re.compile(r"[Ee]xpected hidden(?:\[0\])? size \(\d+, (\d+)(), "),
    re.compile(r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)"),
)
_LENGTHS_TOLD = (
    re.compile(r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)"),
    re.compile(r"expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\)"),
    re.compile(r"[Ee]xpected size (\d+) but got size (\d+)"),
)
_MOST_ROWS, _ROWS_TRIED = 1024, 2


def _one_row_by_chance(prober: Prober, found: Found) -> bool:
    """Whether one row is no call but what a fault lets through: why two rows fail is then told.

    It is no row of a vocabulary, or as many rows as tokens run as well: an axis of time lies on that of the batch.
    """
    rows = found.plan.embedding_rows
    if rows is not None and rows // 2 >= found.place.V:
        return True
    return found.plan.packed == "1T" and run_at(prober, replace(found.plan, packed=""), 5, 5, 5, 0)[0] is not None


def find_unusual(
    prober: Prober, parameters: list[inspect.Parameter], stated: Stated, failures: list[str]
) -> list[Found]:
    """One row at a time, as (T,) or (1, T); then lengths that the module names, then as many rows as it names."""
    names = [stated.tokens] if stated.tokens else token_candidates(parameters)
    for token_arg in names[:2]:
        targets = targets_of(parameters, token_arg, stated)
        taken = (token_arg.lstrip("*"), targets, *stated.arguments)
        others = [p for p in required(parameters) if p.name not in taken]
        if any(hint(p.name) in ("decoder", "unknown") for p in others):
            continue  # a tensor of one number can be added to anything: nothing would be known
        needed = targets is not None and any(p.name == targets for p in required(parameters))
        for given in given_arguments(prober.module, parameters, others, stated)[:20]:
            if out_of_time(prober, failures):
                break
            plan = blank(token_arg, given)
            for packed in ("T", "1T"):
                found = with_targets(prober, replace(plan, packed=packed), targets, needed, stated, [])
                if found is not None and found.place.use == "sequence" and not _one_row_by_chance(prober, found):
                    return [found]
            run, error = run_at(prober, plan, *SIZES[0][0], 0)
            if run is not None and rows_alone(run, SIZES[0][0][0]):
                continue  # at other lengths it would give no more
            again = partial(with_targets, prober, targets=targets, needed=needed, stated=stated, failures=[])
            for rows in (None, *rows_named(prober.module, error)):
                found = _at_lengths(prober, replace(plan, only_rows=rows), error, again)
                if found is not None and (rows is None or _is_meant(found, rows)):
                    return [found]
    return []


def _is_meant(found: Found, rows: int) -> bool:
    """Whether so many rows run by design: each gives the same alone, and no other axis is as long."""
    lengths = {T for _, T, _ in found.sizes}
    alike = rows == found.place.V or lengths == {rows}
    return found.apart is not None and found.apart <= 1 and not alike


def _at_lengths(
    prober: Prober, plan: CallPlan, error: Exception | None, again: Callable[..., Found | None]
) -> Found | None:
    """The call at a length that the module names, that torch told, or multiples of which run."""
    begun = prober.seconds()
    told = _lengths_told(error)
    if plan.only_rows is not None:
        for size in SIZES:
            found = again(plan, lengths=(size,))
            if found is not None and (found.place.use == "sequence" or is_convincing(found)):
                return found
        told += _lengths_told(run_at(prober, plan, *SIZES[0][0], 0)[1])
    for size in _MULTIPLES:
        if prober.seconds() - begun > _SECONDS_LENGTHS:
            break
        found = again(plan, lengths=(size,))
        if found is not None and found.place.use == "sequence":
            return found
    pooled: Found | None = None
    mixing = mixing_sizes(prober.module)[:_LENGTHS_TRIED]
    named = [n for n in candidates(prober.module, []) if n not in mixing][:_LENGTHS_TRIED]
    for L in [n for n in dict.fromkeys([*told, *mixing, *named]) if n <= 1024]:
        if prober.seconds() - begun > _SECONDS_LENGTHS:
            break
        found = again(plan, lengths=(((2, L, L), (3, L, L)),))
        if found is None or _by_chance(prober, found, L):
            continue
        if found.place.use == "sequence":
            return found
        if pooled is None and is_convincing(found) and refuses_others(prober, found, L):
            pooled = found
    if pooled is not None:
        prober.sizes = pooled.sizes
    return pooled


def rows_named(module: nn.Module, error: Exception | None) -> list[int]:
    """Numbers of rows that a module may run at alone: what torch met in the place of ours, what is called a batch.

    The names are those of attributes, of configurations and of the globals that its methods read.
    """
    told = {int(n) for pattern in _ROWS_TOLD for found in pattern.findall(str(error)) for n in found if n}
    named: dict[int, None] = dict.fromkeys(n for n in sorted(told) if n not in SIZES[0][0])
    for part in module.modules():
        code = getattr(type(part).forward, "__code__", None)
        read = getattr(type(part).forward, "__globals__", {})
        read = {k: read[k] for k in getattr(code, "co_names", ()) if k in read}
        configs = [held(part, name) for name in CONFIGS]
        for values in (
            vars(part),
            read,
            *(c if isinstance(c, Mapping) else getattr(c, "__dict__", {}) for c in configs),
        ):
            named |= {v: None for k, v in values.items() if type(v) is int and v > 1 and _ROWS.fullmatch(str(k))}
    return [n for n in named if n <= _MOST_ROWS][:_ROWS_TRIED]


def _lengths_told(error: Exception | None) -> list[int]:
    """The length that torch says it met instead of the one that was tried."""
    found = next((m for pattern in _LENGTHS_TOLD if (m := pattern.search(str(error)))), None)
    tried_length = SIZES[0][0][1]
    sizes = [int(n) for n in found.groups()] if found is not None else []
    return [n for n in sizes if n > tried_length] if tried_length in sizes else []


def refuses_others(prober: Prober, found: Found, L: int) -> bool:
    """Whether no other length runs: one row of numbers per text, or two texts of one length, tell of none."""
    return all(run_at(prober, found.plan, 2, T, T, 0)[0] is None for T in (5, L - 1, L + 1, L // 2, 2 * L))


def _by_chance(prober: Prober, found: Found, L: int) -> bool:
    """Whether the shapes fit because V is L, or nearly so, and other lengths run, too, whose outputs are no logits."""
    if abs(found.place.V - L) > 1:
        return False
    return any(run_at(prober, found.plan, 2, T, T, 0)[0] is not None for T in (L - 1, L + 1))
