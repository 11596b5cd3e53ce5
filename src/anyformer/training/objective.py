"""What a model is trained on: its family's own objective, or another one where the user insists and it makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from anyformer.core.errors import CallError, DataError, SettingsError, TokenizerError
from anyformer.core.findings import Finding
from anyformer.core.settings import ObjectiveSetting
from anyformer.models.batchproof import prove_on_batch
from anyformer.models.calls.culprit import COPY
from anyformer.models.calls.evidence import MASK_ID
from anyformer.models.calls.hiding import id_passed_over
from anyformer.models.calls.probing import Prober
from anyformer.models.masking import Masking
from anyformer.models.objectives import IGNORE_INDEX
from anyformer.models.plan import CallPlan, Family, Objective
from anyformer.models.probes import set_mode, untouched
from anyformer.tokenization.base import PAD, id_count

WORDS: dict[Objective, str] = {
    "causal": "next-token prediction",
    "masked": "masked language modelling",
    "seq2seq": "sequence to sequence",
    "classification": "classification",
}
NEEDED_TOKENS: dict[Objective, tuple[str, ...]] = {
    "causal": (),
    "masked": ("<mask>",),
    "seq2seq": ("<s>", "</s>"),
    "classification": (PAD,),
}
"""Special tokens that a tokenizer trained for the objective must have."""
_FAMILIES: dict[Family, str] = {
    "decoder": "a decoder",
    "encoder": "an encoder",
    "encoder_decoder": "an encoder-decoder",
    "classifier": "a classifier",
}
_FIRST = ("logits", "argument", "places", "classes", "criterion")
"""Findings that say that these are no logits of tokens or classes: whether they see the future matters less."""
SEES_FUTURE = "the model sees the future: trained on the next token it would only learn to copy it"
SEES_A_LITTLE = "the model sees the future, a little"


def require_trainable(plan: CallPlan, setting: ObjectiveSetting = "auto") -> tuple[Objective, list[Finding]]:
    """The objective that the model is trained on, and the findings that say why.

    Raises CallError where it would be a silently wrong one (a decoder that sees the future, trained on the next token)
    or a finding of the plan blocks; SettingsError where the objective asked for cannot fit the model.
    """
    objective = plan.objective if setting == "auto" else setting
    for finding in plan.findings:
        if finding.verdict == "fail" and finding.name in _FIRST:
            raise _blocked(finding)
    if objective in ("seq2seq", "classification") or plan.family in ("encoder_decoder", "classifier"):
        if objective != plan.objective:
            raise SettingsError(
                f"objective is {objective}, but the model is {_FAMILIES[plan.family]}",
                f"its output fits {WORDS[plan.objective]}",
                f"--objective {plan.objective}, or leave it out",
            )
    elif objective == "masked":
        _require_both_ways(plan)
    elif not plan.causal and setting == "auto":
        raise _sees_future(plan)
    for finding in plan.findings:
        # of one sequence that it leaks is known here, and the user has decided
        decided = finding.name == "causality" and not plan.causal and objective in ("causal", "masked")
        if finding.verdict == "fail" and not decided:
            raise _blocked(finding)
    return objective, [_finding(plan, objective, setting)]


def _blocked(finding: Finding) -> CallError:
    expected = f"expected: {finding.expected}" if finding.expected else ""
    return CallError(f"{finding.name}: {finding.measured}", expected, finding.reason)


def asked(setting: ObjectiveSetting) -> Objective | None:
    """What ``infer_call_plan`` is told: None where the family is to be measured alone."""
    return None if setting == "auto" else setting


def leak_of(plan: CallPlan) -> str:
    """Which token changes which logits before it."""
    leak = next((finding for finding in plan.findings if finding.name == "causality"), None)
    return leak.measured if leak else "changing a later token changes the logits before it"


def _sees_future(plan: CallPlan) -> CallError:
    """What leaks, where that is known, and the ways on that fit it."""
    reason = next((finding.reason for finding in plan.findings if finding.name == "causality"), "")
    told, _, ways = reason.partition("; --objective")
    small = told.startswith("small")
    fix = ["anyformer repair MODEL proposes a causal mask"] if "causal mask" in told or not ways else []
    if "objective masked" in ways or not ways:
        fix.append("where it is meant to look both ways (an encoder): --objective masked")
    fix.append("to train it on the next token as it is: --objective causal")
    why = told if small else told.removeprefix(COPY).lstrip(":; ")
    return CallError(
        SEES_A_LITTLE if small else SEES_FUTURE, "\n".join(filter(None, (leak_of(plan), why))), "\nor, ".join(fix)
    )


def insists(plan: CallPlan, objective: Objective) -> bool:
    """Whether a model that sees the future is trained on the next token, because the user wants it so."""
    return objective == "causal" and not plan.causal


def _require_both_ways(plan: CallPlan) -> None:
    if plan.causal:
        raise SettingsError(
            "objective is masked, but the model cannot see later tokens",
            "a masked token would be guessed from those before it alone: next-token prediction on 15 % of the text",
            "--objective causal, or leave it out",
        )
    if plan.reads_one_more:
        raise SettingsError(
            "objective is masked, but the model shifts its input inside",
            "its logits at a place are not for the token that was masked there",
            "--objective causal with a model that does not see the future",
        )


def _finding(plan: CallPlan, objective: Objective, setting: ObjectiveSetting) -> Finding:
    if insists(plan, objective):
        why = f"{leak_of(plan)}: it can learn to copy, and its loss says nothing about how well it writes"
        return Finding("objective", "warn", "causal, though the model sees the future", "no leak", why)
    reason = "asked for" if setting != "auto" else f"the model is {_FAMILIES[plan.family]}"
    return Finding("objective", "note", WORDS[objective], reason=reason)


def choose_masking(tokenizer: Any, plan: CallPlan, seed: int, module: nn.Module) -> tuple[Masking, list[Finding]]:
    """The token that hides others, and from which ids replacements are drawn.

    The id that the module holds as its mask's, where no text has it; else the tokenizer's mask token; else an id that
    the tokenizer never gives but the model has. Raises TokenizerError where there is none either.
    """
    if tokenizer is None:
        raise TokenizerError(
            "masked language modelling needs a tokenizer: its mask token stands for hidden text",
            fix="tokenizer=..., or batches in which tokens are hidden already",
        )
    size = id_count(tokenizer)
    rows = min(plan.vocab_size, plan.embedding_rows or plan.vocab_size)
    special = tuple(int(token) for token in getattr(tokenizer, "all_special_ids", ()) or ())
    mask_id = getattr(tokenizer, "mask_token_id", None)
    own = own_mask_id(module, plan)
    if own is not None and own >= size:
        told = Finding("mask token", "note", f"id {own:,}", reason="the model's own: its text has no such id")
        return Masking(own, size, special, seed), [told]
    if mask_id is not None and own in (None, mask_id):
        return Masking(int(mask_id), size, special, seed), []
    if mask_id is not None:
        why = f"id {own:,}, the model's own, is another token in this tokenizer: hidden tokens are told otherwise"
        other = Finding("mask token", "warn", f"id {mask_id:,}", f"id {own:,}", why)
        return Masking(int(mask_id), size, special, seed), [other]
    if size < rows:
        reason = "the tokenizer has no mask token, and the model has more ids than the tokenizer"
        return Masking(size, size, special, seed), [Finding("mask token", "note", f"id {size:,}", reason=reason)]
    raise TokenizerError(
        "the tokenizer has no mask token",
        f"masked language modelling hides tokens behind one, and all {rows:,} ids of the model are taken",
        "add_special_tokens({'mask_token': '<mask>'}) and a model with one more id, or --tokenizer auto",
    )


def own_mask_id(module: nn.Module, plan: CallPlan) -> int | None:
    """The id that the module holds by a name like ``mask_token_id``, where its embedding has a row for it."""
    rows = plan.embedding_rows or plan.vocab_size
    module = getattr(module, "_orig_mod", module)
    found = {v for name, v in vars(module).items() if MASK_ID.fullmatch(name) and type(v) is int and 0 <= v < rows}
    return found.pop() if len(found) == 1 else None


def start_and_end(tokenizer: Any, limit: int) -> tuple[int, int]:
    """Ids that begin and end a written text: <s> and </s>, or what the tokenizer has in their place.

    Raises TokenizerError where there is no end token, or none that the model can read.
    """
    names = ("bos_token_id", "cls_token_id", "eos_token_id", "pad_token_id")
    start = next((i for name in names if (i := getattr(tokenizer, name, None)) is not None), None)
    end = next(
        (i for name in ("eos_token_id", "sep_token_id") if (i := getattr(tokenizer, name, None)) is not None), None
    )
    if start is None or end is None or max(start, end) >= limit:
        raise TokenizerError(
            "the tokenizer has no token that ends a text" if end is None else "the model cannot read the end token",
            "a sequence-to-sequence model is told where to begin and says where it ends",
            "a tokenizer with <s> and </s>, or --tokenizer auto",
        )
    return int(start), int(end)


def kept_for_padding(module: nn.Module, plan: CallPlan) -> int | None:
    """The id that the model has for padding: its embedding keeps the row at zero (``padding_idx``), or it hides it.

    None where it has none, or tables of several.
    """
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None]
    found = {m.padding_idx for m in tables if m.num_embeddings in (plan.embedding_rows, plan.target_vocab)}
    if found:
        return found.pop() if len(found) == 1 else None
    with untouched(module), torch.no_grad():
        set_mode(module, False)
        return id_passed_over(Prober(module), plan)


def padding_notes(tokenizer: Any, padding: int | None) -> list[Finding]:
    """A warning where the id that the model keeps for padding is another token's."""
    ids = [getattr(tokenizer, name, None) for name in ("pad_token_id", "unk_token_id")]
    if padding is None or (ids[0] == padding and ids[1] != padding):  # where nothing else is there, <unk> pads, too
        return []
    name = next((token for token, i in tokenizer.get_vocab().items() if i == padding), None)
    if name is None:
        return []
    why = f"the model has id {padding} for padding: it hides the token from the others, or never trains its row"
    return [Finding("padding id", "warn", f"id {padding} is {name!r} in this tokenizer", "its padding", why)]


