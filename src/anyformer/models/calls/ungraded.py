"""Parameters that get no gradient: a head beside the one whose logits are used, or most of the model."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.calling import call_logits
from anyformer.models.calls.probing import Prober, seeded
from anyformer.models.calls.strays import leaves, made_anew, stray_text, stray_weights, unknown_leaves
from anyformer.models.plan import CallPlan

_MAIN = re.compile(
    r"(lm_?|output_?|vocab_?|token_?)?head|generator|to_logits|unembed(ding)?|lm_predictions?|output_proj(ection)?"
)
_BESIDE = re.compile(r"pooler|nsp|next_?sent|sop|seq_relationship", re.IGNORECASE)
"""What masked language modelling leaves out of most encoders."""
_MOST = 0.5
"""Of the parameters' elements, how many may get no gradient."""
_MOST_LAYERS, _WORTH_SAYING = 0.5, 0.05
"""Of those elements that belong to no table and no head over a vocabulary: a second model beside, a head beside."""


def parts_finding(prober: Prober, plan: CallPlan) -> list[Finding]:
    """Fail where much of the model takes no part in the logits, warn where some of it does; by name."""
    module = prober.module
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    rows = {m.num_embeddings for m in tables}
    known = {id(m.weight) for m in tables}
    layers = {
        name: p
        for name, p in module.named_parameters()
        if p.requires_grad and id(p) not in known and not rows & set(p.shape)
    }
    total = sum(p.numel() for p in layers.values())
    try:
        idle, unknown = _without(prober, plan, layers)
    except Exception:  # noqa: BLE001  (a backward pass in eval mode may be refused: the batch proof tells, then)
        return []
    about: list[Finding] = []
    if unknown and made_anew(module, unknown, lambda: _logits(prober, plan)):
        why = "forward makes its normalisation layers in each call: it computes the same without them being trained"
        about = [Finding("weights", "warn", f"{len(unknown)} stay at 1 and 0", "made in __init__, trained", why)]
    elif unknown:
        shapes = ", ".join(str(tuple(t.shape)) for t in unknown[:4]) + (" …" if len(unknown) > 4 else "")
        made = f"tensors {shapes} are none of its parameters: made in forward, at random each time, or held outside"
        why = stray_text(module, {id(t) for t in unknown}) or made
        text = f"{len(unknown)} weights would neither be trained nor saved"
        return [Finding("weights", "fail", text, "made in __init__, as layers or nn.Parameter", why)]
    if not idle:
        return about
    used = {_kind(name) for name in layers if name not in set(idle)}
    idle = [name for name in idle if _kind(name) not in used]
    copied = _prototypes(module, set(idle))
    if copied:
        rest = [name for name in idle if not name.startswith(tuple(f"{part}." for part in copied))]
        size = sum(layers[name].numel() for name in {*idle} - {*rest})
        measured = f"{', '.join(copied)}: {size:,} weights never take part"
        about.append(Finding("prototypes", "note", measured, reason="the layers that run are copies of them"))
        idle = rest
    share = sum(layers[name].numel() for name in idle) / total
    if share < _WORTH_SAYING:
        return about
    shown = ", ".join(list(dict.fromkeys(name.partition(".")[0] for name in idle))[:4])
    why = "they get no gradient: what they are for is not what would be trained"
    beside = all(_BESIDE.search(name) for name in idle)
    verdict = "fail" if share > _MOST_LAYERS else "note" if beside else "warn"
    measured = f"{shown}: {share:.0%} of the layers' weights take no part in these logits"
    if verdict == "fail" and _moves(prober, plan, [layers[name] for name in idle]):
        measured = f"{shown}: {share:.0%} of the layers' weights move these logits, and get no gradient"
        why = "forward cuts them off: torch.no_grad(), .detach() or .data; they would stay as they are"
    return [*about, Finding("parts", verdict, measured, "all do", why)]  # type: ignore[arg-type]


def _prototypes(module: nn.Module, idle: set[str]) -> list[str]:
    """Parts that never run and were copied into those that do: the layer that nn.TransformerEncoder was given."""
    found: list[str] = []
    stacks = [m for m in module.modules() if isinstance(m, nn.TransformerEncoder | nn.TransformerDecoder)]
    stacked = {id(layer) for stack in stacks for layer in stack.layers}
    parts = [(name, part, dict(part.named_parameters())) for name, part in module.named_modules() if name]
    for name, part, own in parts:
        if not own or not all(f"{name}.{n}" in idle for n in own) or name.startswith(tuple(f"{f}." for f in found)):
            continue
        for other_name, other, theirs in parts:
            alike = type(other) is type(part) and {n: p.shape for n, p in own.items()} == {
                n: p.shape for n, p in theirs.items()
            }
            if other is part or not alike or any(f"{other_name}.{n}" in idle for n in theirs):
                continue
            matrices = [n for n, p in own.items() if p.dim() > 1]  # all vectors begin as ones or zeros
            if id(other) in stacked or (matrices and all(torch.equal(own[n], theirs[n]) for n in matrices)):
                found.append(name)
                break
    return found


