"""Finding a call that gives logits for every position, or one row of classes, by running candidates.

B batch, T time, V vocabulary, C classes.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.calls.failures import nothing_found, parameter_list
from anyformer.models.calls.locating import SIZES, Found, Size, blank, is_convincing, out_of_time, with_targets
from anyformer.models.calls.names import hint, parameters_of, required, token_candidates
from anyformer.models.calls.options import given_arguments, targets_of
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober
from anyformer.models.calls.unusual import find_unusual
from anyformer.models.plan import Argument, CallPlan
from anyformer.models.signature import forward_parameters


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
        fallback = find_unusual(prober, parameters, stated, failures)
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
        targets = targets_of(parameters, token_arg, stated)
        others = [p for p in required(parameters) if p.name not in (token_arg.lstrip("*"), targets)]
        others = [p for p in others if p.name not in stated.arguments]
        unknown = [p.name for p in others if hint(p.name) == "decoder"]
        if unknown:
            failures.append(f"{token_arg} takes the ids: nothing known for {', '.join(unknown)}")
            continue
        needed = targets is not None and any(p.name == targets for p in required(parameters))
        pooled: Found | None = None
        for given in given_arguments(module, parameters, others, stated):
            if pooled is not None and not _may_give_more(given, pooled):
                continue
            if out_of_time(prober, failures):
                break
            found = _readings(prober, blank(token_arg, given), targets, needed, stated, failures, sizes)
            if found is not None and is_convincing(found):
                if found.place.use == "sequence":
                    return found
                pooled = pooled or found
            fallback += [found] if found is not None else []
        if pooled is not None:
            return pooled
    return None


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
        found = with_targets(prober, read, targets, needed, stated, failures, sizes)
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
