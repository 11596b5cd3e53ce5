"""How a module is called and where its logits are: inferred once, by running it, and stored with the run.

B batch, T time, V vocabulary. The steps, each in its own file: ``search`` and ``seq2seq`` find a call that runs,
``outputs`` the logits in what it gives, ``masks`` what makes it causal and hides padding, ``causal`` measures that,
``evidence`` tells an encoder from a decoder that leaks, ``ownloss`` compares its loss with ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.calling import call_logits
from anyformer.models.calls.altered import altered_findings
from anyformer.models.calls.answers import answers_findings
from anyformer.models.calls.backwards import backward_finding
from anyformer.models.calls.besides import besides_finding
from anyformer.models.calls.causal import Sight, causality_findings, measure, only_in_training
from anyformer.models.calls.criteria import criteria_finding, yes_or_no
from anyformer.models.calls.culprit import leak_reason, no_past_reason
from anyformer.models.calls.evidence import Evidence, gather, says_masked, sees_nothing_later
from anyformer.models.calls.exports import by_graph
from anyformer.models.calls.failures import OneNumber, SampledItems, nothing_found, sameness, unread_source
from anyformer.models.calls.forcing import order_findings, settle_forcing
from anyformer.models.calls.labels import tagger_finding
from anyformer.models.calls.lastposition import by_beginnings, last_position_finding
from anyformer.models.calls.locating import Found, seen_of
from anyformer.models.calls.masks import Settled, settle_masks
from anyformer.models.calls.meaning import call_findings, classes_finding, places_finding, settle_segments
from anyformer.models.calls.names import parameters_of, required
from anyformer.models.calls.onelength import find_at_one_length, refuse_equal_lengths
from anyformer.models.calls.opening import opened
from anyformer.models.calls.outputs import find_head, hidden_width, logits_finding, require_head
from anyformer.models.calls.overrides import Stated, stated
from anyformer.models.calls.ownloss import own_loss
from anyformer.models.calls.padding import settle_padding
from anyformer.models.calls.probing import Prober, Seen, woken
from anyformer.models.calls.properties import batch_finding, ids_limit, output_kind, position_limit, rows_finding
from anyformer.models.calls.refusals import refuse_other_input
from anyformer.models.calls.repeats import repeat_finding
from anyformer.models.calls.search import find_sequence, require_names
from anyformer.models.calls.seq2seq import (
    find_seq2seq,
    names_two_sequences,
    settle_seq2seq,
    source_finding,
    text_made_up,
)
from anyformer.models.calls.strays import require_ids_kept, stray_finding
from anyformer.models.calls.ungraded import parts_finding
from anyformer.models.files.limits import OutOfTime, no_way_out
from anyformer.models.graph import needs_graph
from anyformer.models.plan import OBJECTIVES, CallPlan, Objective
from anyformer.models.probes import set_mode, untouched
from anyformer.models.signature import ModelSignatureInspector

__all__ = ["CallPlan", "call_logits", "infer_call_plan"]


def infer_call_plan(
    module: nn.Module, *, overrides: Mapping[str, Any] | None = None, objective: Objective | None = None
) -> CallPlan:
    """Find how the module takes ids (B, T) and where its logits are, by running it on tiny batches.

    overrides: what ``call:`` of anyformer.yaml states; it is not searched for, and proven like the rest.
    objective: what the user insists on; causal keeps a decoder that leaks, masked makes an encoder of it.
    Runs in eval mode without gradients and leaves the module as it was. Every line of the plan leaves a finding; one
    whose verdict is fail blocks training. Raises CallError where no call gives logits, naming what was tried and found.
    """
    said = stated(overrides)
    with untouched(module), torch.no_grad():
        set_mode(module, False)
        awake, asleep, refused = woken(module)
        try:
            with untouched(awake), no_way_out():
                set_mode(awake, False)
                prober = Prober(awake)
                plan = _infer(prober, said, objective)
        except OutOfTime as error:
            where = blame(error).replace("OutOfTime: ", "")
            raise CallError(
                "the model's forward does not end", where, "run it on five ids by hand to see why"
            ) from None
        # what the probes left behind is gone: a cache that they filled would hide the graph of the first step
        late = (*backward_finding(awake, plan, prober.sizes), *besides_finding(awake, plan, prober.sizes))
        plan = replace(plan, findings=(*plan.findings, *late))
    if asleep:
        how = f"they could not be filled in a copy ({refused})" if refused else "measured on a copy with noise in them"
        shown = ", ".join(asleep[:4]) + (" …" if len(asleep) > 4 else "")
        finding = Finding(
            "weights at zero", "warn" if refused else "note", f"{len(asleep)} tensors: {shown}", reason=how
        )
        plan = replace(plan, findings=(*plan.findings, finding))
    return plan


def _infer(prober: Prober, said: Stated, objective: Objective | None) -> CallPlan:
    found, about_opening = opened(prober, _find(prober, said, objective), said)
    seen = seen_of(prober, found.plan)
    sample = prober.inputs(found.plan, *prober.sizes[0][:2], 41, prober.sizes[0][2])
    require_ids_kept(prober, found.plan, sample)
    plan, about_logits = _with_head(prober, found, seen, said)
    plan, about_forcing = settle_forcing(prober, settle_segments(prober, plan), said)
    rows, about_ids = ids_limit(prober, plan)
    plan = replace(plan, embedding_rows=rows)
    evidence = gather(prober.module)
    settled = _settle_masks(prober, plan, said, evidence, objective)
    plan, about_lengths = settle_padding(prober, settled.plan, said)
    kind, about_kind = output_kind(prober, plan)
    plan = replace(plan, kind=kind)
    plan, about_order = _sight(prober, plan, said)
    own = own_loss(prober, replace(plan, causal=_seems_causal(prober, plan)))
    plan = replace(plan, targets_arg=own.targets_arg)
    repeats = repeat_finding(prober, plan)
    if own.in_place:
        evidence = replace(evidence, encoder=(*evidence.encoder, "its own loss, which never shifts"))
    plan, about_family, repeats = _family(prober, plan, evidence, repeats, said, objective)
    longest, about_positions = position_limit(prober, plan, seen.position_rows)
    findings = [
        *call_findings(prober, plan, said),
        *about_logits,
        *about_opening,
        *about_kind,
        *settled.findings,
        *about_lengths,
        *about_forcing,
        *own.findings,
        *answers_findings(prober, plan),
        *last_position_finding(plan),
        *places_finding(prober, plan),
        *classes_finding(prober, plan, said),
        *tagger_finding(prober, plan, said, own, evidence),
        *criteria_finding(prober, plan, said, own, objective),
        *altered_findings(prober, plan),
        *parts_finding(prober, plan),
        *stray_finding(prober, plan, sample),
        about_ids,
        *about_order,
        *about_family,
        _as_declared(repeats, said, "stateful"),
        _as_declared(_batch(prober, plan, repeats), said, "cross-batch"),
        about_positions,
        *rows_finding(plan),
    ]
    findings += _unmentioned(plan, findings)
    return replace(plan, max_positions=longest, only_length=prober.fixed, findings=tuple(findings))


_DECLARED = "declared "


def _as_declared(finding: Finding, said: Stated, design: str) -> Finding:
    """What would block, but is meant so."""
    if finding.verdict != "fail" or design not in said.declared:
        return finding
    return replace(finding, verdict="note", reason=f"{_DECLARED}{design}: {finding.reason}")


def is_declared(finding: Finding) -> bool:
    """Whether it would block, but is meant so."""
    return finding.verdict == "note" and finding.reason.startswith(_DECLARED)


def _unmentioned(plan: CallPlan, findings: list[Finding]) -> list[Finding]:
    """A line for each mask that is given and that no other line shows."""
    told = " ".join(f.measured for f in findings)
    masks = [a for a in plan.extras if "mask" in a.role and a.text() not in told]
    why = "needed; what it does is in the lines on causality and masks"
    return [Finding(a.role.replace("_", " "), "note", a.text(), reason=why) for a in masks]


def _find(prober: Prober, said: Stated, objective: Objective | None) -> Found:
    """A call that runs: the dataflow of a builder export, an encoder-decoder, or one sequence in."""
    module = prober.module
    failures: list[str] = []
    require_names(module, said)
    if needs_graph(module):
        return by_graph(prober, said, objective)
    if names_two_sequences(module, said):
        two = find_seq2seq(prober, said, failures)
        if two is not None:
            return two
        if said.family == "encoder_decoder":
            raise nothing_found(prober, parameters_of(module), failures, said)
    try:
        one = find_sequence(prober, said)
    except CallError as error:
        if ModelSignatureInspector(module).requires_intermediate_outputs():
            return by_graph(prober, said, objective)
        refuse_other_input(module)
        two = find_seq2seq(prober, said, failures) if len(required(parameters_of(module))) > 1 else None
        two = two or find_at_one_length(prober, said, failures)
        if two is None and isinstance(error, OneNumber) and yes_or_no(module, said, objective):
            prober.yes_or_no = True
            return find_sequence(prober, said)
        if two is None:
            if failures and not isinstance(error, SampledItems):
                told = {sameness(line).strip() for line in error.detail.splitlines()}
                more: dict[str, str] = {}
                for failure in failures:  # of those that fail alike the plainest, which came first
                    if sameness(failure).strip() not in told:
                        more.setdefault(sameness(failure).strip(), failure)
                error.detail += "".join(f"\n{f}" for f in list(more.values())[:3])
            if (unread := unread_source(prober, failures, error.detail)) is not None:
                raise unread from error
            if not isinstance(error, SampledItems | OneNumber):
                refuse_equal_lengths(prober, said, error.detail)
            raise
        return two
    second = one.plan.targets_arg if one.plan.needs_targets else None
    if (second or text_made_up(one.plan, said)) and said.family in (None, "encoder_decoder"):
        two = find_seq2seq(prober, replace(said, target=second) if second else said, failures)
        if two is not None:
            return two
        prober.sizes = one.sizes
    if one.place.use == "last" or _is_last_position(one, said):
        each = by_beginnings(prober, one, said, objective)
        if each is None:
            raise nothing_found(prober, parameters_of(module), [_last_text(one)], said)
        return each
    return one


def _is_last_position(found: Found, said: Stated) -> bool:
    """Whether one row of numbers per text is the next token's logits, not classes."""
    if found.place.use != "pooled" or said.family == "classifier":
        return False
    return found.plan.embedding_rows == found.place.V


