"""The one short trainer of the checks: a copy of the module, AdamW, no schedule, nothing kept."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from anyformer.models.calls.calm import calm
from anyformer.models.probes import set_mode

_RATE = 3e-3
"""Learning rate of AdamW: what small transformers (width 32–128) learn fastest with; larger ones are cut by norm."""


@dataclass
class Steps:
    """What a copy of a module did in some steps."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    """In nats, before each step."""

    @classmethod
    def of(cls, module: nn.Module, rate: float = _RATE) -> Steps:
        """A copy in training mode, dropout apart. Raises what deepcopy raises."""
        twin = copy.deepcopy(module)
        set_mode(twin, True)
        for part in twin.modules():
            part.training = part.training and not isinstance(part, nn.modules.dropout._DropoutNd)
        return cls(twin, torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], rate, weight_decay=0.0))

    def go(
        self, steps: int, loss: Callable[[nn.Module, int], Tensor], *, until: float = -1.0, seconds: float = 20.0
    ) -> Steps:
        """Steps on ``loss(module, step)``; ends where it falls below ``until``, or after so many seconds."""
        begin, first = time.monotonic(), len(self.losses)
        for step in range(first, first + steps):
            torch.manual_seed(step)
            with torch.enable_grad(), calm():
                value = loss(self.module, step)
                self.optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.losses.append(float(value.detach()))
            if self.losses[-1] < until or time.monotonic() - begin > seconds:
                break
        return self
