"""Which masks and switches a call needs: those that make it causal, and those that hide padding.

B batch, T time, S time of the target.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from anyformer.core.findings import Finding
from anyformer.models.calls.causal import Sight, glance, measure
from anyformer.models.calls.hiding import (
    attention_passes_over,
    hidden_by_id,
    hides,
    looks_back_alone,
    mask_matters,
)
from anyformer.models.calls.names import causal_switch, hint, parameters_of
from anyformer.models.calls.options import causal_forms, padding_forms
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober
from anyformer.models.calls.properties import place_alone, rows_apart
from anyformer.models.plan import Argument, CallPlan

_FORMATS = 3  # int64, bool, float32: where a mask of each is not looked at, no other of that shape is tried
_MASKS = ("mask", "target_mask", "memory_mask")
# fmt: off
_OF_PADDING = frozenset((
    "mask", "masks", "masking", "pad", "pads", "padding", "padded", "attention", "attn", "att", "key", "src", "source",
    "enc", "encoder", "input", "inputs", "inp", "x", "e", "seq", "sequence", "text", "valid", "is", "batch", "self",
    "slf", "non", "no", "nopad", "word", "words", "sent",
))
# fmt: on
"""Words of names of padding masks: attention_mask, src_key_padding_mask."""


@dataclass(frozen=True)
class Settled:
    """The plan with its masks, and what was proven of each."""

    plan: CallPlan
    findings: tuple[Finding, ...]


def with_argument(plan: CallPlan, argument: Argument) -> CallPlan:
    """The plan with this argument in the place of what the parameter was given before."""
    bare = without(plan, argument.name)
    if argument.role == "mask" and "B" in argument.shape and bare.mask_arg is None:
        return replace(
            bare,
            mask_arg=argument.name,
            mask_shape=argument.shape,
            mask_dtype=argument.dtype,
            mask_form=argument.form,
            needs_mask=plan.needs_mask and plan.mask_arg == argument.name,
        )
    return replace(bare, extras=(*bare.extras, argument))


def without(plan: CallPlan, name: str) -> CallPlan:
    """The plan that gives the parameter nothing."""
    if plan.mask_arg == name:
        plan = replace(plan, mask_arg=None, needs_mask=False, mask_shape="BT", mask_dtype="int64", mask_form="keep")
    return replace(plan, extras=tuple(a for a in plan.extras if a.name != name))


def current(plan: CallPlan, name: str) -> Argument | None:
    """What the parameter is given."""
    if plan.mask_arg == name:
        return Argument(name, "mask", plan.mask_shape, plan.mask_dtype, plan.mask_form)
    return next((a for a in plan.extras if a.name == name), None)


def settle_masks(prober: Prober, plan: CallPlan, stated: Stated, *, encoder: bool) -> Settled:
    """Find masks by what they do: causality first (not of an encoder), then padding."""
    parameters = [
        p
        for p in parameters_of(prober.module)
        if p.name not in (plan.token_arg.lstrip("*"), plan.targets_arg, plan.target_arg)
        and p.name not in stated.arguments
    ]
    taken = {a.name for a in plan.extras if "mask" in a.role}
    masks = [p for p in parameters if hint(p.name) in _MASKS or p.name in taken or p.name == plan.mask_arg]
    if stated.mask == "none":
        masks = [p for p in masks if p.default is p.empty]
    elif stated.mask is not None:
        masks = [p for p in parameters if p.name == stated.mask]
    flags = [p for p in parameters if causal_switch(p)]
    findings: list[Finding] = []
    if plan.family == "decoder" and not encoder:
        plan, about = _causality(prober, plan, masks, flags)
        findings += about
    # of an encoder or classifier, a required mask that a causal form happened to fit is of padding, if any form hides
    causal_already = {a.name for a in plan.extras if "causal" in a.role}
    of_classes = plan.family == "classifier"
    future = {p.name for p in masks if hint(p.name) == "target_mask" and (of_classes or not encoder)}
    hiding = [p for p in masks if p.name not in causal_already or ((encoder or of_classes) and p.name not in future)]
    plan, about = _padding(prober, plan, hiding, encoder=encoder)
    if encoder:
        fitting = [a for a in _causal(plan) if not _is_broad(plan, a, encoder)]
        about = [f for f in about if f.verdict != "fail" or not any(a.name in f.measured for a in fitting)]
        findings += [_given_finding(a, glance(prober, plan)) for a in fitting]
    if of_classes:
        names = [p.name for p in masks if p.name in future and p.default is p.empty]
        names += [a.name for a in _causal(plan) if a.name in stated.arguments]
        for name in names:
            plan, finding = _looking_back(prober, plan, name)
            about = [*[f for f in about if name not in f.measured], finding]
    return Settled(plan, (*findings, *about))


def _looking_back(prober: Prober, plan: CallPlan, name: str) -> tuple[CallPlan, Finding]:
    """A classifier's mask of the future, by its name or as stated: no logits of places show it, attention does."""
    for argument in causal_forms(name):
        candidate = with_argument(plan, argument)
        if looks_back_alone(prober, candidate):
            return candidate, Finding("causal mask", "ok", argument.text(), reason="every attention looks back alone")
    why = f"no form of it makes every attention look back alone; a mask of padding: call: arguments: {{{name}: mask}}"
    return plan, Finding("causal mask", "fail", name, "later tokens have no weight", why)


