"""Whether the same ids give the same logits twice; else which part does not.

B batch, T time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.calling import raw_output
from anyformer.models.calls.probing import Prober, close, difference, seeded, tensors_in, tolerance
from anyformer.models.inputs import Inputs
from anyformer.models.plan import CallPlan


def repeat_finding(prober: Prober, plan: CallPlan) -> Finding:
    """Whether eval mode gives the same logits twice, without the random state being reset; else which part does not."""
    with prober.drift.left_alone():
        finding = _repeated(prober, plan)
    if not prober.drift.in_eval:  # the averages of a batch norm, say, move in training mode alone
        return finding
    names = ", ".join(prober.drift.in_eval[:3])
    why = f"each call changes {names}, in eval mode, too; all was measured from where they stood"
    if finding.verdict == "ok":
        return replace(finding, reason=why)
    inputs = _sample(prober, plan)
    alike = [prober.try_logits(plan, inputs) for _ in range(2)]
    with prober.drift.left_alone():
        on = [prober.try_logits(plan, inputs) for _ in range(2)]
    if _same(*alike) and prober.drift.counts:
        return replace(finding, verdict="warn", reason=why)
    if _same(*alike) and not _same(*on):
        return replace(finding, verdict="fail", reason=f"a state kept between calls in {names}")
    return finding


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and close(first, second, tolerance(first))


def _sample(prober: Prober, plan: CallPlan) -> Inputs:
    return prober.inputs(plan, 3, prober.fixed or max(5, prober.length), 4)


def _repeated(prober: Prober, plan: CallPlan) -> Finding:
    inputs = _sample(prober, plan)
    first = prober.try_logits(plan, inputs)
    if first is None:
        return Finding("repeat", "note", "not measured: the model refuses this batch")
    second = prober.try_logits(plan, inputs, seed=1)
    if second is None or second.shape != first.shape:
        where = _first_difference(prober, plan, inputs)
        kept = _kept(prober, plan, inputs)
        cause = f"a state kept between calls{f' in {kept}' if kept else ''}{where}"
        return Finding("repeat", "fail", "the second call with the same ids fails", "it gives the same", cause)
    worst = float(difference(first, second).nan_to_num(nan=1e30).max())
    if worst <= tolerance(first):
        return Finding("repeat", "ok", "the same ids give the same logits twice")
    where = _first_difference(prober, plan, inputs)
    measured = f"the logits differ by {worst:.2g} at the second call"
    again = [prober.try_logits(plan, inputs) for _ in range(2)]
    other = prober.try_logits(plan, inputs, seed=1)  # of a state that holds the last call it is the same again
    if _same(*again) and not _same(again[0], other):
        cause = "dropout that ignores eval mode, or a random choice per call"
        return Finding("repeat", "warn", measured, "equal", cause + where)
    kept = _kept(prober, plan, inputs)
    cause = f"a state kept between calls{f' in {kept}' if kept else ''}"
    return Finding("repeat", "fail", measured, "equal", cause + where)


def _kept(prober: Prober, plan: CallPlan, inputs: Inputs) -> str:
    """Names of the tensors that a call leaves on the module with other values than it found."""
    before = {n: [t.clone() for t in ts] for n, ts in _attributes(prober.module)}
    prober.try_logits(plan, inputs)
    after = dict(_attributes(prober.module))
    names = [n for n, ts in after.items() if not _all_equal(ts, before.get(n, []))]
    return ", ".join(names[:3])


def _attributes(module: nn.Module) -> list[tuple[str, list[Tensor]]]:
    found = []
    for name, part in module.named_modules():
        values = {**vars(part), **part._buffers}
        for key, value in values.items():
            tensors = [t for _, t in tensors_in(value)] if not key.startswith("_") else []
            if tensors:
                found.append((f"{name}.{key}" if name else f"self.{key}", tensors))
    return found


def _all_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))


def _first_difference(prober: Prober, plan: CallPlan, inputs: Inputs) -> str:
    """Which submodule gives another output first, in the order in which they end: ", first in drop (Dropout)"."""
    both: list[list[tuple[str, list[Tensor], list[Tensor]]]] = []
    for seed in (0, 1):
        outputs: list[tuple[str, list[Tensor], list[Tensor]]] = []

        def keep(name: str) -> Any:
            def hook(module: nn.Module, given: Any, named: Any, output: Any) -> None:
                read = [t.detach().clone() for _, t in tensors_in([*given, *named.values()])]
                outputs.append((name, read, [t.detach().clone() for _, t in tensors_in(output)]))  # noqa: B023

            return hook

        handles = [m.register_forward_hook(keep(n), with_kwargs=True) for n, m in prober.module.named_modules() if n]
        seeded(seed)
        try:
            with torch.no_grad():
                raw_output(prober.module, plan, inputs)
        except Exception:  # noqa: BLE001  (what it raised is in the finding; here only the order counts)
            pass
        finally:
            for handle in handles:
                handle.remove()
        both.append(outputs)
    kinds = {n: type(m).__name__ for n, m in prober.module.named_modules()}
    for (name, given, first), (_, again, second) in zip(*both, strict=False):
        if not _all_equal(first, second) and _all_equal(given, again):  # else what draws stands before it
            return f", first in {name} ({kinds[name]})"
    return f", in {type(prober.module).__name__}.forward itself"


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first.nan_to_num(), second.nan_to_num())