def _last_text(found: Found) -> str:
    B, T = 2, 5
    shape = (B, 1, found.place.V) if found.place.use == "last" else (B, found.place.V)
    given = f"{found.plan.token_arg}: ids ({B}, {T}) gave {shape} at {found.place.where()}"
    return f"{given}: one row per text, perhaps the last position alone; a head on all positions can be trained"


def _with_head(prober: Prober, found: Found, seen: Seen, said: Stated) -> tuple[CallPlan, list[Finding]]:
    """The plan with the head that forward leaves out; where the logits are, in words."""
    plan, about = found.plan, []
    if found.place.use == "sequence":
        width = hidden_width(prober, plan, seen)
        rows = seen.target_rows or seen.embedding_rows
        # a recurrent network's states may have another width than its embedding
        other = rows is not None and plan.vocab_size < rows and found.made_by not in ("linear", None)
        if width is not None or other or said.head is not None:
            states = found.made_by not in ("linear", None) and said.logits is None
            headed = find_head(prober, plan, seen, only=said.head, states=states)
            if said.head is not None and headed is None:
                raise CallError(
                    f"anyformer.yaml states head: {said.head}, which makes no logits",
                    f"{found.place.text()} cannot go through it, or it gives no number per token of the vocabulary",
                )
            if headed is not None:
                plan, finding = headed
                about.append(finding)
            elif width is not None and width != rows:
                require_head(prober, plan, seen)
    needed = plan.targets_arg if plan.needs_targets else None
    rows = plan.target_vocab or plan.embedding_rows
    words = "targets" if needed else ""
    tables = {m.num_embeddings for m in prober.module.modules() if isinstance(m, nn.Embedding)}
    tables = set() if said.logits or plan.family == "encoder_decoder" else tables - set(seen.position_rows)
    return plan, [logits_finding(found.place, plan, found.others, rows, words, found.undecided, tables), *about]


