"""A run on a stream: as many steps as asked, resumed to the bit, its record true, its refusals plain."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from torch.utils.data import IterableDataset

from anyformer import api, cli
from anyformer.core.errors import DataError, Interrupted, SettingsError
from anyformer.core.view import QuietView
from anyformer.data import AdaptiveTokenizerDataModule
from anyformer.tokenization import CharacterLevelTokenizer
from anyformer.training.coordinator import TrainResult
from tests.training.read_runs import untimed_rows, weights
from tests.training.small_models import Small, small_text
from tests.training.test_resume import (  # the same ways to interrupt a run and to compare two
    Interrupting,
    _armed_while_training,  # noqa: F401  (a fixture for every test here)
    module,
)

Fit = Callable[..., TrainResult]
WORDS = small_text(800).split()
DOCUMENTS = [" ".join(WORDS[at : at + 25]) for at in range(0, len(WORDS), 25)]
BATCHES = 98  # of 8 in an epoch of the documents that are trained on


def texts() -> Iterator[str]:
    return iter(DOCUMENTS)


def streamed() -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset(num_shards=2)


class Anew:
    """Rows that can be iterated again and again."""

    def __iter__(self) -> Iterator[dict[str, str]]:
        return ({"content": text} for text in DOCUMENTS)


class OfTorch(Anew, IterableDataset[Any]):
    """The same, and a stream by its kind."""


def write(folder: Path, documents: list[str] = DOCUMENTS) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("stops", "accumulate", "workers", "source"),
    [
        ([3], 1, 0, "function"),
        pytest.param([40, 61], 1, 1, "dataset", marks=pytest.mark.soak),
        ([BATCHES + 20], 1, 0, "file"),  # in the second epoch
        ([BATCHES - 1, BATCHES + 8], 2, 0, "function"),
        pytest.param([BATCHES - 1], 1, 1, "function", marks=pytest.mark.soak),
        pytest.param([40], 1, 0, "object", marks=pytest.mark.soak),
        pytest.param([40], 1, 0, "torch", marks=pytest.mark.soak),
    ],
)
def test_an_interrupted_run_on_a_stream_ends_as_if_it_never_stopped(
    fit: Fit, tmp_path: Path, stops: list[int], accumulate: int, workers: int, source: str
) -> None:
    settings: dict[str, Any] = {"shuffle_buffer": 50, "accumulate_grad_batches": accumulate, "eval_every": 40}
    settings |= {"max_steps": (max(stops) + 12) // accumulate, "log_every": 5, "num_workers": 0}
    settings |= {"data": write(tmp_path)} if source == "file" else {"data": f"<{source}>"}
    settings["stream"] = source in ("file", "object")  # the others are read so by their kind
    datas = {"function": texts, "dataset": streamed(), "object": Anew(), "torch": OfTorch()}
    given: dict[str, Any] = {"dataset": datas[source]} if source in datas else {}
    whole = module()
    unbroken = fit(whole, name="unbroken", **given, **settings)
    settings["num_workers"] = workers
    seen: list[str] = []
    run = tmp_path / "runs" / "run"
    resume = None
    for stop in stops:
        part = module(stop - len(seen), seed=5 if resume is None else 99)
        with pytest.raises(Interrupted):
            fit(part, resume=resume, **given, **settings)
        seen, resume = seen + part.seen, str(run)
    part = module(seed=99)
    result = fit(part, resume=resume, **given, **settings)
    assert seen + part.seen == whole.seen  # nothing twice, nothing left out
    assert weights(result.run_path) == weights(unbroken.run_path)
    assert untimed_rows(run) == untimed_rows(unbroken.run_path)
    assert result.results["val_loss"] == unbroken.results["val_loss"]


def test_epochs_follow_each_other_in_other_orders_and_it_is_said(fit: Fit) -> None:
    model = Interrupting()
    result = fit(model, dataset=texts, data="<texts>", max_steps=2 * BATCHES + 5, shuffle_buffer=50, eval_every=500)
    first, second = model.seen[:BATCHES], model.seen[BATCHES : 2 * BATCHES]
    flat = [sorted(str(row) for batch in epoch for row in json.loads(batch)) for epoch in (first, second)]
    assert flat[0] == flat[1]
    assert first != second
    (ended,) = [finding for finding in result.findings if finding.name == "stream ended"]
    assert ended.measured == "2 times"
    assert ended.to_dict() in json.loads((result.run_path / "run.json").read_text())["findings"]


def test_the_record_says_what_a_stream_can_say(fit: Fit, tmp_path: Path) -> None:
    data = write(tmp_path)
    result = fit(data=data, stream=True, shuffle_buffer=20, num_workers=2, max_epochs=2)
    record = json.loads((result.run_path / "run.json").read_text())
    assert set(record["data"]) == {"name", "description", "fingerprint", "val"}
    assert record["effective"]["total_steps"] == record["effective"]["steps_per_epoch"] == 12
    said = {finding["name"]: finding for finding in record["findings"]}
    assert said["stream"]["measured"].startswith(f"{data}, ")
    assert "160 documents of its beginning by hash, not all of it" in said["stream"]["reason"]
    assert said["place in the stream"]["measured"] == "by file and document"
    assert said["max_epochs"]["measured"] == "2 is not used"
    assert "one thread" in said["reading ahead"]["reason"]
    assert said["data quality"]["reason"].startswith("of the stream's beginning")
    assert "fingerprint" in api.report(result.run_path).read_text()
    again = api.evaluate(result.run_path, model=Small())
    assert again.loss == pytest.approx(result.results["val_loss"], rel=1e-6)
    assert again.tokens == result.results["evaluated_tokens"]
    write(tmp_path, [text.replace("cat", "dog") for text in DOCUMENTS])
    with pytest.raises(DataError, match="is no longer the text that the run was trained on"):
        api.evaluate(result.run_path, model=Small())
    assert api.evaluate(result.run_path, data=data, model=Small()).tokens


def test_a_stream_and_a_cache_hold_out_and_measure_the_same(fit: Fit, tmp_path: Path) -> None:
    data = write(tmp_path)
    cached, stream = (fit(data=data, stream=is_stream, max_steps=1, name=str(is_stream)) for is_stream in (False, True))
    for name in ("evaluated_tokens", "unigram_entropy", "bigram_entropy"):
        assert stream.results[name] == cached.results[name]
    apart = [[f for f in run.findings if "document" in f.name] for run in (cached, stream)]
    assert apart[0] == apart[1] != []


def test_the_shuffle_buffer_decides_what_comes_in_the_first_batches(fit: Fit, tmp_path: Path) -> None:
    firsts = {}
    for size in (8, 400):
        model = Interrupting()
        fit(model, data=write(tmp_path), stream=True, shuffle_buffer=size, max_steps=1, name=f"buffer-{size}")
        firsts[size] = {str(row) for row in json.loads(model.seen[0])}
    ordered = AdaptiveTokenizerDataModule(texts, CharacterLevelTokenizer(40, special_tokens=[], texts=DOCUMENTS))
    assert firsts[8] != firsts[400]
    assert ordered.stream is not None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"max_steps": None}, "max_steps is not given, and the data is a stream", "--max_steps N"),
    ({"max_steps": None, "max_epochs": 3}, "max_steps is not given, and the data is a stream", "--max_steps N"),
]


@pytest.mark.parametrize(("settings", "says", "fix"), REFUSED)
@pytest.mark.parametrize("derived", [False, True])
def test_a_stream_needs_a_number_of_steps(
    fit: Fit, tmp_path: Path, settings: dict[str, Any], says: str, fix: str, derived: bool
) -> None:
    given: dict[str, Any] = {"dataset": texts} if derived else {"data": write(tmp_path), "stream": True}
    with pytest.raises(SettingsError, match=says) as caught:
        fit(**given, **settings)
    assert fix in caught.value.fix
    assert not (tmp_path / "runs" / "run").exists()


def test_examples_are_not_streamed(fit: Fit, tmp_path: Path) -> None:
    from tests.training.family_models import MeanClassifier

    with pytest.raises(SettingsError, match="classification reads no stream"):
        fit(MeanClassifier(), data=write(tmp_path), stream=True)


@pytest.mark.parametrize("setting", [{"stream": False}, {"shuffle_buffer": 21}])
def test_a_resumed_run_keeps_its_stream(fit: Fit, tmp_path: Path, setting: dict[str, Any]) -> None:
    given: dict[str, Any] = {"data": write(tmp_path), "stream": True, "shuffle_buffer": 20}
    with pytest.raises(Interrupted):
        fit(module(5), **given)
    with pytest.raises(SettingsError, match=f"{next(iter(setting))} is "):
        fit(resume=str(tmp_path / "runs" / "run"), **{**given, **setting})
    write(tmp_path, [f"{text} more" for text in DOCUMENTS])
    with pytest.raises(DataError, match=r"rows\.jsonl has changed since the run"):
        fit(resume=str(tmp_path / "runs" / "run"), **given)


def test_the_flag_and_the_keywords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    Path("small.py").write_text(Path(__file__).with_name("small_models.py").read_text())
    flags = ["--data", "rows.jsonl", "--max_steps", "3", "--max_length", "16", "--precision", "32", "--quiet"]
    assert cli.main(["train", "small.py", *flags, "--stream", "--shuffle_buffer", "30", "--name", "a"]) == 0
    kept = yaml.safe_load(Path("runs/a/settings.yaml").read_text())
    assert (kept["stream"], kept["shuffle_buffer"]) == (True, 30)
    assert cli.main(["train", "small.py", *flags[:2], "--stream", "--quiet"]) == 2
    assert not Path("runs/b").exists()
    given: dict[str, Any] = {"max_steps": 3, "max_length": 16, "precision": "32"}
    api.train("small.py", texts, **given, shuffle_buffer=30, name="c", view=QuietView())
    result = api.train_model(Small(), streamed(), **given, name="d", output_dir="runs")
    record = json.loads((Path(result["run_path"]) / "run.json").read_text())
    assert record["settings"]["data"] == "<IterableDataset>"
    assert "c" in {path.name for path in Path("runs").iterdir()}
