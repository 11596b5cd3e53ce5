"""The longest sequence that a module takes, found by running it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.plan import CallPlan
from anyformer.models.probing import Prober

_NAMES = re.compile(r"block|ctx|context|seq|position|max_len|max_length|n_pos|window|T_max", re.IGNORECASE)
_TENSORS = re.compile(r"pos|pe\b|wpe|mask|bias|tril|cos|sin|freq|rope|rotary", re.IGNORECASE)
_CONFIGS = ("config", "cfg", "args", "hparams", "params", "conf")
_TRIED = 8  # named lengths at most
_TRIED_UP_TO = 1024  # tokens, where nothing names a limit
_SLOW = 1.0  # seconds; a longer forward ends the search
_SLOW_PROOF = 6.0  # seconds that the proof of a named limit may take
_BYTES = 2 * 2**30  # of logits, likewise


def longest_sequence(
    prober: Prober, plan: CallPlan, position_rows: list[int], high: int, runs: Callable[[Tensor], bool]
) -> tuple[int | None, Finding]:
    """Longest T for which a batch of one runs while T + 1 raises; None where no limit was met.

    Limits that the module names (integers on it or its configuration, rows of position tensors) are tried first, then
    T doubles up to 1024 while a forward takes below a second, and the place where it starts to raise is bisected.
    """
    seconds = {"last": 0.0}

    def ok(T: int) -> bool:
        start = time.process_time()  # of the processor: on a busy machine the answer is the same
        result = runs(prober.ids(1, T, 5, high))
        seconds["last"] = (time.process_time() - start) / torch.get_num_threads()
        return result

    good, bad = 1, 0
    for T in (2, 3, 7, 16, 64):
        if not ok(T):
            bad = T
            break
        good = T
    per_token = seconds["last"] / good
    skipped: list[int] = []
    for L in candidates(prober.module, position_rows) if not bad else []:
        if good >= L + 1:
            continue
        if per_token * L > _SLOW_PROOF or 4 * L * plan.vocab_size > _BYTES:
            if L in position_rows and not ok(L + 1):  # raising is cheap
                return L, Finding(
                    "positions", "ok", f"up to {L:,}", reason=f"rows of a position table; {L + 1:,} raise"
                )
            skipped.append(L)
            continue
        if good < L and not ok(L):
            bad = L
            break
        good = max(good, L)
        if not ok(L + 1):
            return L, Finding("positions", "ok", f"up to {L:,}", reason=f"{L:,} run, {L + 1:,} raise")
        good = L + 1
    while not bad and not skipped and good < _TRIED_UP_TO and seconds["last"] < _SLOW:
        T = min(2 * good, _TRIED_UP_TO)
        if ok(T):
            good = T
        else:
            bad = T
    if not bad:
        told = f"; it names {skipped[0]:,}, too long to be tried here" if skipped else ""
        return None, Finding("positions", "note", f"no limit up to {good:,}{told}")
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if ok(middle) else (good, middle)
    return good, Finding("positions", "ok", f"up to {good:,}", reason=f"{good:,} run, {bad:,} raise")


def candidates(module: nn.Module, position_rows: list[int]) -> list[int]:
    """Lengths that the module names, ascending: numbers in its attributes and configuration, then tensors' sizes."""
    told = {n for n in position_rows if n > 1}
    for submodule in module.modules():
        told |= _named_ints(vars(submodule))
        for name in _CONFIGS:
            config = getattr(submodule, name, None)
            if config is not None and not isinstance(config, nn.Module):
                told |= _named_ints(config if isinstance(config, Mapping) else getattr(config, "__dict__", {}))
    tensors = [t for name, t in [*module.named_parameters(), *module.named_buffers()] if _TENSORS.search(name)]
    sizes = {int(n) for t in tensors if t.dim() >= 2 for n in t.shape if n > 7}
    return sorted([*told, *sorted(sizes - told)][:_TRIED])


def _named_ints(values: Mapping[str, Any]) -> set[int]:
    return {v for k, v in values.items() if type(v) is int and 1 < v <= 10**7 and _NAMES.search(str(k))}
