"""Every model of the zoo: loaded as it is, planned right, called right, left untouched, and it learns.

The references of ``tests/zoo`` are written by hand and know nothing of the plan. B batch, T time, V vocabulary.
"""

from __future__ import annotations

import functools
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.batchproof import prove_on_batch
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan
from anyformer.models.objectives import objective_loss
from anyformer.models.source import load_model
from tests.models.fingerprints import fingerprint
from tests.zoo import DECODER, ENTRIES, FOLDER, Entry

STEPS = 30
PLANNED = [e for e in ENTRIES if e.outcome in ("plan", "blocked on the batch")]
TRAINED = [e for e in ENTRIES if e.outcome == "plan"]


def each(entries: list[Entry] | tuple[Entry, ...]) -> Any:
    return pytest.mark.parametrize("entry", entries, ids=lambda e: e.name)


def loaded(entry: Entry) -> nn.Module:
    return load_model(entry.path, seed=0).module


@dataclass(frozen=True)
class Outcome:
    """What one inference gave, and the module's state before and after it."""

    plan: CallPlan | CallError
    before: dict[str, Any]
    after: dict[str, Any]


@functools.cache
def _inferred(name: str) -> Outcome:
    module = loaded(next(e for e in ENTRIES if e.name == name)).train()
    next(iter(module.children())).eval()
    first = next(module.parameters())
    first.grad = torch.ones_like(first)
    before = fingerprint(module)
    plan: CallPlan | CallError
    try:
        plan = infer_call_plan(module)
    except CallError as error:
        plan = error
    return Outcome(plan, before, fingerprint(module))


def _planned(name: str) -> CallPlan | CallError:
    return _inferred(name).plan


def planned(entry: Entry) -> CallPlan:
    plan = _planned(entry.name)
    if isinstance(plan, CallError):
        raise AssertionError(f"no plan for {entry.name}:\n{plan}")
    return plan


def random_ids(entry: Entry, B: int, T: int, seed: int) -> Tensor:
    return torch.randint(1, entry.rows, (B, T), generator=torch.Generator().manual_seed(seed))


def rule(B: int, T: int, V: int, generator: torch.Generator) -> Tensor:
    """Sequences in which each token decides the next, never itself: x → (101 x + 3) mod V, from random starts."""
    ids = torch.empty(B, T, dtype=torch.long)
    ids[:, 0] = torch.randint(0, V, (B,), generator=generator)
    for t in range(1, T):
        ids[:, t] = (101 * ids[:, t - 1] + 3) % V
    return ids


def test_every_file_has_an_entry_and_every_entry_a_file() -> None:
    files = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
    assert files == sorted(entry.name for entry in ENTRIES)
    assert len(files) >= 55


# the plan


@each(PLANNED)
def test_the_plan_says_what_the_file_means(entry: Entry) -> None:
    plan = planned(entry)
    expected = {**DECODER, "vocab_size": entry.vocab, **entry.expects}
    got: dict[str, Any] = {name: getattr(plan, name) for name in expected if name != "methods"}
    got["methods"] = tuple(call.name for call in plan.methods)
    stated = {name: value for name, value in expected.items() if value is not ...}
    wrong = {name: f"{got[name]!r}, right is {v!r}" for name, v in stated.items() if got[name] != v}
    found = {a.name: a for a in plan.extras}
    for name, words in entry.arguments.items():
        argument = found.get(name)
        if argument is None:
            wrong[name] = f"missing, right is {words}"
        elif words[0] in ("constant", "state"):
            if argument.role != words[0] or argument.value != words[1]:
                wrong[name] = f"{argument.text()}, right is {words}"
        else:
            has = (argument.role, argument.shape, argument.dtype, argument.form)
            if any(word is not None and word != got_ for word, got_ in zip(words, has, strict=False)):
                wrong[name] = f"{argument.text()}, right is {words}"
    assert not wrong
    if entry.outcome == "plan":
        assert not [f for f in plan.findings if f.verdict == "fail"]


