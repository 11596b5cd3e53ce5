"""Parameters that get no gradient: a head beside the one whose logits are used, or most of the model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.plan import CallPlan

_MAIN = re.compile(
    r"(lm_?|output_?|vocab_?|token_?)?head|generator|to_logits|unembed(ding)?|lm_predictions?|output_proj(ection)?"
)
_MOST = 0.5
"""Of the parameters' elements, how many may get no gradient."""


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
