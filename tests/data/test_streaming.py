"""A stream: the token cache's tokens, each block once an epoch, any place saved and found again, bounded memory."""

from __future__ import annotations

import contextlib
import functools
import gzip
import itertools
import json
import logging
import random
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from anyformer.core.errors import CheckpointError, DataError, DataNotFound
from anyformer.data import AdaptiveTokenizerDataModule, filling, streamsplit
from anyformer.data.order import EpochOrder
from anyformer.data.streamblocks import Position, StreamLoader
from anyformer.data.streaming import is_stream, open_stream
from anyformer.tokenization import CharacterLevelTokenizer

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
T, BATCH, BUFFER = 16, 4, 24
# of several lengths, some longer than a block and some said twice
DOCUMENTS = [f"document {n} " + "abc " * (n % 9) + f"end {n % 5}" for n in range(160)] + ["said twice"] * 2
TOKENIZER = CharacterLevelTokenizer(300, texts=DOCUMENTS)


def write_rows(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def texts_of_a_function() -> Iterator[str]:
    yield from DOCUMENTS


def of_function(folder: Path) -> Any:
    return lambda: iter(DOCUMENTS)


def of_function_with_rows(folder: Path) -> Any:
    return lambda: ({"n": n, "text": text} for n, text in enumerate(DOCUMENTS))


class Anew:
    """Can be iterated again and again, and is no iterator itself."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        yield from self.items


class OfTorch(torch.utils.data.IterableDataset[str]):
    def __iter__(self) -> Iterator[str]:
        yield from DOCUMENTS


def of_object(folder: Path) -> Any:
    return Anew(DOCUMENTS)


def of_object_with_rows(folder: Path) -> Any:
    return Anew([{"n": n, "content": text, "more": None} for n, text in enumerate(DOCUMENTS)])


def of_torch(folder: Path) -> Any:
    return OfTorch()


def of_dataset(folder: Path) -> Any:
    return datasets.Dataset.from_dict({"text": DOCUMENTS, "n": range(len(DOCUMENTS))}).to_iterable_dataset(num_shards=3)


def of_shuffled_dataset(folder: Path) -> Any:
    return of_dataset(folder).shuffle(seed=7, buffer_size=20)


def of_mapped_dataset(folder: Path) -> Any:
    rows = of_dataset(folder).map(
        lambda rows: {"text": [text * 2 for text in rows["text"]]}, batched=True, batch_size=7
    )
    return rows.filter(lambda row: row["n"] % 3 > 0)


def of_table(folder: Path) -> Any:
    return str(write_rows(folder / "rows.jsonl", DOCUMENTS))


def of_tables(folder: Path) -> Any:
    for number in range(5):
        write_rows(folder / f"part-{number}.jsonl", DOCUMENTS[number * 33 : (number + 1) * 33])
    return str(folder / "part-*.jsonl")


def of_folder(folder: Path) -> Any:
    inside = folder / "texts"
    inside.mkdir()
    for number, text in enumerate(DOCUMENTS[:90]):
        (inside / f"{number:03}.txt").write_text(text)
    return str(inside)


def of_text(folder: Path) -> Any:
    path = folder / "one.txt"
    path.write_text("\n".join(DOCUMENTS * 28))  # several pieces of 64 KB
    return str(path)


def of_packed_text(folder: Path) -> Any:
    path = folder / "one.txt.gz"
    path.write_bytes(gzip.compress("\n".join(DOCUMENTS * 24).encode()))
    return str(path)


def of_list(folder: Path) -> Any:
    return DOCUMENTS


SOURCES: list[Callable[[Path], Any]] = [
    *(of_function, of_dataset, of_shuffled_dataset, of_mapped_dataset, of_table, of_tables, of_folder, of_text),
    *(of_packed_text, of_list, of_function_with_rows, of_object, of_object_with_rows, of_torch),
]


def module(data: Any, folder: Path, **options: Any) -> AdaptiveTokenizerDataModule:
    values: dict[str, Any] = {"batch_size": BATCH, "max_length": T, "shuffle_buffer": BUFFER, "stream": True}
    return AdaptiveTokenizerDataModule(data, TOKENIZER, cache_dir=folder / "cache", **{**values, **options})


def loader(data: AdaptiveTokenizerDataModule) -> StreamLoader:
    made = data.train_dataloader()
    assert isinstance(made, StreamLoader)
    return made


def whole(batches: Any) -> list[list[list[int]]]:
    """Rows of each batch with the token after each."""
    return [torch.cat([b["input_ids"], b["next_ids"][:, None]], 1).tolist() for b in batches]


def own_documents(data: AdaptiveTokenizerDataModule) -> list[str]:
    assert data.stream is not None
    return [text for _, text in data.stream.read(0, None)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda make: make.__name__)
def test_the_tokens_are_those_of_the_cache(source: Callable[[Path], Any], tmp_path: Path) -> None:
    data = source(tmp_path)
    streamed = module(data, tmp_path)
    # the cache of the same documents, as a list where the source is none that it can read
    cached = module(data if isinstance(data, str | list) else own_documents(streamed), tmp_path, stream=False)
    read = streamed.streamed
    assert read is not None
    joined = np.concatenate(
        [b.tokens[: b.size * T] for b in read.blocks.buffers(Position())]  # in the order of the stream
    )
    count = (len(cached.cache.train) - 1) // T * T
    assert joined.tolist() == cached.cache.train[:count].tolist()
    assert read.val.tolist() == cached.cache.val.tolist()
    assert read.val_facts == {name: cached.cache.meta["val"][name] for name in ("documents", "bytes", "tokens")}
    assert streamed.val_blocks == cached.val_blocks


def test_items_and_their_order_within_each_buffer(tmp_path: Path) -> None:
    data = module(of_function(tmp_path), tmp_path, seed=5, shuffle_buffer=10)
    read = data.streamed
    assert read is not None
    batches = list(loader(data))
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in batches[0].items()} == {
        **dict.fromkeys(("input_ids", "attention_mask", "labels"), (torch.int64, (BATCH, T))),
        "next_ids": (torch.int64, (BATCH,)),
    }
    expected = []
    for number, buffer in enumerate(read.blocks.buffers(Position())):
        rows = [buffer.tokens[i * T : (i + 1) * T + 1].tolist() for i in range(buffer.size)]
        expected += [rows[i] for i in EpochOrder(buffer.size, 5).indices(number, 0, buffer.size)]
    assert [row for batch in whole(batches) for row in batch] == expected
    assert expected != sorted(expected)
    assert len(batches[-1]["input_ids"]) == len(expected) % BATCH or BATCH
    assert all(torch.equal(batch["labels"], batch["input_ids"]) for batch in batches)


def test_each_epoch_gives_each_block_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    batches = loader(module(of_function(tmp_path), tmp_path))
    epochs = [[tuple(row) for batch in whole(batches) for row in batch] for _ in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("source", SOURCES, ids=lambda make: make.__name__)
def test_any_place_that_was_saved_gives_the_very_next_batches(source: Callable[[Path], Any], tmp_path: Path) -> None:
    data = source(tmp_path)
    made = functools.partial(module, data, tmp_path, max_length=512 if source in (of_text, of_packed_text) else T)
    unbroken = loader(made())
    epochs = [whole(unbroken), whole(unbroken)]
    count = len(epochs[0])
    for at in [0, BUFFER // BATCH, count - 1, count, *random.Random(0).sample(range(count), 2)]:
        stopped = loader(made())
        first = whole(itertools.islice(stopped, at))
        state = json.loads(json.dumps(stopped.state_dict()))
        resumed = loader(made())  # as in another process: everything is opened anew
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = whole(resumed)
        assert first + rest == epochs[0] or (at == count and rest == epochs[1])
        if at < count:
            assert whole(resumed) == epochs[1]


def test_places_that_do_not_fall_on_batches_of_the_buffer(tmp_path: Path) -> None:
    """A buffer that is no multiple of the batch: batches join two buffers, and other batch sizes go on as well."""
    rows = [row for batch in whole(loader(module(DOCUMENTS, tmp_path, shuffle_buffer=10))) for row in batch]
    for at in range(1, 9):
        stopped = loader(module(DOCUMENTS, tmp_path, shuffle_buffer=10))
        first = whole(itertools.islice(stopped, at))
        other = loader(module(DOCUMENTS, tmp_path, shuffle_buffer=10, batch_size=3))
        other.load_state_dict(stopped.state_dict())
        assert [row for batch in first + whole(other) for row in batch] == rows


def test_at_most_one_buffer_is_read_again(tmp_path: Path) -> None:
    asked: list[int] = []

    class Stateful:
        """Goes on at a row without reading those before."""

        column_names = ("text",)

        def __init__(self) -> None:
            self.row = 0

        def state_dict(self) -> dict[str, int]:
            return {"row": self.row}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.row = state["row"]

        def __iter__(self) -> Iterator[dict[str, str]]:
            for row in range(self.row, len(DOCUMENTS)):
                self.row = row + 1
                asked.append(row)
                yield {"text": DOCUMENTS[row]}

    stopped = loader(module(Stateful(), tmp_path))
    whole(itertools.islice(stopped, 50))
    state = stopped.state_dict()
    data = module(Stateful(), tmp_path)
    resumed = loader(data)
    resumed.load_state_dict(state)
    asked.clear()
    next(iter(resumed))
    assert data.stream is not None
    assert data.stream.findings[-1].verdict == "ok"  # its own state, proven
    lengths = [len(TOKENIZER.encode(DOCUMENTS[row])) + 1 for row in asked]
    group = 256 + max(lengths)  # encoded together: the buffer begins within one and ends within another
    assert BUFFER * T < sum(lengths) <= BUFFER * T + 1 + 2 * group


def test_every_process_takes_its_part_of_each_global_batch(tmp_path: Path) -> None:
    blocks = module(DOCUMENTS, tmp_path).streamed
    assert blocks is not None
    one = whole(StreamLoader(blocks.blocks, 6))
    loaders = [list(StreamLoader(blocks.blocks, 6, rank=rank, world_size=3)) for rank in range(3)]
    assert {len(loader) for loader in loaders} == {len(one)}  # all make the same number of steps
    for batch, shares in zip(one, zip(*loaders, strict=True), strict=True):
        counted = [share for share in shares if bool((share["labels"] != -100).any())]
        assert len(counted) == min(3, len(batch))
        assert [row for share in counted for row in whole([share])[0]] == batch
    parts = [whole(loader) for loader in loaders]
    stopped = StreamLoader(blocks.blocks, 6, rank=1, world_size=3)
    first = whole(itertools.islice(stopped, 7))
    resumed = StreamLoader(blocks.blocks, 6, rank=1, world_size=3)
    resumed.load_state_dict(stopped.state_dict())
    assert first + whole(resumed) == parts[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_source_takes_a_bounded_memory_and_is_read_no_further_than_needed(
    workers: int, tmp_path: Path
) -> None:
    asked = 0

    def endless() -> Iterator[str]:
        nonlocal asked
        for number in itertools.count():
            asked += 1
            yield f"text {number} " + "abc " * 2000  # 8 kB

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamsplit, "HELD_OUT_CHARACTERS", 50_000)
        data = module(endless, tmp_path, num_workers=workers, max_length=64, shuffle_buffer=64)
        data.setup()
    batches = iter(loader(data))
    for _ in range(16):
        next(batches)
    asked = 0
    tracemalloc.start()
    try:
        seen = sum(len(next(batches)["input_ids"]) for _ in range(30 * 16))  # 30 buffers: 2 MB of text
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    batches.close()  # type: ignore[attr-defined]
    assert seen == 30 * 64
    assert peak < 1_500_000  # what it gives out alone is 3 MB of ids
    per_buffer = 64 * 64 / 8000
    assert 30 * per_buffer * 0.9 <= asked <= (30 + 3) * per_buffer * 1.2 + 3


@pytest.mark.parametrize("source", [of_function, of_dataset, of_list], ids=lambda make: make.__name__)
def test_reading_ahead_changes_nothing(source: Callable[[Path], Any], tmp_path: Path) -> None:
    data = source(tmp_path)
    plain = loader(module(data, tmp_path))
    ahead = loader(module(data, tmp_path, num_workers=2))
    for _ in range(2):
        assert whole(ahead) == whole(plain)
    first = whole(itertools.islice(ahead, 3))
    resumed = loader(module(data, tmp_path))
    resumed.load_state_dict(ahead.state_dict())
    assert first + whole(resumed) == whole(plain)


def test_what_goes_wrong_in_the_thread_is_told(tmp_path: Path) -> None:
    def texts() -> Iterator[Any]:
        yield from DOCUMENTS
        yield 5

    with pytest.raises(DataError, match=r"text 162 of the function texts is 5 \(int\), not a string"):
        for _ in loader(module(texts, tmp_path, num_workers=1, val_split=0.0)):
            pass


def test_a_long_document_is_encoded_in_parts_and_found_again_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "BATCH_CHARACTERS", 100)
    texts = ["\n".join(DOCUMENTS[n : n + 40]) for n in range(0, 160, 40)]
    unbroken = whole(loader(module(texts, tmp_path, val_split=0.0, shuffle_buffer=5)))
    cached = module(texts, tmp_path, val_split=0.0, stream=False).cache.train
    rows = {tuple(cached[i * T : (i + 1) * T + 1].tolist()) for i in range((len(cached) - 1) // T)}
    assert {tuple(row) for batch in unbroken for row in batch} == rows
    within = 0
    for at in (1, 2, 3, 5, 9, 14, 20, 25):
        stopped = loader(module(texts, tmp_path, val_split=0.0, shuffle_buffer=5))
        first = whole(itertools.islice(stopped, at))
        resumed = loader(module(texts, tmp_path, val_split=0.0, shuffle_buffer=5))
        resumed.load_state_dict(stopped.state_dict())
        within += stopped.state_dict()["position"]["parts"] > 0
        assert first + whole(resumed) == unbroken
    assert within > 2


# --- which place is trusted -------------------------------------------------------------------------------------------


def place_finding(data: Any) -> Any:
    return next(finding for finding in open_stream(data).findings if finding.name == "place in the stream")


def test_a_datasets_own_place_is_proven_and_otherwise_not_used(tmp_path: Path) -> None:
    assert place_finding(of_dataset(tmp_path)).verdict == "ok"
    assert place_finding(of_mapped_dataset(tmp_path)).verdict == "ok"
    shuffled = place_finding(of_shuffled_dataset(tmp_path))
    assert shuffled.verdict == "note"
    assert "shuffle buffer" in shuffled.reason

    class Wrong:
        column_names = ("text",)
        lost = 0

        def state_dict(self) -> dict[str, int]:
            return {"row": 1}  # whatever was given

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.lost = state["row"]

        def __iter__(self) -> Iterator[dict[str, str]]:
            return ({"text": text} for text in DOCUMENTS[self.lost :])

    assert "other documents" in place_finding(Wrong()).reason
    unbroken = whole(loader(module(Wrong(), tmp_path)))
    stopped = loader(module(Wrong(), tmp_path))
    first = whole(itertools.islice(stopped, 20))
    resumed = loader(module(Wrong(), tmp_path))
    resumed.load_state_dict(stopped.state_dict())
    assert first + whole(resumed) == unbroken


def test_a_source_that_gives_other_documents_is_refused(tmp_path: Path) -> None:
    stopped = loader(module(lambda: iter(DOCUMENTS), tmp_path))
    whole(itertools.islice(stopped, 20))
    other = [text.replace("end", "End") if n > 5 else text for n, text in enumerate(DOCUMENTS)]
    resumed = loader(module(lambda: iter(other), tmp_path))
    resumed.load_state_dict(stopped.state_dict())
    with pytest.raises(DataError, match="gives other documents than before it was interrupted"):
        next(iter(resumed))


@pytest.mark.parametrize("option", [{"max_length": 8}, {"shuffle_buffer": 25}, {"seed": 1}, {"val_split": 0.2}])
def test_a_place_saved_with_other_settings_is_refused(option: dict[str, Any], tmp_path: Path) -> None:
    stopped = loader(module(DOCUMENTS, tmp_path))
    whole(itertools.islice(stopped, 2))
    with pytest.raises(CheckpointError, match="saved with other settings"):
        loader(module(DOCUMENTS, tmp_path, **option)).load_state_dict(stopped.state_dict())


# --- what is held out ---------------------------------------------------------------------------------------------


def test_held_out_documents_are_never_trained_on_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{n:04d}" * 8 for n in range(2000)]
    monkeypatch.setattr(streamsplit, "HELD_OUT_CHARACTERS", 10 * 32)
    data = module(lambda: iter(texts), tmp_path, val_split=0.3)
    read = data.streamed
    assert read is not None
    assert read.val_facts["documents"] == 10
    below = int(0.3 * 2**64)
    import hashlib

    held = [t for t in texts if int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") < below]
    assert TOKENIZER.decode(read.val.tolist()).replace("</s>", "") == "".join(held[:10])
    trained = TOKENIZER.decode([i for b in loader(data) for row in b["input_ids"].tolist() for i in row])
    assert not [text for text in held if text in trained]
    found = {finding.name: finding for finding in read.findings}
    assert found["held out"].measured == "10 documents of the stream's beginning"
    assert "not all of it" in found["stream"].reason


def test_a_tokenizer_is_trained_on_a_bounded_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamsplit, "TOKENIZER_CHARACTERS", 1000)
    sides = streamsplit.Sides(open_stream(lambda: (f"text {n}" for n in itertools.count())), 0.5)
    texts = list(sides.training_texts())
    assert 1000 <= sum(map(len, texts)) < 1020
    assert all(sides.of(text)[0] == "train" for text in texts)


def test_held_out_text_of_its_own(tmp_path: Path) -> None:
    held = write_rows(tmp_path / "held.jsonl", ["held out text"] * 9)
    data = module(of_table(tmp_path), tmp_path, val_dataset=str(held))
    assert data.streamed is not None
    assert data.streamed.val_facts["documents"] == 9
    assert data.streamed.blocks.sides.val_split == 0.0
    with pytest.raises(DataError, match="the held-out text is the training text"):
        module(of_table(tmp_path), tmp_path, val_dataset=of_table(tmp_path)).setup()


def test_the_record_names_the_source(tmp_path: Path) -> None:
    one = open_stream(of_table(tmp_path)).identity
    assert one.startswith(f"{tmp_path}/rows.jsonl, ")
    assert " kB, changed 20" in one
    many = open_stream(of_tables(tmp_path)).identity
    assert many.startswith("5 files, ")
    write_rows(tmp_path / "part-0.jsonl", ["another"])
    assert open_stream(str(tmp_path / "part-*.jsonl")).identity != many
    assert open_stream(texts_of_a_function).identity.endswith("test_streaming.texts_of_a_function")


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_is_a_stream() -> None:
    rows = of_dataset(Path())
    assert is_stream(rows)
    assert is_stream({"train": rows})
    assert is_stream(lambda: iter(()))
    assert is_stream(functools.partial(iter, DOCUMENTS))
    assert is_stream(OfTorch())  # by itself, without being asked for
    assert module(OfTorch(), Path(), stream=False).stream is not None
    assert not is_stream(Anew(DOCUMENTS))  # only where it is asked for
    for other in ("text.txt", DOCUMENTS, datasets.Dataset.from_dict({"text": DOCUMENTS}), {"text": DOCUMENTS}, list):
        assert not is_stream(other)
    assert open_stream({"test": rows, "train": rows}).findings[0].measured == "train"


BAD: list[tuple[str, Any, dict[str, Any], str]] = [
    ("empty", lambda: iter(()), {}, "the stream gives no text"),
    ("only empty", lambda: iter(["", ""]), {}, "the stream gives no text"),
    ("no iterator", lambda: 5, {}, "gives no texts: 'int' object is not iterable"),
    ("arguments", lambda n: [n], {}, "gives no texts: .* missing 1 required positional argument"),
    ("bytes", lambda: [b"bytes"], {}, r"text 0 of the function function is b'bytes' \(bytes\), not a string\n"),
    ("an object's bytes", Anew([b"bytes"]), {}, "text 0 of the object Anew is b'bytes'"),
    ("an empty object", Anew([]), {}, "Anew is empty: the stream gives no text"),
    ("rows behind texts", Anew([*DOCUMENTS, {"text": "a"}]), {}, r"text 162 of the object Anew is \{'text': 'a'\}"),
    ("a text among rows", Anew([{"text": "a"}, "b"]), {}, "row 2 of the object Anew is 'b'"),
    ("a text behind rows", Anew([{"text": "a"}] * 200 + ["b"]), {}, "row 201 of the object Anew is 'b'"),
    ("a row without it", Anew([{"text": "a"}, {"b": 1}]), {}, r"Anew, row 2 read has no 'text'\n  it has b\n  → give"),
    ("a row of numbers", Anew([{"text": "a"}, {"text": 7}]), {}, "Anew, row 2 read: column 'text' holds 7, not text"),
    ("no column", Anew([{"n": 1}]), {}, "Anew has no column with text"),
    ("no such column", of_object_with_rows(Path()), {"text_column": "b"}, "Anew has no column 'b'"),
    ("a class", Anew, {}, r"data is the class Anew itself\n  → give an object of it: Anew\("),
    ("a set", set(DOCUMENTS), {}, "data is set"),  # its order differs from process to process
    ("a column of numbers", np.zeros(3), {}, "no column with text"),
    ("surrogate", lambda: ["\udc80"], {}, "not valid Unicode"),
    (
        "nothing held out",
        lambda: ["a" * 90, "b" * 90],
        {"val_split": 1e-9},
        "no document at the beginning of .* held out",
    ),
    ("all held out", lambda: iter(DOCUMENTS), {"val_split": 1.0}, "at least 0 and below 1"),
    ("short", lambda: ["only this"], {"val_split": 0.0}, "too short to train on"),
    ("no buffer", lambda: iter(DOCUMENTS), {"shuffle_buffer": 0}, "shuffle_buffer is 0"),
    ("missing", "no/such/file.txt", {}, "no data at no/such/file.txt"),
    ("no text", datasets.Dataset.from_dict({"n": [1, 2]}).to_iterable_dataset(), {}, "has no column with text"),
]


@pytest.mark.parametrize(("data", "options", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(data: Any, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        for _ in loader(module(data, tmp_path, **options)):
            pass


def test_a_generator_is_refused_with_the_way_out(tmp_path: Path) -> None:
    for stream in (True, False):
        with pytest.raises(DataError, match="give the function that makes it, which is read as a stream"):
            module((text for text in DOCUMENTS), tmp_path, stream=stream)


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    class Once:
        def __init__(self) -> None:
            self.texts = iter(DOCUMENTS)

        def __iter__(self) -> Iterator[str]:
            return self.texts

    texts = iter(DOCUMENTS)
    for data, says in (
        (Once(), "the object Once gives the same iterator each time.*\n  → let __iter__ return a new one"),
        (lambda: texts, "the function function gives the same iterator each time.*\n  → let it return a new one"),
    ):
        with pytest.raises(DataError, match=says):
            module(data, tmp_path).setup()


def test_what_is_said_of_an_object(tmp_path: Path) -> None:
    rows = open_stream(of_object_with_rows(tmp_path))
    assert (rows.name, rows.description) == ("Anew", "rows of a Python object")
    assert rows.identity.endswith("test_streaming.Anew")
    found = {finding.name: finding for finding in rows.findings}
    assert found["text column"].measured == "content"
    assert found["place in the stream"].measured == "counted: the object keeps none of its own"
    texts = open_stream(of_object(tmp_path), "content")
    assert texts.description == "texts of a Python object"
    unused = next(finding for finding in texts.findings if finding.name == "text column")
    assert (unused.verdict, unused.measured) == ("warn", "'content' is not used")


def test_a_row_that_is_no_text_is_named(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"text": text} for text in DOCUMENTS)
        yield {"text": 7}

    rows_dataset = datasets.IterableDataset.from_generator(rows)
    with pytest.raises(DataError, match="column 'text' holds 7, not text"):
        list(loader(module(rows_dataset, tmp_path, val_split=0.0)))


def test_a_connection_that_breaks_is_told(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"text": f"{text} {n}"} for n in range(9) for text in DOCUMENTS)
        raise ConnectionResetError("reset by peer")

    with pytest.raises(DataError, match=r"dataset stopped giving documents after 1,458 documents") as caught:
        module(datasets.IterableDataset.from_generator(rows), tmp_path).setup()
    assert "reset by peer" in caught.value.detail
    assert not isinstance(caught.value, DataNotFound)


# --- in a plain trainer -----------------------------------------------------------------------------------------------


class Recorder(pl.LightningModule):
    """Notes the blocks it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen += whole([batch])
        return (self.weight - 1).square().sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        assert batch["input_ids"].shape[1] == T

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stopped(Exception):
    pass


class SaveAt(pl.Callback):
    """Saves in a hook at a given number of trained batches, then kills the run."""

    def __init__(self, batches: int, path: Path, hook: str = "on_train_batch_end") -> None:
        self.batches, self.path = batches, path
        setattr(self, hook, self._save)

    def _save(self, trainer: pl.Trainer, module: Recorder, *args: Any) -> None:
        if len(module.seen) == self.batches:
            trainer.save_checkpoint(self.path)
            raise Stopped


def run(
    folder: Path,
    callbacks: list[pl.Callback] | None = None,
    resume: Path | None = None,
    workers: int = 0,
    **trainer: Any,
) -> list[list[list[int]]]:
    recorder = Recorder()
    data = module(lambda: iter(DOCUMENTS[:60]), folder, num_workers=workers)
    options: dict[str, Any] = {"max_epochs": 3, "num_sanity_val_steps": 0, **trainer}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with warnings.catch_warnings(), contextlib.suppress(Stopped):
        warnings.simplefilter("ignore")
        fitting = pl.Trainer(accelerator="cpu", callbacks=callbacks or [], **quiet, **options)
        fitting.fit(recorder, data, ckpt_path=resume, weights_only=False)
    return recorder.seen


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[int]]]:
    return run(tmp_path_factory.mktemp("stream"))