def _causal(plan: CallPlan) -> list[Argument]:
    return [a for a in plan.extras if "causal_mask" in a.role]


def _causality(
    prober: Prober, plan: CallPlan, masks: list[inspect.Parameter], flags: list[inspect.Parameter]
) -> tuple[CallPlan, list[Finding]]:
    """Give the flag or mask without which later tokens are seen."""
    base = glance(prober, plan)
    if base.causal and not plan.extras:
        base = measure(prober, plan)  # a leak that begins at one length only, a mask may close
    given = [a for a in plan.extras if "causal" in a.role]
    # nothing is seen through a mask that hides all: of a square one as padding, in the wrong polarity
    square = plan.mask_arg is not None and plan.mask_shape in ("BTT", "B1TT")
    if base.decodes or (base.causal and not given and not square):
        return plan, [_given_finding(given[0], base)] if given else []
    for parameter in flags:
        for value in (True, False):
            argument = Argument(parameter.name, "constant", "", value=value)
            sight = glance(prober, with_argument(plan, argument))
            if sight.decodes:
                text = "without it later tokens are seen, with it none is"
                return with_argument(plan, argument), [Finding("causal mask", "ok", argument.text(), reason=text)]
    for parameter in sorted(masks, key=lambda p: "pad" in p.name):
        for argument in causal_forms(parameter.name):
            candidate = with_argument(plan, argument)
            sight = glance(prober, candidate)
            # a row's place in the batch is no fault of the mask; it is told of by itself
            if sight.decodes and ((rows_apart(prober, candidate) or 0) <= 1 or place_alone(prober, candidate)):
                return candidate, [_given_finding(argument, sight)]
    return plan, []


def _given_finding(argument: Argument, sight: Sight) -> Finding:
    why = "with it no later token is seen, and earlier ones are; with another form that is not so"
    return Finding("causal mask", "ok", argument.text(), reason=why)


def _padding(
    prober: Prober, plan: CallPlan, masks: list[inspect.Parameter], *, encoder: bool
) -> tuple[CallPlan, list[Finding]]:
    """The padding mask: the first parameter and form with which a hidden token is hidden."""
    findings: list[Finding] = []
    ordered = sorted(
        masks, key=lambda p: ("pad" not in p.name and p.name != "attention_mask", p.default is not p.empty)
    )
    for parameter in ordered:
        if plan.mask_arg is not None and plan.mask_arg != parameter.name:
            break
        needed = parameter.default is parameter.empty or _fails_without(prober, plan, parameter.name)
        if needed and plan.mask_arg == parameter.name:
            plan = replace(plan, needs_mask=True)
        plan, finding = _one_padding(prober, plan, parameter.name, needed, encoder)
        findings.append(finding)
        if finding.verdict == "ok":
            break
    return plan, findings


