"""Carrying out a call plan: the one way in which the house calls a user's module.

B batch, T time (source), S time (target), V vocabulary, C classes.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.models.blame import blame
from anyformer.models.graph import run_graph
from anyformer.models.inputs import (
    Inputs,
    as_long_as_its_lengths,
    beginning,
    filled,
    first_rows,
    longest_first,
    one_more,
    repeated,
    row,
    rows,
)
from anyformer.models.losstap import LossTap
from anyformer.models.plan import Argument, CallPlan, LogitsPath, MaskForm, follow, path_text

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_DTYPES = {"int64": torch.int64, "bool": torch.bool, "float32": torch.float32}


def call_logits(
    module: nn.Module,
    plan: CallPlan,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    target_ids: Tensor | None = None,
    target_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """Logits of the module for ids (B, T) int64: (B, T, V), (B, S, V) of an encoder-decoder, (B, C) of a classifier.

    attention_mask, target_mask: (B, T) and (B, S), 1 = keep; passed on where the plan has an argument for them.
    target_ids: (B, S), the decoder's input; logits[s] are for the token that follows target_ids[s].
    segment_ids: (B, T); zeros where the model asks for them and none are given.
    Targets are passed where the plan needs them (the ids themselves: any valid ids do). Works under autograd.
    A model of one length gets shorter sequences behind padding that moves nothing.
    Raises CallError for a sequence longer than plan.max_positions, for a shorter one where padding would be seen, and
    for an output without the planned logits.
    """
    inputs = Inputs(input_ids, attention_mask, target_ids, target_mask, segment_ids)
    if plan.family == "encoder_decoder" and target_ids is None:
        raise CallError("an encoder-decoder needs target_ids (B, S): its decoder's input")
    read = target_ids if plan.family == "encoder_decoder" and target_ids is not None else input_ids
    for name, ids in (("", input_ids), ("target ", target_ids)):
        if plan.max_positions is not None and ids is not None and ids.shape[1] > plan.max_positions:
            raise CallError(
                f"a {name}sequence of {ids.shape[1]:,} tokens is longer than the model's {plan.max_positions:,}"
                " positions",
                fix=f"--max_length {plan.max_positions}",
            )
    inputs = as_long_as_its_lengths(plan, inputs)
    shorter = input_ids.shape[1] - inputs.input_ids.shape[1]
    if plan.only_length is not None:
        inputs = filled(plan, inputs, plan.only_length)
    if plan.reads_one_more:
        inputs = one_more(plan, inputs)
    order = longest_first(inputs) if plan.longest_first and attention_mask is not None else None
    logits = _laid_out(module, plan, inputs if order is None else rows(inputs, order))
    if order is not None:
        logits = logits[order.argsort()]
    if plan.alignment in ("own", "long"):
        logits = logits[:, 1:]
    if shorter and plan.only_length is None and plan.family in ("decoder", "encoder") and logits.dim() == 3:
        logits = F.pad(logits, (0, 0, 0, shorter))
    if plan.only_length is not None and plan.family != "classifier":
        logits = logits[:, : read.shape[1]]
    expected = (*read.shape, plan.vocab_size) if plan.family != "classifier" else (read.shape[0], plan.vocab_size)
    if tuple(logits.shape) != expected:
        raise CallError(
            f"the model gave no logits for every position: {tuple(logits.shape)}",
            f"expected {expected} at {path_text(plan.logits_path)}",
        )
    return _kind(plan, logits)


def _kind(plan: CallPlan, logits: Tensor) -> Tensor:
    """Logits of what the plan says the module gives."""
    if plan.kind != "probabilities":
        return logits
    # softmax(log p) = p: their cross-entropy is the likelihood; of p itself it would be another objective
    return logits.clamp_min(torch.finfo(logits.dtype).tiny).log()


def next_logits(module: nn.Module, plan: CallPlan, input_ids: Tensor) -> Tensor:
    """Logits (B, V) of the token that follows each row of ids (B, T); in one call where the model gives no others."""
    if plan.layout != "last":
        return call_logits(module, plan, input_ids)[:, -1]
    return _kind(plan, _placed(module, plan, Inputs(input_ids)))[:, -1]


def raw_output(module: nn.Module, plan: CallPlan, inputs: Inputs) -> Any:
    """What the module gives for the inputs, before logits are looked for in it.

    Raises CallError where its forward ends the program.
    """
    try:
        return _of_its_rows(module, plan, inputs) if plan.only_rows else _output(module, plan, inputs)
    except SystemExit as error:
        raise CallError(
            "the model's forward ends the program", blame(error), "raise an exception in its place"
        ) from error


def _of_its_rows(module: nn.Module, plan: CallPlan, inputs: Inputs) -> Any:
    """The output for fewer rows than the module runs at alone: they go in repeated, and what is more is cut."""
    B, N = inputs.input_ids.shape[0], plan.only_rows
    assert N is not None
    if B >= N:  # more are its own error
        return _output(module, plan, inputs)
    return first_rows(_output(module, plan, repeated(inputs, N)), B, N, time_first=plan.time_first)


def _output(module: nn.Module, plan: CallPlan, inputs: Inputs) -> Any:
    if plan.graph is not None:
        source = (inputs.input_ids, inputs.attention_mask)
        return run_graph(module, plan.graph, *source, inputs.target_ids, inputs.target_mask)
    if plan.methods:
        return _by_methods(module, plan, inputs)
    given = {**arguments(plan, inputs), **_states(module, plan, inputs)}
    tokens = oriented(plan, inputs.input_ids)
    if plan.token_arg.startswith("*"):
        return module(tokens, **given)
    return module(**{plan.token_arg: tokens}, **given)


def arguments(plan: CallPlan, inputs: Inputs) -> dict[str, Any]:
    """Every argument but the ids, by name."""
    given: dict[str, Any] = {}
    mask = inputs.attention_mask
    if (plan.needs_mask or plan.document_start is not None) and mask is None:
        mask = torch.ones_like(inputs.input_ids)
    if plan.mask_arg is not None and mask is not None:
        padding = Argument(plan.mask_arg, "mask", plan.mask_shape, plan.mask_dtype, plan.mask_form)
        given[plan.mask_arg] = value_of(plan, padding, replace(inputs, attention_mask=mask))
    if plan.targets_arg is not None and plan.needs_targets:
        targets = inputs.input_ids
        if plan.logits_from == "loss" and plan.vocab_size > 1:
            # a loss may leave out targets of id 0, and its logits with them; [MASK] can be read, and be no target
            targets = targets.clamp(1, plan.vocab_size - 1)
        given[plan.targets_arg] = oriented(plan, targets)
    if plan.target_arg is not None and inputs.target_ids is not None:
        given[plan.target_arg] = oriented(plan, inputs.target_ids)
    for argument in plan.extras:
        if argument.role != "state":
            given[argument.name] = value_of(plan, argument, inputs)
    return given


def _states(module: nn.Module, plan: CallPlan, inputs: Inputs) -> dict[str, Any]:
    """What the module's own methods make for as many rows."""
    return {a.name: made_state(module, a.value, inputs.input_ids.shape[0]) for a in plan.extras if a.role == "state"}


