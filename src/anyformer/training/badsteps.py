"""What becomes of a step whose loss or gradient is no number, or leaps out of those before it.

B batch, T time.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import TrainingError
from anyformer.core.files import write_atomically
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.models.plan import CallPlan
from anyformer.training.nonfinite import KEPT, first_nonfinite, gradient_error, loss_error
from anyformer.training.sharing import of_all

WINDOW, ENOUGH = 128, 64
"""Steps whose mean and deviation a step is compared with, and how many there must be: as OLMo 2 does, which skips steps
more than 6 standard deviations off (OLMo et al. 2024, arXiv 2501.00656; ``SkipStepOptimizer`` of OLMo-core)."""
IN_A_ROW = 10
"""Steps left out one after another before the run stops: it is then no single batch that is at fault."""
_REMEMBERED = 100  # steps whose batches are held where each step is not looked at; ids only, so it is little
_NAMES = ("input_ids", "labels", "next_ids", "target_ids")
_SHOWN = 200  # characters of each sequence's text in the file

Batch = Mapping[str, Any]


class BadSteps:
    """Stops at a bad step, or leaves its update out and goes on; either way its batch is written to ``folder``.

    skip: leave out instead of stopping. sigma: how many standard deviations above the mean of the last steps the loss
    or the gradient's norm may lie; None: anything finite. folder: bad_batches of the run, None to write nothing.
    A step that is left out counts as a step: schedule and data go on as if it had been made.
    """

    def __init__(
        self,
        *,
        skip: bool = False,
        sigma: float | None = None,
        folder: Path | None = None,
        tokenizer: Any = None,
        view: View | None = None,
    ) -> None:
        self.skip = skip
        self.sigma = sigma
        self.skipped: list[int] = []
        """Steps whose update was left out, 1-based."""
        self._folder = folder
        self._tokenizer = tokenizer
        self._view = view
        self._in_a_row = 0
        self._history: tuple[deque[float], deque[float]] = (deque(maxlen=WINDOW), deque(maxlen=WINDOW))
        self._batches: deque[tuple[int, Batch]] = deque()
        self._losses: list[float] = []
        self._first_bad: Tensor | None = None

    @property
    def reads(self) -> bool:
        """Whether each step's figures are read, also where that waits for a GPU."""
        return self.skip or self.sigma is not None

    def loss(self, module: nn.Module, plan: CallPlan, batch: Batch, loss: Tensor, step: int, *, free: bool) -> bool:
        """Take note of one forward pass of step ``step``; False where its loss must not enter a mean.

        free: a look at the value stalls nothing. Raises TrainingError where it is no number and nothing is left out.
        """
        while self._batches and self._batches[0][0] <= step - _REMEMBERED:
            self._batches.popleft()
        self._batches.append((step, {name: batch[name] for name in _NAMES if name in batch}))
        if not (free or self.reads):
            return True
        value = loss.item()
        self._losses.append(value)
        if math.isfinite(value):
            return True
        if not self.skip or first_nonfinite(module, gradients=False) is not None:
            raise self._stopped(loss_error(module, plan, batch, value, step), step, f"the loss is {value:g}")
        return False

    def gradient(self, module: nn.Module, norm: Tensor, step: int, *, scaled: bool) -> bool:
        """Judge a whole step by its losses and the norm of its gradient; True where its update was left out.

        scaled: an fp16 scaler is at work, which leaves out updates of infinite gradients by itself.
        """
        size = norm.item()
        losses, self._losses = self._losses, []
        if scaled and not math.isfinite(size):
            return False
        mean = sum(losses) / len(losses) if losses else 0.0
        reason = self._reason(mean, size)
        if reason is None:
            self._in_a_row = 0
            self._batches.clear()
            return False
        if not self.skip:
            finite = math.isfinite(size) and math.isfinite(mean)
            fix = "to go on without such steps: --resume with --bad_steps skip; or try a lower --learning_rate"
            error = TrainingError(f"{reason} at step {step:,}", KEPT.strip(), fix) if finite else None
            raise self._stopped(error or gradient_error(module, step), step, reason, losses, size)
        for parameter in module.parameters():
            parameter.grad = None  # no optimizer of torch updates such a parameter, nor what it remembers of it
        self._leave_out(step, reason, losses, size)
        return True

    def on_device(self, optimizer: Any, norm: Tensor, step: int) -> None:
        """Let the fused update skip itself where the gradient is not finite, and remember the first such step."""
        bad = ~torch.isfinite(norm)
        fused: Any = getattr(optimizer, "optimizer", optimizer)  # Lightning wraps it
        fused.found_inf = bad.float()
        first = torch.full_like(norm, math.inf) if self._first_bad is None else self._first_bad
        self._first_bad = torch.where(bad & first.isinf(), float(step), first)

    def check(self, module: nn.Module, plan: CallPlan, batch: Batch | None) -> None:
        """Where steps are not looked at one by one: raise for the first that went wrong since the last look."""
        if self._first_bad is not None and math.isfinite(first := self._first_bad.item()):
            raise self._stopped(
                loss_error(module, plan, batch, math.nan, int(first)), int(first), "the loss or its gradient is nan"
            )

    def findings(self) -> list[Finding]:
        """What was left out, in one line."""
        if not self.skipped:
            return []
        steps = ", ".join(f"{step:,}" for step in self.skipped[:10]) + (" …" if len(self.skipped) > 10 else "")
        count = "1 step" if len(self.skipped) == 1 else f"{len(self.skipped):,} steps"
        where = "" if self._folder is None else f"; their batches: {self._folder.name}/"
        return [Finding("skipped", "warn", f"the updates of {count}", "none", f"steps {steps}{where}")]

    def state_dict(self) -> dict[str, Any]:
        """What the judgement of later steps rests on."""
        return {
            "history": [list(figures) for figures in self._history],
            "in_a_row": self._in_a_row,
            "skipped": list(self.skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as ``state_dict`` was taken."""
        for figures, before in zip(self._history, state["history"], strict=True):
            figures.clear()
            figures.extend(before)
        self._in_a_row, self.skipped = state["in_a_row"], list(state["skipped"])

    def _reason(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step; None where nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss:g}"
        if not math.isfinite(norm):
            return "the gradient is not finite"
        if self.sigma is None:
            return None
        found = None
        for name, figure, before in zip(("loss", "gradient's norm"), (loss, norm), self._history, strict=True):
            if len(before) >= ENOUGH and found is None:
                mean = sum(before) / len(before)
                spread = math.sqrt(sum((one - mean) ** 2 for one in before) / (len(before) - 1))
                if figure > mean + self.sigma * spread:
                    found = f"the {name} leaps to {figure:.4g} (before: {mean:.4g} ± {spread:.2g})"
            before.append(figure)
        return found

    def _leave_out(self, step: int, reason: str, losses: list[float], norm: float) -> None:
        file = self._write(step, "skipped", reason, losses, norm)
        self.skipped.append(step)
        self._in_a_row += 1
        self._batches.clear()
        if self._view is not None:
            self._view.finding(Finding(f"step {step:,}", "warn", f"skipped: {reason}", reason=file))
        if self._in_a_row >= IN_A_ROW:
            raise TrainingError(
                f"{IN_A_ROW} steps in a row were skipped, the last is step {step:,}: {reason}",
                "it is no single batch that is at fault; the weights were not updated with any of them",
                "try a lower --learning_rate or more --warmup_steps",
            )

    def _stopped(
        self, error: TrainingError, step: int, reason: str, losses: list[float] | None = None, norm: float = math.nan
    ) -> TrainingError:
        """The error with the place of the batch."""
        file = self._write(step, "stopped", reason, self._losses if losses is None else losses, norm)
        return type(error)(error.what, f"{error.detail}\n{file}".strip(), error.fix)

    def _write(self, step: int, action: str, reason: str, losses: list[float], norm: float) -> str:
        """Write the batches of a step as JSON, of all processes; returns a sentence that says where they are."""
        batches = [batch for at, batch in self._batches if at == step]
        mine = {name: [row for batch in batches if name in batch for row in batch[name].tolist()] for name in _NAMES}
        parts = of_all(mine)  # each process comes here in the same step: they judge by the same figures
        if self._folder is None:
            return ""
        rows = {name: [row for part in parts for row in part[name]] for name in _NAMES}
        record = {
            "step": step,
            "action": action,
            "reason": reason,
            "losses": [loss if math.isfinite(loss) else str(loss) for loss in losses],
            "grad_norm": norm if math.isfinite(norm) else str(norm),
            **{name: values for name, values in rows.items() if values},
            "text": [self._text(row) for row in rows["input_ids"]],
        }
        path = self._folder / f"step-{step:08d}.json"
        try:
            self._folder.mkdir(exist_ok=True)
            write_atomically(path, (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
        except OSError as error:
            return f"its batch could not be written to {path}: {error}"
        return f"its batch: {path}"

    def _text(self, ids: list[int]) -> str:
        """The beginning of a sequence as text; empty where the tokenizer cannot say."""
        if self._tokenizer is None:
            return ""
        try:
            return str(self._tokenizer.decode(ids))[:_SHOWN].encode("utf-8", "replace").decode()
        except (ValueError, KeyError, IndexError, TypeError, OverflowError):  # a tokenizer of the user's own
            return ""
