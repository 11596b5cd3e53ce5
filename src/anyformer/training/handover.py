"""What the first process of a run has prepared and the others need: they measure and choose nothing themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anyformer.core.errors import DataError, SettingsError
from anyformer.core.findings import Finding
from anyformer.core.settings import TrainSettings
from anyformer.data.module import AdaptiveTokenizerDataModule
from anyformer.data.pairs import PairDataModule
from anyformer.models.callplan import CallPlan
from anyformer.models.objectives import batch_logits, objective_loss
from anyformer.models.plan import Objective
from anyformer.models.probes import placed, untouched
from anyformer.runs.directory import RunDirectory
from anyformer.training.effective import Effective
from anyformer.training.text import Text


@dataclass(frozen=True)
class HandOver:
    """A run that is ready to be trained."""

    run: str
    settings: dict[str, Any]
    plan: dict[str, Any]
    effective: dict[str, Any]
    objective: Objective
    fingerprint: str | None
    """Of the text: every process must read the same."""
    exact: bool
    """Whether examples of one length alone share a batch."""
    checkpoint: str | None
    """The one to go on from."""
    elapsed: float
    """Seconds since the run began, for ``max_time``."""
    unused: bool
    """Whether the model has parameters that take no part in the loss."""

    @classmethod
    def of(
        cls,
        run: RunDirectory,
        settings: TrainSettings,
        plan: CallPlan,
        text: Text,
        effective: Effective,
        checkpoint: Path | None,
        elapsed: float,
        unused: bool,
    ) -> HandOver:
        """What ``run_training`` has made."""
        return cls(
            run=str(run.path.resolve()),
            settings=settings.to_dict(),
            plan=plan.to_dict(),
            effective=effective.to_dict(),
            objective=text.objective,
            fingerprint=text.fingerprint,
            exact=text.pairs is not None and text.pairs.exact,
            checkpoint=None if checkpoint is None else str(checkpoint.resolve()),
            elapsed=elapsed,
            unused=unused,
        )

    def to_dict(self) -> dict[str, Any]:
        """As it is told."""
        return asdict(self)

    def require_same(self, text: Text, rank: int) -> None:
        """DataError where this process reads other text than the first one."""
        if text.fingerprint != self.fingerprint:
            raise DataError(
                f"{text.name} is not the same for process {rank} as for the first one",
                "each reads it for itself, and together they would train on neither",
                "put the data where every machine sees it",
            )


def require_shareable(text: Text) -> None:
    """SettingsError for batches that several processes cannot divide among them."""
    if not isinstance(text.datamodule, AdaptiveTokenizerDataModule | PairDataModule):
        raise SettingsError(
            f"{text.name} makes its own batches, and each process would train on all of them",
            fix="one device, or data as text: anyformer then divides each batch among the processes",
        )


def leaves_out(module: nn.Module, plan: CallPlan, text: Text, device: torch.device, findings: list[Finding]) -> bool:
    """Whether parameters take no part in the loss of the first batch: DDP would wait for their gradients.

    Adds a finding that names them. Raises SettingsError where the batches cannot be shared at all.
    """
    require_shareable(text)
    first = text.first_batch()
    batch = {name: value[:2].to(device) for name, value in first.items() if isinstance(value, torch.Tensor)}
    with placed(module, device), untouched(module), torch.enable_grad():
        logits = batch_logits(module, plan, batch)
        loss = objective_loss(text.objective, logits, batch["labels"], batch.get("next_ids"))
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    unused = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
    if unused:
        shown = ", ".join(unused[:3]) + (" …" if len(unused) > 3 else "")
        reason = f"{shown}: the processes look for them in each step, which takes a little time"
        findings.append(Finding("unused parameters", "note", f"{len(unused):,}", reason=reason))
    return bool(unused)
