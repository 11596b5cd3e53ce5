"""Encoder-decoders: two sequences in, logits for the second out.

B batch, T time of the source, S time of the target, V vocabulary of the target.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice

from torch import nn

from anyformer.core.findings import Finding
from anyformer.models.calls.causal import glance, measure
from anyformer.models.calls.failures import tried
from anyformer.models.calls.forcing import forced, forcing_parameters
from anyformer.models.calls.hiding import hidden_by_id, hides, leaves_nothing, mask_matters
from anyformer.models.calls.lengths import settle_lengths
from anyformer.models.calls.locating import Found, Size, blank, locate, out_of_time
from anyformer.models.calls.masks import Settled, current, passed_over, with_argument, without
from anyformer.models.calls.names import (
    OF_IDS,
    TOKENS,
    Hint,
    hint,
    parameters_of,
    required,
    token_candidates,
    token_name,
)
from anyformer.models.calls.options import (
    alike,
    assignments,
    causal_forms,
    maybe_decoder,
    options,
    padding_forms,
    source_of,
    stated_options,
)
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober, changed_inputs, difference, tolerance
from anyformer.models.calls.properties import rows_apart
from anyformer.models.inputs import Inputs
from anyformer.models.plan import Argument, CallPlan, MethodCall

_METHOD_TRIES = 120
DRAFTS_AT_A_LENGTH = 20
AS_SOURCE = " as the source of "
_PLACES = 32  # of a long source at which a token is changed
_LABELS = re.compile(r"(tgt|trg|target|dec|decoder)_?(out(put)?s?|y|labels?|gold|real|next|true)|labels?|gold|targets")
"""Beside the decoder's input: what the loss compares with. Any ids do to get the logits."""
_OF_ITSELF = re.compile(r"self|causal|ahead|subsequent|future|pea?k|tril?(?![a-z])|triu|triang|square")
"""Of the target's masks the one of what each place may look at: the other is that of its padding."""
_UNSURE = 24  # calls whose masks hide nothing, before the first of them is taken


def names_two_sequences(module: nn.Module, stated: Stated) -> bool:
    """Whether the names of forward's arguments, or encode and decode methods, speak of two sequences."""
    if stated.family is not None:
        return stated.family == "encoder_decoder"
    if stated.target is not None:
        return True
    return any(hint(p.name) == "decoder" for p in parameters_of(module)) or has_methods(module)


def has_methods(module: nn.Module) -> bool:
    """encode and decode, and no forward of its own."""
    forward_missing = type(module).forward is nn.Module.forward
    callable_ = [callable(getattr(module, name, None)) for name in ("encode", "decode")]
    return all(callable_) and (forward_missing or "NotImplementedError" in source_of(module))


def text_made_up(plan: CallPlan, stated: Stated) -> bool:
    """Whether a parameter that no name explains is given a number per token: it may be a second text."""
    rows = [a for a in plan.extras if a.role in ("positions", "segments") and a.name not in stated.arguments]
    return any(hint(a.name) in ("unknown", "tokens") for a in rows)


def find_seq2seq(prober: Prober, stated: Stated, failures: list[str]) -> Found | None:
    """The first call with two sequences of different lengths that gives logits (B, S, V) for the second."""
    if has_methods(prober.module):
        return _by_methods(prober, stated, failures)
    return by_forward(prober, stated, failures)


def by_forward(
    prober: Prober, stated: Stated, failures: list[str], lengths: tuple[tuple[Size, Size], ...] = ()
) -> Found | None:
    """The first call of forward whose rows are apart, else the one where they are nearest to it.

    Several masks of the source must hide it: of the two polarities one lets all see alike, and runs as well.
    """
    best: Found | None = None
    unsure = 0
    for number, plan in enumerate(drafts(prober.module, stated)):
        if out_of_time(prober, failures) or (lengths and number >= DRAFTS_AT_A_LENGTH) or unsure >= _UNSURE:
            break
        for time_first in (False, True):
            if stated.batch is not None and time_first != (stated.batch == "second"):
                continue
            found, failure = locate(prober, replace(plan, time_first=time_first), stated, lengths)
            if found is None or found.place.use != "sequence":
                failures.append(failure or f"{plan.target_arg} as the decoder's input: no (B, S, V)")
                continue
            source = source_finding(prober, found.plan)
            if source.verdict == "fail":
                failures.append(f"{plan.token_arg}{AS_SOURCE}{plan.target_arg}: {source.measured}")
                continue
            if any(a.role == "mask" and a.shape == "TT" for a in found.plan.extras) and leaves_nothing(
                prober, found.plan
            ):
                failures.append(f"{tried(found.plan, plan.target_arg or '')}: leaves nothing of the scores")
                continue
            if found.apart is not None and found.apart <= 1:
                if not _several_masks(found.plan) or hides(prober, found.plan).works:
                    return found
                unsure += 1
            if best is None or (found.apart or 0.0) < (best.apart or 0.0):
                best = found
    return best


