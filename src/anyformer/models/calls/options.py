"""What a further argument may be given, likeliest first. B batch, T time (source), S time (target)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import product

from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.calls.failures import parameter_list
from anyformer.models.calls.names import MAYBE_DECODER, PAD, Hint, hint
from anyformer.models.calls.overrides import Stated, role_stated
from anyformer.models.plan import Argument, MaskForm

_KINDS: tuple[tuple[str, MaskForm], ...] = (
    ("bool", "masked"),
    ("bool", "keep"),
    ("float32", "additive"),
    ("int64", "keep"),
    ("float32", "keep"),
    ("int64", "masked"),
    ("float32", "masked"),
)
_PADDING_KINDS: tuple[tuple[str, MaskForm], ...] = (
    ("int64", "keep"),
    ("bool", "masked"),
    ("bool", "keep"),
    ("float32", "additive"),
    ("float32", "keep"),
    ("int64", "masked"),
    ("float32", "masked"),
)
_OF_TARGET = re.compile(r"tgt|trg|target|dec")
_MAKER = re.compile(
    r"_?(init|begin|initial|zero|new|reset|get_initial|make|create|get_init|initialize)_?(the_)?(hidden|state|hiddens|states|memory|mems|"
    r"hidden_state|cell)s?",
    re.IGNORECASE,
)
_MOST = 250  # assignments that are tried for one candidate of the ids


def causal_forms(name: str, *, target: bool = False, batched: bool = False) -> list[Argument]:
    """Every shape, number format and polarity of a causal mask."""
    shapes = ["BTT", "B1TT", "TT", "1TT", "11TT"] if batched else ["TT", "1TT", "BTT", "11TT", "B1TT"]
    role = "target_causal_mask" if target else "causal_mask"
    return [
        Argument(name, role, s.replace("T", "S") if target else s, dtype, form)  # type: ignore[arg-type]
        for s in shapes
        for dtype, form in _KINDS
    ]


def padding_forms(name: str, role: str = "mask", *, time_first: bool = False) -> list[Argument]:
    """Every shape, number format and polarity of a padding mask; role: mask, target_mask or memory_mask."""
    T = "S" if role == "target_mask" else "T"
    shapes = [f"B{T}", f"B11{T}", f"B1{T}", f"B1{T}{T}", f"B{T}{T}"]
    if role == "memory_mask":
        shapes = ["BT", "B11T", "B1T", "B1ST", "BST"]
    if time_first:
        shapes.append(f"{T}B")
    return [Argument(name, role, s, dtype, form) for s in shapes for dtype, form in _PADDING_KINDS]  # type: ignore[arg-type]


def constants(name: str, annotation: str, source: str) -> list[Argument]:
    """Constants that forward's text shows a use for: a switch is asked for its truth, a number counts places.

    Anything else could be added to a tensor without an error, and nobody would know.
    """
    word = re.escape(name)
    found = [None]
    switch = re.search(rf"\b(if|elif|not|and|or)\s+{word}\b(?!\s*(is|\.|\[))|\b{word}\s+(else|and|or)\b", source)
    number = re.search(
        rf"\[[^\]]*\b{word}\b[^\]]*:|:\s*{word}\b|arange\([^)]*\b{word}\b|range\([^)]*\b{word}\b", source
    )
    values: list[object] = list(found)
    if switch or "bool" in annotation:
        values += [False, True]
    if number or "int" in annotation:
        values += [0]
    return [Argument(name, "constant", "", value=value) for value in values]


def options(
    parameter: inspect.Parameter, source: str, kind: Hint | None = None, *, masks: str = "decoder"
) -> list[Argument]:
    """Candidates for a parameter, by its name and annotation.

    masks: decoder (causal before padding), encoder (padding before causal), source or target (of an encoder-decoder).
    """
    name = parameter.name
    kind = kind or hint(name)
    annotation = "" if parameter.annotation is parameter.empty else inspect.formatannotation(parameter.annotation)
    nothing = Argument(name, "constant", "", value=None)
    start = [Argument(name, "constant", "", value=0)]
    axes = ("S", "1S", "BS") if masks == "source" and _OF_TARGET.match(name.lower()) else ("T", "1T", "BT")
    positions = [Argument(name, "positions", s) for s in axes]
    segments = [Argument(name, "segments")]
    lengths = [Argument(name, "lengths", "B")]
    if masks == "source":  # whose they are is measured later (seq2seq.settle_lengths)
        lengths = [*lengths, Argument(name, "target_lengths", "B")]
        lengths = lengths[::-1] if _OF_TARGET.match(name.lower()) else lengths
    if kind in ("mask", "target_mask", "memory_mask"):
        by_id = [Argument(name, "padding_id", "")] if PAD.fullmatch(name.lower()) else []
        return [*by_id, nothing, *mask_options(name, kind, masks)]
    by_kind: dict[str, list[Argument]] = {
        "flag": [Argument(name, "constant", "", value=v) for v in (True, False)],
        "start": [*start, *positions, nothing],
        "segments": [*segments, nothing],
        "positions": [*positions, *start, nothing],
        "lengths": [*lengths, *_int(name, annotation)],
        "padding_id": [Argument(name, "padding_id", ""), nothing],
        "cache": [nothing],
        "memory": [nothing],
        "switch": [Argument(name, "constant", "", value=v) for v in (False, None, True)],
    }
    if kind in by_kind:
        return by_kind[kind]
    given = constants(name, annotation, source)
    if "bool" in annotation or "int" in annotation:
        return given[::-1]
    return [*positions, *segments, *lengths, *_mask_guesses(name), *given]


def mask_options(name: str, kind: Hint, masks: str) -> list[Argument]:
    """Forms of a mask, by whose it is."""
    if masks == "target" or (masks == "source" and kind == "target_mask"):
        causal = causal_forms(name, target=True)
        batched = [a for a in causal_forms(name, target=True, batched=True) if a.form == "keep"]
        if "pad" not in name:  # of padding all the same, where no causal form runs
            return [*batched[:2], *causal, *batched[2:], *padding_forms(name, "target_mask")]
        # of its own input, or of the source, for what it reads of the encoder
        pairs = zip(padding_forms(name, "target_mask"), padding_forms(name, "memory_mask"), strict=True)
        forms = [form for pair in pairs for form in pair]
        # every shape once before other number formats: which of those it is, is measured when the call runs
        return sorted(forms, key=lambda a: _PADDING_KINDS.index((a.dtype, a.form)))
    if masks == "source":
        padding = padding_forms(name, "memory_mask" if kind == "memory_mask" else "mask")
        first = [a for a in padding if a.shape in ("B11T", "B1T") and a.form == "keep" and a.dtype != "float32"]
        square = [Argument(name, "mask", "TT", dtype, form) for dtype, form in _KINDS]
        return [*first, *[a for a in padding if a not in first], *square]
    padding, causal = padding_forms(name), causal_forms(name)
    if kind == "target_mask" and "pad" not in name:
        return [*causal, *padding]
    if masks == "encoder" or "pad" in name:
        return [*padding, *causal]
    # a mask of four axes runs by chance where one of (B, T) is given further axes: every other form comes first
    return [a for a in causal if a.shape == "TT"] + padding + [a for a in causal if a.shape != "TT"]


def _mask_guesses(name: str) -> list[Argument]:
    return [a for a in causal_forms(name)[:4] if a.shape == "TT"]


def _int(name: str, annotation: str) -> list[Argument]:
    return [Argument(name, "constant", "", value=None)] if "None" in annotation or "Optional" in annotation else []


def assignments(lists: list[list[Argument]]) -> Iterator[tuple[Argument, ...]]:
    """All combinations, those of likely candidates first, up to a few hundred."""
    open_lists = sum(len(options) > 1 for options in lists)
    short = [options[: max(4, _MOST // max(1, open_lists**2))] for options in lists]
    total = 1
    for each in short:
        total *= len(each)
    if total > 200_000:
        short = [each[:6] for each in short]
    ranked = sorted(product(*(range(len(o)) for o in short)), key=sum)
    for ranks in ranked[:_MOST]:
        yield tuple(o[r] for o, r in zip(short, ranks, strict=True))


def alike(lists: list[list[Argument]]) -> Iterator[tuple[Argument, ...]]:
    """Combinations in which several masks have one number format and polarity: code that makes one makes all.

    Those of one shape first, then of as many axes: one of padding beside a causal one.
    """
    masks = [i for i, options in enumerate(lists) if any("mask" in option.role for option in options)]
    if len(masks) < 2:
        return
    likely = [options[0] for options in lists]
    for form, of in product((_form, _axes), ("mask", "memory_mask")):
        seen = set()
        for first in lists[masks[0]]:
            if "mask" not in first.role or form(first) in seen:
                continue
            seen.add(form(first))
            same = {i: _like(first, lists[i], form, of) for i in masks[1:]}
            if all(same.values()):
                yield tuple(first if i == masks[0] else same.get(i) or option for i, option in enumerate(likely))


def _like(mask: Argument, among: list[Argument], form: Callable[[Argument], object], of: str) -> Argument | None:
    """The first of the same form; ``of`` the source where it may be so (memory_mask)."""
    alike = [o for o in among if "mask" in o.role and form(o) == form(mask)]
    return next((o for o in alike if of in o.role), alike[0] if alike else None)


def _form(mask: Argument) -> tuple[object, str, str]:
    """Its shape, whosever time axes they are, number format and polarity."""
    return mask.shape.replace("S", "T"), mask.dtype, mask.form


def _axes(mask: Argument) -> tuple[object, str, str]:
    """How many axes it has, number format and polarity."""
    return len(mask.shape), mask.dtype, mask.form


def states(module: nn.Module, parameter: inspect.Parameter) -> list[Argument]:
    """For a state that is carried along: what the module's own method makes of it."""
    if hint(parameter.name) not in ("cache", "memory", "unknown"):
        return []
    makers = [n for n in dir(type(module)) if _MAKER.fullmatch(n) and callable(getattr(type(module), n, None))]
    return [Argument(parameter.name, "state", "", value=name) for name in makers[:2]]