def require_unshifted(batch: Mapping[str, Any], objective: Objective) -> None:
    """DataError where the labels are the ids moved left already: shifted again, the target would lie two ahead."""
    if objective == "classification":
        return
    name = "target_ids" if objective == "seq2seq" else "input_ids"
    ids, labels = batch[name], batch["labels"]
    T = ids.shape[1]
    padded = (labels == IGNORE_INDEX) & (objective == "seq2seq")
    moved = ((labels[:, : T - 1] == ids[:, 1:]) | padded[:, : T - 1]).all()
    if T > 2 and bool(moved) and not bool(((labels == ids) | padded).all()):
        raise DataError(
            f"the labels are already shifted: labels[t] is the token after {name}[t]",
            "they are shifted here, once; shifted twice, the model would learn the token two ahead",
            f"give labels = {name} (−100 where a token is no target)",
        )


def require_labels(batch: Mapping[str, Any], objective: Objective) -> None:
    """DataError where a batch has not what the objective needs."""
    needed = ["input_ids", "labels"] + (["target_ids"] if objective == "seq2seq" else [])
    missing = [name for name in needed if name not in batch]
    rank = 1 if objective == "classification" else 2
    if missing:
        raise DataError(
            f"a batch has no {missing[0]}: it holds {', '.join(map(str, batch))}", f"{WORDS[objective]} needs {needed}"
        )
    if batch["labels"].dim() != rank:
        shape = "(B,)" if rank == 1 else "(B, S)" if objective == "seq2seq" else "(B, T)"
        raise DataError(f"labels have shape {tuple(batch['labels'].shape)}; {WORDS[objective]} needs {shape}")


def proofs_on_batch(module: nn.Module, plan: CallPlan, objective: Objective, batch: Mapping[str, Any]) -> list[Finding]:
    """What ``prove_on_batch`` finds on a training batch; a leak that the user insists on is a warning."""
    target_ids = batch["target_ids"] if objective == "seq2seq" else None
    return prove_on_batch(module, plan, batch["input_ids"], target_ids=target_ids)
