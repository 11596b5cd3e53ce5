"""Parts of tokens that add up, against a model whose parts can be written down; noise against its closed form."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn

from anyformer.checks import CheckResult, run_checks
from tests.checks.hosts import GPT


def found(module: nn.Module, name: str) -> CheckResult:
    (result,) = (r for r in run_checks(module, only=(name,)).results if r.name == name)
    return result


class Sums(nn.Module):
    """A token's logits are the sum over itself, once, and the token before, three times: parts are exact."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(40, 16), nn.Linear(16, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + 3 * torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1))


class Chaotic(Sums):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.sin(1e4 * super().forward(ids))


class Jumps(Sums):
    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return logits + 5 * (10 * logits).floor()


def test_parts_are_those_that_can_be_written_down() -> None:
    module = Sums()
    result = found(module, "attribution")
    assert result.verdict == "ok"
    assert "what they do not add up to is 0.0%" in result.measured
    shares = {
        int(part.split()[1][:-1]): int(part.split()[2][:-1]) for part in result.measured.split("; ")[0].split(", ")
    }
    assert shares[10] + shares[11] == pytest.approx(100, abs=1)
    assert not any(share for token, share in shares.items() if token < 10)


def test_a_logit_that_jumps_does_not_add_up() -> None:
    result = found(Jumps(), "attribution")
    assert result.verdict == "note"
    assert "jumps" in result.cause


def test_without_captum_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    result = found(GPT(), "attribution")
    assert (result.verdict, "anyformer[explain]" in result.measured) == ("n/a", True)


def test_noise_goes_through_a_linear_model_as_it_is() -> None:
    """Noise of 1 % of the embedding's size gives 1 % of the logits' size, √10 / √10 of it with the token before."""
    result = found(Sums(), "sensitivity")
    assert result.verdict == "ok"
    assert float(result.measured.split(" by ")[1].split(" ")[0]) == pytest.approx(0.01, rel=0.3)


def test_noise_that_is_magnified_is_told() -> None:
    result = found(Chaotic(), "sensitivity")
    assert result.verdict == "warn"
    # two unrelated sines: the difference has √2 times the size of one
    assert float(result.measured.split(" by ")[1].split(" ")[0]) == pytest.approx(math.sqrt(2), rel=0.15)


def test_a_right_model_passes_both() -> None:
    assert {found(GPT(), name).verdict for name in ("attribution", "sensitivity")} == {"ok"}
