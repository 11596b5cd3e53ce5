"""What a batch brings to a call, and how its rows are chosen, ordered and made as long as the module needs them.

B batch, T time (source), S time (target).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anyformer.core.errors import CallError
from anyformer.models.plan import CallPlan


@dataclass(frozen=True)
class Inputs:
    """What a batch brings, before it is laid out as the module wants it."""

    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor | None = None
    """(B, T), 1 = keep."""
    target_ids: Tensor | None = None
    """(B, S) int64, the decoder's input."""
    target_mask: Tensor | None = None
    """(B, S), 1 = keep."""
    segment_ids: Tensor | None = None
    """(B, T) int64."""


def row(inputs: Inputs, i: int) -> Inputs:
    """One row of a batch, as a batch of one."""
    return rows(inputs, slice(i, i + 1))


def rows(inputs: Inputs, which: slice | Tensor) -> Inputs:
    """Some rows of a batch, in that order."""

    def taken(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[which]

    return Inputs(
        inputs.input_ids[which],
        taken(inputs.attention_mask),
        taken(inputs.target_ids),
        taken(inputs.target_mask),
        taken(inputs.segment_ids),
    )


def repeated(inputs: Inputs, N: int) -> Inputs:
    """The rows over and over, N in all."""
    return rows(inputs, torch.arange(N, device=inputs.input_ids.device) % inputs.input_ids.shape[0])


def first_rows(output: Any, B: int, N: int, *, time_first: bool) -> Any:
    """What the module gave for N rows without what belongs to those after the first B.

    Of tensors whose first axis is N or a multiple of it (rows and positions, or heads, in one); of the second where
    the module puts time first. Containers keep their kind; objects that are none are given back as they are.
    """
    if isinstance(output, Tensor):
        if time_first and output.dim() > 1 and output.shape[1] == N:
            return output[:, :B]
        return output[: len(output) // N * B] if output.dim() and len(output) and len(output) % N == 0 else output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(first_rows(part, B, N, time_first=time_first) for part in output))
    if isinstance(output, list | tuple):
        return type(output)(first_rows(part, B, N, time_first=time_first) for part in output)
    if isinstance(output, dict):
        return type(output)((k, first_rows(v, B, N, time_first=time_first)) for k, v in output.items())
    if is_dataclass(output) and not isinstance(output, type):
        held = {f.name: getattr(output, f.name) for f in fields(output) if f.init}
        return replace(output, **{k: first_rows(v, B, N, time_first=time_first) for k, v in held.items()})
    return output


def beginning(inputs: Inputs, length: int) -> Inputs:
    """The first tokens of each row of the source."""

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:, :length]

    return replace(
        inputs,
        input_ids=inputs.input_ids[:, :length],
        attention_mask=cut(inputs.attention_mask),
        segment_ids=cut(inputs.segment_ids),
    )


def longest_first(inputs: Inputs) -> Tensor:
    """Numbers of the rows, those with most tokens first."""
    assert inputs.attention_mask is not None
    return inputs.attention_mask.sum(-1).argsort(descending=True, stable=True)


def one_more(plan: CallPlan, inputs: Inputs) -> Inputs:
    """The sequence that is read with one more token, whose value plays no part in the logits that are kept."""
    if plan.family == "encoder_decoder":
        assert inputs.target_ids is not None
        return _target_to(inputs, inputs.target_ids.shape[1] + 1)
    return _source_to(inputs, inputs.input_ids.shape[1] + 1, masked=False)


def filled(plan: CallPlan, inputs: Inputs, length: int) -> Inputs:
    """A shorter batch behind padding up to the one length that the module runs at; what is added moves no logits.

    Raises CallError where it would: the plan has no mask that hides padding, and earlier positions see later ones.
    """
    if inputs.target_ids is not None and inputs.target_ids.shape[1] < length:
        if not plan.causal:
            raise _seen(inputs.target_ids.shape[1], length)
        inputs = _target_to(inputs, length)  # its logits see no later token: causality was proven
    T = inputs.input_ids.shape[1]
    if length <= T:
        return inputs
    if hides_padding(plan):
        return _source_to(inputs, length, masked=True)
    if plan.family == "decoder" and plan.causal:
        return _source_to(inputs, length, masked=False)
    raise _seen(T, length)


def _seen(T: int, length: int) -> CallError:
    return CallError(
        f"a sequence of {T:,} tokens: the model runs at T = {length:,} alone",
        "it takes no mask that would hide padding, which would change what it gives",
        f"pad the ids to {length:,} tokens, as those were that the model was made for",
    )


def as_long_as_its_lengths(plan: CallPlan, inputs: Inputs) -> Inputs:
    """Without the last columns where all rows are padding, of a module that is told the lengths and runs at any.

    Such a module often makes its masks as wide as the longest of them (pad_packed_sequence does).
    """
    mask = inputs.attention_mask
    if mask is None or plan.reads_one_more or plan.only_length or not any(a.role == "lengths" for a in plan.extras):
        return inputs
    longest = int(mask.sum(-1).max())
    if longest in (0, mask.shape[1]) or bool(mask[:, longest:].any()):
        return inputs
    return beginning(inputs, longest)


def hides_padding(plan: CallPlan) -> bool:
    """Whether the plan has a mask of which it was proven that it hides tokens of the source."""
    return any(f.name == "mask" and f.verdict == "ok" for f in plan.findings)


def _source_to(inputs: Inputs, length: int, *, masked: bool) -> Inputs:
    """masked: whether what is added is hidden by the mask; else it repeats the last token, and its mask."""
    ids = inputs.input_ids
    mask = inputs.attention_mask
    if masked:
        mask = _longer(torch.ones_like(ids) if mask is None else mask, length, fill=0)
    else:
        mask = None if mask is None else _longer(mask, length)
    segments = None if inputs.segment_ids is None else _longer(inputs.segment_ids, length)
    return replace(inputs, input_ids=_longer(ids, length), attention_mask=mask, segment_ids=segments)


def _target_to(inputs: Inputs, length: int) -> Inputs:
    ids, mask = inputs.target_ids, inputs.target_mask
    assert ids is not None
    return replace(inputs, target_ids=_longer(ids, length), target_mask=None if mask is None else _longer(mask, length))


def _longer(tensor: Tensor, length: int, *, fill: int | None = None) -> Tensor:
    """(B, length): what is added repeats the last of each row, or is ``fill``."""
    more = tensor[:, -1:].expand(-1, length - tensor.shape[1])
    return torch.cat([tensor, more if fill is None else torch.full_like(more, fill)], dim=1)