def _settle_masks(
    prober: Prober, plan: CallPlan, said: Stated, evidence: Evidence, objective: Objective | None
) -> Settled:
    if plan.graph is not None:
        return Settled(plan, ())
    if plan.family == "encoder_decoder":
        return settle_seq2seq(prober, plan, said)
    encoder = said.family == "encoder" or objective == "masked"
    encoder = encoder or (evidence.says_encoder and objective != "causal" and said.family is None)
    return settle_masks(prober, plan, said, encoder=encoder)


def _sight(prober: Prober, plan: CallPlan, said: Stated) -> tuple[CallPlan, list[Finding]]:
    """Whether the input is shifted right inside: logits[t] depend on tokens before t alone."""
    if plan.family == "classifier" or plan.alignment != "next":
        _shift_fits(plan, said)
        if plan.alignment == "short":
            return plan, [Finding("shift", "note", "the last position is dropped inside: logits (B, T - 1, V)")]
        start = "a start is put before the first token inside: of the logits (B, T + 1, V) the first is left out"
        return plan, [Finding("shift", "note", start)] if plan.alignment == "long" else []
    two = plan.family == "encoder_decoder"
    sight = measure(prober, plan, target=two)
    if not sight.decodes or sight.own:
        _shift_fits(plan, said)
        return plan, order_findings(prober, plan, sight)
    own = replace(plan, alignment="own")
    later = measure(prober, own, target=two)
    if not (later.own and later.causal):
        return plan, order_findings(prober, plan, sight)
    _shift_fits(own, said)
    which = "target token" if two else "token"
    shift = Finding("shift", "ok", f"right, inside: logits[t] depend on each {which} before t, not on t itself")
    return own, [shift, *order_findings(prober, own, later)]


