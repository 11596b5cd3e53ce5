"""The proofs notice a wrong plan: fields of right plans changed one at a time (all: benchmarks/plan_mutations.py)."""

from __future__ import annotations

import pytest

from anyformer.core.errors import CallError
from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.proofs import prove_plan
from anyformer.models.source import load_model
from tests.zoo import ENTRIES
from tests.zoo._mutations import judge, mutations

NAMES = ("mask_tt_bool_keep", "tutorial_time_first", "out_moe")


def rejected(module: object, plan: CallPlan) -> bool:
    try:
        return any(finding.verdict == "fail" for finding in prove_plan(module, plan))  # type: ignore[arg-type]
    except CallError:
        return True


def test_right_plans_are_accepted_and_wrong_ones_rejected() -> None:
    matter, missed = 0, []
    for entry in (e for e in ENTRIES if e.name in NAMES):
        module = load_model(entry.path, seed=0).module.eval()
        plan = infer_call_plan(module)
        assert judge(entry, module, plan, plan) == "same"
        assert not rejected(module, plan)
        for mutation in mutations(plan, module):
            what = judge(entry, module, plan, mutation.plan)
            if what == "same":
                continue
            matter += 1
            if not rejected(module, mutation.plan):
                missed.append(f"{entry.name}: {mutation.field}: {mutation.change} ({what})")
    assert matter >= 50
    assert len(missed) <= 0.05 * matter, missed


@pytest.mark.parametrize("field", ["time_first", "alignment", "layout", "logits_path"])
def test_the_judge_knows_a_wrong_call_from_a_right_one(field: str) -> None:
    entry = next(e for e in ENTRIES if e.name == "tutorial_time_first")
    module = load_model(entry.path, seed=0).module.eval()
    plan = infer_call_plan(module)
    changed = [m for m in mutations(plan, module) if m.field == field]
    assert changed
    assert all(judge(entry, module, plan, m.plan) != "same" for m in changed)
