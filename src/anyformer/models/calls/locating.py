"""Running one candidate of a call at two sizes, and where its logits are.

B batch, T time (source), S time (target), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from anyformer.models.blame import blame
from anyformer.models.calls.deciding import decide, placed_at
from anyformer.models.calls.failures import tried
from anyformer.models.calls.origins import Kind
from anyformer.models.calls.outputs import Place, places
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober, Run, Seen, describe, tensors_in
from anyformer.models.calls.properties import rows_apart
from anyformer.models.inputs import Inputs
from anyformer.models.plan import Argument, CallPlan

# (B, T, S): all differ within and between the two, so that no axis can be taken for another; then shorter ones
Size = tuple[int, int, int]
SIZES: tuple[tuple[Size, Size], ...] = (((2, 5, 7), (3, 7, 5)), ((5, 2, 3), (4, 3, 2)))
_PACKED: tuple[tuple[Size, Size], ...] = (((1, 5, 3), (1, 7, 4)),)
_SECONDS = 30.0  # of the processor that the search for a call may take


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


def out_of_time(prober: Prober, failures: list[str]) -> bool:
    """Whether the search ends here, which is then told."""
    if prober.seconds() < _SECONDS:
        return False
    told = f"ended after {_SECONDS:.0f} s: {prober.calls:,} calls were tried, others were not; state arguments:"
    if told[:12] not in "".join(f[:12] for f in failures):
        failures.insert(0, told)
    return True


def with_targets(
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
    for sizes in _PACKED if plan.packed else lengths or SIZES:
        runs: list[tuple[Run, int, int]] = []
        for number, (B, T, S) in enumerate(sizes):
            run, error = run_at(prober, plan, B, T, S, number)
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


def run_at(prober: Prober, plan: CallPlan, B: int, T: int, S: int, seed: int) -> tuple[Run | None, Exception | None]:
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


def is_convincing(found: Found) -> bool:
    classes = found.place.use == "pooled" and found.plan.embedding_rows != found.place.V
    return (found.place.use == "sequence" or classes) and (found.apart is None or found.apart <= 1)