def _shift_fits(plan: CallPlan, said: Stated) -> None:
    """CallError where the user states another shift than was measured."""
    if said.shift is None or (said.shift == "inside") == (plan.alignment == "own"):
        return
    measured = "depend on tokens before t alone" if plan.alignment == "own" else "depend on token t"
    raise CallError(
        f"anyformer.yaml states shift: {said.shift}, which the module contradicts",
        f"its logits at t {measured}",
        f"shift: {'inside' if plan.alignment == 'own' else 'caller'}, or leave the line out",
    )


def _seems_causal(prober: Prober, plan: CallPlan) -> bool:
    if plan.family == "classifier":
        return False
    return measure(prober, plan, target=plan.family == "encoder_decoder").causal


def _family(
    prober: Prober,
    plan: CallPlan,
    evidence: Evidence,
    repeats: Finding,
    said: Stated,
    objective: Objective | None,
) -> tuple[CallPlan, list[Finding], Finding]:
    """Decoder, encoder, encoder-decoder or classifier: by what it does, then by what speaks for it."""
    families = ("decoder", "encoder") if plan.family == "decoder" else (plan.family,)
    if said.family is not None and said.family not in families:
        raise CallError(
            f"anyformer.yaml states family: {said.family}, which the module contradicts",
            f"what it gives is that of a {' or '.join(families)}",
            "leave the line out",
        )
    if plan.family == "classifier":
        _objective_fits(prober, plan, objective)
        text = f"classifier: one row of {plan.vocab_size:,} numbers per text"
        return plan, [Finding("family", "ok", text)], repeats
    two = plan.family == "encoder_decoder"
    sight = measure(prober, plan, target=two)
    if repeats.verdict == "fail":
        # what differs between equally seeded calls differs between changed ones, too: nothing is known of the future
        unknown = Finding("causality", "n/a", "cannot be measured", reason=repeats.measured)
        return replace(plan, causal=True), [unknown], replace(repeats, verdict="fail")
    if two:
        about = [replace(f, measured=f.measured.replace("token", "target token")) for f in causality_findings(sight)]
        if sight.leak is not None:
            why = "the decoder would learn to copy its own input: its self-attention needs a causal mask"
            about[0] = replace(about[0], reason=only_in_training(prober, plan, target=True) or why)
        plan = replace(plan, causal=sight.causal)
        _objective_fits(prober, plan, objective)
        return plan, [*about, source_finding(prober, plan)], repeats
    plan, about = _one_sequence(prober.module, plan, sight, evidence, said, objective)
    if plan.family == "decoder" and sight.leak is not None:
        why = only_in_training(prober, plan, target=False)
        if about[0].verdict == "fail":
            why = why or leak_reason(prober, plan, sight.leak, evidence)
        about[0] = replace(about[0], reason=why or about[0].reason)
    if not sight.after and (why := no_past_reason(prober, plan, insisted=bool(objective or said.family))):
        about = [replace(f, verdict="fail", reason=why) if f.name == "past" else f for f in about]
    _objective_fits(prober, plan, objective)
    return plan, about, repeats