def made_state(module: nn.Module, method: str, B: int) -> Any:
    """The state that a method of the module makes for B rows: init_hidden(B), or init_state(B, device)."""
    make = getattr(module, method)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    parameters = inspect.signature(make).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    return make(*[device if p.name == "device" else B for p in needed])


def value_of(plan: CallPlan, argument: Argument, inputs: Inputs, memory: Any = None) -> Any:
    """What the parameter is given for these inputs."""
    ids = inputs.input_ids
    B, T = ids.shape
    if argument.role == "constant" and argument.shape:
        axes = {"B": B, "T": T, "1": 1}
        return torch.full([axes[a] for a in argument.shape], argument.value, device=ids.device)
    if argument.role == "constant":
        return argument.value
    if argument.role == "memory":
        return memory
    if argument.role == "tokens":
        return oriented(plan, ids)
    if argument.role == "target_ids":
        assert inputs.target_ids is not None
        return oriented(plan, inputs.target_ids)
    if argument.role == "segments":
        first = torch.full_like(ids, int(argument.value or 0))
        return oriented(plan, inputs.segment_ids if inputs.segment_ids is not None else first)
    if argument.role == "documents":
        return oriented(plan, _documents(plan, ids) + int(argument.value or 0))
    if argument.role in ("lengths", "target_lengths"):
        target = argument.role == "target_lengths" and inputs.target_ids is not None
        read, keep = (inputs.target_ids, inputs.target_mask) if target else (ids, inputs.attention_mask)
        assert read is not None
        full = torch.full((B,), read.shape[1], device=ids.device)
        return full if keep is None else keep.sum(-1).to(full)
    if argument.role == "padding_id":
        return _padding_id(inputs)
    if argument.role == "positions":
        if "S" in argument.shape and inputs.target_ids is not None:
            T = inputs.target_ids.shape[1]
        places = torch.arange(T, device=ids.device)
        if "B" in argument.shape and plan.document_start is not None and inputs.target_ids is None:
            return oriented(plan, _places_in_documents(ids, plan.document_start))
        rows = B if "B" in argument.shape else 1
        return places if argument.shape in ("T", "S") else oriented(plan, places.expand(rows, T))
    return _mask(plan, argument, inputs)


