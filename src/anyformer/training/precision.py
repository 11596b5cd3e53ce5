"""Which number format trains fastest on this device: measured on the model itself, not read off a flag."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.core.settings import Precision
from anyformer.models.objectives import batch_logits, objective_loss
from anyformer.models.plan import CallPlan
from anyformer.models.probes import placed, untouched

MIN_SPEEDUP = 1.1
"""A lower precision must win by this much: less is within the noise of a shared machine."""
PROBE_TOKENS = 2048
"""Tokens per measured step: large enough for matrix products to dominate, small enough to take about a second."""
ROUNDS = 6
SECONDS = 3.0
"""The measurement ends after six rounds or, from the second on, three seconds."""

LIGHTNING_NAMES: dict[str, str] = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def choose_precision(
    setting: Precision, module: nn.Module, plan: CallPlan, batch: Mapping[str, Any], device: torch.device
) -> tuple[str, Finding]:
    """The precision to train in ("32", "16", "bf16") and why.

    batch: a training batch on any device, input_ids (B, T) labels and what else it has. The module is left as it
    was, on the device it was on.
    """
    if setting == "16" and device.type == "cpu":
        return "32", Finding("precision", "note", "32", "16", "float16 is for GPUs; on a CPU this runs in float32")
    if setting != "auto":
        return setting, Finding("precision", "note", setting, reason="as set")
    rows = max(1, PROBE_TOKENS // batch["input_ids"].shape[1])
    part = {name: value[:rows].to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    lower = "bf16" if device.type == "cpu" or torch.cuda.is_bf16_supported() else "16"
    with untouched(module), placed(module, device):
        try:
            full, low, finite = _compare(module, plan, part, torch.bfloat16 if lower == "bf16" else torch.float16)
        except RuntimeError as error:
            why = f"{lower} was tried and this model cannot run in it: {_first_line(error)}"
            return "32", Finding("precision", "note", "32", reason=why)
        finally:
            module.zero_grad(set_to_none=True)
    measured = f"a step takes {low * 1e3:.0f} ms, in float32 {full * 1e3:.0f} ms"
    if finite and full / low >= MIN_SPEEDUP:
        return lower, Finding("precision", "ok", lower, reason=f"{full / low:.1f} × faster here: {measured}")
    slower = low / full
    why = f"{lower} is {slower:.1f} × slower here" if slower > 1 else f"{lower} gains less than {MIN_SPEEDUP} ×"
    if not finite:
        why = f"the loss in {lower} is not finite"
    return "32", Finding("precision", "ok", "32", reason=f"{why}: {measured}")


def _compare(
    module: nn.Module, plan: CallPlan, batch: dict[str, Tensor], dtype: torch.dtype
) -> tuple[float, float, bool]:
    """Seconds per step in float32 and under autocast to ``dtype``, and whether the latter's loss was finite.

    The two alternate and the shortest of each counts, so that another process slows both or neither.
    """
    full, low, finite = math.inf, math.inf, True
    begin = time.perf_counter()
    for number in range(ROUNDS):
        seconds, _ = _step(module, plan, batch, None)
        lower_seconds, is_finite = _step(module, plan, batch, dtype)
        if number:  # the first round warms caches and kernels up
            full, low = min(full, seconds), min(low, lower_seconds)
        finite = finite and is_finite
        if number and time.perf_counter() - begin > SECONDS:
            break
    return full, low, finite


def _step(module: nn.Module, plan: CallPlan, batch: dict[str, Tensor], dtype: torch.dtype | None) -> tuple[float, bool]:
    device = batch["input_ids"].device
    _synchronize(device)
    begin = time.perf_counter()
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = objective_loss(plan.objective, batch_logits(module, plan, batch), batch["labels"])
    loss.backward()  # type: ignore[no-untyped-call]
    _synchronize(device)
    return time.perf_counter() - begin, bool(torch.isfinite(loss))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