def _one_sequence(
    module: nn.Module, plan: CallPlan, sight: Sight, evidence: Evidence, said: Stated, objective: Objective | None
) -> tuple[CallPlan, list[Finding]]:
    asked = "encoder" if objective == "masked" else "decoder" if objective == "causal" else said.family
    measured = causality_findings(sight)
    if sight.leak is None:
        if asked == "encoder" and sight.causal:
            why = "a masked token is then guessed from those before it alone"
            return replace(plan, family="encoder"), [
                Finding("family", "warn", "encoder, as asked; it is causal", "", why)
            ]
        if asked is None and sight.causal and (sign := says_masked(module, evidence)):
            measured = [sees_nothing_later(module, sign), *measured]
        return replace(plan, family="decoder", causal=sight.causal), measured
    both = Finding("causality", "note", f"none: {sight.leak.text().replace('; must be 0', '')}")
    if asked == "encoder":
        return replace(plan, family="encoder", causal=False), [both, Finding("family", "note", "encoder, as asked")]
    if asked == "decoder":
        insisted = replace(measured[0], verdict="warn", reason=measured[0].reason + "; you insist on it")
        return replace(plan, family="decoder", causal=False), [insisted]
    if evidence.says_encoder:
        why = "it sees both sides, and " + ", ".join(evidence.encoder[:3]) + " says so: masked language modelling"
        return replace(plan, family="encoder", causal=False), [both, Finding("family", "ok", "encoder", reason=why)]
    return replace(plan, family="decoder", causal=False), measured[:1]


def _batch(prober: Prober, plan: CallPlan, repeats: Finding) -> Finding:
    if repeats.verdict == "fail":
        return Finding("batch", "n/a", "cannot be measured", reason=repeats.measured)
    return batch_finding(prober, plan)


def _objective_fits(prober: Prober, plan: CallPlan, objective: Objective | None) -> None:
    if objective is None or OBJECTIVES[plan.family] == objective:
        return
    gives = {
        "decoder": "logits for every position",
        "encoder": "logits for every position",
        "encoder_decoder": "logits for a second sequence",
        "classifier": "one row of classes per text",
    }[plan.family]
    raise CallError(
        f"objective {objective} does not fit {type(prober.module).__name__}",
        f"it is of the family {plan.family}: it gives {gives}",
        f"leave --objective out, or give {OBJECTIVES[plan.family]}",
    )
