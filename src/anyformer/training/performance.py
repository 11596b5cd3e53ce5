"""How fast a run is and what it takes: tokens per second, MFU, memory, the GPU's own figures. Once per row of metrics.

Legend: B batch, T time.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anyformer.models.callplan import CallPlan
from anyformer.models.objectives import batch_logits
from anyformer.models.probes import untouched
from anyformer.training.adapter import UniversalModelAdapter, log_interval
from anyformer.training.callbacks import ShowProgress
from anyformer.training.sharing import process_count

_TERA = 1e12
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"H100 PCIe", {"half": 756, "tf32": 378, "32": 51}),
    (r"H100 NVL", {"half": 835.5, "tf32": 417.5, "32": 60}),
    (r"H100 80GB HBM3", {"half": 989.4, "tf32": 494.7, "32": 66.9}),
    (r"H200 NVL", {"half": 835.5, "tf32": 417.5, "32": 60}),
    (r"H200", {"half": 989.4, "tf32": 494.7, "32": 66.9}),
    (r"A100\b", {"half": 312, "tf32": 156, "32": 19.5}),
    (r"A30", {"half": 165, "tf32": 82, "32": 10.3}),
    (r"A10", {"half": 125, "tf32": 62.5, "32": 31.2}),
    (r"L40S", {"half": 362, "tf32": 183, "32": 91.6}),
    (r"L40", {"half": 181, "tf32": 90.5, "32": 90.5}),
    (r"L4", {"half": 121, "tf32": 60, "32": 30.3}),
    (r"RTX 4090(?! (?:Laptop|D))", {"half": 165.2, "tf32": 82.6, "32": 82.6}),
    (r"RTX 3090(?! (?:Laptop|Ti))", {"half": 71, "tf32": 35.6, "32": 35.6}),
    (r"V100-SXM2\b", {"16": 125, "32": 15.7}),
    (r"V100-PCIE", {"16": 112, "32": 14}),
    (r"T4", {"16": 65, "32": 8.1}),
)
"""Name → peak in TFLOP/s without sparsity, sums in float32: half for float16 and bfloat16. From NVIDIA's datasheets of
H100, H200, A100, A30, A10, L40S, L40, L4, V100 and T4 and its whitepapers on Ada and GA102. (The table in
lightning_fabric.utilities.throughput mixes in figures with sparsity, for H200 and H100 NVL among others.)"""


def peak_flops(name: str, precision: str, *, tf32: bool = False) -> float | None:
    """FLOP/s of a GPU at most, by its name, in precision "32", "16" or "bf16"; None where nobody has said.

    tf32: matrix products in "32" use TensorFloat-32.
    """
    for pattern, peaks in _PEAKS if "MIG" not in name else ():  # a slice of a GPU
        if re.search(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])", name):
            kinds = ("tf32" if tf32 else "32",) if precision == "32" else (precision, "half")
            found = next((peaks[kind] for kind in kinds if kind in peaks), None)
            return None if found is None else found * _TERA
    return None


def training_flops(module: nn.Module, plan: CallPlan, batch: Mapping[str, Any]) -> float:
    """Floating-point operations of training on a batch: those of the matrix products of one forward, times 3.

    The backward pass takes twice the forward's; what is computed again to save memory does not count, and attention
    counts in full, causal or not (PaLM, Chowdhery et al. 2022, appendix B). Counted on the first row of the batch, and
    taken B times; the module stays as it was.
    """
    row = {name: value[:1] for name, value in batch.items() if isinstance(value, torch.Tensor) and value.dim()}
    counter = FlopCounterMode(display=False)
    # attention by its definition: the counter does not know every fused kernel
    with untouched(module, gradients=False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module.train()  # in eval mode torch takes fused layers that it does not know either
        batch_logits(module, plan, row)
    return 3.0 * float(counter.get_total_flops()) * int(batch["input_ids"].shape[0])


class LogRows(pl.Callback):
    """Writes the row of metrics of each log interval, and what it cost; in between it reads a clock that others read.

    To the loggers themselves: ``self.log`` takes half a millisecond for a figure, and gives it again in the next row.

    tokens_per_second (training alone); mfu, the share of the GPU's peak that the model's own work makes up, where the
    peak is known; memory_gb, resident memory of this process; gpu_memory_gb, the most that tensors took so far;
    gpu_utilization in percent, where NVML is installed. 1 GB is 10⁹ bytes. No MFU on a CPU: nobody states its peak, and
    one that is measured would be another figure each time.
    """

    def __init__(self, progress: ShowProgress, precision: str) -> None:
        self._progress = progress
        self._precision = precision
        self._mark = (0.0, 0)
        self._peak: float | None = None
        self._flops_per_token: float | None = None
        self._nvml = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(pl_module, UniversalModelAdapter):
            pl_module.logs_rows = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = (self._progress.train_seconds, self._progress.tokens)
        if pl_module.device.type == "cuda":
            tf32 = torch.backends.cuda.matmul.allow_tf32
            self._peak = peak_flops(torch.cuda.get_device_name(pl_module.device), self._precision, tf32=tf32)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if self._peak is not None and self._flops_per_token is None:
            self._count(pl_module, batch)
        if trainer.fit_loop._should_accumulate() or trainer.global_step % max(1, log_interval(trainer)):
            return
        seconds, tokens = self._progress.train_seconds - self._mark[0], self._progress.tokens - self._mark[1]
        self._mark = (self._progress.train_seconds, self._progress.tokens)
        self._write(trainer, pl_module, batch, {**self._speed(tokens, seconds), **self._taken(pl_module.device)})

    def _write(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Any], figures: dict[str, float]
    ) -> None:
        """The row of the step just done, before anything is saved of it: a run that is left then would lack it."""
        row = pl_module.take_row(batch) if isinstance(pl_module, UniversalModelAdapter) else {}
        # in float32, as what Lightning logs itself
        row = {name: float(torch.tensor(value)) for name, value in {**row, **figures}.items()}
        for logger in trainer.loggers if row else ():
            logger.log_metrics({**row, "epoch": float(trainer.current_epoch)}, trainer.global_step)
            logger.save()

    def _count(self, pl_module: pl.LightningModule, batch: dict[str, Any]) -> None:
        self._flops_per_token = 0.0
        if not isinstance(pl_module, UniversalModelAdapter):
            return
        tokens = int(batch.get("tokens", batch["input_ids"].numel()))  # as the rate counts them
        try:
            self._flops_per_token = training_flops(pl_module.model, pl_module.call_plan, batch) / max(1, tokens)
        except Exception as error:  # noqa: BLE001 - a stranger's module, called in a way of its own; only a figure lacks
            warnings.warn(f"no MFU: the model's operations could not be counted ({error})", stacklevel=2)

    def _speed(self, tokens: int, seconds: float) -> dict[str, float]:
        if seconds <= 0:
            return {}
        rate = tokens / seconds
        if not self._peak or not self._flops_per_token:
            return {"tokens_per_second": rate}
        return {"tokens_per_second": rate, "mfu": rate * self._flops_per_token / (self._peak * process_count())}

    def _taken(self, device: torch.device) -> dict[str, float]:
        figures = {}
        if (resident := resident_bytes()) is not None:
            figures["memory_gb"] = resident / 1e9
        if device.type == "cuda":
            figures["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
            if self._nvml:
                try:
                    figures["gpu_utilization"] = float(torch.cuda.utilization(device))
                except Exception:  # noqa: BLE001 - nvidia-ml-py is not installed, or its driver does not tell: no figure
                    self._nvml = False
        return figures


def resident_bytes() -> int | None:
    """Memory that this process holds in RAM; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
