"""The call plan: how a module is called and where its logits are, and the call itself.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding

LogitsPath = tuple[str | int, ...]
OutputKind = Literal["logits", "log-probabilities", "probabilities"]


@dataclass(frozen=True)
class CallPlan:
    """How to get (B, T, V) logits out of a module, each line proven by running it."""

    token_arg: str
    """Parameter that takes the (B, T) int64 ids; with a leading * they are passed as the first positional argument."""
    mask_arg: str | None
    """Parameter that takes a (B, T) int64 mask, 1 = keep; None where none was proven."""
    targets_arg: str | None
    """Parameter that takes (B, T) int64 targets."""
    needs_targets: bool
    """Whether all positions' logits come only when targets are given."""
    logits_path: LogitsPath
    """(): the output itself; (0,): first of a tuple; ("logits",): a dict's key or an object's attribute."""
    vocab_size: int
    """V, the width of the logits."""
    embedding_rows: int | None
    """Ids must be below this; None where no limit was found."""
    max_positions: int | None
    """Longest T that runs; None where no limit was found up to what was tried."""
    family: Literal["decoder", "encoder"]
    causal: bool
    """Whether the logits at t were seen not to depend on tokens after t."""
    findings: tuple[Finding, ...]
    kind: OutputKind = "logits"
    """What the module gives at logits_path; probabilities become logits by their logarithm."""
    needs_mask: bool = False
    """Whether the mask has no default, so that one of ones is passed where the caller has none."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        record = asdict(self)
        return {**record, "logits_path": list(self.logits_path), "findings": [f.to_dict() for f in self.findings]}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> CallPlan:
        """Back from JSON; an unknown key raises TypeError, a missing one KeyError."""
        unknown = record.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise TypeError(f"a call plan has no {', '.join(sorted(unknown))}")
        path: LogitsPath = tuple(record["logits_path"])
        findings = tuple(Finding.from_dict(f) for f in record["findings"])
        return cls(**{**record, "logits_path": path, "findings": findings})


def call_logits(module: nn.Module, plan: CallPlan, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) of the module for ids (B, T) int64: the one way in which the house calls a user's module.

    attention_mask: (B, T), 1 = keep; passed on where the plan has a mask argument. Targets are passed where the plan
    needs them (the ids themselves: any valid ids do). Works under autograd and torch.compile.
    Raises CallError for a sequence longer than plan.max_positions and for an output without the planned logits.
    """
    if plan.max_positions is not None and input_ids.shape[1] > plan.max_positions:
        raise CallError(
            f"a sequence of {input_ids.shape[1]:,} tokens is longer than the model's {plan.max_positions:,} positions",
            fix=f"--max_length {plan.max_positions}",
        )
    mask = attention_mask if plan.mask_arg is not None else None
    if plan.needs_mask and mask is None:
        mask = torch.ones_like(input_ids)
    targets = input_ids if plan.needs_targets else None
    output = call(module, plan.token_arg, input_ids, plan.mask_arg, mask, plan.targets_arg, targets)
    logits = follow(output, plan.logits_path)
    if not isinstance(logits, Tensor) or logits.shape[:2] != input_ids.shape:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CallError(
            f"the model gave no logits for every position: {found}",
            f"expected {(*input_ids.shape, plan.vocab_size)} at {path_text(plan.logits_path)}",
        )
    if plan.kind == "probabilities":
        # softmax(log p) = p: their cross-entropy is the likelihood; of p itself it would be another objective
        logits = logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
    return logits


def call(
    module: nn.Module,
    token_arg: str,
    input_ids: Tensor,
    mask_arg: str | None,
    mask: Tensor | None,
    targets_arg: str | None,
    targets: Tensor | None,
) -> Any:
    """The module's raw output; what is None is not passed."""
    arguments: dict[str, Tensor] = {}
    if mask_arg is not None and mask is not None:
        arguments[mask_arg] = mask
    if targets_arg is not None and targets is not None:
        arguments[targets_arg] = targets
    if token_arg.startswith("*"):
        return module(input_ids, **arguments)
    return module(**{token_arg: input_ids}, **arguments)


def follow(output: Any, path: LogitsPath) -> Any:
    """What lies at the path inside the output; None where there is no such place."""
    for step in path:
        if isinstance(step, int):
            output = output[step] if isinstance(output, list | tuple) and step < len(output) else None
        elif isinstance(output, Mapping):
            output = output.get(step)
        else:
            output = getattr(output, step, None)
    return output


def path_text(path: LogitsPath) -> str:
    """The path in words: "the output", "output[0]", "output.logits"."""
    if not path:
        return "the output"
    return "output" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