def _padding_id(inputs: Inputs) -> int:
    """The id of all masked tokens; where none is masked, or they differ, the first that no token has."""
    pairs = ((inputs.input_ids, inputs.attention_mask), (inputs.target_ids, inputs.target_mask))
    found = [ids[keep == 0] for ids, keep in pairs if ids is not None and keep is not None]
    hidden: set[int] = {i for ids in found for i in ids.tolist()}
    if len(hidden) == 1:
        return hidden.pop()
    used = {i for ids, _ in pairs if ids is not None for i in ids.flatten().tolist()}
    return next(i for i in range(len(used) + 1) if i not in used)


def _places_in_documents(ids: Tensor, start: int) -> Tensor:
    """(B, T): 0, 1, 2 … from the beginning of the row, and anew from each ``start``."""
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return places - torch.where(ids == start, places, 0).cummax(1).values


def _documents(plan: CallPlan, ids: Tensor) -> Tensor:
    """(B, T): how many documents begin before each token of its row or at it; 0 where the plan tells none apart."""
    begins = torch.zeros_like(ids) if plan.document_start is None else (ids == plan.document_start).to(ids.dtype)
    begins[:, :1] = 0  # the row's own first document
    return begins.cumsum(1)


def oriented(plan: CallPlan, ids: Tensor) -> Tensor:
    """(B, T) as the module takes it."""
    if plan.packed == "T":
        return ids[0]
    return ids.t() if plan.time_first else ids


def mask_tensor(keep: Tensor, shape: str, dtype: str, form: MaskForm) -> Tensor:
    """A mask from ``keep`` (bool; axes B, rows, columns; B may be 1) with the given axes, number format and polarity.

    shape: a 1 among the axes is an axis of size 1. BT, TB and B11T take the last row: a padding mask has equal rows.
    """
    B, R, K = keep.shape
    if shape in ("BT", "BS", "TB", "SB", "B11T", "B11S", "B1T", "B1S"):
        laid = keep[:, -1]
        laid = laid.t() if shape in ("TB", "SB") else laid.reshape(B, *(1,) * (len(shape) - 2), K)
    elif shape[0] in "BN":
        laid = keep[:, None] if len(shape) == 4 else keep
    else:
        laid = keep[0].reshape(*(1,) * (len(shape) - 2), R, K)
    if form == "additive":
        return torch.zeros(laid.shape, dtype=torch.float32, device=laid.device).masked_fill(~laid, -torch.inf)
    return (laid if form == "keep" else ~laid).to(_DTYPES[dtype])


def _mask(plan: CallPlan, argument: Argument, inputs: Inputs) -> Tensor:
    """A padding or causal mask, of the source, of the target, or of the source as the decoder sees it."""
    target = argument.role.startswith("target")
    ids = inputs.target_ids if target and inputs.target_ids is not None else inputs.input_ids
    padding = inputs.target_mask if target else inputs.attention_mask
    B, T = ids.shape
    keep = torch.ones(B, T, dtype=torch.bool, device=ids.device) if padding is None else padding.bool()
    rows = T
    if argument.role == "memory_mask" and inputs.target_ids is not None:
        rows = inputs.target_ids.shape[1]
    square = keep[:, None, :].expand(B, rows, T)
    if "causal" in argument.role:
        past = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
        square = square & past if argument.shape[0] in "BN" else past[None]
    if plan.document_start is not None and argument.shape in ("BTT", "B1TT", "NTT"):
        document = ((ids == plan.document_start) & keep).cumsum(1)
        square = square & (document[:, :, None] == document[:, None, :])
        # padding that leads a row would see nothing at all: NaN under masks of -inf
        square = square | torch.eye(T, dtype=torch.bool, device=ids.device)
    if argument.shape == "NTT":
        square = square.repeat_interleave(int(argument.value), 0)
    return mask_tensor(square, argument.shape, argument.dtype, argument.form)


