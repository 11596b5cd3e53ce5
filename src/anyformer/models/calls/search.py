"""Finding a call that gives logits for every position, or one row of classes, by running candidates.

B batch, T time, V vocabulary, C classes.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace

from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.blame import blame
from anyformer.models.calls.deciding import decide, placed_at
from anyformer.models.calls.failures import nothing_found, parameter_list, tried
from anyformer.models.calls.names import Hint, hint, parameters_of, required, token_candidates
from anyformer.models.calls.options import assignments, options, source_of, states
from anyformer.models.calls.origins import Kind
from anyformer.models.calls.outputs import Place, places, rows_alone
from anyformer.models.calls.overrides import Stated, role_stated
from anyformer.models.calls.positions import candidates, mixing_sizes
from anyformer.models.calls.probing import Prober, Run, Seen, describe, tensors_in
from anyformer.models.calls.properties import rows_apart
from anyformer.models.inputs import Inputs
from anyformer.models.plan import Argument, CallPlan
from anyformer.models.signature import forward_parameters

# (B, T, S): all differ within and between the two, so that no axis can be taken for another; then shorter ones
Size = tuple[int, int, int]
SIZES: tuple[tuple[Size, Size], ...] = (((2, 5, 7), (3, 7, 5)), ((5, 2, 3), (4, 3, 2)))
PACKED: tuple[tuple[Size, Size], ...] = (((1, 5, 3), (1, 7, 4)),)
_MULTIPLES: tuple[tuple[Size, Size], ...] = tuple(((2, T, T), (3, 2 * T, 2 * T)) for T in (8, 16, 32, 64))
"""For modules that take lengths from a few on, or multiples of a block, alone."""
_SECONDS = 30.0  # of the processor that the search for a call may take
_SECONDS_LENGTHS = 6.0  # after which one call is tried at no further length
_LENGTHS_TRIED = 3  # of those that the module names


@dataclass(frozen=True)
class Found:
    """A way to call the module that gave what could be logits."""

    plan: CallPlan
    place: Place
    others: list[Place]
    apart: float | None
    """How far a row alone differs from the row in a batch, in tolerances."""
    sizes: tuple[tuple[int, int, int], ...] = ()
    """Those at which it was found."""
    made_by: Kind | None = None
    """What made the tensor: a matrix of weights makes logits, a norm hidden states; None where it was not seen."""
    undecided: tuple[Place, ...] = ()
    """Others that could be the logits as well."""


def blank(token_arg: str, given: tuple[Argument, ...], *, time_first: bool = False) -> CallPlan:
    """A plan of which only the arguments are known."""
    padding = next((a for a in given if a.role == "mask" and "B" in a.shape), None)
    return CallPlan(
        token_arg=token_arg,
        mask_arg=padding.name if padding else None,
        targets_arg=None,
        needs_targets=False,
        logits_path=(),
        vocab_size=3,
        embedding_rows=None,
        max_positions=None,
        family="decoder",
        causal=True,
        findings=(),
        needs_mask=padding is not None,
        mask_shape=padding.shape if padding else "BT",
        mask_dtype=padding.dtype if padding else "int64",
        mask_form=padding.form if padding else "keep",
        extras=tuple(a for a in given if a is not padding),
        time_first=time_first,
    )


def require_names(module: nn.Module, stated: Stated) -> None:
    """CallError where the user states a parameter that forward does not have."""
    held = forward_parameters(module)
    names = {p.name for p in held if p.kind is not inspect.Parameter.VAR_KEYWORD}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in held):
        return
    for key in ("tokens", "target", "targets", "mask"):
        name = getattr(stated, key)
        if name not in (None, "none") and name.lstrip("*") not in names:
            raise CallError(
                f"anyformer.yaml states {key}: {name}, but forward has no argument {name}",
                f"it takes {parameter_list(parameters_of(module))}",
                f"correct the line, or leave it out: call: {key}: one of {', '.join(sorted(names))}",
            )


def find_sequence(prober: Prober, stated: Stated) -> Found:
    """The first call, in the order of names, that gives logits for every position; else one row of classes.

    Raises CallError naming what was tried.
    """
    module = prober.module
    parameters = parameters_of(module)
    failures: list[str] = []
    fallback: list[Found] = []
    for sizes in SIZES:  # every call at usual lengths before any at short ones: most fail alike at both
        found = _at_sizes(prober, stated, (sizes,), failures, fallback)
        if found is not None:
            return found
    if not fallback and not out_of_time(prober, failures):
        fallback = _unusual(prober, parameters, stated, failures)
    if fallback:
        return min(fallback, key=lambda f: (f.place.use != "sequence", f.apart is None, f.apart or 0.0))
    raise nothing_found(prober, parameters, failures, stated)


def _at_sizes(
    prober: Prober, stated: Stated, sizes: tuple[tuple[Size, Size], ...], failures: list[str], fallback: list[Found]
) -> Found | None:
    """The first convincing call at these sizes; others that run go into ``fallback``, errors into ``failures``."""
    module = prober.module
    parameters = parameters_of(module)
    for token_arg in [stated.tokens] if stated.tokens else token_candidates(parameters):
        targets = _targets(parameters, token_arg, stated)
        others = [p for p in required(parameters) if p.name not in (token_arg.lstrip("*"), targets)]
        others = [p for p in others if p.name not in stated.arguments]
        unknown = [p.name for p in others if hint(p.name) == "decoder"]
        if unknown:
            failures.append(f"{token_arg} takes the ids: nothing known for {', '.join(unknown)}")
            continue
        needed = targets is not None and any(p.name == targets for p in required(parameters))
        pooled: Found | None = None
        for given in _given(module, parameters, others, stated):
            if pooled is not None and not _may_give_more(given, pooled):
                continue
            if out_of_time(prober, failures):
                break
            found = _readings(prober, blank(token_arg, given), targets, needed, stated, failures, sizes)
            if found is not None and _convincing(found):
                if found.place.use == "sequence":
                    return found
                pooled = pooled or found
            fallback += [found] if found is not None else []
        if pooled is not None:
            return pooled
    return None


def out_of_time(prober: Prober, failures: list[str]) -> bool:
    """Whether the search ends here, which is then told."""
    if prober.seconds() < _SECONDS:
        return False
    told = f"ended after {_SECONDS:.0f} s: {prober.calls:,} calls were tried, others were not; state arguments:"
    if told[:12] not in "".join(f[:12] for f in failures):
        failures.insert(0, told)
    return True


def _one_row_by_chance(prober: Prober, found: Found) -> bool:
    """Whether one row is no call but what a fault lets through: why two rows fail is then told.

    It is no row of a vocabulary, or as many rows as tokens run as well: an axis of time lies on that of the batch.
    """
    rows = found.plan.embedding_rows
    if rows is not None and rows // 2 >= found.place.V:
        return True
    return found.plan.packed == "1T" and _run(prober, replace(found.plan, packed=""), 5, 5, 5, 0)[0] is not None


def _unusual(prober: Prober, parameters: list[inspect.Parameter], stated: Stated, failures: list[str]) -> list[Found]:
    """One row at a time, as (T,) or (1, T); then a length that the module names and that alone runs."""
    names = [stated.tokens] if stated.tokens else token_candidates(parameters)
    pooled: list[Found] = []
    for token_arg in names[:2]:
        targets = _targets(parameters, token_arg, stated)
        taken = (token_arg.lstrip("*"), targets, *stated.arguments)
        others = [p for p in required(parameters) if p.name not in taken]
        if any(hint(p.name) in ("decoder", "unknown") for p in others):
            continue  # a tensor of one number can be added to anything: nothing would be known
        needed = targets is not None and any(p.name == targets for p in required(parameters))
        for given in _given(prober.module, parameters, others, stated)[:20]:
            if out_of_time(prober, failures):
                break
            plan = blank(token_arg, given)
            for packed in ("T", "1T"):
                found = _with_targets(prober, replace(plan, packed=packed), targets, needed, stated, [])
                if found is not None and found.place.use == "sequence" and not _one_row_by_chance(prober, found):
                    return [found]
            run, error = _run(prober, plan, *SIZES[0][0], 0)
            if run is not None and rows_alone(run, SIZES[0][0][0]):
                continue  # at other lengths it would give no more
            begun = prober.seconds()
            for size in _MULTIPLES:
                if prober.seconds() - begun > _SECONDS_LENGTHS:
                    break
                found = _with_targets(prober, plan, targets, needed, stated, [], (size,))
                if found is not None and found.place.use == "sequence":
                    return [found]
            mixing = mixing_sizes(prober.module)[:_LENGTHS_TRIED]
            named = [n for n in candidates(prober.module, []) if n not in mixing][:_LENGTHS_TRIED]
            for L in [n for n in dict.fromkeys([*_lengths_told(error), *mixing, *named]) if n <= 1024]:
                if prober.seconds() - begun > _SECONDS_LENGTHS:
                    break
                found = _with_targets(prober, plan, targets, needed, stated, [], (((2, L, L), (3, L, L)),))
                if found is None or _by_chance(prober, found, L):
                    continue
                if found.place.use == "sequence":
                    return [found]
                pooled += [found] if _convincing(found) and refuses_others(prober, found, L) else []
            if pooled:
                prober.sizes = pooled[0].sizes
                return pooled[:1]
    return []


def _lengths_told(error: Exception | None) -> list[int]:
    """The length that torch says it met instead of the one that was tried."""
    found = re.search(r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", str(error))
    tried_length = SIZES[0][0][1]
    sizes = [int(n) for n in found.groups()] if found is not None else []
    return [n for n in sizes if n > tried_length] if tried_length in sizes else []


def refuses_others(prober: Prober, found: Found, L: int) -> bool:
    """Whether no other length runs: one row of numbers per text, or two texts of one length, tell of none."""
    return all(_run(prober, found.plan, 2, T, T, 0)[0] is None for T in (5, L - 1, L + 1, L // 2, 2 * L))


def _by_chance(prober: Prober, found: Found, L: int) -> bool:
    """Whether the shapes fit because V is L, or nearly so, and other lengths run, too, whose outputs are no logits."""
    if abs(found.place.V - L) > 1:
        return False
    return any(_run(prober, found.plan, 2, T, T, 0)[0] is not None for T in (L - 1, L + 1))


def _given(
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


def _targets(parameters: list[inspect.Parameter], token_arg: str, stated: Stated) -> str | None:
    if stated.targets is not None:
        return None if stated.targets == "none" else stated.targets
    named = [p for p in parameters if hint(p.name) == "targets" and p.name != token_arg.lstrip("*")]
    return named[0].name if named else None


def _convincing(found: Found) -> bool:
    classes = found.place.use == "pooled" and found.plan.embedding_rows != found.place.V
    return (found.place.use == "sequence" or classes) and (found.apart is None or found.apart <= 1)


def _may_give_more(given: tuple[Argument, ...], pooled: Found) -> bool:
    """Whether another argument than a mask differs: where to read, say. With it, there may be logits at each place."""
    plan = pooled.plan
    had = {a.name: a for a in plan.extras if "mask" not in a.role}
    return {a.name: a for a in given if "mask" not in a.role and hint(a.name) != "mask"} != {
        n: a for n, a in had.items() if hint(n) != "mask"
    }


def _readings(
    prober: Prober,
    plan: CallPlan,
    targets: str | None,
    needed: bool,
    stated: Stated,
    failures: list[str],
    sizes: tuple[tuple[Size, Size], ...],
) -> Found | None:
    """The call with ids (B, T); where that fails or the rows see one another, with ids (T, B)."""
    best: Found | None = None
    for time_first in (False, True):
        if stated.batch is not None and time_first != (stated.batch == "second"):
            continue
        read = replace(plan, time_first=time_first)
        found = _with_targets(prober, read, targets, needed, stated, failures, sizes)
        if found is not None and (best is None or _better(found, best)):
            best = found
        if best is not None and best.apart is not None and best.apart <= 1:
            break
    return best


def _better(found: Found, than: Found) -> bool:
    """A sequence rather than one row; rows that are apart rather than not. Of two that are not, the first."""

    def key(f: Found) -> tuple[bool, bool]:
        return f.place.use != "sequence", f.apart is not None and f.apart > 1

    return key(found) < key(than)


def _with_targets(
    prober: Prober,
    plan: CallPlan,
    targets: str | None,
    needed: bool,
    stated: Stated,
    failures: list[str],
    lengths: tuple[tuple[Size, Size], ...] = (),
) -> Found | None:
    """Without targets if that gives logits for every position, else with them.

    Also with them where what comes without is not as wide as the embedding has rows, and what is called logits with
    them is: caches and hidden states stand beside the last position's logits then.
    """
    pooled: Found | None = None
    other: Found | None = None
    tries = [replace(plan, targets_arg=targets, needs_targets=True)] if targets else []
    tries = tries if needed else [plan, *tries]
    for attempt in tries:
        found, failure = locate(prober, attempt, stated, lengths)
        if found is None:
            failures.append(failure)
        elif found.place.use == "sequence" and found.plan.embedding_rows == found.place.V:
            named = found.place.path[-1:] in (("logits",), ("lm_logits",)) or found.place.logits_from != "output"
            if other is None or named or other.made_by != "linear":
                return found
        elif found.place.use == "sequence":
            other = other or found
        elif pooled is None:
            pooled = found
    if other is not None:
        prober.sizes = other.sizes
    return other or pooled


def locate(
    prober: Prober, plan: CallPlan, stated: Stated, lengths: tuple[tuple[Size, Size], ...] = ()
) -> tuple[Found | None, str]:
    """Run at two sizes; the place of the logits, or why there is none. lengths: other sizes than the usual ones."""
    failure = ""
    for sizes in PACKED if plan.packed else lengths or SIZES:
        runs: list[tuple[Run, int, int]] = []
        for number, (B, T, S) in enumerate(sizes):
            run, error = _run(prober, plan, B, T, S, number)
            if run is None:
                assert error is not None
                failure = failure or tried(plan, f"ids ({B}, {T}):\n{blame(error)}")
                break
            runs.append((run, B, S if plan.family == "encoder_decoder" else T))
        if len(runs) < 2:
            continue
        among = places(runs, yes_or_no=prober.yes_or_no)
        found = [p for p in among if stated.place() in (None, (p.logits_from, p.path))]
        if not found:
            shapes = f"ids {sizes[0][:2]} gave {describe(runs[0][0].output)}"
            if stated.logits:
                shapes += f"; nothing like logits at {stated.logits}"
            failure = failure or tried(plan, shapes)
            continue
        if any(bool(t.isnan().any()) for _, t in tensors_in(runs[0][0].output)) and plan.extras:
            failure = failure or tried(plan, "NaN")  # a mask that hides everything
            continue
        prober.sizes = sizes
        return _found(prober, plan, found), ""
    return None, failure


def _found(prober: Prober, plan: CallPlan, found: list[Place]) -> Found:
    rows = prober.watched(plan, _inputs(prober, plan, *prober.sizes[0], 0, 3))
    plan = replace(plan, embedding_rows=rows.embedding_rows, target_vocab=rows.target_rows)
    chosen = decide(prober, plan, found, rows.target_rows or rows.embedding_rows)
    first, others = chosen.ordered[0], chosen.ordered[1:]
    placed = placed_at(plan, first)
    apart = rows_apart(prober, placed) if first.use != "last" else None
    if apart is not None and apart > 1 and first.layout == "NV":
        other = replace(first, layout="MV")
        apart_other = rows_apart(prober, placed_at(plan, other))
        if apart_other is not None and apart_other <= 1:
            first, placed, apart = other, placed_at(plan, other), apart_other
    return Found(placed, first, others, apart, prober.sizes, chosen.kind, chosen.undecided)


def _run(prober: Prober, plan: CallPlan, B: int, T: int, S: int, seed: int) -> tuple[Run | None, Exception | None]:
    run, error = None, None
    for below in (3, 2):  # a vocabulary of two has no id 2
        run, error = prober.run(plan, _inputs(prober, plan, B, T, S, seed, below))
        if not isinstance(error, IndexError):
            break
    return run, error


def _inputs(prober: Prober, plan: CallPlan, B: int, T: int, S: int, seed: int, below: int) -> Inputs:
    target = prober.ids(B, S, seed + 50, below) if plan.family == "encoder_decoder" else None
    return Inputs(prober.ids(B, T, seed, below), target_ids=target)


def seen_of(prober: Prober, plan: CallPlan) -> Seen:
    """What a run of the plan uses."""
    return prober.watched(plan, prober.inputs(plan, *prober.sizes[0][:2], 0, prober.sizes[0][2]))
