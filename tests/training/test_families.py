"""Runs of every family from outside: figures, samples, exact resume, the plain trainer, and what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import api
from anyformer.core.errors import CallError, DataError, Interrupted, SettingsError, TokenizerError
from anyformer.core.settings import EvaluateSettings, GenerateSettings, TrainSettings
from anyformer.data.pairs import PairDataModule
from anyformer.models.callplan import infer_call_plan
from anyformer.report import write_report
from anyformer.tokenization import CharacterLevelTokenizer
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.coordinator import TrainResult
from anyformer.ui.results import evaluation_lines, next_command, training_lines
from tests.training.family_models import (
    MaskedEncoder,
    MeanClassifier,
    PaddingReader,
    Translator,
    labelled,
    reversed_pairs,
)
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]
FAMILIES = ["masked", "classification", "seq2seq"]


def model_of(objective: str) -> nn.Module:
    torch.manual_seed(5)
    models = {"masked": MaskedEncoder, "classification": MeanClassifier, "seq2seq": Translator, "causal": Small}
    return models[objective]()


def write_data(objective: str, folder: Path) -> dict[str, Any]:
    """Settings that name the data of an objective, written into a folder."""
    if objective == "classification":
        lines = [f"{row['text']}\t{row['label']}" for row in labelled()]
        (folder / "labelled.tsv").write_text("\n".join(lines))
        return {"data": str(folder / "labelled.tsv")}
    if objective == "seq2seq":
        pairs = reversed_pairs()
        for number, name in enumerate(("a", "b")):
            (folder / f"train.{name}").write_text("\n".join(pair[number] for pair in pairs) + "\n")
            (folder / f"val.{name}").write_text("\n".join(f"the {pair[number]} cat" for pair in pairs[:40]))
        return {"data": str(folder / "train.a"), "target_data": str(folder / "train.b")}
    return {}


@pytest.fixture
def run(fit: Fit, tmp_path: Path) -> Callable[..., TrainResult]:
    def train(objective: str, module: nn.Module | None = None, **settings: Any) -> TrainResult:
        return fit(module or model_of(objective), **{**write_data(objective, tmp_path), "max_length": 48, **settings})

    return train


KEYS = {
    "masked": {"accuracy", "unigram_entropy", "bigram_entropy", "beats_unigram", "beats_bigram", "evaluated_tokens"},
    "classification": {
        *("accuracy", "macro_f1", "majority_accuracy", "prior_entropy", "beats_majority", "evaluated_examples"),
    },
    "seq2seq": {
        *("perplexity", "unigram_entropy", "bigram_entropy", "beats_unigram", "beats_bigram", "evaluated_tokens"),
    },
}


@pytest.mark.parametrize("objective", FAMILIES)
def test_a_run_is_measured_shown_and_measured_again(run: Fit, objective: str) -> None:
    result = run(objective, max_steps=8)
    record = json.loads((result.run_path / "run.json").read_text())
    assert (record["state"], record["objective"], record["results"]["objective"]) == ("finished", objective, objective)
    general = {
        "objective",
        "steps",
        "best_checkpoint",
        "tokens_per_second",
        "train_seconds",
        "stopped_early",
        "out_of_time",
        "val_loss",
    }
    assert set(result.results) - general == KEYS[objective]
    assert len(result.samples) == 3
    assert all(sample["text"].startswith("\n→ ") for sample in result.samples)
    for size in (3, 16):
        again = api.evaluate(result.run_path, model=model_of(objective), settings=EvaluateSettings(batch_size=size))
        assert again.figures["val_loss"] == pytest.approx(result.results["val_loss"], rel=1e-5)
        for key in KEYS[objective]:
            assert again.figures[key] == pytest.approx(result.results[key], rel=1e-5)
    shown = "\n".join(training_lines(result.run_path, result.results, result.samples, None, "next", 100))
    shown += "\n".join(evaluation_lines(again, 100))
    page = write_report(result.run_path).read_text()
    if objective == "classification":
        assert "perplexity" not in page + shown
        assert "most frequent class" in page
        assert "nats per example" in page
        assert f"{100 * result.results['accuracy']:.1f} % right" in shown
        assert record["data"]["classes"] == ["0", "1"]
    if objective == "masked":
        assert "perplexity" not in page + shown
        assert "hidden token" in page
    step = next_command(result.run_path, result.results, result.samples)
    assert step.split()[1] == ("generate" if objective == "seq2seq" else "evaluate")


def test_a_classifier_learns_the_word_that_decides(run: Fit) -> None:
    result = run("classification", MeanClassifier(dropout=0.0), max_steps=60, tokenizer="char", learning_rate=3e-2)
    assert result.results["accuracy"] > result.results["majority_accuracy"] + 0.1
    assert result.results["val_loss"] < result.results["prior_entropy"]


def test_string_labels_are_kept_with_the_run(fit: Fit) -> None:
    rows = [{"text": row["text"], "label": ["bad", "good"][row["label"]]} for row in labelled()]
    result = fit(model_of("classification"), dataset=rows, max_steps=2)
    record = json.loads((result.run_path / "run.json").read_text())
    assert record["data"]["classes"] == ["bad", "good"]
    evaluated = api.evaluate(result.run_path, rows, model=model_of("classification"))
    assert evaluated.examples == len(rows)
    with pytest.raises(DataError, match="does not know: 'odd'"):
        api.evaluate(result.run_path, [*rows, {"text": "x y", "label": "odd"}], model=model_of("classification"))


def test_held_out_files_and_others_to_evaluate(run: Fit, tmp_path: Path) -> None:
    write_data("seq2seq", tmp_path)
    result = run("seq2seq", val_data=str(tmp_path / "val.a"), max_steps=2)
    record = json.loads((result.run_path / "run.json").read_text())
    assert record["data"]["val"]["documents"] == 40
    other = api.evaluate(result.run_path, str(tmp_path / "val.a"), model=model_of("seq2seq"))
    assert other.loss == pytest.approx(result.results["val_loss"], rel=1e-5)
    text = api.generate_text(
        result.run_path, settings=GenerateSettings(prompt="the cat", max_tokens=5), model=model_of("seq2seq")
    )
    assert len(text) == 1
    with pytest.raises(SettingsError, match="none is given"):
        api.generate_text(result.run_path, model=model_of("seq2seq"))
    moved = (tmp_path / "val.b").rename(tmp_path / "elsewhere.txt")  # no file beside it that could be guessed
    named = EvaluateSettings(target_data=str(moved))
    data, translator = str(tmp_path / "val.a"), model_of("seq2seq")
    assert api.evaluate(result.run_path, data, model=translator, settings=named).loss == pytest.approx(other.loss)
    with pytest.raises(SettingsError, match="target_data is given without data"):
        api.evaluate(result.run_path, model=translator, settings=named)
    masked = run("masked", max_steps=1).run_path
    with pytest.raises(SettingsError, match="the run's objective is masked"):
        api.evaluate(masked, data, model=model_of("masked"), settings=named)


@pytest.mark.parametrize("objective", FAMILIES)
@pytest.mark.parametrize("stop", [pytest.param(7, marks=pytest.mark.soak), 29])
def test_an_interrupted_run_ends_as_if_it_never_stopped(
    run: Fit, objective: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 46, "eval_every": 6, "log_every": 3, "max_length": 24}
    unbroken = run(objective, name="unbroken", **settings)
    assert unbroken.trainer.current_epoch >= 1  # the order of a second epoch, too
    seen = 0
    step = UniversalModelAdapter.training_step

    def interrupting(self: UniversalModelAdapter, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(UniversalModelAdapter, "training_step", interrupting)
        with pytest.raises(Interrupted):
            run(objective, **settings)
    torch.manual_seed(99)
    resumed = run(objective, resume=str(unbroken.run_path.parent / "run"), **settings)
    weights = [result.adapter.model.state_dict() for result in (unbroken, resumed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert resumed.results["val_loss"] == unbroken.results["val_loss"]
    assert resumed.samples == unbroken.samples


def test_padding_that_is_read_never_comes(fit: Fit) -> None:
    result = fit(PaddingReader(), dataset=labelled(), max_steps=2)
    module = result.trainer.datamodule
    assert isinstance(module, PairDataModule)
    assert module.exact
    assert all((batch["attention_mask"] == 1).all() for batch in module.train_dataloader())
    assert any(f.name == "padding" and "the model reads it" in f.measured for f in result.findings)
    with_mask = fit(model_of("classification"), dataset=labelled(), max_steps=2)
    assert not with_mask.trainer.datamodule.exact
    assert any((batch["attention_mask"] == 0).any() for batch in with_mask.trainer.datamodule.train_dataloader())


# a plain trainer


@pytest.mark.parametrize("objective", FAMILIES)
def test_the_loss_of_a_batch_by_hand(objective: str) -> None:
    module = model_of(objective).eval()
    tokenizer = CharacterLevelTokenizer(40, special_tokens=["<pad>", "<unk>", "<s>", "</s>", "<mask>"], texts=["abcd"])
    adapter = UniversalModelAdapter(module, tokenizer=tokenizer, objective=objective)  # type: ignore[arg-type]
    adapter.proven = True
    ids = torch.randint(5, 9, (4, 12), generator=torch.Generator().manual_seed(0))
    if objective == "classification":
        batch = {"input_ids": ids, "labels": torch.tensor([0, 1, 1, 0])}
        expected = F.cross_entropy(module(ids), batch["labels"])
    elif objective == "seq2seq":
        labels = ids.clone()
        labels[2, 7:] = -100
        batch = {"input_ids": ids.flip(1), "target_ids": ids, "labels": labels}
        expected = F.cross_entropy(module(ids.flip(1), ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    else:
        batch = {"input_ids": ids, "labels": ids.clone()}
        torch.manual_seed(3)
        order, fate, replacement = torch.rand(4, 12), torch.rand(4, 12), torch.randint(len(tokenizer), (4, 12))
        chosen = order.argsort(1)[:, :2]  # 15 % of 12, rounded
        hidden, nats = ids.clone(), []
        for row in range(4):
            for place in chosen[row].tolist():
                if fate[row, place] < 0.8:
                    hidden[row, place] = tokenizer.mask_token_id
                elif fate[row, place] < 0.9:
                    hidden[row, place] = replacement[row, place]
        for row in range(4):
            nats += [-module(hidden)[row].log_softmax(-1)[place, ids[row, place]] for place in chosen[row]]
        expected = torch.stack(nats).mean()
        torch.manual_seed(3)
    assert adapter.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("objective", FAMILIES)
def test_it_works_in_a_plain_trainer(objective: str, fit: Fit, run: Fit, tmp_path: Path) -> None:
    made = run(objective, max_steps=1)
    adapter = UniversalModelAdapter(
        model_of(objective), learning_rate=1e-2, tokenizer=made.tokenizer, objective=objective  # type: ignore[arg-type]
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=25, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
    )  # fmt: skip
    module = made.trainer.datamodule
    before = trainer.validate(adapter, module, verbose=False)[0]
    trainer.fit(adapter, module)
    after = trainer.validate(adapter, module, verbose=False)[0]
    assert after["val_loss"] < before["val_loss"]
    assert ("val_perplexity" in after) == (objective == "seq2seq")
    batch = next(iter(module.val_dataloader()))
    out = adapter(batch["input_ids"], batch["attention_mask"], batch["labels"],
                  target_ids=batch.get("target_ids"), target_mask=batch.get("target_mask"))  # fmt: skip
    assert math.isfinite(out["loss"].item())
    if objective == "seq2seq":
        assert adapter.generate(batch["input_ids"][:2], max_length=6).shape[0] == 2
    else:
        with pytest.raises(CallError, match="does not write"):
            adapter.generate(batch["input_ids"], max_length=99)


def test_batches_that_do_not_fit_are_named() -> None:
    ids = torch.randint(5, 9, (4, 12))
    classifier = UniversalModelAdapter(model_of("classification"))
    with pytest.raises(DataError, match=r"labels have shape \(4, 12\); classification needs \(B,\)"):
        classifier.training_step({"input_ids": ids, "labels": ids}, 0)
    translator = UniversalModelAdapter(model_of("seq2seq"))
    with pytest.raises(DataError, match="no target_ids"):
        translator.training_step({"input_ids": ids, "labels": ids}, 0)
    shifted = torch.cat([ids[:, 1:], torch.full((4, 1), -100)], 1)
    with pytest.raises(DataError, match="already shifted"):
        translator.training_step({"input_ids": ids, "target_ids": ids, "labels": shifted}, 0)
    encoder = UniversalModelAdapter(model_of("masked"), objective="masked")
    with pytest.raises(TokenizerError, match="needs a tokenizer"):
        encoder.training_step({"input_ids": ids, "labels": ids.clone()}, 0)


# which objective


class Leaky(nn.Module):
    """A decoder that forgot its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(48, 16)
        self.lm_head = nn.Linear(16, 48)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        logits: Tensor = self.lm_head(x + x.mean(1, keepdim=True))
        return logits