@each([e for e in ENTRIES if e.outcome == "refused"])
def test_what_cannot_be_called_is_refused_with_its_cause(entry: Entry) -> None:
    error = _planned(entry.name)
    assert isinstance(error, CallError)
    for word in entry.says:
        assert word in str(error)


@each([e for e in ENTRIES if e.outcome == "blocked" and not e.says])
def test_a_leak_is_a_failure_that_names_both_positions(entry: Entry) -> None:
    plan = planned(entry)
    assert (plan.family, plan.causal) == ("decoder", False)
    (finding,) = [f for f in plan.findings if f.name == "causality"]
    assert finding.verdict == "fail"
    assert re.search(r"token \d+\b.*\b(at|position|logits) ?\d+", finding.measured), finding.measured


@each([e for e in ENTRIES if e.outcome == "blocked on the batch"])
def test_a_leak_of_long_batches_or_of_training_mode_is_found_there(entry: Entry) -> None:
    module = loaded(entry)
    plan = _planned(entry.name)
    if isinstance(plan, CallPlan) and plan.causal:
        with pytest.raises(CallError, match=r"changing token \d+ of row \d+ changes the logits at \d+"):
            prove_on_batch(module, plan, random_ids(entry, 4, 32, 0))
    else:
        assert isinstance(plan, CallPlan)
        assert (plan.family, [f.verdict for f in plan.findings if f.name == "causality"]) == ("decoder", ["fail"])


def warnings(plan: CallPlan) -> list[Finding]:
    return [f for f in plan.findings if f.verdict in ("warn", "fail")]


@each([e for e in ENTRIES if e.says and e.outcome != "refused"])
def test_habits_that_break_equal_calls_are_named(entry: Entry) -> None:
    plan = _planned(entry.name)
    texts = [str(plan)] if isinstance(plan, CallError) else [f"{f.measured} {f.reason}" for f in warnings(plan)]
    (text,) = [t for t in texts if all(word in t for word in entry.says)] or [" | ".join(texts)]
    for word in entry.says:
        assert word in text
    for word in entry.says_not:
        assert word not in text
    if entry.outcome == "blocked" and isinstance(plan, CallPlan):
        assert any(f.verdict == "fail" for f in plan.findings)


@each([e for e in PLANNED if e.own_loss is not None])
def test_the_modules_own_loss_is_ours_or_the_plan_says_why_not(entry: Entry) -> None:
    module, plan = loaded(entry).eval(), planned(entry)
    ids = random_ids(entry, 4, 12, 5)
    assert entry.own_loss is not None
    with torch.no_grad():
        theirs = float(entry.own_loss(module, ids))
        ours = float(objective_loss(plan.objective, call_logits(module, plan, ids), ids))
    about = [f for f in plan.findings if "loss" in f.name]
    assert about, "no finding compares the module's own loss with ours"
    if entry.own_loss_differs:
        assert abs(theirs - ours) > 1e-4
        assert any(
            f.verdict in ("note", "warn") and entry.own_loss_differs in f"{f.measured} {f.reason}" for f in about
        )
    else:
        assert abs(theirs - ours) < 1e-5
        assert all(f.verdict in ("ok", "note") for f in about)


# the call


@each([e for e in PLANNED if e.reference is not None])
def test_the_logits_are_those_of_the_hand_written_call(entry: Entry) -> None:
    module, plan = loaded(entry).eval(), planned(entry)
    assert entry.reference is not None
    for number, (B, T, S) in enumerate(((3, 17, 9), (1, 5, 6))):
        ids, tgt = random_ids(entry, B, T, number), torch.randint(1, entry.vocab, (B, S))
        with torch.no_grad():
            if entry.family == "encoder_decoder":
                got, right = call_logits(module, plan, ids, target_ids=tgt), entry.reference(module, ids, tgt)
            else:
                got, right = call_logits(module, plan, ids), entry.reference(module, ids)
        torch.testing.assert_close(got, right, rtol=0, atol=1e-6)