def _by_methods(module: nn.Module, plan: CallPlan, inputs: Inputs) -> Any:
    memory: Any = None
    for call in plan.methods:
        memory = getattr(module, call.name)(**{a.name: value_of(plan, a, inputs, memory) for a in call.arguments})
    return memory


def _laid_out(module: nn.Module, plan: CallPlan, inputs: Inputs) -> Tensor:
    """The tensor at the plan's place as (B, T, V), or (B, C); of the last position alone, one call for each."""
    if plan.layout == "last":
        lengths = range(1, inputs.input_ids.shape[1] + 1)
        return torch.cat([_placed(module, plan, beginning(inputs, length)) for length in lengths], 1)
    return _placed(module, plan, inputs)


def _placed(module: nn.Module, plan: CallPlan, inputs: Inputs) -> Tensor:
    """The tensor at the plan's place as (B, T, V), or (B, C), (B, 1, V) of the last position."""
    if plan.packed and inputs.input_ids.shape[0] > 1:
        return torch.cat([_placed(module, plan, row(inputs, i)) for i in range(inputs.input_ids.shape[0])])
    B, N = inputs.input_ids.shape[0], plan.only_rows
    if N is not None and B > N:
        return torch.cat([_placed(module, plan, rows(inputs, slice(i, i + N))) for i in range(0, B, N)])
    if plan.logits_from == "loss":
        with LossTap(module) as tap:
            raw_output(module, plan, inputs)
        found: Any = _cut(plan, tap.logits(plan.logits_path), B)
    else:
        output = raw_output(module, plan, inputs)
        if plan.logits_from.startswith("attribute:"):
            output = _cut(plan, getattr(module, plan.logits_from.removeprefix("attribute:"), None), B)
        found = _followed(output, plan.logits_path)
    if plan.head is not None and isinstance(found, Tensor):
        found = head_of(module, plan.head)(found)
    if not isinstance(found, Tensor):
        raise CallError(
            f"the model gave no logits: {type(found).__name__}", f"expected them at {path_text(plan.logits_path)}"
        )
    ids = inputs.target_ids if plan.family == "encoder_decoder" and inputs.target_ids is not None else inputs.input_ids
    return arrange(found, plan, ids.shape[0])


def _cut(plan: CallPlan, found: Any, B: int) -> Any:
    """The rows that were asked for, of what did not come with the output."""
    N = plan.only_rows
    return found if N is None or B >= N else first_rows(found, B, N, time_first=plan.time_first)


def _followed(output: Any, path: LogitsPath) -> Any:
    """What lies at the path; the first of a tuple may also come alone, and alone may be the first, by the mode.

    (A cache that is given back in eval mode alone, an auxiliary loss in training mode alone.)
    """
    if path == (0,) and isinstance(output, Tensor):
        return output
    if path == () and isinstance(output, list | tuple) and output:
        return output[0]
    return follow(output, path)


def arrange(found: Tensor, plan: CallPlan, B: int) -> Tensor:
    """What lies at the plan's place, laid out as (B, T, V); a classifier's (B, C) as it is, or of one number."""
    if plan.layout == "B":
        yes = found.reshape(B)
        return torch.stack([1 - yes if plan.kind == "probabilities" else torch.zeros_like(yes), yes], -1)
    if plan.layout == "last":
        return found.reshape(B, 1, -1) if tuple(found.shape[:-1]) in ((B,), (B, 1)) else found
    if plan.family == "classifier":
        return found
    if plan.layout in ("NV", "MV"):
        if found.dim() != 2 or found.shape[0] % B:
            return found
        T = found.shape[0] // B
        rows_last = plan.time_first == (plan.layout == "NV")
        return found.reshape(T, B, -1).transpose(0, 1) if rows_last else found.reshape(B, T, -1)
    if plan.layout == "BVT":
        return found.transpose(-1, -2)
    return found.transpose(0, 1) if plan.layout == "TBV" and found.dim() == 3 else found


def head_of(module: nn.Module, name: str) -> Any:
    """The submodule or method of that dotted name; of an embedding the product with its weight (a tied head)."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    if isinstance(found, nn.Embedding):
        return functools.partial(F.linear, weight=found.weight)
    return found
