"""What each setting of evaluate, generate and demo does, on one small run."""

from __future__ import annotations

import csv
import json
import sysconfig
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import anyformer
from anyformer import api, cli
from anyformer.core.findings import Finding
from anyformer.core.settings import DemoSettings, EvaluateSettings, GenerateSettings
from anyformer.core.view import QuietView
from anyformer.runs.rebuild import LoadedRun, load_run
from tests.test_readme import MODEL, TEXT

PROMPT = "def "
TOKENS = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a little: likely tokens and unlikely ones, none of them certain."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "my_model.py").write_text(MODEL)
    (folder / "corpus.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(folder / "cache"))
        return anyformer.train(
            folder / "my_model.py",
            data=folder / "corpus.txt",
            max_steps=20,
            batch_size=4,
            max_length=32,
            learning_rate=3e-3,
            precision="32",
            output_dir=str(folder / "runs"),
            view=QuietView(),
        ).run_path


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedRun:
    return load_run(run)


@pytest.fixture(scope="module")
def greedy(loaded: LoadedRun) -> str:
    """The likeliest token each time, by hand."""
    ids = torch.tensor([list(loaded.tokenizer.encode(PROMPT))])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(TOKENS):
            ids = torch.cat([ids, loaded.module(ids)[:, -1].argmax(-1, keepdim=True)], 1)
    new = ids[0, start:].tolist()
    assert loaded.tokenizer.eos_token_id not in new
    return PROMPT + str(loaded.tokenizer.decode(new))


@pytest.fixture
def write(run: Path) -> Callable[..., list[str]]:
    """Text by the run; keywords are settings. At temperature 3 almost any token may come."""

    def texts(**settings: Any) -> list[str]:
        values = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 3.0, **settings}
        return api.generate_text(run, settings=GenerateSettings(**values))

    return texts


Write = Callable[..., list[str]]


def test_generate_top_k(write: Write, greedy: str) -> None:
    assert write(top_k=1, seed=1) == write(top_k=1, seed=2) == [greedy]
    assert write(top_k=100_000) == write() != [greedy]
    two = write(top_k=2)
    assert two not in ([greedy], write())


def test_generate_top_p(write: Write, greedy: str) -> None:
    assert write(top_p=1e-9, seed=1) == write(top_p=1e-9, seed=2) == [greedy]
    assert write(top_p=1.0) == write() != [greedy]
    assert write(top_p=0.5) not in ([greedy], write())


def test_generate_temperature(write: Write, greedy: str) -> None:
    assert write(temperature=0.0, seed=1) == write(temperature=0.0, seed=2) == [greedy]
    assert write(temperature=1e-6) == [greedy]
    assert write(temperature=3.0) != [greedy]
    assert write(temperature=0.7) != write(temperature=3.0)


def test_generate_seed(write: Write) -> None:
    assert write(seed=1) == write(seed=1) != write(seed=2)


@pytest.mark.parametrize("count", [1, 3])
def test_generate_num_samples(write: Write, count: int) -> None:
    texts = write(num_samples=count)
    assert len(texts) == len(set(texts)) == count
    assert texts[0] == write()[0]  # more samples leave the first as it is


@pytest.mark.parametrize("count", [1, 7])
def test_generate_max_tokens(write: Write, count: int) -> None:
    assert len(write(max_tokens=count, temperature=0.0)[0]) == len(PROMPT) + count  # a character tokenizer


def test_generate_prompt(write: Write) -> None:
    texts = [write(prompt=prompt, temperature=0.0)[0] for prompt in ("def answer(", "if ", "")]
    assert texts[0].startswith("def answer(")
    assert texts[1].startswith("if ")
    assert texts[0][len("def answer(") :] != texts[1][len("if ") :]
    assert len(texts[2]) <= TOKENS


def test_generate_in_one_call(run: Path, write: Write, greedy: str) -> None:
    assert api.generate(run, PROMPT, max_tokens=TOKENS, temperature=0.0) == greedy
    hot = api.generate(run, PROMPT, max_tokens=TOKENS, temperature=3.0, seed=5)
    assert [hot] == write(seed=5) != [greedy]
    assert api.generate(run, PROMPT, max_tokens=3, temperature=0.0) == greedy[: len(PROMPT) + 3]


FLAGS = {"prompt": "if ", "max_tokens": 9, "temperature": 2.5, "top_k": 30, "top_p": 0.9, "num_samples": 2, "seed": 8}


