"""Optimizers and schedules of the learning rate, with the values that fit each where nothing is said."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from anyformer.core.errors import SettingsError
from anyformer.core.settings import OptimizerName, ScheduleName

WSD_DECAY = 0.2
"""Share of the run in which the rate falls. With 20 % and the form 1 − √x a constant rate reaches what a cosine does
(Hägele et al. 2024, arXiv 2405.18392, section 3); 10 % was enough for MiniCPM (Hu et al. 2024, arXiv 2404.06395)."""
SGD_RATE = 0.1
"""With momentum 0.9 (He et al. 2016, arXiv 1512.03385, section 3.4)."""
ADAFACTOR_RATE = 0.01
"""Largest step relative to the size of a parameter: ρ = min(0.01, 1/√t) (Shazeer & Stern 2018, arXiv 1804.04235)."""
WEIGHT_DECAY = {"adamw": 0.1, "sgd": 1e-4, "adafactor": 0.0}
"""0.1: Brown et al. 2020, appendix B. 1e-4: He et al. 2016; torch adds it to the gradient, so that a step shrinks by
rate × decay ÷ (1 − momentum), the same 1e-4 as AdamW's. Adafactor's authors use none."""


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices (two axes or more) decay, biases and norm scales do not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    module: nn.Module,
    kind: OptimizerName,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool,
) -> torch.optim.Optimizer:
    """The optimizer over the module's trainable parameters; ``fused`` updates them in one kernel, where torch has one.

    betas: both of AdamW, the first is the momentum of SGD; Adafactor takes neither. Of complex weights (a state
    space's) torch 2.13 has no such kernel, and Adafactor refuses them (SettingsError).
    """
    groups = decay_groups(module, weight_decay)
    complex_ones = [n for n, p in module.named_parameters() if p.requires_grad and p.is_complex()]
    fused = fused and not complex_ones
    if kind == "adafactor" and complex_ones:
        raise SettingsError(f"optimizer is adafactor, which has no rule for complex weights ({complex_ones[0]})")
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=betas[0], fused=fused)
    if kind == "adafactor":
        return torch.optim.Adafactor(groups, lr=learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def rate_factor(
    kind: ScheduleName, step: int, *, warmup_steps: int, total_steps: int | None, min_lr_ratio: float
) -> float:
    """Factor on the peak learning rate for the update after ``step`` updates.

    Rises linearly to 1 at update ``warmup_steps``. Then, to ``min_lr_ratio`` at ``total_steps``: a half cosine
    (Loshchilov & Hutter 2017), a line, or constant until the last ``WSD_DECAY`` of the run; or constant to the end, as
    where ``total_steps`` is unknown.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if total_steps is None or kind == "constant":
        return 1.0
    begin = warmup_steps
    if kind == "wsd":
        begin = max(begin, total_steps - max(1, round(WSD_DECAY * total_steps)))
    progress = min(1.0, max(0, step - begin) / max(1, total_steps - begin))
    falling = {
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": lambda: 1.0 - progress,
        "wsd": lambda: 1.0 - math.sqrt(progress),
    }
    return min_lr_ratio + (1.0 - min_lr_ratio) * falling[kind]()


class RateSchedule(LambdaLR):
    """The schedule of ``rate_factor`` as a torch scheduler, stepped once per optimizer step.

    What was saved says where it stands; what is set now (rate, form, weight decay, betas) holds from there on. torch
    alone would go on with the values that were saved and never say so.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kind: ScheduleName,
        *,
        warmup_steps: int,
        total_steps: int | None,
        min_lr_ratio: float,
    ) -> None:
        def factor(step: int) -> float:
            return rate_factor(
                kind, step, warmup_steps=warmup_steps, total_steps=total_steps, min_lr_ratio=min_lr_ratio
            )

        self._factor = factor
        self._set = [
            {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}
            for group in optimizer.param_groups
        ]
        super().__init__(optimizer, factor)

    def state_dict(self) -> dict[str, Any]:
        """torch's, without what is set."""
        return {key: value for key, value in super().state_dict().items() if key not in ("_factor", "_set")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of the state; Lightning restores the optimizer before."""
        rates = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = rates
        self._last_lr = [rate * self._factor(self.last_epoch) for rate in rates]
        for group, given, rate, now in zip(self.optimizer.param_groups, self._set, rates, self._last_lr, strict=True):
            group.update(given, initial_lr=rate, lr=now)
            _place_counts(self.optimizer, group)


def _place_counts(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Adam's count of steps where the kernel that is chosen now reads it: torch put it where the saved one did.

    A fused or capturable kernel reads it on the parameter's device, the others on the CPU (``_init_group`` of
    torch.optim.adam); a run may have been saved in float16, where nothing is fused, or on another device.
    """
    if not {"fused", "capturable"} & group.keys():
        return
    there = bool(group.get("fused") or group.get("capturable"))
    for parameter in group["params"]:
        count = optimizer.state[parameter].get("step") if parameter in optimizer.state else None
        if isinstance(count, torch.Tensor):
            device = parameter.device if there else torch.device("cpu")
            optimizer.state[parameter]["step"] = count.to(device=device, dtype=torch.float32)


def default_learning_rate(kind: OptimizerName, module: nn.Module, embedding_rows: int | None) -> tuple[float, str]:
    """Peak learning rate that fits the optimizer, and where it is from."""
    if kind == "sgd":
        return SGD_RATE, "of SGD with momentum (He et al. 2016)"
    if kind == "adafactor":
        return ADAFACTOR_RATE, "× the size of each parameter (Shazeer & Stern 2018)"
    return suggested_learning_rate(
        module, embedding_rows
    ), "from the number of parameters (Kaplan et al. 2020, eq. D.1)"


def suggested_learning_rate(module: nn.Module, embedding_rows: int | None) -> float:
    """Peak learning rate from the number of parameters N outside the token embedding.

    0.003239 − 0.0001395 · ln N (Kaplan et al. 2020, Scaling Laws, eq. D.1), never below 1e-5.
    """
    counted = sum(
        parameter.numel()
        for parameter in module.parameters()
        if not (parameter.dim() == 2 and parameter.shape[0] == embedding_rows)
    )
    return max(1e-5, 0.003239 - 0.0001395 * math.log(max(counted, 1)))


def planned_steps(trainer: pl.Trainer) -> int | None:
    """Optimizer steps that a trainer will take; None where it does not know."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        # asking the trainer would build its loader before a resumed position is restored (Lightning #20550)
        batches = len(datamodule.train_dataloader())
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
        bounds = [per_epoch * epochs if epochs else None, trainer.max_steps if trainer.max_steps > 0 else None]
        return min((bound for bound in bounds if bound is not None), default=None)
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) else None