def test_a_decoder_that_sees_the_future_trains_only_where_the_user_insists(fit: Fit) -> None:
    with pytest.raises(CallError, match="sees the future") as caught:
        fit(Leaky())
    assert "anyformer repair" in caught.value.fix
    assert "--objective masked" in caught.value.fix
    result = fit(Leaky(), objective="causal", name="insists")
    warned = [f for f in result.findings if f.verdict == "warn" and f.name == "objective"]
    assert warned[0].measured == "causal, though the model sees the future"
    assert "changing token" in warned[0].reason
    assert not [f for f in result.findings if f.verdict == "fail"]
    masked = fit(Leaky(), objective="masked", name="masked")
    assert masked.results["objective"] == "masked"


@pytest.mark.parametrize(
    ("objective", "asked", "what"),
    [
        ("causal", "masked", "cannot see later tokens"),
        ("causal", "seq2seq", "the model is a decoder"),
        ("causal", "classification", "the model is a decoder"),
        ("classification", "causal", "the model is a classifier"),
        ("seq2seq", "masked", "the model is an encoder-decoder"),
    ],
)
def test_an_objective_that_cannot_fit_is_refused(objective: str, asked: str, what: str) -> None:
    plan = infer_call_plan(model_of(objective))
    with pytest.raises(SettingsError, match=what):
        UniversalModelAdapter(model_of(objective), call_plan=plan, objective=asked)  # type: ignore[arg-type]


