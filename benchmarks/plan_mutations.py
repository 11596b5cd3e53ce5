"""Do the proofs notice a wrong plan? Each field of 20 right plans is changed, one at a time.

Whether a change matters is decided without the proofs, by the hand-written calls of ``tests/zoo/_references.py``: other
log-probabilities (beyond 1e-6), another objective, a claim that does not hold, or a call that the module refuses.
``prove_plan`` then accepts or rejects the changed plan. Goal: at least 95 % of those that matter are rejected.

    python benchmarks/plan_mutations.py [--misses]
"""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anyformer.core.errors import CallError  # noqa: E402
from anyformer.models.callplan import CallPlan, infer_call_plan  # noqa: E402
from anyformer.models.proofs import prove_plan  # noqa: E402
from anyformer.models.source import load_model  # noqa: E402
from tests.zoo import ENTRIES, Entry  # noqa: E402
from tests.zoo._mutations import Judgement, judge, mutations  # noqa: E402

NAMES = (
    *("plain_gpt", "token_second", "positions_bt", "segments", "start_pos", "mask_tt_bool_masked", "mask_tt_bool_keep"),
    *("mask_tt_additive", "mask_b1tt", "mask_11tt", "is_causal_flag", "padding_keep", "padding_masked"),
    *("tutorial_time_first", "out_flat_always", "out_bvt", "out_lm_head", "out_moe", "out_short"),
    *("seq2seq_forward", "seq2seq_masks", "time_first_lstm", "linear_attention", "out_early_exit"),
    *("shifted_right_inside", "packed_segments", "classifier_mean"),
)
"""27 plans: every kind of argument, mask, layout, output and alignment is among them."""


def rejected(module: nn.Module, plan: CallPlan) -> bool:
    """Whether the proofs refuse the plan or fail one of its lines."""
    try:
        return any(finding.verdict == "fail" for finding in prove_plan(module, plan))
    except CallError:
        return True


def mutate(entry: Entry) -> list[tuple[str, str, Judgement, bool]] | None:
    """(field, change, what it does, whether it was rejected) for each change of the entry's plan; None if not right."""
    module = load_model(entry.path, seed=0).module.eval()
    try:
        plan = infer_call_plan(module)
    except CallError:
        return None
    if judge(entry, module, plan, plan) != "same" or plan.family != entry.family or rejected(module, plan):
        return None
    return [
        (m.field, m.change, judge(entry, module, plan, m.plan), rejected(module, m.plan))
        for m in mutations(plan, module)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--misses", action="store_true", help="list the changes that matter and were accepted")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    matter: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    silent: Counter[str] = Counter()
    silent_caught: Counter[str] = Counter()
    harmless: Counter[str] = Counter()
    misses = []
    wrong = []
    for entry in (e for e in ENTRIES if e.name in NAMES):
        changes = mutate(entry)
        if changes is None:
            wrong.append(entry.name)
            continue
        for field, change, judgement, no in changes:
            if judgement == "same":
                harmless[field] += 1
                continue
            matter[field] += 1
            caught[field] += no
            if judgement != "cannot be called":
                silent[field] += 1
                silent_caught[field] += no
            if not no:
                misses.append(f"{entry.name}: {field}: {change} ({judgement})")
    machine = platform.processor() or platform.machine()
    print(f"{machine}, Python {platform.python_version()}, torch {torch.__version__}")
    if wrong:
        print(f"**left out, their plans are not right to begin with: {', '.join(wrong)}**")
    print(f"{len(NAMES) - len(wrong)} right plans, {matter.total() + harmless.total()} changes, each of one field\n")
    print("| field | matter | rejected | of these run without an error | rejected | change nothing |")
    print("|---|---|---|---|---|---|")
    for field in sorted({*matter, *harmless}):
        print(
            f"| {field} | {matter[field]} | {caught[field]} | {silent[field]} | {silent_caught[field]} |"
            f" {harmless[field]} |"
        )
    print(
        f"| **all** | {matter.total()} | {caught.total()} ({caught.total() / matter.total():.1%}) | {silent.total()} |"
        f" {silent_caught.total()} ({silent_caught.total() / silent.total():.1%}) | {harmless.total()} |"
    )
    if arguments.misses:
        print("\n" + "\n".join(misses))


if __name__ == "__main__":
    main()
