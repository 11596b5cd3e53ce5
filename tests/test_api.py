"""The verbs, one after the other on one small run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn

import anyformer
from anyformer import api, cli
from anyformer.core.errors import CallError, ConstructError, SettingsError, SourceError
from anyformer.core.settings import DemoSettings, EvaluateSettings, GenerateSettings, RepairSettings
from anyformer.core.view import QuietView
from anyformer.training import TrainResult, UniversalModelAdapter
from tests.test_readme import MODEL, TEXT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "my_model.py").write_text(MODEL)
    (folder / "corpus.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(folder / "cache"))
        return anyformer.train(
            folder / "my_model.py",
            data=folder / "corpus.txt",
            max_steps=12,
            batch_size=4,
            max_length=32,
            output_dir=str(folder / "runs"),
            view=QuietView(),
        )


def test_train_leaves_a_run_and_its_report(run: TrainResult) -> None:
    assert run.report_path is not None
    assert run.report_path.is_file()
    assert run.run_path.name == "my_model-corpus"
    assert len(run.samples) == 3
    manifest = json.loads((run.run_path / "run.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["results"]["val_loss"] == run.results["val_loss"]


def test_evaluating_the_held_out_text_gives_the_runs_own_figures(run: TrainResult) -> None:
    evaluation = anyformer.evaluate(run.run_path)
    assert evaluation.loss == pytest.approx(run.results["val_loss"], rel=1e-6)
    assert evaluation.bits_per_byte == pytest.approx(run.results["bits_per_byte"], rel=1e-6)
    assert evaluation.bigram_entropy == run.results["bigram_entropy"]
    assert evaluation.perplexity == pytest.approx(math.exp(evaluation.loss))
    assert evaluation.tokens == run.results["evaluated_tokens"]


def test_evaluating_a_text_takes_all_of_it(run: TrainResult, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("def other():\n    return 7\n" * 20)
    from_file = anyformer.evaluate(run.run_path, settings=EvaluateSettings(data=str(tmp_path / "other.txt")))
    assert from_file.data == "other.txt"
    assert from_file.tokens == len("def other():\n    return 7\n" * 20) - 1  # a character tokenizer
    from_list = anyformer.evaluate(run.run_path, data=["def other():\n    return 7\n" * 20])
    assert from_list.loss == pytest.approx(from_file.loss)


def test_generation_repeats_with_its_seed_and_streams_what_it_returns(run: TrainResult) -> None:
    pieces: list[str] = []
    settings = GenerateSettings(prompt="def ", max_tokens=20, num_samples=2, seed=3)
    texts = api.generate_text(run.run_path, settings=settings, on_text=pieces.append)
    assert "".join(pieces) == "\n\n".join(texts)
    assert all(text.startswith("def ") for text in texts)
    assert texts[0] != texts[1]
    assert api.generate_text(run.run_path, settings=settings) == texts
    greedy = [anyformer.generate(run.run_path, "def ", max_tokens=8, temperature=0.0, seed=seed) for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_page_that_cannot_be_drawn_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "c.txt").write_text(TEXT)

    def broken(run_path: Path) -> Path:
        raise ZeroDivisionError("no chart")

    monkeypatch.setattr(api, "write_report", broken)
    result = anyformer.train(
        tmp_path / "m.py", tmp_path / "c.txt", max_steps=2, batch_size=4, max_length=32, output_dir=str(tmp_path / "r")
    )
    assert result.report_path is None
    assert math.isfinite(result.results["val_loss"])
    assert result.findings[-1].name == "report"
    assert "no chart" in capsys.readouterr().err


def test_the_demo_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # two dozen files stand in for the standard library, whose 11 MB take half a minute to measure
    library = tmp_path / "library"
    library.mkdir()
    for number in range(24):
        (library / f"module_{number}.py").write_text(f"NUMBER = {number}\n" + TEXT)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    result = anyformer.api.demo(DemoSettings(name="d", output_dir=str(tmp_path), max_steps=3), view=QuietView())
    assert result.results["steps"] == 3
    assert len(result.samples) == 3
    manifest = json.loads((tmp_path / "d/run.json").read_text())
    assert manifest["model"]["example"] is True
    assert manifest["data"]["name"] == "python-stdlib"
    assert manifest["tokenizer"]["kind"] == "bpe"


def test_weights_of_a_run_start_another(run: TrainResult, tmp_path: Path) -> None:
    weights = run.run_path / str(run.results["best_checkpoint"]) / "model.safetensors"
    folder = run.run_path.parent.parent
    again = anyformer.train(
        folder / "my_model.py",
        folder / "corpus.txt",
        weights=str(weights),
        learning_rate=1e-9,
        max_steps=1,
        batch_size=4,
        max_length=32,
        output_dir=str(tmp_path),
        view=QuietView(),
    )
    assert again.results["val_loss"] == pytest.approx(run.results["val_loss"], rel=1e-4)
    manifest = json.loads((again.run_path / "run.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["model"]["weights"] == {"model.safetensors": digest}
    (given,) = [f for f in manifest["findings"] if f["reason"].endswith("every tensor fits")]
    assert (given["name"], given["measured"]) == ("weights", "model.safetensors")
    assert digest[:16] in given["reason"]
    assert json.loads((run.run_path / "run.json").read_text())["model"]["weights"] is None


def test_every_verb_on_a_model_takes_weights(
    run: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run.run_path / str(run.results["best_checkpoint"]) / "model.safetensors"
    file = run.run_path.parent.parent / "my_model.py"
    trained = run.adapter.model.state_dict()
    loaded, _ = api.inspect(file, weights=weights)
    assert all(torch.equal(t, trained[name]) for name, t in loaded.module.state_dict().items())
    repair = api.repair(file, weights=weights)
    assert not repair.needed
    results = api.train_model(
        file, [TEXT], weights=weights, learning_rate=1e-9, max_steps=1, batch_size=4, max_length=32, output_dir=tmp_path
    )
    assert all(torch.allclose(t, trained[n], atol=1e-6) for n, t in results["model"].model.state_dict().items())
    for command in ("inspect", "repair"):
        capsys.readouterr()
        assert cli.main([command, str(file), "--weights", str(weights), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        if command == "inspect":
            assert record["model"]["weights"] == {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
            assert [f["measured"] for f in record["findings"] if f["name"] == "weights"] == ["model.safetensors"]
        (tmp_path / "none.pt").write_bytes(b"")
        assert cli.main([command, str(file), "--weights", str(tmp_path / "none.pt")]) != 0
        assert "cannot be loaded as a state dict" in capsys.readouterr().err
    with pytest.raises(ConstructError, match="no weights file"):
        api.repair(file, settings=RepairSettings(weights=str(tmp_path / "absent.pt")))


class Two(nn.Module):
    """Two outputs of one shape: the first looks ahead within the row, the second does not."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(300, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 300), nn.Linear(8, 300)])

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.tokens(ids).cumsum(1)
        return self.heads[0](x), self.heads[1](x)


