"""One row of numbers per text: classes, or scores, several labels, a ranking, by the losses that the file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.callplan import infer_call_plan
from anyformer.models.source import load_model
from anyformer.training.objective import require_trainable

V, D = 40, 12
MODEL = """
import torch
import torch.nn as nn
import torch.nn.functional as F


class {name}(nn.Module):
    def __init__(self, vocab_size=40, d=12{more}):
        super().__init__()
        self.emb = nn.Embedding(vocab_size, d)
        self.rnn = nn.GRU(d, 14, batch_first=True)
        self.{head} = nn.Linear(14, {C})
        {kept}

    def forward(self, input_ids{argument}):
        out = self.{head}(self.rnn(self.emb(input_ids))[0].mean(1))
        {returned}


{rest}
"""


def written(folder: Path, rest: str = "", **parts: Any) -> Path:
    """The file of a model of that convention."""
    usual = {"name": "Net", "more": "", "head": "fc", "C": 6, "kept": "", "argument": "", "returned": "return out"}
    path = folder / "model.py"
    path.write_text(MODEL.format(**{**usual, **parts}, rest=rest))
    return path


def criterion(path: Path, **settings: Any) -> list[Finding]:
    torch.manual_seed(0)
    plan = infer_call_plan(load_model(f"{path}:{settings.pop('name', 'Net')}", seed=0).module, **settings)
    assert plan.family == "classifier"
    return [f for f in plan.findings if f.name == "criterion"]


TRAIN = """
def train(model, batches):
    criterion = {}
    for ids, y in batches:
        criterion(model(ids), y).backward()
