"""DatasetLoader: every argument has its effect, every source gives a datasets.Dataset."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pytest

import anyformer
from anyformer.core.errors import DataError, DataNotFound, SettingsError
from anyformer.core.view import QuietView
from anyformer.data.cleaning import Cleaner, clean_text
from anyformer.data.corpus import open_corpus
from anyformer.data.dataset_loader import DatasetLoader
from anyformer.data.rewrite import rewritten_dataset
from anyformer.tokenization.columns import asked_column


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """DatasetLoader(...) that writes to this test's folder and shows nothing."""

    def loader(*arguments: Any, **keywords: Any) -> DatasetLoader:
        return DatasetLoader(*arguments, cache_dir=tmp_path / "cache", view=QuietView(), **keywords)

    return loader


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


LINES = "a first line\nshort\n  an indented\tline  \r\na first line\n\na line that is longer than the others\n"


def test_it_is_one_class_behind_every_door() -> None:
    import utils.training
    from anyformer import training

    assert anyformer.DatasetLoader is training.DatasetLoader is utils.training.DatasetLoader is DatasetLoader


def test_plain_text_with_the_defaults(make: Any, tmp_path: Path) -> None:
    loader = make()
    dataset = loader.load_local_file(write(tmp_path / "a.txt", LINES), text_column="text")
    assert isinstance(dataset, datasets.Dataset)
    assert dataset["text"][:] == [
        "a first line",
        "an indented\tline",
        "a first line",
        "a line that is longer than the others",
    ]
    told = {f.name: f.measured for f in loader.findings}
    assert told == {"rows": "lines", "texts kept": "4 of 6", "texts left out": "2 (33 %)"}