def source_of(module: nn.Module) -> str:
    """The text of forward, where there is one."""
    try:
        return inspect.getsource(getattr(module, "_orig_mod", module).forward)
    except (OSError, TypeError):
        return ""


def maybe_decoder(name: str) -> bool:
    """Whether a parameter of this name may take a decoder's input, though it need not."""
    return name.lower() in MAYBE_DECODER


def given_arguments(
    module: nn.Module, parameters: list[inspect.Parameter], others: list[inspect.Parameter], stated: Stated
) -> list[tuple[Argument, ...]]:
    """What the other required parameters may be given; then optional ones with a known name, where that fails."""
    source = source_of(module)
    fixed = [argument for name in stated.arguments for argument in [stated_options(name, stated, source, parameters)]]
    kinds: dict[str, Hint] = {stated.mask: "mask"} if stated.mask is not None else {}
    lists = [[*options(p, source, kinds.get(p.name)), *states(module, p)] for p in others] + fixed
    found: list[tuple[Argument, ...]] = list(assignments(lists)) if lists else [()]
    open_ones = [p for p in parameters if p.default is None and p not in others and p.name not in stated.arguments]
    helpful = [p for p in open_ones if hint(p.name) in ("positions", "segments", "start", "lengths")]
    more = [[o for o in options(p, source) if o.role != "constant" or o.value is not None][:3] for p in helpful]
    if helpful:
        found += list(assignments([*lists, *more]))[:40]
    masks = [p for p in open_ones if hint(p.name) in ("mask", "target_mask")]
    if len(masks) == 1:  # a default of None that forward cannot take
        forms = options(masks[0], source, masks="encoder")[1:]
        found += list(assignments([*lists, forms])) + (list(assignments([*lists, *more, forms])) if helpful else [])
    return found