"""


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("nn.SmoothL1Loss()", "regression"),
        ("nn.MSELoss()", "regression"),
        ("F.huber_loss", "regression"),
        ("nn.PoissonNLLLoss()", "regression"),
        ("quantile_loss", "regression"),
        ("nn.BCEWithLogitsLoss()", "multi-label"),
        ("F.binary_cross_entropy_with_logits", "multi-label"),
        ("nn.MultiLabelSoftMarginLoss()", "multi-label"),
        ("nn.TripletMarginLoss()", "ranking"),
        ("nn.CosineEmbeddingLoss()", "ranking"),
        ("nn.MarginRankingLoss()", "ranking"),
        ("nn.CTCLoss()", "CTC"),
    ],
)
def test_a_loss_of_something_else_in_its_file_blocks(tmp_path: Path, loss: str, words: str) -> None:
    (finding,) = criterion(written(tmp_path, TRAIN.format(loss)))
    assert finding.verdict == "fail"
    assert words in finding.reason
    assert loss.split(".")[-1].removesuffix("()") in finding.reason


@pytest.mark.parametrize(
    "loss",
    ["nn.CrossEntropyLoss()", "F.nll_loss", "nn.KLDivLoss()", "FocalLoss()", "LabelSmoothing(6)", "nn.NLLLoss()"],
)
def test_a_loss_of_classes_in_its_file_speaks_for_them(tmp_path: Path, loss: str) -> None:
    assert criterion(written(tmp_path, TRAIN.format(loss))) == []


def test_where_nothing_says_what_the_numbers_are_it_is_said(tmp_path: Path) -> None:
    assert [f.verdict for f in criterion(written(tmp_path))] == ["warn"]
    for parts in ({"name": "TextClassifier"}, {"head": "classifier"}, {"more": ", num_classes=6"}):
        assert criterion(written(tmp_path, **parts), name=parts.get("name", "Net")) == []


def test_names_of_other_things_block_unless_a_loss_of_classes_stands_beside(tmp_path: Path) -> None:
    quantiles = {"kept": "self.quantiles = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95]"}
    for parts in ({"name": "ScoreRegressor"}, {"name": "DocumentRanker"}, {"head": "value_head"}, quantiles):
        name = parts.get("name", "Net")
        assert [f.verdict for f in criterion(written(tmp_path, **parts), name=name)] == ["fail"], parts
        beside = TRAIN.format("nn.CrossEntropyLoss()")
        assert criterion(written(tmp_path, beside, **parts), name=name) == []
    assert [f.verdict for f in criterion(written(tmp_path, name="LogisticRegression"), name="LogisticRegression")] == [
        "warn"
    ]


def test_a_loss_that_the_model_holds_or_its_own_forward_computes(tmp_path: Path) -> None:
    held = written(tmp_path, C=2, kept="self.loss_fn = nn.GaussianNLLLoss()")
    assert "GaussianNLLLoss" in criterion(held)[0].reason
    inside = {"argument": ", labels=None", "returned": "return out if labels is None else {}"}
    by_hand = written(tmp_path, **{**inside, "returned": inside["returned"].format("((out - labels) ** 2).mean()")})
    assert criterion(by_hand)[0].verdict == "fail"  # takes rows of numbers: measured by a call, no name says it
    own = written(tmp_path, **{**inside, "returned": inside["returned"].format("F.cross_entropy(out, labels)")})
    assert criterion(own) == []
    one_hot = "-(labels * out.log_softmax(-1)).sum(-1).mean()"
    assert criterion(written(tmp_path, **{**inside, "returned": inside["returned"].format(one_hot)})) == []


def test_the_file_that_trains_it_is_read_where_its_own_says_nothing(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "other.py").write_text("import torch.nn as nn\nloss = nn.CrossEntropyLoss()\n")
    assert [f.verdict for f in criterion(path)] == ["warn"]
    (tmp_path / "train.py").write_text(
        "import torch.nn as nn\nfrom model import Net\nloss = nn.L1Loss()\nmodel = Net()\n"
    )
    (finding,) = criterion(path)
    assert (finding.verdict, "L1Loss in train.py" in finding.reason) == ("fail", True)


def test_several_losses_are_named_and_those_of_another_model_do_not_count(tmp_path: Path) -> None:
    both = written(tmp_path, TRAIN.format("nn.CrossEntropyLoss()") + "\n\n" + TRAIN.format("nn.MSELoss()"))
    assert [f.verdict for f in criterion(both)] == ["warn"]
    other = "class Vae(nn.Module):\n    def forward(self, x):\n        return F.mse_loss(x, x)\n"
    (finding,) = criterion(written(tmp_path, other))
    assert (finding.verdict, "mse" in finding.reason) == ("warn", False)


def test_who_says_that_they_are_classes_is_believed_with_a_warning(tmp_path: Path) -> None:
    path = written(tmp_path, TRAIN.format("nn.MSELoss()"))
    module = load_model(str(path), seed=0).module
    with pytest.raises(CallError, match="no classes"):
        require_trainable(infer_call_plan(module))
    stated = infer_call_plan(module, overrides={"family": "classifier"})
    assert [f.verdict for f in stated.findings if f.name == "criterion"] == ["warn"]
    assert require_trainable(stated)[0] == "classification"


class Ctc(nn.Module):
    """Numbers for each position that are aligned with another text."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.rnn, self.fc = nn.Embedding(V, D), nn.GRU(D, D, batch_first=True), nn.Linear(D, V)
        self.criterion = nn.CTCLoss()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.fc(self.rnn(self.emb(input_ids))[0])  # type: ignore[no-any-return]


class Lm(Ctc):
    """An auxiliary loss beside its cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.MSELoss()  # type: ignore[assignment]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + self.criterion(logits, logits.detach())


def test_of_numbers_for_each_position_only_a_loss_of_tokens_may_be_missing() -> None:
    finding = next(f for f in infer_call_plan(Ctc()).findings if f.name == "criterion")
    assert (finding.verdict, "CTC" in finding.reason) == ("fail", True)
    assert not [f for f in infer_call_plan(Lm()).findings if f.name == "criterion"]
