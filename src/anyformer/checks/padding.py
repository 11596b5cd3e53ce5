"""Tier 1: padding, hidden by a mask that a module takes, or makes from an id.

B batch, T time.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.checks.attended import attended
from anyformer.checks.results import CheckResult
from anyformer.checks.subject import Subject
from anyformer.models.calls.hiding import hides
from anyformer.models.calls.masks import with_argument
from anyformer.models.inputs import Inputs
from anyformer.models.plan import Argument, CallPlan


def padding(subject: Subject) -> CheckResult:
    """What the padding mask hides plays no part, whatever it is."""
    expected = "hidden tokens move no logit of the others"
    masks = [a for a in subject.plan.extras if a.role == "mask"]
    if subject.plan.mask_arg is None and not masks:
        partly = unheeded(subject)
        if partly is None:
            return _own_padding(subject, expected)
        given, heeded = partly
        name, cause = given.mask_arg or "", "the mask is not handed to every layer, or takes too little away"
        measured = f"{name} changes the logits, and hides no token"
        if not heeded:
            measured, cause = f"{name} is taken, and nothing comes of it", "it is never added to the scores"
        return CheckResult("padding", 1, "warn", measured, expected, cause, name)
    found = hides(subject.prober, subject.plan)
    plan = subject.plan
    backwards = found.works and plan.mask_arg == "attention_mask" and plan.mask_form == "masked"
    # what is handed to nn.MultiheadAttention as it is must be of bool, in which True hides
    if backwards and hides(subject.prober, replace(plan, mask_dtype="int64")).works:
        cause = "elsewhere 1 keeps a token: whoever hands it a tokenizer's mask hides the text and shows the padding"
        return CheckResult(
            "padding", 1, "warn", "attention_mask hides where it is 1", expected, cause, "attention_mask"
        )
    if found.works:
        return CheckResult("padding", 1, "ok", "hidden tokens move no other logit", expected)
    cause = "the mask is not handed to every layer, has no effect, or is the wrong way round (1 = keep)"
    return CheckResult("padding", 1, "warn", found.why, expected, cause)


def unheeded(subject: Subject) -> tuple[CallPlan, bool] | None:
    """The call with the padding mask that is left out, as it hides nothing; and whether anything comes of it."""
    told = [f for f in subject.plan.findings if f.name == "mask" and f.verdict == "note" and _NOT_HIDDEN in f.reason]
    for finding in told:
        name = finding.measured.partition(" ")[0]
        given = with_argument(subject.plan, Argument(name, "mask", "BT", "int64", "keep"))
        heeded = not hides(subject.prober, given, against=subject.plan).idle
        if heeded or (_PADDING.search(name) and _attends(subject)):
            return given, heeded
    return None


def _attends(subject: Subject) -> bool:
    """Whether products of queries and keys are seen: what has none may take a mask for its callers' sake alone."""
    inputs = subject.batch(0)
    with attended(subject.read(inputs).shape[1], inputs.input_ids.shape[1]) as watch:
        subject.logits(inputs)
    return bool(watch.found)


_PADDING = re.compile(r"^(attention|attn)_mask$|pad")
_NOT_HIDDEN = "a padded token is not hidden"


class _Compared(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ids that a module compares its tokens with."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens = tokens
        self.ids: set[int] = set()

    def _is_tokens(self, tensor: Any) -> bool:
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.numel() != self.tokens.numel():
            return False
        if tensor.dim() == 2 and tensor.shape != self.tokens.shape:
            tensor = tensor.t()
        return torch.equal(tensor.reshape(self.tokens.shape).to(self.tokens), self.tokens)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name in ("eq", "ne") and self._is_tokens(args[0]):
            other = args[1].item() if isinstance(args[1], Tensor) and args[1].numel() == 1 else args[1]
            if isinstance(other, int):
                self.ids.add(other)
        return func(*args, **(kwargs or {}))


def looked_for(subject: Subject, inputs: Inputs) -> tuple[set[int], set[int]]:
    """Ids that the module compares its tokens with, of padding as a rule: those of the (source) text, of the target."""
    target = inputs.input_ids if inputs.target_ids is None else inputs.target_ids
    with _Compared(inputs.input_ids) as source, _Compared(target) as written:
        subject.logits(inputs)
    most = subject.plan.embedding_rows
    return tuple({i for i in seen.ids if i >= 0 and (most is None or i < most)} for seen in (source, written))  # type: ignore[return-value]


def _own_padding(subject: Subject, expected: str) -> CheckResult:
    """Of a module that makes its mask from an id: a text behind whose end lie more of these gives the same."""
    short = subject.length - 3
    inputs = subject.batch(0)
    in_source, in_target = looked_for(subject, inputs)
    ids = sorted(in_source or in_target)
    if not ids or subject.plan.only_length or short < 2 or subject.plan.layout == "last":
        return CheckResult("padding", 1, "n/a", "it takes no padding mask", expected)
    pad = ids[0]
    told = {m.padding_idx for m in subject.awake.modules() if isinstance(m, nn.Embedding)} - {None}
    if told and not told & (in_source | in_target):
        other = min(i for i in told if i is not None)
        cause = "the mask hides another token, and shows the padding: one number for both"
        measured = f"it looks for id {pad}, its embedding's padding is id {other}"
        return CheckResult("padding", 1, "warn", measured, expected, cause)
    apart = max(_behind(subject, inputs, pad, few) for few in sorted({2, short}))
    if apart <= 1:
        return CheckResult("padding", 1, "ok", f"tokens of id {pad}, which it hides by itself, move no other", expected)
    cause = "the mask that it makes is not handed to every layer, or is the wrong way round"
    where = "" if in_source else " in the target alone"
    measured = f"it looks for id {pad}{where}, yet such tokens behind the end move the logits by {apart:.2g} tolerances"
    if not in_source:
        measured = measured.replace("behind the end", "behind the source's end")
        cause = "the source's padding is hidden neither from the encoder nor from the attention to what it gives"
    return CheckResult("padding", 1, "warn", measured, expected, cause)


def _behind(subject: Subject, inputs: Inputs, pad: int, short: int) -> float:
    """By how much padding behind so many tokens moves the logits, in tolerances."""
    cut = replace(inputs, input_ids=inputs.input_ids[:, :short].contiguous())
    padded = torch.full_like(inputs.input_ids, pad)
    padded[:, :short] = inputs.input_ids[:, :short]
    whole = subject.logits(replace(inputs, input_ids=padded))
    part = subject.logits(cut)
    return subject.apart(part, whole[:, : part.shape[1]] if subject.writes else whole)