def _several_masks(plan: CallPlan) -> bool:
    """Whether more than one mask of the source is given, as what one hides the other shows again."""
    return (plan.mask_arg is not None) + sum(a.role in ("mask", "memory_mask") for a in plan.extras) > 1


def drafts(module: nn.Module, stated: Stated) -> Iterator[CallPlan]:
    """Calls with what must be given; then with one optional mask, of a forward that fails without it."""
    parameters = parameters_of(module)
    pairs = _pairs(parameters, stated)
    for token_arg, target in pairs:
        yield from _drafts_of(module, stated, token_arg, target)
    for token_arg, target in pairs:
        open_ones = [p for p in parameters if p.default is None and p.name not in stated.arguments]
        masks = [p for p in open_ones if whose(p.name, token_arg, target) in ("target_mask", "mask")]
        for p in sorted(masks, key=lambda p: (whose(p.name, token_arg, target) != "target_mask", "pad" in p.name))[:2]:
            yield from _drafts_of(module, stated, token_arg, target, p)


def _drafts_of(
    module: nn.Module, stated: Stated, token_arg: str, target: str, optional: inspect.Parameter | None = None
) -> Iterator[CallPlan]:
    parameters, source = parameters_of(module), source_of(module)
    taken = (token_arg.lstrip("*"), target, *stated.arguments)
    forcing = [p for p in forcing_parameters(parameters) if p.name not in taken]
    others = [p for p in required(parameters) if p.name not in taken and p not in forcing]
    others += [optional] if optional is not None and optional not in others else []
    kinds = {p.name: whose(p.name, token_arg, target) for p in others}
    of_itself = [n for n, kind in kinds.items() if kind == "target_mask" and _OF_ITSELF.search(n.lower())]
    lists = [
        [Argument(p.name, "target_ids", "BS")]
        if _LABELS.fullmatch(p.name.lower())
        else padding_forms(p.name, "target_mask")  # beside t_self_mask the plain t_mask is that of padding
        if of_itself and kinds[p.name] == "target_mask" and p.name not in of_itself and "pad" not in p.name
        else options(p, source, kinds[p.name], masks="source")
        for p in others
    ]
    lists += [forced(p)[:1] for p in forcing]
    stated_too = [name for name in stated.arguments if name not in (token_arg.lstrip("*"), target)]
    for name in stated_too:
        mask = whose(name, token_arg, target)
        mask = mask if mask in ("target_mask", "memory_mask") else "mask"
        lists.append(stated_options(name, stated, source, parameters, mask=mask, masks="source"))
    for given in chain(assignments(lists), alike(lists)) if lists else [()]:
        yield replace(blank(token_arg, given), family="encoder_decoder", target_arg=target)
    for p in parameters:  # without labels some give the last position alone
        labels = _LABELS.fullmatch(p.name.lower()) and p.name not in taken and p not in others
        if labels and not lists:
            given = (Argument(p.name, "target_ids", "BS"),)
            yield replace(blank(token_arg, given), family="encoder_decoder", target_arg=target)


def whose(name: str, token_arg: str, target: str) -> Hint:
    """What a parameter takes: the target's mask has a word of the target's name, or its first letter.

    chinese_mask beside chinese_seq, t_mask beside targets.
    """
    kind = hint(name)
    if kind != "mask":
        return kind
    words, own, read = ({*re.findall("[a-z]+", n.lower())} for n in (name, target, token_arg))
    initials = {target[:1].lower()} - {token_arg.lstrip("*")[:1].lower()}
    return "target_mask" if words & ((own - read - OF_IDS) | initials) else kind


