"""What a run really uses where a setting was left to be derived, each with its reason."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from anyformer.core.errors import SettingsError
from anyformer.core.findings import Finding
from anyformer.core.settings import TrainSettings
from anyformer.models.callplan import CallPlan
from anyformer.training.optim import WEIGHT_DECAY, default_learning_rate

LONGEST_DEFAULT = 512
"""Tokens per sequence at most, where not set: what a 12 GB device trains a 124 M model with at batch size 16."""
LAST_POSITION_DEFAULT = 64
"""As many of a model that gives the last position alone: the work grows with the square."""
DEFAULT_EPOCHS = 3
EVALUATIONS = 10
"""Evaluations per run where eval_every is not set."""
EVAL_TOKENS = 65_536
"""Held-out tokens per evaluation during training: a standard error near 0.01 nats at 3 nats of spread."""
LEAST_EVAL_BLOCKS = 64
"""Held-out sequences per evaluation at least; above, no more than were trained on since the last: it costs less."""
LOG_EVERY = 10
LOG_ROWS = 20
"""Steps between rows of metrics where not set, fewer in a run that would have fewer rows than this."""


@dataclass(frozen=True)
class Effective:
    """The values of one run after everything was derived."""

    device: str
    precision: str
    max_length: int
    steps_per_epoch: int
    """Of a stream, whose length is not known, the whole run."""
    total_steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    eval_every: int
    eval_blocks: int
    log_every: int
    micro_batch: int
    """Sequences that go through the model at once; fewer than in a batch where memory does not allow it."""

    def to_dict(self) -> dict[str, Any]:
        """As the manifest stores it."""
        return asdict(self)


def choose_device(use_gpu: bool) -> torch.device:
    """CUDA, then Apple's GPU, then the CPU."""
    if use_gpu and torch.cuda.is_available():
        return torch.device("cuda")
    if use_gpu and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_max_length(setting: int | None, plan: CallPlan) -> tuple[int, list[Finding]]:
    """Tokens per training sequence. Raises SettingsError for more than the model has positions."""
    limit, only = plan.max_positions, plan.only_length
    if only is not None:
        if setting not in (None, only):
            raise SettingsError(
                f"max_length is {setting:,}, but the model runs at T = {only:,} alone",
                fix=f"--max_length {only}, or leave it out",
            )
        return only, [
            Finding("max_length", "note", f"{only:,} tokens", reason="the only length that the model runs at")
        ]
    if setting is not None:
        if limit is not None and setting > limit:
            raise SettingsError(
                f"max_length is {setting:,}, but the model takes sequences of up to {limit:,} tokens",
                fix=f"--max_length {limit}, or build the model with more positions",
            )
        return setting, []
    if plan.layout == "last" and (limit is None or limit > LAST_POSITION_DEFAULT):
        length = LAST_POSITION_DEFAULT
        reason = "each token is a call of its own; --max_length trains longer ones, more slowly"
        return length, [Finding("max_length", "note", f"{length:,} tokens", reason=reason)]
    if limit is None:
        reason = "the model shows no limit"
        return LONGEST_DEFAULT, [Finding("max_length", "note", f"{LONGEST_DEFAULT:,} tokens", reason=reason)]
    length = min(limit, LONGEST_DEFAULT)
    if length == limit:
        return length, [Finding("max_length", "note", f"{length:,} tokens", reason="all positions of the model")]
    reason = f"the model has {limit:,} positions; --max_length {limit} trains them all, with more memory"
    return length, [Finding("max_length", "note", f"{length:,} tokens", reason=reason)]


def required_steps(settings: TrainSettings) -> int:
    """The steps of a run on a stream. Raises SettingsError where they are not given."""
    if settings.max_steps is None:
        found = f"; max_epochs {settings.max_epochs} does not say how many steps that is" if settings.max_epochs else ""
        raise SettingsError(
            "max_steps is not given, and the data is a stream, whose length nobody knows",
            f"a batch holds {settings.sequences} sequences{found}",
            "--max_steps N (in Python max_steps=N)",
        )
    return settings.max_steps


def unused(settings: TrainSettings) -> list[Finding]:
    """A warning for each value that was given to something that the chosen optimizer or schedule does not have."""
    given = settings.changed()
    lacking = {"sgd": ("beta2",), "adafactor": ("beta1", "beta2")}.get(settings.optimizer, ())
    found: list[tuple[str, str]] = [(name, settings.optimizer) for name in lacking if name in given]
    if settings.schedule == "constant" and "min_lr_ratio" in given:
        found.append(("min_lr_ratio", "a constant schedule"))
    return [
        Finding(name, "warn", f"{given[name]} is not used", reason=f"{owner} has no such value")
        for name, owner in found
    ]


def derive(
    settings: TrainSettings,
    module: nn.Module,
    plan: CallPlan,
    *,
    batches_per_epoch: int | None,
    val_blocks: int,
    max_length: int,
    precision: str,
    device: torch.device,
    micro_batch: int | None = None,
) -> tuple[Effective, list[Finding]]:
    """Lengths of the run and of its phases, and the learning rate, from the settings and the data at hand.

    batches_per_epoch: None for a stream. Raises SettingsError where nothing says when to end.
    """
    findings = unused(settings)
    if batches_per_epoch is None:
        total = steps_per_epoch = required_steps(settings)
    else:
        steps_per_epoch = math.ceil(batches_per_epoch / settings.accumulate_grad_batches)
        epochs = settings.max_epochs or (None if settings.max_steps else DEFAULT_EPOCHS)
        bounds = [steps_per_epoch * epochs if epochs else None, settings.max_steps]
        total = min(bound for bound in bounds if bound is not None)

    learning_rate = settings.learning_rate
    if learning_rate is None:
        learning_rate, reason = default_learning_rate(settings.optimizer, module, plan.embedding_rows)
        findings.append(Finding("learning rate", "note", f"{learning_rate:.2g}", reason=reason))
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = min(2000, math.ceil(0.05 * total))
        findings.append(Finding("warm-up", "note", f"{warmup:,} steps", reason="5 % of the run, at most 2,000"))
    eval_every = settings.eval_every or max(1, min(steps_per_epoch, math.ceil(total / EVALUATIONS)))
    between = eval_every * settings.sequences * settings.accumulate_grad_batches
    eval_blocks = min(val_blocks, max(1, EVAL_TOKENS // max_length), max(LEAST_EVAL_BLOCKS, between))
    if eval_blocks < val_blocks:
        share = f"{eval_blocks:,} of {val_blocks:,} held-out sequences, spread over the text"
        findings.append(Finding("evaluation", "note", share, reason="during training; the final figures use all of it"))
    effective = Effective(
        device=device.type,
        precision=precision,
        max_length=max_length,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=warmup,
        learning_rate=learning_rate,
        weight_decay=WEIGHT_DECAY[settings.optimizer] if settings.weight_decay is None else settings.weight_decay,
        eval_every=min(eval_every, total),
        eval_blocks=eval_blocks,
        micro_batch=micro_batch or settings.sequences,
        log_every=settings.log_every or max(1, min(LOG_EVERY, total // LOG_ROWS)),
    )
    return effective, findings
