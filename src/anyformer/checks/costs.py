"""What a module takes: memory to train, seconds to run.

B batch, T time.
"""

from __future__ import annotations

import math
import statistics
import time

import torch
from torch import Tensor

from anyformer.checks.results import CheckResult, Series
from anyformer.checks.subject import Subject
from anyformer.models.calling import call_logits
from anyformer.models.files.limits import available_memory

_TRAINING_BYTES = 16
"""Of a parameter in float32: its value, its gradient and the two moments of AdamW, 4 bytes each."""
_ROUNDS = 5


def budget(subject: Subject) -> CheckResult:
    """Parameters, work per token, and the memory of training beside what there is."""
    count = subject.parameters()
    T = subject.plan.max_positions or 512
    saved = _saved_bytes(subject, 2, subject.length)
    each = 0.0 if saved is None else saved / (2 * subject.length)  # bytes of one token, as in a short text
    B = subject.limits.batch
    needed = _TRAINING_BYTES * count + each * B * T
    measured = f"{count:,} parameters, {6 * count / 1e9:.2g} GFLOP per trained token, {needed / 1e9:.2g} GB to train"
    how = f"of {B} × {T:,} tokens in float32" + (", activations not measured" if saved is None else "")
    here, named = _memory_here()
    expected = f"within {subject.limits.colab / 1e9:.0f} GB" + (
        f", and the {here / 1e9:.0f} GB {named}" if here else ""
    )
    if needed > min(subject.limits.colab, here or math.inf):
        cause = "a smaller batch, gradient accumulation, shorter sequences, or --activation_checkpointing"
        return CheckResult("budget", 0, "warn", f"{measured} {how}", expected, cause)
    return CheckResult("budget", 0, "ok", f"{measured} {how}", expected)


def _memory_here() -> tuple[int | None, str]:
    """Bytes of the GPU that is here, else those that can be taken now, and what they are."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "of the GPU"
    return available_memory(), "free here"


def _saved_bytes(subject: Subject, B: int, T: int) -> int | None:
    """Bytes that a forward keeps for its backward, parameters left out; None where it does not run with gradients."""
    own = {p.untyped_storage().data_ptr() for p in subject.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = subject.batch(0, B, T)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = call_logits(subject.module, subject.plan, inputs.input_ids, target_ids=inputs.target_ids)
    except Exception:  # noqa: BLE001  (a stranger's forward may raise anything; None says that it did)
        return None
    del logits  # until here: freed memory would be counted again under its address
    return sum(kept.values())


def footprint(subject: Subject) -> CheckResult:
    """What a forward keeps for its backward, against batch and length."""
    name, T = "memory", max(2, subject.length // 2)
    sizes = ((2, T), (4, T), (2, 2 * T)) if not subject.plan.only_length else ((2, subject.length), (4, subject.length))
    kept = {size: _saved_bytes(subject, *size) for size in sizes}
    if any(value is None for value in kept.values()):
        return CheckResult(name, 1, "n/a", "it does not run with gradients")
    megabytes = {f"{B} × {n}": (value or 0) / 1e6 for (B, n), value in kept.items()}
    table = ", ".join(f"{size}: {value:.2g} MB" for size, value in megabytes.items())
    bars = Series(
        "bars", {"MB": tuple(megabytes.values())}, tuple(megabytes), "kept for the backward pass", y_label="MB"
    )
    return CheckResult(name, 1, "note", f"kept for the backward pass, {table}", series=(bars,))


def speed(subject: Subject) -> CheckResult:
    """Wall time of a forward pass: medians."""
    took: dict[str, float] = {}
    for B, T in ((1, subject.length), (8, subject.length)):
        inputs = subject.batch(0, B, T)
        times = []
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            subject.logits(inputs)
            times.append(time.perf_counter() - begin)
        took[f"{B} × {T}"] = 1000 * statistics.median(times)
    table = ", ".join(f"{size}: {ms:.1f} ms" for size, ms in took.items())
    bars = Series("bars", {"ms": tuple(took.values())}, tuple(took), "a forward pass", y_label="ms")
    return CheckResult("speed", 1, "note", f"a forward pass, {table} (median of {_ROUNDS})", series=(bars,))
