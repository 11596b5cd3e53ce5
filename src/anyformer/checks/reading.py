"""Tier 1: what of a text is read: the whole source, the order of the tokens, the future where a name asks for it.

B batch, T time, S time of the source.
"""

from __future__ import annotations

import torch

from anyformer.checks.attended import Attention, attended
from anyformer.checks.attention import attentions, watched_inputs, weights_of
from anyformer.checks.places import misplaced
from anyformer.checks.results import CheckResult
from anyformer.checks.subject import Subject
from anyformer.models.calls.probing import difference, tolerance
from anyformer.models.inputs import Inputs


def source(subject: Subject) -> CheckResult:
    """Every position of the target may look at the whole source."""
    name, expected = "source", "every position of the target sees all of the source"
    if not subject.two:
        return CheckResult(name, 1, "n/a", "it reads one text")
    inputs = watched_inputs(subject)
    T, S = subject.read(inputs).shape[1], inputs.input_ids.shape[1]
    if (unread := _unread(subject, inputs)) is not None:
        cause = "what the decoder is given of the encoder is one place of it, cut off, or nothing"
        return CheckResult(name, 1, "fail", f"source token {unread} moves no logit, whatever it is", expected, cause)
    if T == S:
        return CheckResult(name, 1, "n/a", "source and target have one length: they cannot be told apart", expected)
    with attended(T, S, 1) as watch:
        subject.logits(inputs)
    if any(one.product.shape[-2:] == (T, 1) and one.weights is not None for one in watch.found):
        cause = "what the decoder is given of the encoder is one place of it: memory[:, :1], a pooled vector"
        return CheckResult(name, 1, "warn", "the target attends to one place of the source alone", expected, cause)
    crossed = [one for one in attentions(subject) if one.product.shape[-2:] == (T, S) and one.weights is not None]
    if not crossed:
        return CheckResult(name, 1, "n/a", "not visible: no attention from target to source was seen", expected)
    for one in crossed:
        assert one.weights is not None
        hidden = (one.weights.reshape(one.product.shape) == 0).all(0)  # in every row and head
        if bool(hidden.any()):
            t, s = (int(i) for i in hidden.nonzero()[0])
            cause = "the mask of the target's own positions was handed to the attention over the source"
            return CheckResult(name, 1, "fail", f"target {t} gives source {s} no weight", expected, cause)
    alike = [one for one in crossed if float(one.keys.std(1).max()) < 1e-6 * float(one.keys.abs().max())]
    if alike:
        cause = "the decoder is given one place of the encoder in place of all: memory[:, :1], a mean that is repeated"
        return CheckResult(
            name, 1, "warn", "every place of the source has the same key", expected, cause, alike[0].where
        )
    own = [one for one in attentions(subject) if one.product.shape[-2:] == (S, S) and one.weights is not None]
    if own and all(not bool(weights_of(one).triu(1).any()) for one in own):
        cause = "a causal mask is given to the encoder: only the decoder needs one"
        return CheckResult(name, 1, "warn", "the encoder never looks ahead in the source", expected, cause)
    return CheckResult(name, 1, "ok", f"{len(crossed)} × attention over the source, none of it hidden", expected)


def _unread(subject: Subject, inputs: Inputs) -> int | None:
    """A place of the source of which nothing gets into the logits, in each of two rows; None where there is none."""
    ids = inputs.input_ids
    base = subject.logits(inputs)
    for s in range(ids.shape[1]):
        other = ids.clone()
        other[:, s] = torch.where(ids[:, s] > 2, ids[:, s] - 1, ids[:, s] + 1)
        moved = difference(base, subject.logits(Inputs(other, target_ids=inputs.target_ids)))
        if float(moved.max()) <= 1e-3 * tolerance(base):
            return s
    return None


def positions(subject: Subject) -> CheckResult:
    """The order of the tokens plays a part."""
    name, expected = "positions", "the order of tokens plays a part"
    if subject.plan.only_length == 1 or subject.plan.packed:
        return CheckResult(name, 1, "n/a", "not for this kind of call")
    cause = "no positions are added, or they are the same everywhere: a bag of words"
    if (wrong := misplaced(subject)) is not None:
        return CheckResult(name, 1, "warn", wrong.measured, wrong.expected, wrong.cause, wrong.where)
    if subject.two and not subject.plan.only_length:
        inputs = subject.batch(0)
        turned = Inputs(inputs.input_ids.flip(1), target_ids=inputs.target_ids)
        if torch.allclose(subject.logits(inputs), subject.logits(turned), rtol=1e-4, atol=1e-6):
            why = "no positions are added to the source: of what is read it knows the words, and not their order"
            return CheckResult(name, 1, "warn", "the source in reverse gives the same", "its order plays a part", why)
    if not subject.decodes:
        inputs = subject.batch(0)
        order = torch.arange(inputs.input_ids.shape[1] - 1, -1, -1, device=inputs.input_ids.device)
        there, back = subject.logits(inputs), subject.logits(Inputs(inputs.input_ids[:, order]))
        back = back[:, order] if subject.writes else back
        if there.shape == back.shape and torch.allclose(there, back, rtol=1e-4, atol=1e-5):
            return CheckResult(name, 1, "warn", "tokens in reverse give the same, in reverse", expected, cause)
        return CheckResult(name, 1, "ok", "tokens in reverse give something else", expected)
    if subject.plan.layout == "last":
        return CheckResult(name, 1, "n/a", "not for this kind of call")
    inputs = watched_inputs(subject)
    read = subject.read(inputs)
    inputs = subject.with_read(inputs, read[:, :1].expand_as(read).contiguous())
    T, S = read.shape[1], inputs.input_ids.shape[1]
    with attended(T, S) as watch:
        logits = subject.logits(inputs)
    spread = float((logits - logits[:, -1:]).abs().nan_to_num().max())
    scale_ = float(logits[logits.isfinite()].abs().median())
    if spread > subject.limits.share * max(scale_, 1e-30):
        return CheckResult(name, 1, "ok", "one token all along gives other logits at other places", expected)
    own = [one for one in watch.found if one.product.shape[-2:] == (T, T) and one.weights is not None]
    own = [one for one in own if T != S or not subject.two]
    if not own:
        return CheckResult(name, 1, "n/a", "one token gives the same everywhere; no attention is seen", expected)
    if any(_uneven(one) for one in own):
        return CheckResult(name, 1, "ok", "attention tells near places from far ones", expected)
    measured = "one token all along gives the same everywhere, and attention weighs all places alike"
    return CheckResult(name, 1, "warn", measured, expected, cause)


def _uneven(one: Attention) -> bool:
    """Whether a query weighs the keys that it may see differently, though all hold the same token."""
    assert one.weights is not None
    p = one.weights.double().reshape(one.product.shape)
    last = p[:, -1]
    seen = last > 0
    share = last * seen.sum(-1, keepdim=True)
    return bool(((share - 1).abs()[seen] > 1e-4).any())