def test_preprocessing(make: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    assert make(preprocessing=False, min_length=0).load_local_file(path)["text"][2] == "  an indented\tline  \r"
    assert make(preprocessing=True, min_length=0).load_local_file(path)["text"][2] == "an indented\tline"
    assert "" in make(preprocessing=False, min_length=0).load_local_file(path)["text"][:]  # as the class says
    assert "" not in make(preprocessing=True, min_length=0).load_local_file(path)["text"][:]
    assert clean_text("\ufeff\r\na \x00b\x1b  \r\n\r\n\n\n    c\td\n\n") == "a b\n\n    c\td"
    assert clean_text("Ünï 日本 😀 e\u0301") == "Ünï 日本 😀 e\u0301"


def test_min_length(make: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    assert len(make(min_length=5).load_local_file(path)) == 5
    assert make(min_length=20).load_local_file(path)["text"][:] == ["a line that is longer than the others"]
    with pytest.raises(DataError, match=r"nothing is left of a\.txt") as caught:
        make(min_length=99).load_local_file(path)
    assert "6 (100 %) empty or under 99 characters" in str(caught.value)


def test_max_length(make: Any, tmp_path: Path) -> None:
    loader = make(max_length=12)
    texts = loader.load_local_file(write(tmp_path / "a.txt", LINES))["text"][:]
    assert texts == ["a first line", "an indented\t", "a first line", "a line that "]
    assert [f.measured for f in loader.findings if f.name == "texts cut"] == ["2 (33 %)"]


def test_remove_duplicates(make: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    loader = make(remove_duplicates=True)
    assert loader.load_local_file(path)["text"][:].count("a first line") == 1
    assert "1 (17 %)" in [f.measured for f in loader.findings]
    assert make(remove_duplicates=False).load_local_file(path)["text"][:].count("a first line") == 2


def test_settings_that_leave_nothing() -> None:
    for bad in ({"min_length": -1}, {"max_length": 0}, {"min_length": 10, "max_length": 5}):
        with pytest.raises(SettingsError, match="leave no text"):
            DatasetLoader(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [{"remove_duplicates": "yes"}, {"remove_duplicates": 1}, {"remove_duplicates": None}, {"preprocessing": "no"}],
)
def test_settings_of_another_type(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(SettingsError, match=rf"{name} {value!r}.* cannot be used(?s:.*)True or False"):
        DatasetLoader(**bad)


def test_paragraphs_and_a_line_without_end(make: Any, tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {n}\nin two lines" for n in range(20))
    assert make().load_local_file(write(tmp_path / "p.md", text))["text"][:] == text.split("\n\n")
    giant = make().load_local_file(write(tmp_path / "g.txt", "x" * 200_000))["text"][:]
    assert "".join(giant) == "x" * 200_000
    assert max(map(len, giant)) <= 65536


ROWS = [{"id": n, "review": f"the film was number {n}", "score": n / 2, "good": n % 2 == 0} for n in range(2500)]


def test_a_table_keeps_its_columns(make: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    dataset = make().load_local_file(path)
    assert dataset.to_list() == ROWS
    assert dataset.features["id"].dtype == "int64"
    csv = write(tmp_path / "a.csv", "label,review\n" + "".join(f"{n},some words {n}\n" for n in range(5)))
    assert make().load_local_file(csv)[4] == {"label": "4", "review": "some words 4"}
    kept = make(min_length=24).load_local_file(path)
    assert kept["id"][:] == list(range(1000, 2500))


def test_a_column_is_asked_for_or_wrong(make: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"a": "the first text", "b": "the longer second text"}) + "\n")
    assert next(f.reason for f in _load(make(), path)).startswith("the longest texts")
    asked = make()
    assert asked.load_local_file(path, text_column="a").column_names == ["a", "b"]
    assert asked.findings[0].measured == "a"
    with pytest.raises(DataError, match="no column 'text'"):
        make().load_local_file(path, text_column="text")


def _load(loader: DatasetLoader, path: Path) -> Any:
    loader.load_local_file(path)
    return loader.findings


def test_mixed_types_in_another_column_name_the_row(make: Any, tmp_path: Path) -> None:
    rows = [{"text": "some words of text", "n": n} for n in range(120)] + [{"text": "some words of text", "n": "x"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"line 121: column 'n' holds 'x'") as caught:
        make().load_local_file(path)
    assert "expected: int64" in str(caught.value)
    mixed = write(
        tmp_path / "b.jsonl", '{"text": "some words of text", "n": 1}\n{"text": "more words of it", "n": "x"}\n'
    )
    loader = make()
    assert loader.load_local_file(mixed).column_names == ["text"]
    assert [f.measured for f in loader.findings if f.name == "columns left out"] == ["n"]


def test_file_format_and_other_sources(make: Any, tmp_path: Path) -> None:
    dump = write(tmp_path / "dump", "text\tn\nsome words\t1\n")
    assert make().load_local_file(dump, "tsv")["text"][:] == ["some words"]
    assert make(min_length=1).load_local_file(dump, "txt")["text"][:] == ["text\tn", "some words\t1"]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.txt", "the first\n\nfile\n")
    write(folder / "b.txt", "the second file")
    for where in (folder, folder / "*.txt"):
        assert make().load_local_file(where, text_column="body")["body"][:] == ["the first\n\nfile", "the second file"]
    with pytest.raises(DataNotFound, match="no data at"):
        make().load_local_file(tmp_path / "none.txt")


@pytest.mark.parametrize("file_format", ["docx", "text", ".TXT", "", 5])
def test_a_format_that_is_not_known(make: Any, tmp_path: Path, file_format: Any) -> None:
    path = write(tmp_path / "a.csv", "text\nsome words here\n")
    with pytest.raises(SettingsError, match=r"file_format is .*\n.*expected: txt, md, json"):
        make().load_local_file(path, file_format)
    assert make().load_local_file(path, ".csv")["text"][:] == ["some words here"]


def test_the_standard_library(make: Any) -> None:
    rows = make().load_local_file("python-stdlib")
    assert len(rows) == len(list(open_corpus("python-stdlib")))
    assert rows.column_names == ["text"]


def test_what_is_no_file_and_no_name(make: Any, tmp_path: Path) -> None:
    loader = make()
    with pytest.raises(DataError, match=r"file_path is None \(NoneType\)"):
        loader.load_local_file(None)
    with pytest.raises(DataNotFound, match=r"a dataset on the hub, not a file(?s:.*)load_huggingface"):
        loader.load_local_file("hf:wikitext")
    for name in ("", "a b", "../x", "a//b"):
        with pytest.raises(DataError, match="is no name of a dataset on the hub"):
            loader.load_huggingface(name)
    path = write(tmp_path / "a.txt", "some text")
    for thing in (str(path), None, path):
        with pytest.raises(DataError, match=r"is no name of a dataset(?s:.*)load_local_file"):
            loader.load_huggingface(thing)


@pytest.mark.parametrize("show", ["get_statistics", "print_statistics", "preview_samples"])
def test_what_can_be_shown(make: Any, show: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = datasets.Dataset.from_dict({"text": ["some words"]})
    look = getattr(make(), show)
    assert look(["some words"]) == look([{"text": "some words"}]) == look(whole)
    for thing, message in (
        ("corpus.txt", r"the dataset is 'corpus.txt' \(str\)"),
        (None, r"the dataset is None"),
        (datasets.DatasetDict(train=whole, test=whole), r"has parts: train, test(?s:.*)dataset\['train'\]"),
        (whole.select([]), "the dataset is empty: it has no rows"),
        ([], "the dataset is empty: it has no rows"),
    ):
        with pytest.raises(DataError, match=message):
            look(thing)


def test_long_rows_do_not_fill_the_memory(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "one line.txt"
    path.write_text("many words " * 2_000_000)  # 22 MB
    rows = [{"text": "many words " * 40_000} for _ in range(50)]
    whole = datasets.Dataset.from_list(rows)
    column = asked_column("text", ())
    for load in (
        lambda: make().load_local_file(path),
        lambda: rewritten_dataset(whole, column, Cleaner(True, 10, None, False), "rows", tmp_path / "cache"),
    ):
        tracemalloc.start()
        texts = load()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(map(len, texts["text"])) > 21_000_000
        assert peak < 16e6, peak


def test_a_result_is_never_that_of_an_older_file(make: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "the old content")
    old = make().load_local_file(path)
    write(path, "the new content")
    assert make().load_local_file(path)["text"][:] == ["the new content"]
    assert old["text"][:] == ["the old content"]
    files = [file.name for file in (tmp_path / "cache").iterdir()]
    assert len(files) == 2
    assert all(not name.startswith(".") for name in files)


def test_drive(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataNotFound, match="not mounted") as caught:
        make().load_from_drive("/content/drive/MyDrive/data.txt")
    assert "drive.mount('/content/drive')" in str(caught.value)
    monkeypatch.setenv("ANYFORMER_DRIVE", str(tmp_path / "drive"))
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    write(tmp_path / "drive" / "MyDrive" / "data.txt", "some words on Drive")
    whole = "/content/drive/MyDrive/data.txt"
    for path in (whole, tmp_path / "drive/MyDrive/data.txt", "MyDrive/data.txt", "data.txt"):
        assert make().load_from_drive(path)["text"][:] == ["some words on Drive"]
    with pytest.raises(DataNotFound, match=r"close names there: data\.txt"):
        make().load_from_drive("dota.txt")
    with pytest.raises(DataError, match="not on Drive"):
        make().load_from_drive(tmp_path / "a.txt")


def test_statistics_and_preview(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["", "two words", "two words", "a text with five words", "x" * 300]
    dataset = datasets.Dataset.from_dict({"n": list(range(5)), "text": texts})
    stats = make().get_statistics(dataset)
    assert stats == {
        "num_samples": 5,
        "total_chars": 340,
        "total_words": 10,
        "avg_chars": 68.0,
        "avg_words": 2.0,
        "min_chars": 0,
        "max_chars": 300,
        "median_chars": 9.0,
        "empty": 1,
        "short": 2,
        "duplicates": 0,
        "columns": ["n", "text"],
        "text_column": "text",
    }
    make().print_statistics(dataset)
    printed = capsys.readouterr().out
    assert "samples      5" in printed
    assert "empty 1 (20 %)" in printed
    make().preview_samples(dataset, num_samples=5)
    printed = capsys.readouterr().out
    assert "--- sample 4 ---\na text with five words\n" in printed
    assert "x" * 200 + " … (300 characters)" in printed
    assert "x" * 201 not in printed


def test_a_hub_dataset_keeps_its_features(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("large_string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    source = datasets.Dataset.from_dict({"text": ["", "some words ", "other words"], "label": [0, 1, 1]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, *, split: source)
    loader = make()
    dataset = loader.load_huggingface("me/it", "config", "test")
    assert dataset.to_list() == [{"text": "some words", "label": 1}, {"text": "other words", "label": 1}]
    assert dataset.features == features
    assert make(preprocessing=False, min_length=0).load_huggingface("me/it") is source
    with pytest.raises(DataError, match="no column 'body'"):
        loader.load_huggingface("me/it", text_column="body")


def test_a_folder_that_cannot_be_written_names_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", LINES)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "file" / "cache"))
    for given, way_out in ((tmp_path / "file" / "own", "another cache_dir"), (None, "set ANYFORMER_CACHE")):
        with pytest.raises(DataError, match="could not be written to") as caught:
            DatasetLoader(cache_dir=given, view=QuietView()).load_local_file(path)
        assert way_out in caught.value.fix