def test_what_the_caller_states_of_a_module_decides_and_lasts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, overrides = Two(), {"logits": "output[1]"}
    assert api.inspect(module)[1].logits_path == (0,)
    assert api.inspect(module, overrides=overrides)[1].logits_path == (1,)
    adapter = UniversalModelAdapter(module, overrides=overrides)
    assert adapter.call_plan.logits_path == (1,)
    with pytest.raises(SettingsError, match="call_plan and overrides"):
        UniversalModelAdapter(module, call_plan=adapter.call_plan, overrides=overrides)
    with pytest.raises(CallError):
        UniversalModelAdapter(module, call_plan=dataclasses.replace(adapter.call_plan, embedding_rows=7))
    with pytest.raises(CallError, match="call has no colour"):
        api.inspect(module, overrides={"colour": "red"})
    keywords = {"max_steps": 2, "batch_size": 4, "max_length": 16, "output_dir": str(tmp_path), "view": QuietView()}
    result = api.train(module, [TEXT], overrides=overrides, **keywords)
    assert result.adapter.call_plan.logits_path == (1,)
    again = api.train(Two(), [TEXT], resume=str(result.run_path), max_steps=3)
    assert again.results["steps"] == 3
    assert again.adapter.call_plan.logits_path == (1,)  # stated when the run began


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="train needs a model"):
        anyformer.train()
    with pytest.raises(SourceError, match="is not a run"):
        anyformer.evaluate(tmp_path)


def test_the_vocabulary_asked_for_reaches_a_constructor_that_requires_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my_model.py").write_text(MODEL.replace("vocab_size=300", "vocab_size"))
    (tmp_path / "corpus.txt").write_text(TEXT)
    result = anyformer.train(
        tmp_path / "my_model.py",
        data=tmp_path / "corpus.txt",
        vocab_size=280,
        max_steps=1,
        batch_size=2,
        max_length=16,
        output_dir=str(tmp_path / "runs"),
        view=QuietView(),
    )
    manifest = json.loads((result.run_path / "run.json").read_text())
    assert manifest["model"]["config"] == {"vocab_size": 280}
    assert manifest["call_plan"]["vocab_size"] == 280