@each([e for e in PLANNED if e.padded is not None])
def test_padding_reaches_the_module_as_it_wants_it(entry: Entry) -> None:
    module, plan = loaded(entry).eval(), planned(entry)
    ids = random_ids(entry, 3, 9, 1)
    keep = torch.ones_like(ids)
    keep[0, 7:], keep[1, 4] = 0, 0
    assert entry.padded is not None
    with torch.no_grad():
        got, right = call_logits(module, plan, ids, keep), entry.padded(module, ids, keep)
        unmasked = call_logits(module, plan, ids)
    kept = slice(None) if entry.family == "classifier" else keep.bool()
    torch.testing.assert_close(got[kept], right[kept], rtol=0, atol=1e-6)
    assert not torch.allclose(got[kept], unmasked[kept], atol=1e-4)


@each([e for e in PLANNED if e.segmented is not None])
def test_segment_ids_reach_the_module(entry: Entry) -> None:
    module, plan = loaded(entry).eval(), planned(entry)
    ids = random_ids(entry, 2, 8, 1)
    segment_ids = torch.tensor([[0] * 3 + [1] * 5, [0] * 6 + [1] * 2])
    assert entry.segmented is not None
    with torch.no_grad():
        got, right = call_logits(module, plan, ids, segment_ids=segment_ids), entry.segmented(module, ids, segment_ids)
        unpacked = call_logits(module, plan, ids)
    torch.testing.assert_close(got, right, rtol=0, atol=1e-6)
    assert not torch.allclose(got, unpacked, atol=1e-4)


# no trace


@each(ENTRIES)
def test_planning_leaves_no_trace(entry: Entry) -> None:
    outcome = _inferred(entry.name)
    assert [name for name, was in outcome.before.items() if outcome.after[name] != was] == []


@each(PLANNED)
def test_the_plan_survives_json(entry: Entry) -> None:
    plan = planned(entry)
    again = CallPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.to_dict() == plan.to_dict()


# learning

Batch = tuple[Tensor, Tensor, Tensor | None]


def batches(entry: Entry, plan: CallPlan) -> Callable[[], Batch]:
    """A function that draws (ids, labels, target ids) of a task that the family can learn in a few steps."""
    generator = torch.Generator().manual_seed(3)
    V, B, T = entry.vocab, 16, 24

    def draw() -> Batch:
        if entry.family == "decoder":
            ids = rule(B, T, V, generator)
            return ids, ids, None
        if entry.family == "encoder_decoder":
            source = torch.randint(1, entry.rows, (B, 8), generator=generator)
            target = rule(B, T, V, generator)
            return source, target, target
        if entry.family == "encoder":  # ids of a row are among four: a hidden one is one of them
            few = torch.tensor([5, 9, 17, 30])[torch.randint(0, 4, (B, T), generator=generator)]
            guess = torch.rand(B, T, generator=generator) < 0.15
            return few.masked_fill(guess, 0), torch.where(guess, few, -100), None
        labels = torch.randint(0, V, (B,), generator=generator)  # a classifier: which part of the ids is used
        part = entry.rows // V
        offsets = torch.randint(0, part, (B, T), generator=generator)
        return labels[:, None] * part + offsets, labels, None

    return draw


def train(module: nn.Module, entry: Entry, plan: CallPlan, steps: int = STEPS) -> list[float]:
    """Losses of a few steps of AdamW through the plan and the house's objective."""
    torch.manual_seed(1)
    random.seed(1)
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.0)
    draw, losses = batches(entry, plan), []
    for _ in range(steps):
        ids, labels, targets = draw()
        loss = objective_loss(plan.objective, call_logits(module, plan, ids, target_ids=targets), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@each(TRAINED)
def test_it_learns_from_near_the_uniform_guess(entry: Entry) -> None:
    plan = planned(entry)
    losses = train(loaded(entry), entry, plan)
    uniform = math.log(entry.vocab)
    assert abs(losses[0] - uniform) < 0.7, "an untrained model guesses about uniformly"
    assert sum(losses[-3:]) / 3 < 0.9 * uniform


def test_a_model_that_copies_its_input_does_not_pass_the_task() -> None:
    ids = rule(16, 24, 61, torch.Generator().manual_seed(0))
    copies = F.one_hot(ids, 61).float() * 20
    assert float(objective_loss("causal", copies, ids)) > math.log(61)