def test_an_epoch_of_a_trainer_is_one_of_the_stream(uninterrupted: list[list[list[int]]]) -> None:
    assert len(uninterrupted) % 3 == 0
    epochs = [
        uninterrupted[i : i + len(uninterrupted) // 3] for i in range(0, len(uninterrupted), len(uninterrupted) // 3)
    ]
    assert len({str(sorted(row for batch in epoch for row in batch)) for epoch in epochs}) == 1
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("hook", "workers"),
    [
        *(("on_train_batch_end", 0), ("on_train_batch_end", 1), ("on_before_zero_grad", 1)),
        *(("on_validation_end", 0), ("on_train_epoch_end", 0)),
    ],
)
def test_stopped_anywhere_the_sequence_goes_on(
    hook: str, workers: int, tmp_path: Path, uninterrupted: list[list[list[int]]]
) -> None:
    per_epoch = len(uninterrupted) // 3
    at = [per_epoch, 2 * per_epoch]
    if hook in ("on_train_batch_end", "on_before_zero_grad"):
        at += [BUFFER // BATCH, per_epoch - 1, per_epoch + 1]
    for batches in at:
        checkpoint = tmp_path / f"{batches}.ckpt"
        seen = run(tmp_path, [SaveAt(batches, checkpoint, hook)], workers=workers)
        assert len(seen) == batches
        again = run(tmp_path, resume=checkpoint)
        kept = batches - (hook == "on_before_zero_grad")  # a batch in the middle of its step is trained on again
        assert seen[:kept] + again == uninterrupted, (hook, batches)


def test_stopped_twice_and_with_limits(tmp_path: Path, uninterrupted: list[list[list[int]]]) -> None:
    one, two = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    a = run(tmp_path, [SaveAt(5, one)])
    b = run(tmp_path, [SaveAt(4, two)], resume=one)
    assert a + b + run(tmp_path, resume=two) == uninterrupted
    # epochs of 6 batches: each goes on in the stream where the one before ended
    limited = run(tmp_path, limit_train_batches=6, accumulate_grad_batches=2)
    assert limited == uninterrupted[:18]
    for batches in (4, 6, 8, 12):
        seen = run(tmp_path, [SaveAt(batches, one)], limit_train_batches=6, accumulate_grad_batches=2)
        rest = run(tmp_path, resume=one, limit_train_batches=6, accumulate_grad_batches=2)
        assert seen + rest == limited, batches
