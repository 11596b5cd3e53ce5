"""The zoo: how each of its models is planned, how fast, and that it learns on the right objective.

For every model file of tests/zoo: the plan in short, the time of ``infer_call_plan``, the largest difference between
the planned call's logits and those of the call written by hand (``tests/zoo/_references.py``), the loss at step 0
against ln V, the loss after 30 steps of AdamW, and the module's own loss beside ours on the same ids. Prints a
markdown table.

    python benchmarks/zoo.py
"""

from __future__ import annotations

import math
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anyformer.core.errors import CallError  # noqa: E402
from anyformer.models.batchproof import prove_on_batch  # noqa: E402
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan  # noqa: E402
from anyformer.models.objectives import objective_loss  # noqa: E402
from anyformer.models.source import load_model  # noqa: E402
from tests.models.test_zoo import STEPS, random_ids, train  # noqa: E402
from tests.zoo import ENTRIES, Entry  # noqa: E402


def plan_in_short(plan: CallPlan) -> str:
    """The lines of the plan that differ from ids in, (B, T, V) logits out."""
    words = [plan.family + ("" if plan.causal or plan.family != "decoder" else ", sees the future")]
    words.append(f"ids: {plan.token_arg}" if not plan.methods else " → ".join(m.name for m in plan.methods))
    words += [f"decoder: {plan.target_arg}"] if plan.target_arg else []
    words += [a.text() for a in plan.extras]
    words += [f"padding: {plan.mask_arg}"] if plan.mask_arg else []
    words += ["time first"] if plan.time_first else []
    words += [f"at {'.'.join(map(str, plan.logits_path))}"] if plan.logits_path else []
    words += [plan.layout] if plan.layout not in ("BTV", "TBV") else []
    words += [f"from {plan.logits_from}"] if plan.logits_from != "output" else []
    words += [f"head: {plan.head}"] if plan.head else []
    words += [plan.kind] if plan.kind != "logits" else []
    words += [plan.alignment] if plan.alignment != "next" else []
    words += ["needs targets"] if plan.needs_targets else []
    words += ["graph"] if plan.graph is not None else []
    return "; ".join(words)


def own_loss(entry: Entry, module: nn.Module, plan: CallPlan) -> str:
    """|own − ours| in nats on the same pairs of tokens; — where the module has no loss."""
    if entry.own_loss is None:
        return "—"
    ids = random_ids(entry, 4, 12, 5)
    with torch.no_grad():
        theirs = float(entry.own_loss(module.eval(), ids))
        ours = float(objective_loss(plan.objective, call_logits(module, plan, ids), ids))
    return f"{abs(theirs - ours):.0e}" + (f" ({entry.own_loss_differs})" if entry.own_loss_differs else "")


def apart(entry: Entry, module: nn.Module, plan: CallPlan) -> str:
    """Largest |planned − hand-written| over the logits; the plan is wrong where it is not about 0."""
    if entry.reference is None:
        return "—"
    ids, tgt = random_ids(entry, 3, 17, 0), torch.randint(1, entry.vocab, (3, 9))
    with torch.no_grad():
        if entry.family == "encoder_decoder":
            got, right = call_logits(module.eval(), plan, ids, target_ids=tgt), entry.reference(module, ids, tgt)
        else:
            got, right = call_logits(module.eval(), plan, ids), entry.reference(module, ids)
    if got.shape != right.shape:
        return f"**{tuple(got.shape)}**"
    largest = float((got - right).abs().max())
    return f"{largest:.0e}" if largest <= 1e-6 else f"**{largest:.0e}**"


def row(entry: Entry) -> tuple[str, float]:
    """One line of the table and the seconds of ``infer_call_plan``."""
    module = load_model(entry.path, seed=0).module
    begin = time.perf_counter()
    try:
        plan = infer_call_plan(module)
    except CallError as error:
        seconds = time.perf_counter() - begin
        verdict = "refused: " if entry.outcome in ("refused", "blocked") else "**refused**: "
        return f"| {entry.name} | {entry.convention} | {verdict}{error.what} | {seconds:.2f} | | | | |", seconds
    seconds = time.perf_counter() - begin
    cells = [entry.name, entry.convention, plan_in_short(plan).replace("|", "\\|"), f"{seconds:.2f}"]
    blocked = next((f for f in plan.findings if f.verdict == "fail"), None)
    if blocked is None and entry.family == "decoder":
        try:
            prove_on_batch(module, plan, random_ids(entry, 4, 32, 0))
        except CallError as error:
            cells[2] += f". Blocked on the batch: {error.what}"
            return f"| {' | '.join(cells)} | | | | |", seconds
    if blocked is not None:
        cells[2] += f". Blocked: {blocked.measured}"
        return f"| {' | '.join(cells)} | | | | |", seconds
    if plan.family != entry.family:
        cells[2] = f"**wrong family** {cells[2]}"
        return f"| {' | '.join(cells)} | | | | |", seconds
    cells.append(apart(entry, module, plan))
    difference = own_loss(entry, module, plan)
    losses = train(module, entry, plan)
    uniform = math.log(entry.vocab)
    cells += [f"{losses[0]:.2f} / {uniform:.2f}", f"{losses[-1]:.2f}", difference]
    return f"| {' | '.join(cells)} |", seconds


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    machine = platform.processor() or platform.machine()
    print(f"{machine}, Python {platform.python_version()}, torch {torch.__version__}")
    columns = "model | convention | plan | s | − hand-written | loss at step 0 / ln V"
    print(f"\n| {columns} | after {STEPS} steps | own loss − ours |")
    print("|---|---|---|---|---|---|---|---|")
    times = []
    for entry in ENTRIES:
        line, seconds = row(entry)
        times.append((seconds, entry.name))
        print(line, flush=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{len(ENTRIES)} models. infer_call_plan: median {statistics.median(s for s, _ in times):.2f} s,", end=" ")
    print(
        f"worst {max(times)[0]:.2f} s ({max(times)[1]}); peak memory of the whole run above its start: {grown:.0f} MiB"
    )


if __name__ == "__main__":
    main()