def _pairs(parameters: list[inspect.Parameter], stated: Stated) -> list[tuple[str, str]]:
    """(source, target) by name; then the first two that must be given."""
    named = [p.name for p in parameters if hint(p.name) == "decoder"]
    possible = [p.name for p in parameters if maybe_decoder(p.name) and p.name not in named]
    free = [p.name for p in required(parameters) if hint(p.name) in ("tokens", "unknown", "targets")]
    targets = [stated.target] if stated.target else [*named, *possible, *free[1:], *free[:1]]
    sources = [stated.tokens] if stated.tokens else token_candidates(parameters)
    if not stated.tokens:
        sources += [token_name(p) for p in parameters if p.name in TOKENS and token_name(p) not in sources]
    pairs = [(s, t) for t in dict.fromkeys(targets) for s in sources if s.lstrip("*") != t]
    return pairs[:6]


def _by_methods(prober: Prober, stated: Stated, failures: list[str]) -> Found | None:
    """encode, decode and, where there is one, project: the first arguments with which the target is causal."""
    best: tuple[int, Found] | None = None
    for number, methods in enumerate(_method_calls(prober.module)):
        if number >= _METHOD_TRIES:
            break
        tokens = next(a.name for a in methods[0].arguments if a.role == "tokens")
        plan = replace(blank(tokens, ()), family="encoder_decoder", methods=methods)
        found, failure = locate(prober, plan, stated)
        if found is None or found.place.use != "sequence":
            failures.append(failure or "decode gave no (B, S, V)")
            continue
        sight = glance(prober, found.plan, target=True)
        masked = any("mask" in a.role for m in methods for a in m.arguments)
        score = 2 * sight.decodes + (not masked or hides(prober, found.plan).works)
        if score == 3:
            return found
        if best is None or score > best[0]:
            best = (score, found)
    return best[1] if best else None


