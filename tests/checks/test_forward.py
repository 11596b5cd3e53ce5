"""What a forward pass gives away: what was done to the logits last, which tokens play a part, where positions begin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.checks import CheckResult, run_checks
from tests.checks.hosts import GPT, POSITIONS, D, V

Step = Callable[[Tensor, bool], Tensor]


class Last(GPT):
    """Something is done to its logits."""

    def __init__(self, last: Step) -> None:
        super().__init__()
        self.last = last

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(super().forward(ids), self.training)


def found(module: nn.Module, name: str) -> CheckResult:
    (result,) = [r for r in run_checks(module, only=(name,)).results if r.name == name]
    return result


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (lambda x, training: F.gelu(x), "none is below -0.1"),
        (lambda x, training: F.silu(x), "none is below -0.2"),
        (lambda x, training: F.softplus(x), "none is below 0"),
        (lambda x, training: F.relu(x), "no logit is negative"),
        (lambda x, training: F.layer_norm(x, (V,)), "a mean of 0 and a spread of 1"),
        (lambda x, training: F.dropout(x, 0.1, training), "of the logits are 0"),
    ],
)
def test_what_keeps_logits_from_being_any_number_is_told(last: Step, says: str) -> None:
    result = found(Last(last), "output")
    assert result.verdict == "warn"
    assert says in result.measured


@pytest.mark.parametrize(
    "last",
    [
        lambda x, training: x,
        lambda x, training: 30 * torch.tanh(x / 30),
        lambda x, training: x * 10,
        lambda x, training: x - x.mean(-1, keepdim=True),
        lambda x, training: F.leaky_relu(x, 0.5),
    ],
)
def test_what_logits_may_be_is_right(last: Step) -> None:
    assert found(Last(last), "output").verdict == "ok"


class Classes(nn.Module):
    """Four classes of a text, by the state of one position, or of all."""

    def __init__(self, *, causal: bool = False, at: int | None = None, dead: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(POSITIONS, D)
        self.encoder = nn.TransformerEncoderLayer(D, 4, 2 * D, 0.1, batch_first=True)
        self.classes = nn.Linear(D, 4)
        self.causal, self.at, self.dead = causal, at, dead

    def forward(self, ids: Tensor) -> Tensor:
        T = ids.shape[1]
        x = self.tokens(ids) + self.positions(torch.arange(T, device=ids.device))
        later = torch.ones(T, T, dtype=torch.bool, device=ids.device).triu(1) if self.causal else None
        x = self.encoder(x, src_mask=later)
        numbers = self.classes(x.mean(1) if self.at is None else x[:, self.at])
        return torch.cat([numbers[:, :3], torch.zeros_like(numbers[:, 3:])], 1) if self.dead else numbers


def test_a_classifier_reads_each_token() -> None:
    result = found(Classes(causal=True, at=0), "past")
    assert (result.verdict, result.measured) == ("warn", "of 12 tokens 11 move nothing: 1, 2, 3, 4, 5, 6 …")
    assert "a causal mask keeps it from the others" in result.cause
    for right in (Classes(at=0), Classes(causal=True, at=-1), Classes(causal=True), Classes()):
        assert found(right, "past").verdict == "ok"


def test_a_class_that_nothing_reaches_is_told() -> None:
    result = found(Classes(dead=True), "gradients")
    assert (result.verdict, result.measured) == ("warn", "1 of 4 outputs of classes.weight get none")
    assert found(Classes(), "gradients").verdict == "ok"


class FromOne(GPT):
    def __init__(self, named: int) -> None:
        super().__init__()
        self.block_size = named

    def places(self, ids: Tensor) -> Tensor:
        return super().places(ids) + 1


def test_a_place_that_is_never_used_is_told_where_the_module_names_so_many() -> None:
    result = found(FromOne(POSITIONS), "lengths")
    assert (result.verdict, result.where) == ("warn", "positions")
    assert result.measured.startswith(f"positions has {POSITIONS} places, of which {POSITIONS - 1} can be used")
    assert found(FromOne(POSITIONS - 1), "lengths").verdict == "ok"  # one row more than it names: meant so
    assert found(GPT(), "lengths").verdict == "ok"


def test_a_text_that_is_cut_without_a_word_is_told() -> None:
    class Cut(GPT):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids[:, :POSITIONS])

    result = found(Cut(), "lengths")
    assert (result.verdict, result.measured) == ("warn", f"{POSITIONS + 1} tokens run, and give logits for fewer")


class TextClassifier(nn.Module):
    """A classifier whose layers become one operation in eval mode, between which a nested tensor goes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(V, D, padding_idx=0)
        self.places = nn.Embedding(POSITIONS, D)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 32, batch_first=True), 2)
        self.head = nn.Linear(D, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = input_ids == 0
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        x = self.encoder(x, src_key_padding_mask=hidden).masked_fill(hidden[..., None], 0)
        return self.head(x.sum(1) / (~hidden).sum(1, keepdim=True).clamp(min=1))


def test_layers_that_hand_on_nested_tensors_are_looked_into() -> None:
    torch.manual_seed(0)
    assert torch.backends.mha.get_fastpath_enabled()
    report = run_checks(TextClassifier(), tiers=(0, 1))
    assert not report.causes, report.causes
    assert torch.backends.mha.get_fastpath_enabled()