@pytest.mark.parametrize("left_out", [None, *FLAGS])
def test_generate_flags(run: Path, capsys: pytest.CaptureFixture[str], left_out: str | None) -> None:
    """Each flag changes the text: without any one of them it is another."""
    assert {*FLAGS, "use_gpu"} == {field.name for field in fields(GenerateSettings)}
    flags = [f"--{name}={value}" for name, value in FLAGS.items() if name != left_out]
    assert cli.main(["generate", str(run), *flags, "--json"]) == 0
    texts = json.loads(capsys.readouterr().out)["texts"]
    whole = api.generate_text(run, settings=GenerateSettings(**FLAGS))
    assert (texts == whole) == (left_out is None)


# evaluate


@pytest.fixture
def two_columns(tmp_path: Path) -> Path:
    """A table with the text in two columns: the first found by its name, the other longer."""
    file = tmp_path / "two.csv"
    lines = TEXT.splitlines()[0], TEXT.splitlines()[1]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "other"])
        writer.writeheader()
        for _ in range(30):
            writer.writerow({"text": lines[0], "other": lines[1]})
    return file


def test_evaluate_text_column(run: Path, two_columns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(column: str | None) -> api.Evaluation:
        return api.evaluate(run, settings=EvaluateSettings(data=str(two_columns), text_column=column))

    for number, column in enumerate(("text", "other")):
        evaluation = measured(column)
        from_list = api.evaluate(run, [TEXT.splitlines()[number]] * 30)
        assert (evaluation.tokens, evaluation.loss) == (from_list.tokens, pytest.approx(from_list.loss))
    assert measured(None).loss == measured("text").loss != measured("other").loss
    flags = ["--data", str(two_columns), "--text_column", "other", "--batch_size", "3", "--json"]
    assert cli.main(["evaluate", str(run), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(measured("other").loss)


@pytest.mark.parametrize("size", [1, 5])
def test_evaluate_batch_size(run: Path, loaded: LoadedRun, size: int) -> None:
    seen: list[int] = []
    module = type(loaded.module)()
    module.tokens.register_forward_pre_hook(lambda embedding, given: seen.append(given[0].shape[0]))
    evaluation = api.evaluate(run, [TEXT], settings=EvaluateSettings(batch_size=size), model=module)
    blocks = -(-(len(TEXT) - 1) // 32)
    assert (max(seen), sum(seen)) == (size, blocks)
    assert evaluation.loss == pytest.approx(api.evaluate(run, [TEXT]).loss, rel=1e-6)


def test_evaluate_data(run: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(TEXT[:200])
    evaluation = api.evaluate(run, settings=EvaluateSettings(data=str(tmp_path / "short.txt")))
    assert (evaluation.data, evaluation.tokens) == ("short.txt", 199)


def test_no_gpu_is_used_where_none_is_wanted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    choose = api.choose_device

    def choose_device(use_gpu: bool) -> torch.device:
        asked.append(use_gpu)
        return choose(False)

    monkeypatch.setattr(api, "choose_device", choose_device)
    for wanted in (True, False):
        api.evaluate(run, [TEXT[:200]], settings=EvaluateSettings(use_gpu=wanted))
        api.generate_text(run, settings=GenerateSettings(use_gpu=wanted, max_tokens=1))
    assert asked == [True, True, False, False]


# demo


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few files in the place of the standard library, and a small model."""
    folder = tmp_path / "library"
    folder.mkdir()
    for number in range(12):
        (folder / f"module_{number}.py").write_text(f"NUMBER = {number}\n" + TEXT)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    small = {"vocab_size": 300, "block_size": 16, "n_layer": 1, "n_head": 1, "n_embd": 16}
    assert set(small) == set(api.DEMO_MODEL)
    monkeypatch.setattr(api, "DEMO_MODEL", small)
    monkeypatch.setattr(api, "DEMO_LEARNING_RATE", 1e-9)


@pytest.mark.usefixtures("library")
def test_demo_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the faster one is taken, and on a busy machine a measurement may err
    fixed = "32", Finding("precision", "note", "32")
    monkeypatch.setattr("anyformer.training.coordinator.choose_precision", lambda *args: fixed)

    def weights(seed: int) -> dict[str, torch.Tensor]:
        settings = DemoSettings(output_dir=str(tmp_path), max_steps=1, seed=seed)
        return api.demo(settings, view=QuietView()).adapter.model.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.allclose(first[name], other[name], atol=1e-3) for name in first)


@pytest.mark.usefixtures("library")
def test_demo_flags(tmp_path: Path) -> None:
    given = {"name": "shown", "output_dir": str(tmp_path / "there"), "max_steps": 2, "seed": 6}
    assert set(given) == {field.name for field in fields(DemoSettings)}
    assert cli.main(["demo", *(f"--{name}={value}" for name, value in given.items()), "--quiet"]) == 0
    run = tmp_path / "there" / "shown"
    kept = yaml.safe_load((run / "settings.yaml").read_text())
    assert {name: kept[name] for name in given} == given
    assert json.loads((run / "run.json").read_text())["results"]["steps"] == 2
