"""How to call a stranger's module: detected from names, decided by what it does when it runs.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.plan import CallPlan, LogitsPath, call_logits, follow, path_text
from anyformer.models.probes import untouched
from anyformer.models.probing import Binding, Prober, describe, tensors_in, woken
from anyformer.models.properties import (
    batch_finding,
    causality,
    difference,
    ids_limit,
    mask_finding,
    output_kind,
    position_limit,
    repeat_finding,
)
from anyformer.models.signature import forward_parameters

__all__ = ["CallPlan", "call_logits", "infer_call_plan"]

# Names order the candidates; what the module does decides.
TOKEN_NAMES = ("input_ids", "idx", "tokens", "input_tokens", "token_ids", "ids", "inputs", "input", "x", "src")
MASK_NAMES = ("attention_mask", "mask", "attn_mask", "padding_mask", "key_padding_mask", "src_key_padding_mask")
TARGET_NAMES = ("targets", "labels", "target", "label", "y", "target_ids")
# B and T differ within and between the two, so that no axis can be taken for another; then shorter ones
SIZES = (((2, 5), (3, 7)), ((5, 2), (4, 3)))
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class _Found:
    """A way to call the module that gave logits for every position."""

    binding: Binding
    needs_targets: bool
    paths: dict[LogitsPath, int]
    """Where (B, T, V) tensors lie, with their V."""


def infer_call_plan(module: nn.Module) -> CallPlan:
    """Find how the module takes ids (B, T) and where its logits (B, T, V) are, by running it on tiny batches.

    Runs in eval mode without gradients and leaves the module as it was. Every line of the plan leaves a finding.
    Raises CallError where no call gives logits for every position, naming what was tried and found.
    """
    with untouched(module), torch.no_grad():
        module.eval()
        awake, asleep, refused = woken(module)
        with untouched(awake):
            awake.eval()
            plan = _infer(Prober(awake))
    if asleep:
        how = f"they could not be filled in a copy ({refused})" if refused else "measured on a copy with noise in them"
        shown = ", ".join(asleep[:4]) + (" …" if len(asleep) > 4 else "")
        finding = Finding(
            "weights at zero", "warn" if refused else "note", f"{len(asleep)} tensors: {shown}", reason=how
        )
        plan = replace(plan, findings=(*plan.findings, finding))
    return plan


def _infer(prober: Prober) -> CallPlan:
    parameters = [p for p in forward_parameters(prober.module) if p.kind is not inspect.Parameter.VAR_KEYWORD]
    found = _find_call(prober, parameters)
    seen = prober.watched(found.binding, *_arguments(prober, found, prober.ids(2, prober.length, 0, 2)))
    path, V, choice = _choose_logits(prober, found, seen.embedding_rows)
    draft = CallPlan(
        token_arg=found.binding.token_arg,
        mask_arg=found.binding.mask_arg,
        targets_arg=found.binding.targets_arg,
        needs_targets=found.needs_targets,
        logits_path=path,
        vocab_size=V,
        embedding_rows=seen.embedding_rows,
        max_positions=None,
        family="decoder",
        causal=True,
        findings=(),
        needs_mask=found.binding.mask_arg is not None,
    )
    rows, about_ids = ids_limit(prober, draft)
    draft = replace(draft, embedding_rows=rows)
    kind, about_kind = output_kind(prober, draft)
    findings = [_token_finding(prober, draft, parameters), choice, *about_kind]
    draft = replace(draft, kind=kind)
    mask_arg, about_mask = _mask(prober, draft, parameters)
    targets_arg, about_targets = _targets(prober, draft, parameters)
    repeats = repeat_finding(prober, draft)
    causal, about_causality = causality(prober, draft)
    if not causal and repeats.verdict == "warn":
        # what differs between equal calls differs between changed ones, too: nothing is known about the future
        causal, about_causality = True, [Finding("causality", "n/a", "cannot be measured", reason=repeats.measured)]
        repeats = replace(repeats, verdict="fail")
    longest, about_positions = position_limit(prober, draft, seen.position_rows)
    findings += [*about_mask, *about_targets, about_ids, *about_causality]
    findings += [repeats, batch_finding(prober, draft), about_positions]
    return replace(
        draft,
        mask_arg=mask_arg,
        targets_arg=targets_arg,
        max_positions=longest,
        family="decoder" if causal else "encoder",
        causal=causal,
        findings=tuple(findings),
    )


def _find_call(prober: Prober, parameters: list[inspect.Parameter]) -> _Found:
    """The first candidate for the ids, in the order of its name, that gives logits for every position."""
    failures: list[str] = []
    for token_arg in _token_candidates(parameters):
        required = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
        others = [name for name in required if name != token_arg.lstrip("*")]
        mask_arg = next((name for name in others if name in MASK_NAMES), None)
        targets_arg = next((name for name in others if name in TARGET_NAMES), None)
        unknown = [name for name in others if name not in (mask_arg, targets_arg)]
        if unknown:
            failures.append(f"{token_arg} takes the ids: nothing known for {', '.join(unknown)}")
            continue
        optional = next((p.name for p in parameters if p.name in TARGET_NAMES and p.name != token_arg), None)
        tries = [(targets_arg, targets_arg is not None)]
        if targets_arg is None and optional is not None:
            tries.append((optional, True))
        for targets, needed in tries:
            binding = Binding(token_arg, mask_arg, targets)
            found, failure = _try(prober, binding, needed)
            if found is not None:
                return found
            failures.append(failure)
    names = ", ".join(str(p) for p in parameters) or "nothing"
    raise CallError(
        f"no way to call {type(prober.module).__name__} gave logits for every position",
        f"its forward takes: {names}\n" + "\n".join(failures or ["none of these could take token ids"]),
        "forward should take ids (B, T) int64 and give logits (B, T, vocabulary), alone or named logits;"
        " every other argument needs a default",
    )


def _token_candidates(parameters: list[inspect.Parameter]) -> list[str]:
    """Parameters that could take the ids: by name first, then by position; masks and targets are none."""
    usable = [p for p in parameters if p.name not in MASK_NAMES + TARGET_NAMES]
    hinted = [p for name in TOKEN_NAMES for p in usable if p.name == name]
    required = [p for p in usable if p.default is p.empty and p not in hinted]
    names = []
    for p in [*hinted, *required]:
        positional = p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
        names.append(f"*{p.name}" if positional else p.name)
    return names


def _try(prober: Prober, binding: Binding, with_targets: bool) -> tuple[_Found | None, str]:
    """Run at two sizes; the places where (B, T, V) tensors of one V lie in both, or why there are none."""
    failure = ""
    for sizes in SIZES:
        places: list[dict[LogitsPath, int]] = []
        for number, (B, T) in enumerate(sizes):
            output, ids, error = None, None, None
            for high in (3, 2):  # a vocabulary of two has no id 2
                ids = prober.ids(B, T, number, high)
                mask = torch.ones_like(ids) if binding.mask_arg else None
                output, error = prober.run(binding, ids, mask=mask, targets=ids if with_targets else None)
                if not isinstance(error, IndexError):
                    break
            if error is not None:
                failure = failure or _failure_text(binding, with_targets, f"ids ({B}, {T}):\n{blame(error)}")
                break
            shaped = {p: t.shape[2] for p, t in tensors_in(output) if t.dim() == 3 and t.shape[:2] == (B, T)}
            places.append({p: V for p, V in shaped.items() if V > 1})
            if not places[-1]:
                failure = failure or _failure_text(binding, with_targets, f"ids ({B}, {T}) gave {describe(output)}")
                break
        if len(places) == 2:
            both = {p: V for p, V in places[0].items() if places[1].get(p) == V}
            if both:
                prober.length = min(prober.length, sizes[1][1], sizes[0][1] + 1)
                return _Found(binding, with_targets, both), ""
            failure = failure or _failure_text(binding, with_targets, f"no (B, T, V) of one V at {sizes}: {places}")
    return None, failure


def _failure_text(binding: Binding, with_targets: bool, text: str) -> str:
    others = [binding.mask_arg] if binding.mask_arg else []
    others += [binding.targets_arg] if with_targets and binding.targets_arg else []
    given = f"{binding.token_arg}" + (f" with {' and '.join(others)}" if others else "")
    return f"{given}: {text}".replace("\n", "\n  ")


def _arguments(prober: Prober, found: _Found, ids: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    mask = torch.ones_like(ids) if found.binding.mask_arg else None
    return ids, mask, ids if found.needs_targets else None


def _choose_logits(prober: Prober, found: _Found, rows: int | None) -> tuple[LogitsPath, int, Finding]:
    """The place of the logits among the (B, T, V) tensors: by name, else as wide as the embedding has rows."""
    paths = found.paths
    named = [p for p in paths if p and p[-1] == "logits"]
    as_wide = [p for p in paths if rows is not None and paths[p] == rows]
    path = next(iter([*named, *as_wide, *paths]))
    V = paths[path]
    widths = {m.embedding_dim for m in prober.module.modules() if isinstance(m, nn.Embedding)}
    if rows is not None and rows > V and V in widths and not named:
        raise CallError(
            f"{type(prober.module).__name__} gives hidden states, no logits: {path_text(path)} is (B, T, {V})",
            f"{V} is the width of its embedding; a head would give {rows:,}, one number per token of the vocabulary",
            f"add a head: self.head = nn.Linear({V}, {rows}), and return self.head(x)",
        )
    measured = f"{path_text(path)}, (B, T, {V})" + (", only when targets are given" if found.needs_targets else "")
    others = [f"{path_text(p)} (B, T, {w})" for p, w in paths.items() if p != path]
    if others and not named and not as_wide:
        return path, V, Finding("logits", "warn", measured, reason=f"the first of several: also {', '.join(others)}")
    if rows is not None and rows > V:
        reason = f"narrower than the embedding's {rows:,} rows: ids from {V:,} on can be read but not predicted"
        return path, V, Finding("logits", "warn", measured, "as wide as the embedding has rows", reason)
    return path, V, Finding("logits", "ok", measured, reason=f"beside {', '.join(others)}" if others else "")


def _token_finding(prober: Prober, draft: CallPlan, parameters: list[inspect.Parameter]) -> Finding:
    """That the logits react to the ids; CallError where they do not, or are NaN."""
    high = min(draft.vocab_size, draft.embedding_rows or draft.vocab_size)
    found = _Found(Binding(draft.token_arg, draft.mask_arg, draft.targets_arg), draft.needs_targets, {})
    both: list[Tensor] = []
    for seed in (1, 2):
        ids, mask, targets = _arguments(prober, found, prober.ids(2, prober.length, seed, high))
        output, error = prober.run(found.binding, ids, mask=mask, targets=targets)
        if error is not None:
            raise CallError(f"{type(prober.module).__name__} refuses ids below {high:,}", blame(error)) from error
        both.append(follow(output, draft.logits_path))
    first, second = both
    if bool(first.isnan().any()):
        raise CallError(
            f"{type(prober.module).__name__} gives NaN before any training",
            f"{int(first.isnan().sum()):,} of {first.numel():,} logits",
            "look for a row of the attention mask that hides everything, or for weights that are not initialised",
        )
    if float(difference(first, second).max()) == 0.0:
        raise CallError(
            f"the logits of {type(prober.module).__name__} do not depend on {draft.token_arg.lstrip('*')}",
            "two random batches gave equal logits",
            "forward should compute its output from the ids",
        )
    alone = len([p for p in parameters if p.name not in MASK_NAMES + TARGET_NAMES]) == 1
    name = draft.token_arg.lstrip("*")
    reason = "the only argument that can take ids" if alone else "the logits react to it"
    return Finding("tokens", "ok", f"{name} (B, T) int64", reason=reason)


def _mask(prober: Prober, draft: CallPlan, parameters: list[inspect.Parameter]) -> tuple[str | None, list[Finding]]:
    """The mask argument if it is proven: ones change nothing, a zero hides its token."""
    if draft.mask_arg is not None:
        return draft.mask_arg, [Finding("mask", "note", f"{draft.mask_arg} has no default: ones are passed")]
    name = next((n for n in MASK_NAMES for p in parameters if p.name == n and n != draft.token_arg), None)
    if name is None:
        return None, []
    proven, finding = mask_finding(prober, draft, name)
    return name if proven else None, [finding]


def _targets(prober: Prober, draft: CallPlan, parameters: list[inspect.Parameter]) -> tuple[str | None, list[Finding]]:
    """The targets argument, if the module runs with it."""
    if draft.targets_arg is not None:
        why = "without them it gives no logits for every position"
        return draft.targets_arg, [Finding("targets", "ok", f"{draft.targets_arg} (B, T) int64", reason=why)]
    name = next((n for n in TARGET_NAMES for p in parameters if p.name == n and n != draft.token_arg), None)
    if name is None:
        return None, []
    ids = prober.ids(2, prober.length, 1, min(draft.vocab_size, draft.embedding_rows or draft.vocab_size))
    binding = Binding(draft.token_arg, draft.mask_arg, name)
    mask: Any = torch.ones_like(ids) if draft.needs_mask else None
    output, error = prober.run(binding, ids, mask=mask, targets=ids)
    if error is not None:
        why = f"it fails with them: {blame(error)}"
        return None, [Finding("targets", "note", f"{name} is not used", reason=why)]
    same = isinstance(follow(output, draft.logits_path), Tensor)
    why = "the loss is computed from the logits here" + ("" if same else "; with targets the output is another")
    return name, [Finding("targets", "note", f"{name} exists and is not needed", reason=why)]