def test_a_tokenizer_without_a_mask_token(fit: Fit, corpus: Path) -> None:
    texts = [corpus.read_text()]
    full = CharacterLevelTokenizer(48, special_tokens=["<unk>"], texts=texts)
    module = MaskedEncoder(len(full))
    plan = infer_call_plan(module, objective="masked")
    from anyformer.training.objective import choose_masking

    with pytest.raises(TokenizerError, match="has no mask token"):
        choose_masking(full, plan, 0, module)
    masking, (finding,) = choose_masking(full, replace(plan, vocab_size=len(full) + 1, embedding_rows=None), 0, module)
    assert masking.mask_id == len(full)
    assert finding.measured == f"id {len(full)}"
    made = fit(model_of("masked"), objective="masked", max_steps=1).tokenizer
    assert made.mask_token == "<mask>"
    assert choose_masking(made, plan, 0, module)[0].mask_id == made.mask_token_id


def test_the_models_own_mask_id_hides_tokens_where_no_text_has_it(fit: Fit) -> None:
    from anyformer.training.objective import choose_masking

    module = model_of("masked")
    rows = infer_call_plan(module).embedding_rows or 0
    result = fit(module, objective="masked", max_steps=1, name="plain")
    ours, plan = result.tokenizer, result.adapter.call_plan
    assert len(ours) < rows
    module.mask_token_id = rows - 1  # type: ignore[assignment]
    own = fit(module, objective="masked", max_steps=1, name="own")
    told = next(finding for finding in own.findings if finding.name == "mask token")
    assert (told.verdict, told.measured) == ("note", f"id {rows - 1:,}")
    masking, _ = choose_masking(ours, plan, 0, module)
    assert (masking.mask_id, masking.vocab_size) == (rows - 1, len(ours))
    module.mask_token_id = ours.get_vocab()["e"]  # type: ignore[assignment]
    masking, (told,) = choose_masking(ours, plan, 0, module)
    assert (masking.mask_id, told.verdict) == (ours.mask_token_id, "warn")
    module.mask_token_id = ours.mask_token_id
    assert choose_masking(ours, plan, 0, module) == (masking, [])
    module.mask_token_id = rows  # no row of the embedding
    assert choose_masking(ours, plan, 0, module) == (masking, [])


def test_what_an_objective_does_not_read_is_said(fit: Fit) -> None:
    result = fit(max_steps=1, label_column="stars", target_data="x.de")
    said = {f.name: f.measured for f in result.findings if f.verdict == "warn"}
    assert said == {"label column": "'stars' is not used", "target data": "'x.de' is not used"}
    assert TrainSettings(objective="seq2seq").objective == "seq2seq"
    with pytest.raises(SettingsError, match="objective is 'next'"):
        TrainSettings(objective="next")  # type: ignore[arg-type]