def _method_calls(module: nn.Module) -> Iterator[tuple[MethodCall, ...]]:
    names = ["encode", "decode"]
    project = next((n for n in ("project", "output_project", "projection") if _is_method(module, n)), None)
    names += [project] if project else []
    each: list[list[list[Argument]]] = []
    read = next(iter(inspect.signature(getattr(module, names[0])).parameters), "")
    for name in names:
        parameters = [
            p
            for p in inspect.signature(getattr(module, name)).parameters.values()
            if p.default is p.empty or hint(p.name) in ("mask", "target_mask", "memory_mask")
        ]
        each.append(
            [_method_options(p, name, i, read) for i, p in enumerate(parameters) if p.kind is not p.VAR_KEYWORD]
        )
    flat = [options_ for lists in each for options_ in lists]
    for given in chain(islice(assignments(flat), _METHOD_TRIES // 2), alike(flat)):
        methods, at = [], 0
        for name, lists in zip(names, each, strict=True):
            methods.append(MethodCall(name, given[at : at + len(lists)]))
            at += len(lists)
        encoded, decoded = ([a.role for a in m.arguments] for m in methods[:2])
        once = [encoded.count("tokens"), (encoded + decoded).count("target_ids"), decoded.count("memory")]
        if once == [1, 1, 1] and decoded.count("tokens") < 2:
            yield tuple(methods)


def _is_method(module: nn.Module, name: str) -> bool:
    found = getattr(module, name, None)
    return inspect.ismethod(found)


def _method_options(parameter: inspect.Parameter, method: str, index: int, read: str) -> list[Argument]:
    """read: the name of what encode reads."""
    name, kind = parameter.name, hint(parameter.name)
    memory = Argument(name, "memory", "")
    if method == "encode":
        if index == 0:
            return [Argument(name, "tokens")]
        return _not_none(name) if kind == "mask" else options(parameter, "", masks="source")
    if method != "decode":
        return [memory]
    if kind in ("mask", "target_mask", "memory_mask"):
        source = kind != "target_mask" and not (kind == "mask" and name == "mask")
        if source:
            return _not_none(name)
        causal = causal_forms(name, target=True, batched=True)
        if "pad" in name.lower():
            return padding_forms(name, "target_mask")
        return [a for a in causal if a.form == "keep" and a.dtype != "float32"] + [
            a for a in causal if a.form != "keep" or a.dtype == "float32"
        ]
    target, again = Argument(name, "target_ids", "BS"), Argument(name, "tokens")
    if kind in ("decoder", "targets"):
        return [target]
    if name == read:
        return [again, target]  # again: for the padding mask that it makes of the source
    if kind == "tokens":
        return [target]
    if kind in ("memory", "cache") or "enc" in name.lower():
        return [memory]
    if kind in ("lengths", "padding_id"):
        return options(parameter, "", masks="source")
    return [target, memory] if kind == "unknown" else []


def _not_none(name: str) -> list[Argument]:
    """A source mask, as encode and decode take it; nothing last."""
    role = "memory_mask" if hint(name) == "memory_mask" else "mask"
    padding = padding_forms(name, role)
    first = [a for a in padding if a.shape in ("B11T", "B1T", "BT") and a.dtype != "float32"]
    nothing = [Argument(name, "constant", "", value=None)]
    return [*sorted(first, key=lambda a: (a.form != "keep", a.shape == "BT")), *nothing]


def settle_seq2seq(prober: Prober, plan: CallPlan, stated: Stated) -> Settled:
    """Target causality by a mask or flag where it is not the module's own; then padding of both sides."""
    if plan.methods:
        return Settled(plan, ())
    given = (plan.token_arg.lstrip("*"), plan.target_arg, plan.targets_arg)
    parameters = [p for p in parameters_of(prober.module) if p.name not in given and p.name not in stated.arguments]
    told = {a.name for a in plan.extras if a.role == "padding_id"}
    told = told if told and hidden_by_id(prober, plan) else set()
    kinds = {p.name: whose(p.name, plan.token_arg, plan.target_arg or "") for p in parameters if p.name not in told}
    masks = [p for p in parameters if kinds.get(p.name) in ("mask", "target_mask", "memory_mask")]
    plan, findings = settle_lengths(prober, plan)
    sight = measure(prober, plan, target=True)
    settled: set[str] = set()
    if not sight.decodes and not (sight.causal and not any("causal" in a.role for a in plan.extras)):
        before = plan.extras
        plan, about = _target_causality(prober, plan, masks, parameters)
        settled = {a.name for a in plan.extras if a not in before}
        findings += about
    used = {a.name for a in plan.extras if "causal" in a.role} | settled
    sources = [p for p in masks if kinds[p.name] == "mask" and "cross" not in p.name]
    # the decoder's padding mask may be one of the source, for what it reads of the encoder
    read = [p for p in masks if kinds[p.name] == "memory_mask"]
    read += [p for p in masks if kinds[p.name] == "target_mask" and "pad" in p.name and p.name not in used]
    plan, about = _source_padding(prober, plan, sources, read)
    findings += about
    used |= {a.name for a in plan.extras if a.role == "memory_mask"}
    for parameter in masks:
        if kinds[parameter.name] == "target_mask" and parameter.name not in used:
            plan, about = _target_padding(prober, plan, parameter)
            held = current(plan, parameter.name)
            if held is not None and held.role == "constant" and plan.mask_arg is None:  # the source's, perhaps
                plan, about = _source_padding(prober, plan, [parameter], read)
            findings += about
    return Settled(plan, tuple(findings))


def _target_causality(
    prober: Prober, plan: CallPlan, masks: list[inspect.Parameter], parameters: list[inspect.Parameter]
) -> tuple[CallPlan, list[Finding]]:
    flags = [
        Argument(p.name, "constant", "", value=True)
        for p in parameters
        if hint(p.name) == "flag" or "is_causal" in p.name
    ]
    kinds = {p.name: whose(p.name, plan.token_arg, plan.target_arg or "") for p in masks}
    ordered = sorted(
        masks, key=lambda p: (kinds[p.name] != "target_mask", "pad" in p.name, kinds[p.name] == "memory_mask")
    )
    forms = [a for p in ordered[:3] for a in causal_forms(p.name, target=True)]
    for argument in [*flags, *forms]:
        candidate = with_argument(plan, argument)
        if glance(prober, candidate, target=True).decodes and (rows_apart(prober, candidate) or 0) <= 1:
            why = "with it no later target token is seen, and earlier ones are; with another form that is not so"
            return candidate, [Finding("causal mask", "ok", argument.text(), reason=why)]
    targets = [p.name for p in ordered if kinds[p.name] == "target_mask"]
    for argument in [a for name in targets for a in padding_forms(name, "target_mask") if a.shape == "BS"]:
        candidate = with_argument(plan, argument)  # T5's way: a causal mask is added where one of padding is given
        if glance(prober, candidate, target=True).decodes and (rows_apart(prober, candidate) or 0) <= 1:
            why = "given one of padding, the decoder hides later tokens, too; without it they are seen"
            return candidate, [Finding("target mask", "ok", argument.text(), reason=why)]
    return plan, []


def _source_padding(
    prober: Prober, plan: CallPlan, sources: list[inspect.Parameter], memories: list[inspect.Parameter]
) -> tuple[CallPlan, list[Finding]]:
    """One mask alone, or one for the encoder and the same for what the decoder reads of it."""
    first = ""
    ordered = sorted(sources, key=lambda p: "pad" not in p.name and p.name != "attention_mask")
    for parameter in ordered:
        needed = parameter.default is parameter.empty
        bare = None if needed else without(plan, parameter.name)
        tried = []
        for argument in padding_forms(parameter.name, time_first=plan.time_first):
            candidate = replace(with_argument(plan, argument), needs_mask=needed)
            pair = [
                with_argument(candidate, Argument(m.name, "memory_mask", shape, argument.dtype, argument.form))
                for m in memories[:2]
                for shape in dict.fromkeys((argument.shape, "BT"))
            ]
            tried += [candidate, *pair]
            for each in (candidate, *pair):
                hidden = hides(prober, each, against=bare)
                if hidden.works:
                    text = argument.text() + ("" if each is candidate else f" and {each.extras[-1].text()}")
                    return each, [Finding("mask", "ok", text, reason=hidden.why)]
                first = first or hidden.why
        held = current(plan, parameter.name)
        of_source = {*re.findall("[a-z]+", plan.token_arg.lower()), "token", "tokens"}
        if needed and (obeyed := passed_over(prober, parameter.name, tried, of_source)) is not None:
            return obeyed[0], [obeyed[1]]
        if needed and held is not None and "mask" in held.role and "B" in held.shape and mask_matters(prober, plan):
            why = f"it changes the logits, and no form of it hides padding ({first}): what it means is a guess"
            return plan, [
                Finding("mask", "fail", f"{held.text()}: no meaning found", "a padded token is hidden", why),
            ]
    if not sources:
        return plan, []
    names = ", ".join(p.name for p in sources)
    return plan, [Finding("mask", "note", f"{names}: no form hides padding of the source", reason=first)]


def _target_padding(prober: Prober, plan: CallPlan, parameter: inspect.Parameter) -> tuple[CallPlan, list[Finding]]:
    needed = parameter.default is parameter.empty
    bare = None if needed else without(plan, parameter.name)
    forms = padding_forms(parameter.name, "target_mask")
    for argument in sorted(forms, key=lambda a: a.shape.replace("S", "T") != plan.mask_shape):  # as the source's first
        candidate = with_argument(plan, argument)
        if hides(prober, candidate, target=True, against=bare).works:
            return candidate, [Finding("target mask", "ok", argument.text(), reason="a padded token is hidden")]
    return plan, []


def source_finding(prober: Prober, plan: CallPlan) -> Finding:
    """Whether every source token plays a part in the logits."""
    T = max(2, prober.length)
    inputs: Inputs = prober.inputs(plan, 2, T, 21, max(2, T - 2))
    base = prober.try_logits(plan, inputs)
    if base is None:
        return Finding("source", "fail", f"a target of {max(2, T - 2)} tokens is refused", "a target of any length")
    if bool(base.isnan().any()):
        return Finding("source", "n/a", "cannot be measured", reason="the logits are NaN")
    places = sorted({n * (T - 1) // (_PLACES - 1) for n in range(_PLACES)})
    moved = [
        float(difference(base, prober.logits(plan, changed_inputs(prober, plan, inputs, t))).max()) for t in places
    ]
    dead = [t for t, m in zip(places, moved, strict=True) if not m > 0]
    if not dead:
        return Finding("source", "ok", f"changing any of {len(places)} source tokens moves the logits of the target")
    if len(dead) == len(places) or max(moved) <= tolerance(base):
        why = "the decoder does not read what the encoder gives"
        return Finding("source", "fail", "changing source tokens moves no logits", "it moves them", why)
    return Finding("source", "warn", f"source tokens {dead} of {len(places)} play no part", "each one does")
