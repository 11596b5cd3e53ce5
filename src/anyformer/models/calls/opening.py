"""Arguments that open a head: without them hidden states come out, with them logits for every position.

B batch, T time, V vocabulary, D width of hidden states.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

from anyformer.core.findings import Finding
from anyformer.models.calls.locating import Found, locate, seen_of
from anyformer.models.calls.masks import with_argument
from anyformer.models.calls.names import hint, parameters_of
from anyformer.models.calls.options import options, source_of
from anyformer.models.calls.outputs import find_head, hidden_width
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober
from anyformer.models.plan import Argument, CallPlan


def opened(prober: Prober, found: Found, said: Stated) -> tuple[Found, list[Finding]]:
    """The call with the one optional argument that opens the head, where without it hidden states come out.

    The same call where it gives logits already, where a head is left to the caller, or where no argument opens one.
    """
    plan = found.plan
    if found.place.use != "sequence" or said.head or said.logits or plan.methods or plan.graph is not None:
        return found, []
    seen = seen_of(prober, plan)
    rows = seen.target_rows or seen.embedding_rows
    if rows is None or hidden_width(prober, plan, seen) in (None, rows) or find_head(prober, plan, seen) is not None:
        return found, []
    sizes = prober.sizes
    for argument, more in _more(prober, plan, said):
        wider, _ = locate(prober, more, said, (found.sizes,))  # type: ignore[arg-type]
        if wider is not None and _logits(wider, rows):
            why = f"without it the widest is {found.place.text()}: hidden states"
            return wider, [Finding("head", "ok", f"{argument} opens it", reason=why)]
        prober.sizes = sizes
    return found, []


def _logits(found: Found, rows: int) -> bool:
    """Whether there is one number for each of the embedding's rows at every position, of each row for itself."""
    wide = found.place.use == "sequence" and rows == found.place.V
    return wide and (found.apart is None or found.apart <= 1)


def _more(prober: Prober, plan: CallPlan, said: Stated) -> Iterator[tuple[str, CallPlan]]:
    """The call with one more argument, that its name explains; in words, too."""
    source = source_of(prober.module)
    taken = {plan.token_arg.lstrip("*"), plan.mask_arg, plan.target_arg, plan.targets_arg, *said.arguments}
    taken |= {a.name for a in plan.extras}
    for parameter in parameters_of(prober.module):
        name, kind = parameter.name, hint(parameter.name)
        if name in taken or parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        if kind == "targets" and said.targets is None:
            yield name, replace(plan, targets_arg=name, needs_targets=True)
        elif kind == "switch" and isinstance(parameter.default, bool):
            argument = Argument(name, "constant", "", value=not parameter.default)
            yield argument.text(), with_argument(plan, argument)
        elif kind in ("positions", "segments", "lengths"):
            for argument in options(parameter, source):
                if argument.role == kind:
                    yield argument.text(), with_argument(plan, argument)
