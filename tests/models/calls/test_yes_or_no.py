"""One number per text that is a yes or no: its two classes have the binary cross-entropy. B batch, T time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan
from anyformer.models.objectives import objective_loss
from anyformer.models.source import load_model
from anyformer.training.objective import require_trainable

V = 40
MODEL = """
import torch
from torch import Tensor, nn
import torch.nn as nn
import torch.nn.functional as F


class {name}(nn.Module):
    def __init__(self, vocab_size=40, d=12):
        super().__init__()
        self.emb = nn.Embedding(vocab_size, d)
        self.rnn = nn.GRU(d, 14, batch_first=True)
        self.{head} = nn.Linear(14, 1)

    def forward(self, ids{more}):
        z = self.{head}(self.rnn(self.emb(ids))[0].mean(1))
        {returned}


{rest}
"""
BCE = "def train(model):\n    criterion = nn.{}()"


def built(folder: Path, **parts: Any) -> Any:
    usual = {"name": "Net", "head": "fc", "more": "", "returned": "return z", "rest": ""}
    path = folder / "model.py"
    path.write_text(MODEL.format(**{**usual, **parts}))
    torch.manual_seed(0)
    return load_model(str(path), seed=0).module


def criterion(plan: CallPlan) -> tuple[str, str]:
    found = next(f for f in plan.findings if f.name == "criterion")
    return found.verdict, found.measured + found.reason


IDS = torch.randint(1, V, (6, 9), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


WEIGHTS = "return z.squeeze(-1), torch.ones(*ids.shape, ids.shape[1])[:, None]"  # of attention, (B, 1, T, T)


@pytest.mark.parametrize(
    "returned", ["return z", "return z.squeeze(-1)", "return (z, None)", "return {{'logits': z}}", WEIGHTS]
)
def test_the_loss_and_its_gradients_are_those_of_bce_with_logits(tmp_path: Path, returned: str) -> None:
    module = built(
        tmp_path, returned=returned.replace("{{", "{").replace("}}", "}"), rest=BCE.format("BCEWithLogitsLoss")
    )
    plan = infer_call_plan(module)
    assert (plan.family, plan.vocab_size, plan.layout, plan.kind) == ("classifier", 2, "B", "logits")
    assert criterion(plan)[0] == "ok"
    assert require_trainable(plan)[0] == "classification"
    objective_loss("classification", call_logits(module, plan, IDS), LABELS).backward()
    got = {n: p.grad.clone() for n, p in module.named_parameters()}
    module.zero_grad()
    z = module.fc(module.rnn(module.emb(IDS))[0].mean(1))[:, 0]
    loss = F.binary_cross_entropy_with_logits(z, LABELS.float())
    loss.backward()
    torch.testing.assert_close(objective_loss("classification", call_logits(module, plan, IDS), LABELS), loss)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


def test_a_probability_is_trained_with_the_binary_cross_entropy_of_it(tmp_path: Path) -> None:
    module = built(tmp_path, returned="return torch.sigmoid(z)", rest=BCE.format("BCELoss"))
    plan = infer_call_plan(module)
    assert (plan.layout, plan.kind) == ("B", "probabilities")
    loss = F.binary_cross_entropy(module(IDS)[:, 0], LABELS.float())
    torch.testing.assert_close(objective_loss("classification", call_logits(module, plan, IDS), LABELS), loss)


def test_the_second_class_is_the_yes(tmp_path: Path) -> None:
    module = built(tmp_path, rest=BCE.format("BCEWithLogitsLoss"))
    logits = call_logits(module, infer_call_plan(module), IDS)
    torch.testing.assert_close(logits.softmax(-1)[:, 1], module(IDS).sigmoid()[:, 0])


def test_a_classifier_by_its_name_needs_no_loss(tmp_path: Path) -> None:
    plan = infer_call_plan(built(tmp_path, name="SpamClassifier"))
    assert plan.layout == "B"
    verdict, words = criterion(plan)
    assert verdict == "note"
    assert "SpamClassifier" in words


def test_a_bare_probability_is_said_to_be_taken_for_two_classes(tmp_path: Path) -> None:
    plan = infer_call_plan(built(tmp_path, returned="return torch.sigmoid(z)"))
    verdict, words = criterion(plan)
    assert verdict == "warn"
    assert "score from 0 to 1" in words


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"rest": BCE.format("MSELoss")},
        {"name": "ScoreClassifier", "rest": BCE.format("L1Loss")},
        {"returned": "return torch.sigmoid(z)", "rest": BCE.format("MSELoss")},
        {"rest": BCE.format("MarginRankingLoss")},
    ],
)
def test_a_score_stays_a_score(tmp_path: Path, parts: dict[str, str]) -> None:
    with pytest.raises(CallError, match="gives one number per text, no logits"):
        infer_call_plan(built(tmp_path, **parts))


def test_a_head_named_for_a_value_is_no_yes_or_no(tmp_path: Path) -> None:
    plan = infer_call_plan(built(tmp_path, head="value_head", rest=BCE.format("BCEWithLogitsLoss")))
    assert criterion(plan)[0] == "fail"
    with pytest.raises(CallError, match="value_head says so"):
        require_trainable(plan)


def test_a_scorer_is_no_yes_or_no_though_its_score_is_a_sigmoid(tmp_path: Path) -> None:
    plan = infer_call_plan(built(tmp_path, name="QualityScorer", returned="return torch.sigmoid(z)"))
    verdict, words = criterion(plan)
    assert verdict == "fail"
    assert "QualityScorer" in words


def test_a_tanh_at_the_end_is_said_to_make_no_logit(tmp_path: Path) -> None:
    plan = infer_call_plan(built(tmp_path, name="SentimentClassifier", returned="return torch.tanh(z)"))
    found = next(f for f in plan.findings if f.name == "output")
    assert (found.verdict, plan.kind) == ("warn", "logits")
    assert "0.73" in found.reason
    assert not [f for f in infer_call_plan(built(tmp_path, name="SpamClassifier")).findings if f.name == "output"]


def test_the_user_may_say_that_it_is_a_yes_or_no(tmp_path: Path) -> None:
    module = built(tmp_path)
    plan = infer_call_plan(module, overrides={"family": "classifier"})
    assert (plan.layout, criterion(plan)[0]) == ("B", "warn")
    assert require_trainable(plan)[0] == "classification"


def test_its_own_binary_loss_is_no_hindrance(tmp_path: Path) -> None:
    returned = (
        "loss = None if labels is None else F.binary_cross_entropy_with_logits(z[:, 0], labels.float())\n"
        "        return loss, z"
    )
    module = built(tmp_path, more=", labels=None", returned=returned)
    plan = infer_call_plan(module)
    assert (plan.layout, plan.logits_path) == ("B", (1,))
    assert [f.verdict for f in plan.findings if f.name == "own loss"] == ["ok"]  # it equals ours
    torch.testing.assert_close(
        objective_loss("classification", call_logits(module, plan, IDS), LABELS), module(IDS, LABELS)[0]
    )
    assert CallPlan.from_dict(plan.to_dict()) == plan


def test_a_first_token_that_is_read_as_the_length_is_refused(tmp_path: Path) -> None:
    """The texts' lengths come in the first column of the ids: every text would begin with a number of its own."""

    class LengthFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.rnn = nn.Embedding(50, 8), nn.LSTM(8, 8)
            self.dense = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.t()
            lengths = x[0, :]
            out = self.dense(self.rnn(self.emb(x[1:, :]))[0])
            return torch.sigmoid(out[lengths - 1, range(len(lengths))].squeeze())

    plan = infer_call_plan(LengthFirst())
    assert [f.verdict for f in plan.findings if f.name == "ids"] == ["fail"]
    with pytest.raises(CallError, match="read as a length or a place"):
        require_trainable(plan)


def test_a_small_alphabet_is_no_length() -> None:
    class Letters(nn.Module):
        """Four letters, one hot; its only table is that of the positions."""

        def __init__(self) -> None:
            super().__init__()
            self.read, self.places, self.classifier = nn.Linear(4, 8), nn.Embedding(64, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.read(torch.nn.functional.one_hot(x, 4).float()) + self.places.weight[: x.shape[1]]
            logits: Tensor = self.classifier(h.mean(1))
            return logits

    plan = infer_call_plan(Letters())
    assert [(f.verdict, f.measured) for f in plan.findings if f.name == "ids"] == [("ok", "0 … 3")]
