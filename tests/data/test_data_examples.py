"""Examples of two parts: where they come from, which columns, what is held out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.errors import DataError, DataNotFound
from anyformer.data.examples import (
    Columns,
    Examples,
    class_ids,
    fingerprint,
    open_examples,
    split_examples,
    target_beside,
)

ROWS = [("good film", "1"), ("bad film", "0"), ("so so", "1")]


def labelled(data: Any, **columns: Any) -> Examples:
    return open_examples(data, "classification", Columns(**columns))


def pairs(data: Any, **columns: Any) -> Examples:
    return open_examples(data, "seq2seq", Columns(**columns))


def as_rows(examples: Examples) -> list[tuple[str, str]]:
    return list(zip(examples.first, examples.second, strict=True))


FORMS = ["headless.tsv", "headed.tsv", "table.csv", "table.jsonl", "dicts", "tuples", "dataset"]


@pytest.mark.parametrize("form", FORMS)
def test_text_and_label_from_everywhere(tmp_path: Path, form: str) -> None:
    file, data = tmp_path / form, None
    if form == "headless.tsv":
        file.write_text("".join(f"{text}\t{label}\n" for text, label in ROWS))
    elif form == "headed.tsv":
        file.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS))
    elif form == "table.csv":
        file.write_text("id,sentiment,review\n" + "".join(f"{i},{b},{a}\n" for i, (a, b) in enumerate(ROWS)))
    elif form == "table.jsonl":
        file.write_text("".join(json.dumps({"text": a, "label": int(b)}) + "\n" for a, b in ROWS))
    elif form == "dicts":
        data = [{"text": a, "label": int(b)} for a, b in ROWS]
    elif form == "tuples":
        data = [(a, int(b)) for a, b in ROWS]
    else:
        import datasets

        data = datasets.Dataset.from_dict({"text": [a for a, _ in ROWS], "label": [int(b) for _, b in ROWS]})
    assert as_rows(labelled(str(file) if data is None else data)) == ROWS


def test_the_columns_asked_for_win(tmp_path: Path) -> None:
    rows = [{"text": "a b", "other": "c d", "label": 0, "stars": "five"}]
    assert as_rows(labelled(rows, text="other", label="stars")) == [("c d", "five")]
    with pytest.raises(DataError, match="no column 'mood'"):
        labelled(rows, label="mood")
    with pytest.raises(DataError, match="which column of examples holds the classes"):
        labelled([{"text": "a b", "other": "c d"}])


def test_two_texts_with_one_label_are_read_as_one(tmp_path: Path) -> None:
    rows = [
        {"sentence1": "a cat", "sentence2": "one cat", "label": 1, "idx": 0},
        {"sentence1": "a dog", "sentence2": "no dog at all", "label": 0, "idx": 1},
        {"sentence1": "", "sentence2": "left out", "label": 0, "idx": 2},
    ]
    joined = ("a cat [SEP] one cat", "a dog [SEP] no dog at all")
    examples = open_examples(rows, "classification", Columns())
    assert (examples.first, examples.second) == (joined, ("1", "0"))
    (note,) = [f for f in examples.findings if f.name == "text columns"]
    assert note.measured == "sentence1 and sentence2"
    assert "joined with [SEP]" in note.reason
    renamed = [{"left": r["sentence1"], "right": r["sentence2"], "label": r["label"]} for r in rows]
    assert open_examples(renamed, "classification", Columns(text="left+right")).first == joined
    assert open_examples(rows, "classification", Columns(text="sentence2")).first[0] == "one cat"
    with pytest.raises(DataError, match="has no column 'middle'"):
        open_examples(renamed, "classification", Columns(text="left+middle"))


def test_what_is_no_class_or_no_text_is_named() -> None:
    with pytest.raises(DataError, match=r"row 2, column 'label' holds 1\.5"):
        labelled([{"text": "a", "label": 0}, {"text": "b", "label": 1.5}])
    with pytest.raises(DataError, match="it must hold examples of two parts"):
        labelled(["just", "texts"])
    with pytest.raises(DataError, match="holds no example"):
        labelled([{"text": " ", "label": 0}])


def test_empty_parts_are_left_out_and_counted() -> None:
    found = pairs([("a", "b"), ("", "c"), ("d", None), ("e", "f")])
    assert as_rows(found) == [("a", "b"), ("e", "f")]
    assert any(f.name == "empty examples" and f.measured == "2 left out" for f in found.findings)


def test_two_files_of_as_many_lines(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("one\ntwo\r\nthree\u2028still three\n")
    (tmp_path / "train.de").write_text("eins\nzwei\ndrei")
    found = pairs(str(tmp_path / "train.en"), target_data=str(tmp_path / "train.de"))
    assert as_rows(found) == [("one", "eins"), ("two", "zwei"), ("three\u2028still three", "drei")]
    with pytest.raises(DataError, match="what is to be written is missing") as caught:
        pairs(str(tmp_path / "train.en"))
    assert f"--target_data {tmp_path / 'train.de'}" in caught.value.fix
    (tmp_path / "train.de").write_text("eins\n")
    with pytest.raises(DataError, match=r"train\.en has 3 lines, train\.de 1"):
        pairs(str(tmp_path / "train.en"), target_data=str(tmp_path / "train.de"))
    with pytest.raises(DataError, match="its classes are missing"):
        labelled(str(tmp_path / "train.en"))


def test_the_held_out_second_file_lies_beside_the_first(tmp_path: Path) -> None:
    (tmp_path / "val.de").write_text("x")
    assert target_beside(str(tmp_path / "val.en"), "elsewhere/train.de") == str(tmp_path / "val.de")
    with pytest.raises(DataNotFound, match="no file to write belongs to"):
        target_beside(str(tmp_path / "test.en"), "train.de")


@pytest.mark.parametrize(
    ("names", "columns", "expected"),
    [
        (("de", "en"), {}, ("en", "de")),
        (("document", "summary", "id"), {}, ("document", "summary")),
        (("left", "right"), {}, ("left", "right")),
        (("left", "en"), {}, ("en", "left")),
        (("a", "b", "c"), {"source": "c", "target": "a"}, ("c", "a")),
        (("a", "b", "c"), {"source": "c"}, None),
        (("a", "b", "c"), {}, None),
    ],
)
def test_source_and_target_columns(
    names: tuple[str, ...], columns: dict[str, str], expected: tuple[str, str] | None
) -> None:
    rows = [{name: f"text of {name}" for name in names}]
    if expected is None:
        with pytest.raises(DataError, match="to be read, which to be written"):
            pairs(rows, **columns)
        return
    assert as_rows(pairs(rows, **columns)) == [(f"text of {expected[0]}", f"text of {expected[1]}")]


def many(count: int = 400) -> Examples:
    return labelled([{"text": f"text {i % 300}", "label": i % 2} for i in range(count)])


def test_one_text_is_never_on_both_sides() -> None:
    train, val, _ = split_examples(many(), 0.2, None)
    assert len(train) + len(val) == 400
    assert not {*train.first} & {*val.first}
    assert 40 <= len(val) <= 120
    rows = [{"text": f"text {i % 300}", "label": i % 2} for i in range(400)]
    rows += [{"text": f"new {i}", "label": 0} for i in range(50)]
    more, held, _ = split_examples(labelled(rows), 0.2, None)
    assert {*val.first} <= {*held.first}  # others were added
    assert fingerprint(train, val) != fingerprint(more, held)
    assert fingerprint(train, val) == fingerprint(*split_examples(many(), 0.2, None)[:2])


def test_both_sides_hold_something_and_one_text_cannot_be_split() -> None:
    for share in (1e-9, 1 - 1e-9):
        train, val, _ = split_examples(many(3), share, None)
        assert min(len(train), len(val)) > 0
    with pytest.raises(DataError, match="all have one text"):
        split_examples(labelled([("same", 0), ("same", 1)]), 0.5, None)


def test_texts_held_out_are_not_trained_on() -> None:
    held = labelled([("good film", 1), ("new", 0)])
    train, val, findings = split_examples(labelled([(a, int(b)) for a, b in ROWS]), 0.1, held)
    assert train.first == ("bad film", "so so")
    assert val is held
    assert any(f.name == "shared texts" and f.measured.startswith("1 left out") for f in findings)
    with pytest.raises(DataError, match="are the training examples"):
        split_examples(held, 0.1, held)


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (["1", "0"], 2, ("0", "1")),
        (["2", "0"], 3, ("0", "1", "2")),  # whole numbers are the ids themselves
        (["10", "9", "1"], 3, ("1", "9", "10")),  # too large for that: in order
        (["neg", "pos", "even"], 4, ("even", "neg", "pos")),
        (["-1", "1"], 2, ("-1", "1")),
    ],
)
def test_the_names_of_class_ids(labels: list[str], classes: int, names: tuple[str, ...]) -> None:
    examples = labelled([(f"text {i}", label) for i, label in enumerate(labels)], label="column 2", text="column 1")
    found, findings = class_ids(examples, examples, classes)
    assert found == names
    assert any((f.name, f.verdict) == ("unused classes", "warn") for f in findings) == (len(labels) < classes)


def test_more_classes_than_the_model_has_are_refused() -> None:
    examples = labelled([("a", 0), ("b", 1), ("c", 2)])
    with pytest.raises(DataError, match="has 3 classes, the model tells 2 apart"):
        class_ids(examples, examples, 2)
