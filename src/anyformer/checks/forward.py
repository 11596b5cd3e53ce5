"""Tier 1: what a forward pass must and must not depend on.

B batch, T time (of the text whose positions the logits belong to), V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anyformer.checks.leak import instead_of_missing
from anyformer.checks.padding import looked_for
from anyformer.checks.results import TROUBLE, CheckResult
from anyformer.checks.subject import Subject
from anyformer.models.blame import blame
from anyformer.models.calling import call_logits
from anyformer.models.calls.causal import in_training, measure
from anyformer.models.calls.culprit import LETS_IN, MISSING, leak_reason, leaking_part, no_past_reason
from anyformer.models.calls.evidence import gather
from anyformer.models.calls.probing import changed_inputs, difference, tolerance
from anyformer.models.calls.properties import batch_finding
from anyformer.models.calls.repeats import repeat_finding
from anyformer.models.inputs import Inputs, rows

_SAME = "equal but for rounding"
_KEPT = "a state kept between calls"  # as repeat_finding begins


def finite(subject: Subject) -> CheckResult:
    """No NaN and no infinite logit on random, constant and extreme ids. −inf may be meant: it forbids a token."""
    bad: list[str] = []
    base = subject.batch(0)
    top = int(subject.ids - 1)
    kinds = {f"random ids, batch {seed}": subject.batch(seed) for seed in subject.limits.seeds}
    padding_ = set().union(*looked_for(subject, base))  # a text of padding alone need give nothing
    texts = [id_ for id_ in range(1, top + 1) if id_ not in padding_] or [top]
    for name, id_ in (
        ("one id alone", texts[len(texts) // 2]),
        ("the smallest id", texts[0]),
        ("the largest id", texts[-1]),
    ):
        kinds[name] = subject.with_read(base, torch.full_like(subject.read(base), id_))
    for name, inputs in kinds.items():
        logits = subject.logits(inputs)
        count = int((logits.isnan() | (logits == torch.inf)).sum())
        if count:
            bad.append(f"{count:,} of {logits.numel():,} logits on {name}")
    if not bad:
        return CheckResult("finite", 1, "ok", f"every logit, on {len(kinds)} batches", "no NaN, no infinity")
    cause = "weights that were never initialised (torch.empty), a softmax over a row that is masked whole, a division"
    return CheckResult("finite", 1, "fail", "; ".join(bad[:2]), "no NaN, no infinity", cause)


def repeat(subject: Subject) -> CheckResult:
    """The same ids give the same logits twice in eval mode."""
    if "stateful" in subject.declared:
        return CheckResult("repeat", 1, "n/a", "declared stateful: a text may change what comes after it")
    found = repeat_finding(subject.prober, subject.plan)
    verdict = "warn" if found.verdict == "note" else found.verdict
    return CheckResult("repeat", 1, verdict, found.measured, "the same ids, the same logits", found.reason)


def state(subject: Subject) -> CheckResult:
    """A, B, A: what was read before changes nothing."""
    expected = "a text gives the same before and after another one"
    cause = "a cache, counter or buffer that forward writes and reads: clear it at the start of each call"
    if "stateful" in subject.declared:
        return _in_turn(subject)
    at_once = repeat_finding(subject.prober, subject.plan)
    if at_once.verdict in TROUBLE:
        kept = at_once.reason.startswith(_KEPT)
        if not kept:
            return CheckResult("state", 1, "n/a", "the same text gives other logits at once", expected)
        return CheckResult("state", 1, "fail", at_once.measured, expected, f"{at_once.reason}; {cause}")
    worst = 0.0
    for seed in subject.limits.seeds:
        a, b = subject.batch(seed), subject.batch(seed + 10)
        first = subject.logits(a)
        subject.logits(b)
        again = subject.logits(a)
        worst = max(worst, subject.apart(first, again))
    if worst <= 1:
        return CheckResult("state", 1, "ok", "nothing is left of a text that was read before", expected)
    return CheckResult("state", 1, "fail", f"after another text the same one differs by {worst:.2g} tolerances",
                       expected, cause)  # fmt: skip


def _in_turn(subject: Subject) -> CheckResult:
    """Of a model that is meant to keep a state: what it gives hangs on what it has read, and on nothing else."""
    expected = "two copies that read the same texts in turn give the same"
    for seed in subject.limits.seeds:
        texts = [subject.batch(seed), subject.batch(seed + 10), subject.batch(seed)]
        first, second = ([_read(copy, subject, text) for text in texts] for copy in subject.copies(2))
        if any(subject.apart(one, two) > 1 for one, two in zip(first, second, strict=True)):
            cause = "what it keeps is no part of the module, or is drawn at random"
            return CheckResult("state", 1, "fail", "two copies differ", expected, cause)
    return CheckResult("state", 1, "ok", "declared stateful: copies that read the same in turn give the same", expected)


def _read(module: nn.Module, subject: Subject, text: Inputs) -> Tensor:
    return call_logits(module, subject.plan, text.input_ids, target_ids=text.target_ids)


_MIXES = "declared cross-batch: rows see one another"


def alone(subject: Subject) -> CheckResult:
    """A row alone gives what it gives in a batch."""
    if "cross-batch" in subject.declared:
        return CheckResult("rows", 1, "n/a", _MIXES)
    found = batch_finding(subject.prober, subject.plan)
    return CheckResult("rows", 1, found.verdict, found.measured, "a row alone = the row in a batch", found.reason)


def row_order(subject: Subject) -> CheckResult:
    """Rows in another order give the same rows in that order."""
    if subject.plan.packed:
        return CheckResult("row order", 1, "n/a", "it reads one row at a time")
    worst = 0.0
    for seed in subject.limits.seeds:
        inputs = subject.batch(seed)
        order = torch.tensor([2, 0, 1], device=inputs.input_ids.device)
        worst = max(worst, subject.apart(subject.logits(inputs)[order], subject.logits(rows(inputs, order))))
    if worst <= 1:
        return CheckResult("row order", 1, "ok", "rows in another order give the same", _SAME)
    cause = "rows see one another, or their place in the batch: batch_first=True, positions along T"
    return CheckResult("row order", 1, "fail", f"they differ by {worst:.2g} tolerances", _SAME, cause)


def prefix(subject: Subject) -> CheckResult:
    """f(x[:t]) = f(x)[:t] of a model that may not look ahead."""
    if not subject.decodes or subject.plan.only_length or subject.plan.layout == "last":
        return CheckResult("prefix", 1, "n/a", why_not(subject))
    T, worst, at = subject.length, 0.0, 0
    for seed in subject.limits.seeds:
        inputs = subject.batch(seed)
        whole = subject.logits(inputs)
        for t in sorted({max(1, T // 4), T // 2, max(1, T - 1)}):
            cut = subject.with_read(inputs, subject.read(inputs)[:, :t].contiguous())
            apart = subject.apart(whole[:, :t], subject.logits(cut))
            worst, at = (apart, t) if apart > worst else (worst, at)
    if worst <= 1:
        return CheckResult("prefix", 1, "ok", "the beginning of a text gives the beginning of its logits", _SAME)
    measured = f"at t = {at} they differ by {worst:.2g} tolerances"
    if measure(subject.prober, subject.plan, target=subject.two).causal:
        cause = (
            "logits depend on how long the text is, though not on what it says later: positions or filters scaled by T"
        )
        return CheckResult("prefix", 1, "warn", measured, _SAME, cause)
    cause = "logits depend on what comes after, or on how long the text is: no mask, a mean over time"
    return CheckResult("prefix", 1, "fail", measured, _SAME, cause)


def future(subject: Subject) -> CheckResult:
    """Another token moves no logit before it."""
    if not subject.decodes:
        return CheckResult("future", 1, "n/a", why_not(subject))
    sight = measure(subject.prober, subject.plan, target=subject.two)
    expected = "no change before the changed token"
    if sight.nan or not sight.checked:
        return CheckResult("future", 1, "n/a", "cannot be measured: no second batch gives finite logits", expected)
    if sight.leak is None:
        with subject.training():
            inputs = subject.batch(0)
            first, second = (subject.prober.try_logits(subject.plan, inputs) for _ in range(2))
        moves = first is not None and second is not None and subject.apart(first, second) > 1  # it keeps a state then
        trained = sight if moves else in_training(subject.prober, subject.plan, target=subject.two)
        normed = any(isinstance(m, _BatchNorm) for m in subject.awake.modules())  # told by "rows in training"
        mixes = normed or "cross-batch" in subject.declared
        if trained.leak is not None and not mixes:
            cause = "in training mode each position sees later ones: the mask is there in eval mode only"
            return CheckResult("future", 1, "fail", f"in training mode {trained.leak.text()}", expected, cause)
        named = [word for word in gather(subject.module).encoder if word.startswith("class ")]
        if named and not subject.two and not gather(subject.module).decoder:
            cause = "a causal mask, where it is meant to see both sides; else another name would say so"
            measured = f"no logit sees a later token, yet {named[0]} says that it is an encoder"
            return CheckResult("future", 1, "warn", measured, "an encoder sees both sides", cause)
        measured = f"{sight.checked} tokens changed, in texts of up to {sight.longest}: no logit before them moves"
        return CheckResult("future", 1, "ok", measured, expected)
    part = leaking_part(subject.prober, subject.plan, sight.leak)
    cause = leak_reason(subject.prober, subject.plan, sight.leak, gather(subject.module), ways_on=False)
    if (MISSING in cause or LETS_IN in cause) and (why := instead_of_missing(subject)):
        cause = cause.replace(f"{MISSING}, or this is an encoder", MISSING).replace(MISSING, why)
        cause = cause.replace(LETS_IN, f"{LETS_IN}: {why}")
    return CheckResult("future", 1, "fail", sight.leak.text(), expected, cause, _place(part))


def _place(part: tuple[str, nn.Module, bool] | None) -> str:
    return "" if part is None else f"{part[0]} ({type(part[1]).__name__})"


def past(subject: Subject) -> CheckResult:
    """Earlier tokens matter, and so does the token itself."""
    if subject.plan.family == "classifier":
        return _all_read(subject)
    if not subject.writes or subject.plan.layout == "last":
        return CheckResult("past", 1, "n/a", why_not(subject))
    sight = measure(subject.prober, subject.plan, target=subject.two)
    expected = "the logits react to the tokens before them, and to their own"
    if sight.nan or not sight.checked:
        return CheckResult("past", 1, "n/a", "cannot be measured: no second batch gives finite logits", expected)
    if not sight.after and subject.decodes:
        measured = "no logit after a changed token moves"
        if not no_past_reason(subject.prober, subject.plan, insisted=False):
            return CheckResult("past", 1, "note", f"{measured}: it has nothing that reads another token", expected)
        cause = (
            "it attends, yet nothing comes of it: the output of attention is dropped or multiplied by 0, or heads"
            " attend to each other where queries stay (B, T, heads, size) before queries @ keys"
        )
        return CheckResult("past", 1, "warn", measured, expected, cause)
    if not sight.own:
        cause = "the input is shifted once too often, or the residual path around attention is missing"
        return CheckResult("past", 1, "fail", "the token at t moves no logit at t", expected, cause)
    return CheckResult("past", 1, "ok", "earlier tokens move the logits, and so does the own one", expected)


def _all_read(subject: Subject) -> CheckResult:
    """Of a classifier: each token of a text may move its numbers."""
    expected = "each token of a text moves its numbers"
    moved, T = set[int](), subject.length
    for seed in subject.limits.seeds:
        inputs = subject.batch(seed)
        base = subject.logits(inputs)
        for t in range(min(T, _PLACES)):
            if t not in moved:
                other = changed_inputs(subject.prober, subject.plan, inputs, t, target=False)
                if float(difference(base, subject.logits(other)).max()) > tolerance(base):
                    moved.add(t)
    still = [t for t in range(min(T, _PLACES)) if t not in moved]
    if not still:
        return CheckResult(
            "past", 1, "ok", f"each of {min(T, _PLACES)} tokens moves the {subject.plan.vocab_size} numbers", expected
        )
    if moved == {0}:
        cause = "the first position is read, and a causal mask keeps it from the others: leave it out, or read the last"
    else:
        cause = "what is read sees a part of the text alone: a mask, a slice, an axis that is taken for another"
    measured = f"of {min(T, _PLACES)} tokens {len(still)} move nothing: {', '.join(map(str, still[:6]))}"
    return CheckResult("past", 1, "warn", measured + (" …" if len(still) > 6 else ""), expected, cause)


_PLACES = 24
"""Of a classifier that takes one length alone: the first ones."""


def rows_in_training(subject: Subject) -> CheckResult:
    """In training mode, dropout apart, a row alone gives what it gives in a batch, too."""
    name, expected = "rows in training", "a row alone = the row in a batch"
    if "cross-batch" in subject.declared:
        return CheckResult(name, 1, "n/a", _MIXES)
    inputs = subject.batch(0)
    try:
        with subject.training():
            whole, again = subject.logits(inputs), subject.logits(inputs)
            if subject.apart(whole, again) > 1:
                return CheckResult(name, 1, "n/a", "in training mode the same text gives other logits", expected)
            single = torch.cat([subject.logits(rows(inputs, slice(i, i + 1))) for i in range(len(whole))])
    except Exception as error:  # (a stranger's forward may raise anything; it is the result)
        line, _, words = blame(error).rpartition("\n")
        if not line:
            raise
        if "more than 1 value per channel" not in str(error):
            cause = "what runs in training mode alone was never tried: dropout, self.training"
            return CheckResult(name, 1, "fail", f"in training mode it ends with {words}", expected, cause, line)
        single = torch.empty(0)
    if single.shape == whole.shape and subject.apart(whole, single) <= 1:
        return CheckResult(name, 1, "ok", "a row alone = the row in a batch", expected)
    norms = [n for n, m in subject.awake.named_modules() if isinstance(m, _BatchNorm)]
    cause = "BatchNorm takes its mean over rows and places, later ones among them: LayerNorm or RMSNorm does not"
    if not norms:
        cause = "in training mode rows see one another: a mean over the batch, experts of limited capacity"
    return CheckResult(name, 1, "warn", "they differ", expected, cause, norms[0] if norms else "")


def why_not(subject: Subject) -> str:
    if subject.plan.family == "encoder":
        return "an encoder sees both sides"
    if subject.plan.family == "classifier":
        return "one row of numbers per text"
    return "not for this kind of call"
