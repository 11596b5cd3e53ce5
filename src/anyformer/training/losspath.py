"""The loss of a run's batches: head and cross-entropy in one, or in the logits' memory, where proven; else plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.objectives import batch_logits, objective_loss, objective_total
from anyformer.models.plan import CallPlan, Objective
from anyformer.training.blocks import BlockPath
from anyformer.training.equal import computed_in, some_rows
from anyformer.training.fusedhead import choose_head, fused_loss, fused_total
from anyformer.training.inplace import NAME, choose_in_place, loss_of_logits
from anyformer.training.microbatch import lacks_memory
from anyformer.training.sharing import from_first, leads

_Result = TypeVar("_Result")


class LossPath:
    """Decided on the first training batch; a run that goes on keeps to it, since the last digits depend on it."""

    def __init__(self, blocks: BlockPath | None = None) -> None:
        self.blocks = blocks or BlockPath()
        """How the repeated blocks are run."""
        self.finding: Finding | None = None
        """What was chosen of the head and why; None before the first batch."""
        self.head: str | None = None
        """The weight of the head that is fused with the loss; empty where none is, None where it is not decided."""
        self.in_place = False
        """Whether the loss is computed in the logits' own memory."""
        self._in_place_finding: Finding | None = None

    @property
    def findings(self) -> list[Finding]:
        """What was chosen and why."""
        return [finding for finding in (self.finding, self._in_place_finding) if finding is not None]

    def loss(
        self,
        module: nn.Module,
        plan: CallPlan,
        objective: Objective,
        batch: Mapping[str, Any],
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Mean nats per target of a training batch, as ``objective_loss`` computes it."""
        if self.head is None:
            self._decide(module, plan, objective, batch, label_smoothing)
        if self.blocks.undecided:
            some = some_rows(batch, plan)
            part, whole = (
                partial(self._loss, module, plan, objective, rows, label_smoothing) for rows in (some, batch)
            )
            self.blocks.decide(module, part, whole, computed_in(next(module.parameters())))
        try:
            with self.blocks.in_use():
                return self._loss(module, plan, objective, batch, label_smoothing)
        except Exception as error:
            if lacks_memory(error):
                raise
            if not self.blocks.stops_compiling(error):
                raise
        with self.blocks.in_use():
            return self._loss(module, plan, objective, batch, label_smoothing)

    def _loss(
        self, module: nn.Module, plan: CallPlan, objective: Objective, batch: Mapping[str, Any], label_smoothing: float
    ) -> Tensor:
        if self.head:
            loss = self._fused(lambda head: fused_loss(module, plan, objective, batch, head, label_smoothing))
            if loss is not None:
                return loss
        if self.in_place:
            loss, reason = loss_of_logits(module, plan, objective, batch, label_smoothing)
            if reason:
                self._not_alone(reason)
            return loss
        logits = batch_logits(module, plan, batch)
        return objective_loss(
            objective, logits, batch["labels"], batch.get("next_ids"), label_smoothing=label_smoothing
        )

    def total(
        self, module: nn.Module, plan: CallPlan, objective: Objective, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Summed nats and number of targets of a held-out batch, as ``objective_total`` computes them."""
        if self.head:
            total = self._fused(lambda head: fused_total(module, plan, objective, batch, head))
            if total is not None:
                return total
        logits = batch_logits(module, plan, batch)
        return objective_total(objective, logits, batch["labels"], batch.get("next_ids"))

    def _decide(
        self, module: nn.Module, plan: CallPlan, objective: Objective, batch: Mapping[str, Any], label_smoothing: float
    ) -> None:
        """Of several processes the first one proves it for all: their batches differ."""
        head: str | None = None
        in_place: tuple[bool, Finding | None] = (False, None)
        finding: Finding | None = None
        if leads():
            head, finding = choose_head(module, plan, objective, batch, label_smoothing)
            if head is None:
                in_place = choose_in_place(module, plan, objective, batch, label_smoothing)
        head, self.finding, (self.in_place, self._in_place_finding) = from_first((head, finding, in_place))
        self.head = head or ""

    def resume(self, head: str, *, in_place: bool = False) -> None:
        """Go on as the run began."""
        self.head, self.in_place = head, in_place
        self.finding = Finding("fused head", "note", head or "off", reason="as the run began")
        self._in_place_finding = Finding(NAME, "note", "on", reason="as the run began") if in_place else None

    def state_dict(self) -> dict[str, Any]:
        """What was decided, for a checkpoint."""
        return {"fused_head": self.head, "in_place_loss": self.in_place, "blocks": self.blocks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the run of a checkpoint began; older ones know nothing of some of it.

        One that was saved before the first batch had decided nothing: the first batch does.
        """
        if state.get("fused_head", "") is not None:
            self.resume(state.get("fused_head", ""), in_place=bool(state.get("in_place_loss")))
        self.blocks.load_state_dict(state.get("blocks"))

    def _fused(self, compute: Callable[[str], _Result | None]) -> _Result | None:
        """What the fused way gives; None, and never again, where the module does not go with it any more."""
        assert self.head is not None
        try:
            result = compute(self.head)
        except Exception as error:  # what a left-out head stops in a stranger's code; the plain way raises the rest
            if lacks_memory(error):
                raise  # the plain way takes more
            result = None
        if result is None:
            self._give_up()
        return result

    def _give_up(self) -> None:
        reason = f"in a later batch the logits were not what {self.head} makes: they are computed whole since then"
        self.finding = Finding("fused head", "warn", "off", reason=reason)
        self.head = ""

    def _not_alone(self, reason: str) -> None:
        """For this batch alone: it was computed the plain way, from the same logits."""
        why = f"in a later batch {reason}: the loss of such batches is computed the plain way"
        self._in_place_finding = Finding(NAME, "warn", "not in every batch", reason=why)
