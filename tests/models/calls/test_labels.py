"""Labels of tokens are told from tokens, where there are as many of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.callplan import infer_call_plan
from anyformer.training.objective import require_trainable

V = 24


class Recurrent(nn.Module):
    """An embedding, a GRU and a layer of V numbers; subclasses say more or less of what they are for."""

    both_ways = False

    def __init__(self, inner: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Embedding(V, inner)
        self.middle = nn.GRU(inner, inner, batch_first=True, bidirectional=self.both_ways)
        self.fc = nn.Linear(inner * (1 + self.both_ways), V)

    def forward(self, text: Tensor) -> Tensor:
        return self.fc(self.middle(self.first(text))[0])


class TwoSizes(Recurrent):
    def __init__(self, input_dim: int = V, output_dim: int = V) -> None:
        super().__init__()


class OneSize(Recurrent):
    def __init__(self, vocab_size: int = V) -> None:
        super().__init__()


class CharLM(Recurrent):
    pass


class Losing(Recurrent):
    """With a loss of its own on labels, unshifted."""

    def forward(self, text: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        logits = super().forward(text)
        return logits if labels is None else (F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)


class LosingTwoSizes(Losing):
    def __init__(self, input_dim: int = V, output_dim: int = V) -> None:
        super().__init__()


class EncoderBothWays(Losing):
    """Reads both ways, as its name says; no masked language model."""

    both_ways = True


class ByArgument(Recurrent):
    def forward(self, text: Tensor, ner_tags: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(text)


class ByTable(Recurrent):
    def __init__(self) -> None:
        super().__init__()
        self.tag_to_ix = {f"tag {i}": i for i in range(V)}


class SequenceTagger(Recurrent):
    pass


def labels(module: nn.Module, **overrides: Any) -> list[Finding]:
    plan = infer_call_plan(module, overrides=overrides or None)
    return [f for f in plan.findings if f.name == "labels"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ByArgument, "ner_tags"),
        (ByTable, "tag_to_ix"),
        (SequenceTagger, "class SequenceTagger"),
        (LosingTwoSizes, "label t, unshifted and a size of its own"),
        (EncoderBothWays, "reads both ways and its own loss"),
    ],
)
def test_what_speaks_for_labels_is_refused_and_can_be_settled(model: type[Recurrent], words: str) -> None:
    plan = infer_call_plan(model())
    (finding,) = [f for f in plan.findings if f.name == "labels"]
    assert finding.verdict == "fail"
    assert words in finding.reason
    with pytest.raises(CallError):
        require_trainable(plan)
    stated = infer_call_plan(model(), overrides={"family": plan.family})
    assert "fail" not in [f.verdict for f in stated.findings if f.name == "labels"]
    if plan.causal:
        require_trainable(stated)


@pytest.mark.parametrize("model", [Recurrent, TwoSizes, Losing])
def test_what_nothing_decides_is_a_warning_that_says_so(model: type[Recurrent]) -> None:
    (finding,) = labels(model())
    assert finding.verdict == "warn"
    assert "tokens or labels of tokens" in finding.reason
    require_trainable(infer_call_plan(model()))


@pytest.mark.parametrize("model", [OneSize, CharLM])
def test_what_says_that_it_is_a_language_model_is_left_alone(model: type[Recurrent]) -> None:
    assert labels(model()) == []


class Classes(nn.Module):
    """A head that counts its outputs as classes, as some language models name them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = num_classes
        self.first = nn.Embedding(num_classes, 8)
        self.middle = nn.GRU(8, 8, batch_first=True)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, text: Tensor) -> Tensor:
        return self.fc(self.middle(self.first(text))[0])


@pytest.mark.parametrize(("count", "fails"), [(24, True), (600, False)])
def test_more_classes_than_any_set_of_tags_has_are_tokens(count: int, fails: bool) -> None:
    assert any(f.verdict == "fail" for f in labels(Classes(count))) == fails
