"""The longest sequence that a module takes, found by running it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.calls.names import held
from anyformer.models.calls.probing import Prober
from anyformer.models.plan import CallPlan

_NAMES = re.compile(r"block|ctx|context|seq|position|max_len|max_length|n_pos|window|T_max", re.IGNORECASE)
_TENSORS = re.compile(r"pos|pe\b|wpe|mask|bias|tril|cos|sin|freq|rope|rotary", re.IGNORECASE)
CONFIGS = ("config", "cfg", "args", "hparams", "params", "conf")
_TRIED = 8  # named lengths at most
_TRIED_UP_TO = 1024  # tokens, where nothing names a limit
_SLOW = 1.0  # seconds; a longer forward ends the search
_SLOW_PROOF = 5.0  # seconds that the proof of a named limit may take, as shorter ones let expect
_SLOW_PROOFS = 8.0  # seconds that all of them may take
_ON_THE_WAY = (256, 1024)  # tokens: short ones do not show that the time grows with the square of the length
_MEASURED = 0.003  # seconds; of shorter ones the clock says little
_BYTES = 2 * 2**30  # of logits, likewise


def longest_sequence(
    prober: Prober, plan: CallPlan, position_rows: list[int], high: int, runs: Callable[[Tensor], bool]
) -> tuple[int | None, Finding]:
    """Longest T for which a batch of one runs while T + 1 raises; None where no limit was met.

    Limits that the module names (integers on it or its configuration, rows of position tensors) are tried first, then
    T doubles up to 1024 while a forward takes below a second, and the place where it starts to raise is bisected.
    """
    seconds = {"last": 0.0}
    took: dict[int, float] = {}

    def ok(T: int) -> bool:
        start = time.process_time()  # of the processor: on a busy machine the answer is the same
        result = runs(prober.ids(1, T, 5, high))
        seconds["last"] = (time.process_time() - start) / torch.get_num_threads()
        if result:
            took[T] = seconds["last"]
        return result

    ran = {T: ok(T) for T in (2, 3, 7, 16, 64)}
    short = [T for T in ran if not ran[T]]
    good = max((T for T in ran if ran[T]), default=1)
    unit, least, about = 1, 1, ""
    if short and (good > short[0] or prober.length > 7):
        unit, least = _unit_and_least(ok, prober.length)
        about = f", multiples of {unit} only" if unit > 1 else f", from {least} on"
        good = max(least, unit, *[T for T in ran if ran[T]])
        short = []
    bad = short[0] if short else 0
    skipped: list[int] = []
    found: tuple[int, str] | None = None
    for L in dict.fromkeys(n - n % unit for n in candidates(prober.module, position_rows)) if not bad else []:
        if good >= L + unit:
            continue
        for T in [n - n % unit for n in _ON_THE_WAY if max(took, default=0) < n < L]:
            if 4 * _expected(took, T) < _SLOW_PROOF and not ok(T):
                bad = T
                break
        if bad:
            break
        good = max([good, *took])
        lasts = 2 * _expected(took, L)  # at it, and one beyond
        if lasts > _SLOW_PROOF or sum(took.values()) + lasts > _SLOW_PROOFS or 4 * L * plan.vocab_size > _BYTES:
            if L in position_rows and not ok(L + 1):  # raising is cheap
                found = L, f"rows of a position table; {L + 1:,} raise"
                break
            skipped.append(L)
            continue
        if good < L and not ok(L):
            bad = L
            break
        good = max(good, L)
        if not ok(L + unit):
            found = L, f"{L:,} run, {L + unit:,} raise"
            break
        good = L + unit
    while not found and not bad and not skipped and good < _TRIED_UP_TO and seconds["last"] < _SLOW:
        T = min(2 * good, _TRIED_UP_TO - _TRIED_UP_TO % unit)
        if good >= T:
            break
        good, bad = (T, 0) if ok(T) else (good, T)
    if not found and not bad:
        told = f"; it names {skipped[0]:,}, too long to be tried here" if skipped else ""
        if about:
            return good, Finding("positions", "warn", f"up to {good:,} at least{about}{told}", "any length runs")
        return None, Finding("positions", "note", f"no limit up to {good:,}{told}")
    if not found:
        good, bad = _bisected(ok, good, bad, unit)
    most, why = found or (good, f"{good:,} run, {bad:,} raise")
    if about:
        return most, Finding("positions", "warn", f"up to {most:,}{about}", "shorter ones run", why)
    return most, Finding("positions", "ok", f"up to {most:,}", reason=why)


def _expected(took: Mapping[int, float], T: int) -> float:
    """Seconds of a forward at T, as those that were measured grow: with T, or with up to its third power."""
    longest = max(took, default=0)
    shorter = max((n for n in took if 2 * n <= longest and took[n] > _MEASURED), default=0)
    if longest >= T or not longest:
        return took.get(longest, 0.0)
    measured = shorter and took[longest] > 0.0  # the clock may not have moved
    power = math.log(took[longest] / took[shorter]) / math.log(longest / shorter) if measured else 1.0
    return float(took[longest] * (T / longest) ** min(3.0, max(1.0, power)))


def _bisected(ok: Callable[[int], bool], good: int, bad: int, unit: int) -> tuple[int, int]:
    """The longest multiple of unit that runs, the next that does not."""
    while bad - good > unit:
        middle = max((good + bad) // 2 // unit * unit, good + unit)
        good, bad = (middle, bad) if ok(middle) else (good, middle)
    return good, bad


def _unit_and_least(ok: Callable[[int], bool], known: int) -> tuple[int, int]:
    """What lengths are multiples of, else 1; the shortest that runs."""
    for unit in (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 128):
        if ok(unit) and ok(2 * unit) and not ok(2 * unit - 1) and not ok(unit + 1):
            return unit, unit
    good = next((T for T in (3, 7, 8, 16, 32, 64, known) if ok(T)), 1)
    bad = 1
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if ok(middle) else (good, middle)
    return 1, good


def mixing_sizes(module: nn.Module) -> list[int]:
    """Lengths that layers across positions have: channels of a Conv1d or a Linear that is as wide as it is long."""
    convs = [m.in_channels for m in module.modules() if isinstance(m, nn.Conv1d) and m.in_channels == m.out_channels]
    named = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.in_features == m.out_features]
    square = [m.in_features for n, m in named if re.search(r"spatial|token|seq|time|mix", n, re.IGNORECASE)]
    return list(dict.fromkeys([*square, *convs]))


def candidates(module: nn.Module, position_rows: list[int]) -> list[int]:
    """Lengths that the module names, ascending: numbers in its attributes and configuration, then tensors' sizes."""
    told = {n for n in position_rows if n > 1} | named_lengths(module)
    plain = [(k, v) for m in module.modules() for k, v in vars(m).items() if isinstance(v, Tensor)]
    held_tensors = [*module.named_parameters(), *module.named_buffers(), *plain]
    tensors = [t for name, t in held_tensors if _TENSORS.search(name)]
    sizes = {int(n) for t in tensors if t.dim() >= 2 for n in t.shape if n > 7}
    return sorted([*told, *sorted(sizes - told)][:_TRIED])


def named_lengths(module: nn.Module) -> set[int]:
    """Numbers in its attributes and configurations that are called a length."""
    told: set[int] = set()
    for submodule in module.modules():
        told |= _named_ints(vars(submodule))
        for name in CONFIGS:
            config = held(submodule, name)
            if config is not None and not isinstance(config, nn.Module):
                told |= _named_ints(config if isinstance(config, Mapping) else getattr(config, "__dict__", {}))
    return told


def _named_ints(values: Mapping[str, Any]) -> set[int]:
    return {v for k, v in values.items() if type(v) is int and 1 < v <= 10**7 and _NAMES.search(str(k))}