def stated_options(
    name: str,
    stated: Stated,
    source: str,
    parameters: list[inspect.Parameter],
    *,
    mask: Hint = "mask",
    masks: str = "decoder",
) -> list[Argument]:
    """What the user states of an argument: a value, or all forms of the role that it has.

    mask: which kind of mask it is, where it is one; masks: as of ``options``.
    """
    value = stated.arguments[name]
    role = role_stated(value)
    parameter = next((p for p in parameters if p.name == name), None)
    if parameter is None:
        raise CallError(f"anyformer.yaml: forward has no argument {name}", f"it takes {parameter_list(parameters)}")
    if role is None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        shapes = ("", "B", "B1", "BT") if number else ("",)
        return [Argument(name, "constant", shape, value=value) for shape in shapes]
    kinds = {"causal_mask": mask, "mask": mask}
    found = options(parameter, source, kinds.get(role, role), masks=masks)  # type: ignore[arg-type]
    return [a for a in found if a.role in (role, f"target_{role}")]


def targets_of(parameters: list[inspect.Parameter], token_arg: str, stated: Stated) -> str | None:
    if stated.targets is not None:
        return None if stated.targets == "none" else stated.targets
    named = [p for p in parameters if hint(p.name) == "targets" and p.name != token_arg.lstrip("*")]
    return named[0].name if named else None
