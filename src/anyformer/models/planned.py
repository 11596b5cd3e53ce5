"""A call plan as it may be used: inferred, and proven line by line wherever a person stated a part of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.callplan import infer_call_plan, is_declared
from anyformer.models.calls.overrides import FILE
from anyformer.models.plan import CallPlan, Objective
from anyformer.models.proofs import prove_plan
from anyformer.models.source import LoadedModel


def planned(
    module: nn.Module, *, overrides: Mapping[str, Any] | None = None, objective: Objective | None = None
) -> CallPlan:
    """The module's call plan; what overrides state of it is proven on the module like the rest.

    Raises CallError where no call gives logits, or the module does something else than was stated.
    """
    plan = infer_call_plan(module, overrides=overrides, objective=objective)
    if overrides:
        words = f"what {FILE} (or overrides=) states is not what {type(module).__name__} does"
        require_proven(module, plan, words, "correct the line, or leave it out: it is then measured")
    return plan


def require_proven(
    module: nn.Module,
    plan: CallPlan,
    what: str = "the call plan given does not fit the module",
    fix: str = "leave call_plan out: it is then inferred from the module",
) -> None:
    """CallError where the module does something else than a line of the plan says; what, fix: its words.

    What the plan itself reports (a leak, a mask without effect) is no contradiction.
    """
    insisted = ("causality", "warn")
    known = {f.name for f in plan.findings if f.verdict == "fail" or (f.name, f.verdict) == insisted}
    known |= {f.name for f in plan.findings if is_declared(f)}
    bad = [f for f in prove_plan(module, plan) if f.verdict == "fail" and f.name not in known]
    if bad:
        lines = [f"{f.name}: {f.measured}" + (f" (expected: {f.expected})" if f.expected else "") for f in bad]
        raise CallError(what, "\n".join(dict.fromkeys(lines)), fix)


@contextmanager
def naming(loaded: LoadedModel) -> Iterator[None]:
    """A CallError's advice "anyformer repair MODEL" names the model's own location, so that it can be typed.

    Where no call was found, the sizes that we chose are told: others may fit.
    """
    try:
        yield
    except CallError as error:
        ours = [f for f in loaded.findings if f.name == "sizes" and f.reason.startswith("chosen by anyformer")]
        if ours and (error.what.startswith("no way to call") or "gives hidden states" in error.what):
            error.detail += f"\nbuilt with {ours[0].measured}: {ours[0].reason}"
        if loaded.provenance.kind != "module":
            command = f"anyformer repair {shlex.quote(loaded.provenance.location)}"
            error.fix = error.fix.replace("anyformer repair MODEL", command)
        raise
