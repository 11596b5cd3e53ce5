"""Wrong plans made from right ones, and whether a change matters, judged by the zoo's references alone.

B batch, T time (source), S time (target), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anyformer.models.calling import call_logits
from anyformer.models.plan import OBJECTIVES, Argument, CallPlan, Family, Layout, MaskForm, OutputKind
from tests.zoo import Entry

Judgement = Literal["same", "other values", "cannot be called", "other objective", "false claim"]
FORMS: dict[str, tuple[MaskForm, str]] = {
    "keep": ("masked", "bool"),
    "masked": ("keep", "bool"),
    "additive": ("keep", "bool"),
}
SHAPES = {
    "TT": ("11TT", "B1TT", "1TT"),
    "1TT": ("TT", "BTT"),
    "BTT": ("TT", "B1TT"),
    "11TT": ("TT", "B1TT"),
    "B1TT": ("11TT", "BTT"),
    "SS": ("BSS", "11SS"),
    "BSS": ("SS", "B1SS"),
    "B1SS": ("11SS", "BSS"),
    "BT": ("TB", "B11T"),
    "B11T": ("BT", "B1T"),
    "B1T": ("BT", "B11T"),
}


@dataclass(frozen=True)
class Mutation:
    """One field changed."""

    field: str
    change: str
    plan: CallPlan


def mutations(plan: CallPlan, module: nn.Module) -> Iterator[Mutation]:
    """Every field that carries meaning, changed to what else it could say, one at a time (and both axes together)."""

    def to(field: str, value: Any) -> Mutation:
        return Mutation(field, f"{getattr(plan, field)!r} → {value!r}", replace(plan, **{field: value}))

    yield to("time_first", not plan.time_first)
    if plan.layout in ("BTV", "TBV"):  # both, so that no shape gives it away
        turned = replace(plan, time_first=not plan.time_first, layout="BTV" if plan.layout == "TBV" else "TBV")
        yield Mutation("time_first and layout", f"{plan.layout} → {turned.layout}", turned)
    yield from (to("layout", value) for value in get_args(Layout) if value != plan.layout)
    yield from (to("alignment", value) for value in ("next", "short", "long", "own") if value != plan.alignment)
    yield from (to("kind", value) for value in get_args(OutputKind) if value != plan.kind)
    yield from (to("family", value) for value in get_args(Family) if value != plan.family)
    yield to("causal", not plan.causal)
    yield to("needs_targets", not plan.needs_targets)
    yield to("logits_from", "loss" if plan.logits_from == "output" else "output")
    yield from _paths(plan)
    heads = [name for name, part in module.named_children() if isinstance(part, nn.Linear) and name != plan.head]
    yield from (to("head", name) for name in [*([None] if plan.head else []), *heads[-1:]])
    yield to("vocab_size", plan.vocab_size - 1)
    if plan.max_positions is not None:
        yield to("max_positions", plan.max_positions + 8)
    if plan.embedding_rows is not None:
        yield to("embedding_rows", plan.embedding_rows + 8)
    if plan.mask_arg is not None:
        yield from _padding(plan)
    if plan.target_arg is not None:
        swapped = replace(plan, token_arg=plan.target_arg, target_arg=plan.token_arg)
        yield Mutation("token_arg", f"{plan.token_arg} ↔ {plan.target_arg}", swapped)
    for number, argument in enumerate(plan.extras):
        yield from _argument(plan, number, argument)


def _paths(plan: CallPlan) -> Iterator[Mutation]:
    last = plan.logits_path[-1] if plan.logits_path else None
    others: list[tuple[Any, ...]] = [(1,)] if last is None else [(), (*plan.logits_path[:-1], "loss")]
    if isinstance(last, int):
        others += [(*plan.logits_path[:-1], n) for n in (last - 1, last + 1) if n >= 0]
    for path in others:
        yield Mutation("logits_path", f"{plan.logits_path} → {path}", replace(plan, logits_path=path))


def _padding(plan: CallPlan) -> Iterator[Mutation]:
    form, dtype = FORMS[plan.mask_form]
    changed = replace(plan, mask_form=form, mask_dtype=dtype)
    yield Mutation("mask_form", f"{plan.mask_form} → {form}", changed)
    for shape in SHAPES[plan.mask_shape]:
        yield Mutation("mask_shape", f"{plan.mask_shape} → {shape}", replace(plan, mask_shape=shape))
    yield Mutation("mask_arg", "dropped", replace(plan, mask_arg=None, needs_mask=False))
    if plan.token_arg[0] != "*":
        swapped = replace(plan, mask_arg=plan.token_arg, token_arg=plan.mask_arg)
        yield Mutation("token_arg", f"{plan.token_arg} ↔ {plan.mask_arg}", swapped)


def _argument(plan: CallPlan, number: int, argument: Argument) -> Iterator[Mutation]:
    def to(field: str, change: str, other: Argument | None) -> Mutation:
        extras = [*plan.extras]
        extras[number : number + 1] = [] if other is None else [other]
        return Mutation(field, f"{argument.name}: {change}", replace(plan, extras=tuple(extras)))

    yield to("argument dropped", "dropped", None)
    if argument.role == "constant":
        wrong = not argument.value if isinstance(argument.value, bool) else 3 if argument.value != 3 else 4
        yield to("constant", f"{argument.value!r} → {wrong!r}", replace(argument, value=wrong))
        return
    if argument.role == "state":
        return
    if "mask" in argument.role:
        form, dtype = FORMS[argument.form]
        yield to("mask form", f"{argument.form} → {form}", replace(argument, form=form, dtype=dtype))
        if "causal" in argument.role:
            padding = replace(argument, role=argument.role.replace("causal_", ""))  # type: ignore[arg-type]
            yield to("mask role", "causal → padding only", padding)
    others = {"T": ("1T", "BT"), "1T": ("T", "BT"), "BT": ("T", "1T")} if argument.role == "positions" else SHAPES
    for shape in others.get(argument.shape, ()) if argument.role not in ("segments", "lengths") else ():
        yield to("argument shape", f"{argument.shape} → {shape}", replace(argument, shape=shape))
    if argument.role in ("positions", "segments"):
        other: Any = "segments" if argument.role == "positions" else "positions"
        yield to("argument role", f"{argument.role} → {other}", replace(argument, role=other, shape="BT"))
    if plan.token_arg[0] != "*" and not plan.methods:
        swapped = replace(argument, name=plan.token_arg)
        plan_ = replace(plan, token_arg=argument.name)
        extras = [*plan.extras]
        extras[number] = swapped
        yield Mutation("token_arg", f"{plan.token_arg} ↔ {argument.name}", replace(plan_, extras=tuple(extras)))


def judge(entry: Entry, module: nn.Module, right: CallPlan, wrong: CallPlan) -> Judgement:
    """What the change does, compared with the hand-written reference; the module is in eval mode."""
    if OBJECTIVES[wrong.family] != OBJECTIVES[right.family]:
        return "other objective"
    if wrong.causal != right.causal and right.family != "classifier":
        return "false claim"
    if (right.max_positions, right.embedding_rows) != (wrong.max_positions, wrong.embedding_rows):
        return "false claim"
    for B, T, S, seed in ((3, 12, 7, 0), (2, 6, 9, 1)):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, entry.rows, (B, T), generator=generator)
        tgt = torch.randint(1, entry.vocab, (B, S), generator=generator)
        keep = torch.ones_like(ids)
        keep[0, T // 2 :], keep[1, 3] = 0, 0
        for mask in (None, keep) if entry.padded is not None else (None,):
            result = _compared(entry, module, wrong, ids, tgt, mask)
            if result != "same":
                return result
    return "same"


def _compared(
    entry: Entry, module: nn.Module, plan: CallPlan, ids: Tensor, tgt: Tensor, keep: Tensor | None
) -> Judgement:
    reference = entry.reference if keep is None else entry.padded
    assert reference is not None
    seq2seq = entry.family == "encoder_decoder"
    given = (ids, tgt) if seq2seq else (ids,) if keep is None else (ids, keep)
    with torch.no_grad():
        right = reference(module, *given)
        try:
            got = call_logits(module, plan, ids, keep, target_ids=tgt if seq2seq else None)
        except Exception:  # noqa: BLE001  (the module may refuse a wrong call in any way)
            return "cannot be called"
    if got.shape != right.shape:
        return "other values"
    if keep is not None and entry.family != "classifier":
        got, right = got[keep.bool()], right[keep.bool()]
    return "same" if torch.allclose(got.log_softmax(-1), right.log_softmax(-1), rtol=0, atol=1e-6) else "other values"
