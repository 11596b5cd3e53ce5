"""Designs that are meant to keep a state, or to mix rows, declare it and are judged by their own rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer import api
from anyformer.checks import CheckReport
from anyformer.core.errors import CallError
from tests.checks.hosts import GPT, Counting


class Mixing(GPT):
    """Each row is given a part of the mean of all rows."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return logits + 0.5 * logits.mean(0, keepdim=True)


class First(GPT):
    """The first row of a batch is special: in no order of rows is that the same."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return logits + 0.5 * logits[:1]


class Elsewhere(GPT):
    """What it has read lies outside of the module."""

    kept: dict[str, Tensor] = {}  # noqa: RUF012  (shared on purpose)

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids) + self.kept.get("last", 0.0)
        self.kept["last"] = logits.detach().mean((0, 1))
        return logits


def verdicts(report: CheckReport) -> dict[str, str]:
    return {result.name: result.verdict for result in report.results}


def test_a_state_is_judged_by_what_was_read() -> None:
    assert api.check(Counting()).causes[0].name == "state"
    report = api.check(Counting(), overrides={"declares": "stateful"})
    given = verdicts(report)
    assert (given["state"], given["repeat"]) == ("ok", "n/a")
    assert not report.blocked
    assert api.check(Elsewhere(), overrides={"declares": "stateful"}).causes[0].name == "state"


def test_rows_that_mix_are_judged_by_their_order() -> None:
    assert api.check(Mixing()).causes[0].name == "rows"
    report = api.check(Mixing(), overrides={"declares": "cross-batch"})
    given = verdicts(report)
    assert (given["rows"], given["rows in training"], given["row order"]) == ("n/a", "n/a", "ok")
    assert not report.blocked
    assert api.check(First(), overrides={"declares": " stateful, cross-batch"}).causes[0].name == "row order"


def test_what_is_declared_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {
        "data": [f"the {n} cat sat on the mat. " * 40 for n in range(20)],
        "max_steps": 1,
        "batch_size": 2,
    }
    torch.manual_seed(0)
    with pytest.raises(CallError, match="batch: a row alone differs"):
        api.train(Mixing(), **given)
    result = api.train(Mixing(), **given, overrides={"declares": "cross-batch"})
    (told,) = (finding for finding in result.findings if finding.name == "batch")
    assert told.verdict == "note"
    assert told.reason.startswith("declared cross-batch")


def test_what_cannot_be_declared_is_told() -> None:
    with pytest.raises(CallError, match="declares is 'random'") as caught:
        api.inspect(GPT(), overrides={"declares": "random"})
    assert "stateful, cross-batch" in caught.value.detail
