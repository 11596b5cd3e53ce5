"""Tier 3: a run of a copy with its curves, benchmarks beside a guess, and where a compiler gives up."""

from __future__ import annotations

import copy
import math
import random
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anyformer import checks, cli
from anyformer.checks import CheckReport, CheckResult, Trials, run_checks
from anyformer.core.errors import SettingsError
from tests.checks.hosts import GPT, V

WORDS = "the cat sat on the mat and a dog ran to the barn where it slept until noon . "


class Broken(GPT):
    """It asks for a number in the middle, at which a compiler goes back to Python."""

    def forward(self, ids: Tensor) -> Tensor:
        made = super().forward(ids)
        return made if made.abs().max().item() < 1e9 else made * 0


class Classes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(300, 16), nn.Linear(16, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(WORDS * 200)
    return tmp_path / "corpus.txt"


def only(report: CheckReport, name: str) -> CheckResult:
    return next(result for result in report.results if result.name == name)


def test_a_run_with_its_curves_beside_a_guess_leaves_the_module_alone(corpus: Path) -> None:
    module = GPT()
    before = copy.deepcopy(module.state_dict())
    longer = Trials(data=str(corpus), steps=30)
    result = only(run_checks(module, only=("fine-tuning",), longer=longer), "fine-tuning")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    (curves,) = result.series
    assert set(curves.rows) == {"training", "held out", "a guess"}
    assert len(curves.rows["training"]) == len(curves.x) == 30
    assert abs(curves.rows["training"][0] - math.log(V)) < 0.5
    assert curves.rows["training"][-1] < curves.rows["training"][0] - 0.3
    (guess,) = curves.rows["a guess"]
    held = float(result.measured.split("loss ")[1].split(",")[0])
    assert result.verdict == ("ok" if held < guess else "note")
    assert "after 30 steps" in result.measured


def test_a_model_that_cannot_be_trained_says_so(corpus: Path) -> None:
    class Still(GPT):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) / (0.0 if self.training else 1.0)

    result = only(run_checks(Still(), only=("fine-tuning",), longer=Trials(data=str(corpus), steps=4)), "fine-tuning")
    assert result.verdict == "fail"
    assert result.measured == "the loss is nan at step 1"


def test_perplexity_is_for_language_models_and_accuracy_for_classifiers(corpus: Path, tmp_path: Path) -> None:
    rows = [f"{word} film {i}\t{int(word == 'good')}" for i, word in enumerate(("good", "bad", "bad", "awful") * 80)]
    table = tmp_path / "sst2.tsv"
    random.Random(0).shuffle(rows)
    table.write_text("sentence\tlabel\n" + "\n".join(rows))
    longer = Trials(steps=25, tasks={"wikitext2": str(corpus), "sst2": str(table), "mrpc": None, "stsb": None})
    text = only(run_checks(GPT(), only=("benchmark",), longer=longer), "benchmark")
    assert "wikitext2: held-out loss" in text.measured
    assert "sst2: not tried, it is for classifiers" in text.measured
    assert "mrpc: not tried, it is for classifiers" in text.measured
    assert "stsb: not tried, its rows have a score and no class" in text.measured
    assert [series.name for series in text.series] == ["wikitext2"]
    classes = only(run_checks(Classes(), only=("benchmark",), longer=longer), "benchmark")
    assert "wikitext2: not tried, it is for language models" in classes.measured
    right, most = map(
        float, re.search(r"sst2: ([\d.]+)% right; always the most frequent class ([\d.]+)%", classes.measured).groups()
    )  # type: ignore[union-attr]
    assert 60 < most < 100  # of three in four, as many as happened to be held out
    assert classes.verdict == ("ok" if right > most else "note")


def test_what_cannot_be_reached_or_has_no_data_says_so(tmp_path: Path) -> None:
    gone = Trials(steps=1, tasks={"wikitext2": str(tmp_path / "gone.txt")})
    result = only(run_checks(GPT(), only=("benchmark",), longer=gone), "benchmark")
    assert result.verdict == "n/a"
    assert "gone.txt" in result.measured
    result = only(run_checks(Classes(), only=("fine-tuning",)), "fine-tuning")
    assert (result.verdict, result.measured) == ("n/a", "it learns from texts with labels: --data FILE gives them")


def test_graph_breaks_are_counted_with_their_line() -> None:
    assert only(run_checks(GPT(), only=("compile",)), "compile").measured.startswith("one graph, ")
    result = only(run_checks(Broken(), only=("compile",)), "compile")
    assert result.verdict == "note"
    assert result.measured == "1 graph break"
    assert result.where.startswith("test_trials.py:")
    assert ".item()" in result.where


def test_the_functions_and_the_command_take_data_and_steps(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Trials] = []

    def watched(model: object, *, longer: Trials | None = None, **rest: object) -> CheckReport:
        assert longer is not None
        seen.append(longer)
        return CheckReport("GPT", (), 0.0)

    monkeypatch.setattr("anyformer.checks.suite.run_checks", watched)
    monkeypatch.setattr("anyformer.api.run_checks", watched)
    checks.test_fine_tuning(GPT(), data=str(corpus), max_steps=7)
    checks.test_benchmark_comparison(GPT(), tasks=["cola"], max_steps=8)
    flags = ("--data", "d.txt", "--target_data", "t.txt", "--max_steps", "9", "--tasks", "wikitext2=w.txt, rte")
    assert cli.main(["check", "example:gpt", "--tier", "3", *flags]) == 0
    assert seen == [
        Trials(str(corpus), None, 7),
        Trials(None, None, 8, {"cola": None}),
        Trials("d.txt", "t.txt", 9, {"wikitext2": "w.txt", "rte": None}),
    ]
    with pytest.raises(SettingsError, match="there is no benchmark 'wikitext'"):
        checks.test_benchmark_comparison(GPT(), tasks={"wikitext": "w.txt"})
    assert cli.main(["check", "example:gpt", "--tasks", "wnlI"]) == 2
    assert "there is no benchmark 'wnlI'" in capsys.readouterr().err


def test_a_search_is_said_not_to_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    report = checks.test_hyperparameter_search(GPT())
    assert report.results[-1].verdict == "n/a"
    assert "anyformer tune" in capsys.readouterr().out
