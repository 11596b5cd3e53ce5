"""``--batch_size auto``: how many sequences of a batch go through this model at once on this device.

B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import TrainingError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.models.files.limits import available_memory
from anyformer.models.plan import CallPlan, Objective
from anyformer.models.probes import placed, set_mode, untouched
from anyformer.training.blocks import BlockPath
from anyformer.training.losspath import LossPath
from anyformer.training.microbatch import LESS, free_memory, is_device_memory
from anyformer.training.optim import make_optimizer
from anyformer.training.text import Text

SHARE = 0.5
"""Of the memory that a CPU has free, how much a run may take: the data, other programs and the peaks of backward need
the rest."""
PEAK = 2
"""What backward takes at its peak, in units of what forward keeps for it: a gradient is as large as what it is of."""
_STATE = {"adamw": 4, "sgd": 3, "adafactor": 2}
"""Weights, gradients and what the optimizer remembers, in units of the weights."""


def first_rows(
    settings: TrainSettings,
    module: nn.Module,
    plan: CallPlan,
    text: Text,
    precision: str,
    device: torch.device,
    view: View,
    begun: Mapping[str, Any],
) -> tuple[int | None, list[Finding]]:
    """How many sequences go through the model at once when a run begins; None: as many as a batch has.

    begun: the values with which a resumed run began; found out by ``auto``, it stays as it was.
    """
    if settings.batch_size != "auto" or begun:
        return begun.get("micro_batch"), []
    view.status("trying how many sequences fit into memory")
    rows, finding = fitting_rows(settings, module, plan, text.objective, text.first_batch(), precision, device)
    view.finding(finding)
    return rows, [finding]


def fitting_rows(
    settings: TrainSettings,
    module: nn.Module,
    plan: CallPlan,
    objective: Objective,
    batch: Mapping[str, Any],
    precision: str,
    device: torch.device,
) -> tuple[int, Finding]:
    """The largest power of two, up to the batch, of sequences that fit at once, and how that was found.

    On a GPU two whole steps are made with each candidate, the largest first; on a CPU, where too much would end the
    process, memory is counted (``SHARE`` of what is free). Weights, buffers, gradients and random state are as before.
    Raises TrainingError where not even one sequence fits.
    """
    candidates = [1 << n for n in range(settings.sequences.bit_length())][::-1]
    if device.type == "cpu":
        return _by_counting(settings, module, plan, objective, batch, candidates)
    return _by_trial(settings, module, plan, objective, batch, precision, device, candidates)


def _by_trial(
    settings: TrainSettings,
    module: nn.Module,
    plan: CallPlan,
    objective: Objective,
    batch: Mapping[str, Any],
    precision: str,
    device: torch.device,
    candidates: list[int],
) -> tuple[int, Finding]:
    for rows in candidates:
        if _fits(settings, module, plan, objective, _tiled(batch, rows), precision, device):
            less = "" if rows == candidates[0] else f"; {2 * rows} do not"
            where = "" if device.type == "cuda" else "; not verified on a GPU"
            why = f"two steps with as many fit into the device's memory{less}{where}"
            return rows, _finding(settings, rows, why)
    length = batch["input_ids"].shape[1]
    raise TrainingError(f"one sequence of {length:,} tokens does not fit into the memory of the device", fix=LESS)


def _finding(settings: TrainSettings, rows: int, why: str) -> Finding:
    of = "" if rows >= settings.sequences else f" of the {settings.sequences} in a batch"
    return Finding("micro-batch", "ok", f"{rows} sequences at once{of}", reason=why)


def _tiled(batch: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """So many rows, those of the batch again and again."""
    size = len(batch["input_ids"])
    index = torch.arange(rows) % size
    return {
        name: value[index] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for name, value in batch.items()
    }


def _fits(
    settings: TrainSettings,
    module: nn.Module,
    plan: CallPlan,
    objective: Objective,
    batch: dict[str, Any],
    precision: str,
    device: torch.device,
) -> bool:
    """Whether two steps run: the second beside what the optimizer remembers of the first."""
    fits = True
    with _as_before(module), placed(module, device), untouched(module):
        try:
            _steps(settings, module, plan, objective, batch, precision, device)
        except RuntimeError as error:
            if not is_device_memory(error):
                raise
            fits = False
        finally:
            module.zero_grad(set_to_none=True)
    free_memory()
    return fits


def _steps(
    settings: TrainSettings,
    module: nn.Module,
    plan: CallPlan,
    objective: Objective,
    batch: dict[str, Any],
    precision: str,
    device: torch.device,
) -> None:
    set_mode(module, True)
    on_device = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    betas = (settings.beta1, settings.beta2)
    optimizer = make_optimizer(
        module, settings.optimizer, learning_rate=0.0, weight_decay=0.0, betas=betas, fused=precision != "16"
    )
    path = _loss_path(settings)
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    for _ in range(2):
        with torch.autocast(device.type, dtype=half, enabled=precision != "32"):
            loss = path.loss(module, plan, objective, on_device, settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _loss_path(settings: TrainSettings) -> LossPath:
    """As a run will have it; what it decides is said once the run begins."""
    path = LossPath(BlockPath(checkpointing=settings.activation_checkpointing))
    path.blocks.told = lambda finding: None
    return path


@contextmanager
def _as_before(module: nn.Module) -> Iterator[None]:
    """Weights with the very same bits afterwards: a step at rate 0 may still turn −0 into 0."""
    kept = [(parameter, parameter.detach().cpu().clone()) for parameter in module.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in kept:
                parameter.copy_(values)


def _by_counting(
    settings: TrainSettings,
    module: nn.Module,
    plan: CallPlan,
    objective: Objective,
    batch: Mapping[str, Any],
    candidates: list[int],
) -> tuple[int, Finding]:
    free = available_memory()
    if free is None:
        return candidates[0], _finding(settings, candidates[0], "the system does not say how much memory is free")
    first, second = (_kept_bytes(settings, module, plan, objective, _tiled(batch, rows)) for rows in (1, 2))
    each = max(second - first, 1)
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    state = _STATE[settings.optimizer] * weights
    rows = next((n for n in candidates if state + PEAK * (first + (n - 1) * each) <= SHARE * free), 1)
    needed = state + PEAK * (first + (rows - 1) * each)
    why = f"about {needed / 1e9:.2f} GB, counted on one and two sequences, of {free / 1e9:.1f} GB free: at most half"
    if needed > SHARE * free:
        why = f"one sequence takes about {needed / 1e9:.2f} GB, more than half of the {free / 1e9:.1f} GB free"
    return rows, _finding(settings, rows, why)


def _kept_bytes(
    settings: TrainSettings, module: nn.Module, plan: CallPlan, objective: Objective, batch: dict[str, Any]
) -> int:
    """What forward keeps for backward beside the weights, in bytes; storages that are kept twice count once."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensors, too: an address must not be given out again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with ExitStack() as held:
        held.enter_context(untouched(module))
        held.enter_context(torch.enable_grad())
        set_mode(module, True)
        path = _loss_path(settings)
        path.loss(module, plan, objective, batch)  # decides how
        held.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        path.loss(module, plan, objective, batch)
    return sum(size for size, _ in kept.values())