def _is_broad(plan: CallPlan, held: Argument | None, encoder: bool) -> bool:
    """Whether an encoder or classifier is given a causal mask of more than two axes that its name does not ask for.

    Where it should have (B, T), such a mask may run all the same, with axes that it has not.
    """
    causal = held is not None and held.role == "causal_mask" and held.shape != "TT"
    return causal and (encoder or plan.family != "decoder") and held is not None and hint(held.name) != "target_mask"


def passed_over(
    prober: Prober, name: str, forms: list[CallPlan], words: Collection[str] = ()
) -> tuple[CallPlan, Finding] | None:
    """The first plan that gives a required mask so that attention passes over its zeros, if the name speaks of padding.

    (Of an aspect's words, say, attention may be told in the same way.) words: further ones that say no more.
    """
    if not set(re.findall("[a-z]+", name.lower())) <= _OF_PADDING | set(words):
        return None
    for candidate in forms:
        candidate = replace(candidate, needs_mask=True)
        given = current(candidate, name)
        if given is not None and attention_passes_over(prober, candidate):
            why = "attention passes over it; what else reads all positions reads it all the same"
            return candidate, Finding("mask", "warn", given.text(), "a padded token is hidden", why)
    return None


def _fails_without(prober: Prober, plan: CallPlan, name: str) -> bool:
    """Whether a mask that is given may not be left out, whatever its default."""
    inputs = prober.inputs(plan, 2, prober.length, 1)
    return current(plan, name) is not None and prober.try_logits(without(plan, name), inputs) is None


def _one_padding(prober: Prober, plan: CallPlan, name: str, needed: bool, encoder: bool) -> tuple[CallPlan, Finding]:
    asked = current(plan, name)
    if asked is not None and asked.role == "padding_id" and hidden_by_id(prober, plan):
        return plan, Finding("padding id", "ok", asked.text(), reason="a row alone = the row behind padding")
    bare = None if needed else without(plan, name)
    before = measure(prober, plan).causal if plan.family == "decoder" and needed and not encoder else None
    first = ""
    idle: dict[str, set[str]] = {}
    for argument in padding_forms(name, time_first=plan.time_first):
        if len(idle.get(argument.shape, ())) == _FORMATS:
            continue
        candidate = replace(with_argument(plan, argument), needs_mask=needed)
        hidden = hides(prober, candidate, against=bare)
        if hidden.idle:
            idle.setdefault(argument.shape, set()).add(argument.dtype)
        if hidden.works and (not before or glance(prober, candidate).causal):
            return candidate, Finding("mask", "ok", argument.text(), reason=hidden.why)
        first = first or hidden.why
    if needed:
        held = current(plan, name)
        given = held is not None and held.role != "constant"
        text = held.text() if held is not None and given else f"{name} is given None"
        forms = [with_argument(plan, argument) for argument in padding_forms(name, time_first=plan.time_first)]
        guessed = given and (mask_matters(prober, plan) or _is_broad(plan, held, encoder))
        if (guessed or plan.family == "classifier") and (obeyed := passed_over(prober, name, forms)) is not None:
            return obeyed
        if guessed:
            why = f"it changes the logits, and no form of it hides padding ({first}): what it means is a guess"
            return plan, Finding("mask", "fail", f"{text}: no meaning found", "a padded token is hidden", why)
        return plan, Finding("mask", "note", f"{text}: it has no default", reason=f"no form hides padding: {first}")
    unused = "not used; packed batches have no padding, so none is needed"
    if plan.family == "classifier":
        unused = "not used: padding is read like text"
    return plan, Finding(
        "mask", "note", f"{name} is {unused}", "without padding nothing changes, a padded token is hidden", first
    )