def _without(prober: Prober, plan: CallPlan, layers: dict[str, nn.Parameter]) -> tuple[list[str], list[Tensor]]:
    """Names of those that the logits do not depend on; weights that they depend on and that are no parameters.

    Those of layers in plain lists are left out of the second: ``stray_finding`` names them.
    """
    with torch.enable_grad():
        logits = _logits(prober, plan)
        reached = {id(t) for t in leaves(logits)}
        parts = [value for _, _, value in stray_weights(prober.module) if isinstance(value, nn.Module)]
        told = {id(p) for part in parts for p in part.parameters()}
        unknown = [t for t in unknown_leaves(prober.module, logits) if id(t) not in told]
        idle = [name for name, p in layers.items() if id(p) not in reached] if reached else []
        graded = _graded(logits, layers, idle) if idle else {}
    return [name for name in idle if not graded.get(name)], unknown


def _logits(prober: Prober, plan: CallPlan) -> Tensor:
    """Of one batch, with the graph that made them."""
    inputs = prober.inputs(plan, *prober.sizes[0][:2], 9, prober.sizes[0][2])
    with torch.enable_grad():
        seeded()
        return call_logits(prober.module, plan, inputs.input_ids, target_ids=inputs.target_ids)


def _moves(prober: Prober, plan: CallPlan, weights: list[nn.Parameter]) -> bool:
    """Whether other values of these give other logits."""
    inputs = prober.inputs(plan, *prober.sizes[0][:2], 3, prober.sizes[0][2])
    before = prober.try_logits(plan, inputs)
    kept = [p.detach().clone() for p in weights]
    try:
        with torch.no_grad():
            for p in weights:
                p.mul_(1.5)
        after = prober.try_logits(plan, inputs)
    finally:
        with torch.no_grad():
            for p, value in zip(weights, kept, strict=True):
                p.copy_(value)
    return before is not None and after is not None and not torch.equal(before, after)


def _graded(logits: Tensor, layers: dict[str, nn.Parameter], names: list[str]) -> dict[str, bool]:
    """Which of them get a gradient after all: a checkpointed part is not seen in the graph."""
    held = {name: layers[name].grad for name in names}
    for name in names:
        layers[name].grad = None
    try:
        logits.float().sum().backward()  # type: ignore[no-untyped-call]
        return {name: layers[name].grad is not None for name in names}
    finally:
        for name, grad in held.items():
            layers[name].grad = grad


def require_gradients(module: nn.Module, plan: CallPlan, without: Sequence[str]) -> None:
    """CallError where the parameters without a gradient show that other logits than the model's were taken."""
    head = _idle_head(module, plan, without)
    if head:
        raise CallError(
            f"no gradient reaches {head}, the model's head: what was taken for its logits is something else",
            "training would leave it as it is, and the model's own output with it",
            "return the logits alone, or say where they are: call: logits: … in anyformer.yaml",
        )
    sizes = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    used = {_kind(name) for name in sizes if name not in set(without)}
    # an expert that no token chose, a layer that was skipped: their like get gradients
    idle = [name for name in without if _kind(name) not in used]
    share = sum(sizes.get(name, 0) for name in idle) / max(1, sum(sizes.values()))
    if share > _MOST:
        shown = ", ".join(idle[:4]) + (" …" if len(idle) > 4 else "")
        raise CallError(
            f"{share:.0%} of the parameters get no gradient: the logits do not depend on them",
            shown,
            "a detach(), a no_grad() or an output that leaves them out; freeze on purpose with requires_grad_(False)",
        )


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _idle_head(module: nn.Module, plan: CallPlan, without: Sequence[str]) -> str:
    """The idle output layer over the vocabulary, where none like it gets a gradient; "" otherwise."""
    rows = {plan.vocab_size, plan.embedding_rows or plan.vocab_size}
    lost = set(without)
    heads: dict[str, bool] = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.out_features in rows and plan.family != "classifier":
            weights = [f"{name}.{n}" for n, _ in part.named_parameters()]
            heads[name] = not any(w in lost for w in weights)  # shared weights have one name, and a gradient
    idle, used = [n for n, ok in heads.items() if not ok], [n for n, ok in heads.items() if ok]
    if idle and not used:
        return idle[0]
    if any(_is_main(name) for name in used):
        return ""
    return next((name for name in idle if _is_main(name)), "")


def _is_main(name: str) -> bool:
    return any(_MAIN.fullmatch(part) for part in name.lower().split("."))
