"""Filling the token cache: continued after a kill, by many processes, and the same tokens whichever way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.core.errors import DataError, TokenizerError
from anyformer.core.view import QuietView
from anyformer.data import build_token_cache, filling, open_corpus
from anyformer.tokenization import BPETrainerConfig, FastBPETrainer, TextTokenizer, encoding

DOCUMENTS = [f"The {n}th document says é, 世界 and {n * n}.\n" for n in range(400)] + ["", "</s> inside"]


@pytest.fixture(scope="module")
def bpe() -> TextTokenizer:
    return FastBPETrainer(BPETrainerConfig(vocab_size=400)).train_on_dataset(DOCUMENTS)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(filling, "JOURNAL_BYTES", 4000)


def tokens(cache: Any) -> tuple[list[int], list[int], dict[str, Any]]:
    meta = {name: value for name, value in cache.meta.items() if name != "path"}
    return cache.train.tolist(), cache.val.tolist(), meta


class Stopped(Exception):
    pass


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("after", [1, 5, 9, 14])
@pytest.mark.parametrize("more_on_disk", [b"", b"half a batch that no journal names"])
def test_continued_where_it_stopped(
    tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch, after: int, more_on_disk: bytes
) -> None:
    corpus = open_corpus(DOCUMENTS)
    whole = tokens(build_token_cache(corpus, bpe, cache_dir=tmp_path / "whole"))
    encode, texts = encoding.encode_texts, []

    def stops(tokenizer: Any, batch: list[str]) -> Any:
        if len(texts) == after:
            raise Stopped
        texts.append(batch)
        return encode(tokenizer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode_texts", stops)
        with pytest.raises(Stopped):
            build_token_cache(corpus, bpe, cache_dir=tmp_path / "cut")
    left = list((tmp_path / "cut").iterdir())
    assert [p.suffix for p in left] == ([".part"] if after > 4 else [])  # 4,000 bytes are some four batches
    for folder in left:
        with (folder / "train.bin").open("ab") as file:
            file.write(more_on_disk)
    again: list[Any] = []
    monkeypatch.setattr(encoding, "encode_texts", lambda t, batch: again.append(batch) or encode(t, batch))
    assert tokens(build_token_cache(corpus, bpe, cache_dir=tmp_path / "cut")) == whole
    total = len(list(filling.batches(filling_pieces(corpus))))
    assert len(again) == total if after < 5 else total - after <= len(again) < total - after + 5
    assert [p.suffix for p in (tmp_path / "cut").iterdir()] == [""]  # neither part nor lock


def filling_pieces(corpus: Any) -> Any:
    from anyformer.data.split import split_pieces

    return split_pieces(corpus, 0.1, None)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("damage", ["shorter", "not json", "another's", "other batches"])
def test_a_part_that_cannot_be_continued_is_begun_anew(
    tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    corpus = open_corpus(DOCUMENTS)
    whole = build_token_cache(corpus, bpe, cache_dir=tmp_path)
    expected = tokens(whole)
    part = tmp_path / f"{whole.path.name}.part"
    os.rename(whole.path, part)
    record = {
        "fingerprint": whole.meta["fingerprint"],
        "batch_characters": 1000,
        "batches": 6,
        "counts": {side: whole.meta[side] for side in ("train", "val")},
    }
    if damage == "another's":
        record["fingerprint"] = "0" * 64
    if damage == "other batches":
        record["batch_characters"] = 999
    (part / "progress.json").write_text("{" if damage == "not json" else json.dumps(record))
    if damage == "shorter":
        (part / "train.bin").write_bytes(b"ab")
    else:
        (part / "train.bin").write_bytes(bytes(len(whole.train) * 2))  # taken over, these zeros would stay
    assert tokens(build_token_cache(corpus, bpe, cache_dir=tmp_path)) == expected


@pytest.mark.usefixtures("small_batches")
def test_a_killed_process_is_continued_by_the_next(tmp_path: Path) -> None:
    code = """
import sys, time
from anyformer.data import build_token_cache, filling, open_corpus
from anyformer.tokenization import CharacterLevelTokenizer, encoding
filling.BATCH_CHARACTERS, filling.JOURNAL_BYTES = 1000, 4000
corpus = open_corpus([f"document {n} " * 9 for n in range(900)])
tokenizer = CharacterLevelTokenizer(300, texts=corpus)
encode, batches = encoding.encode_texts, []
def slow(*arguments):
    batches.append(1)
    if sys.argv[2] == "slow": time.sleep(0.01)
    return encode(*arguments)
encoding.encode_texts = slow
print("ready", flush=True)
cache = build_token_cache(corpus, tokenizer, cache_dir=sys.argv[1])
print(len(batches), cache.meta["sha256"]["train"], flush=True)
"""
    command = [sys.executable, "-c", code]
    whole = subprocess.run([*command, str(tmp_path / "whole"), "fast"], capture_output=True, text=True, check=True)
    killed = subprocess.Popen([*command, str(tmp_path / "cut"), "slow"], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut").glob("*.part/progress.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list((tmp_path / "cut").glob("*.part"))
    rest = subprocess.run([*command, str(tmp_path / "cut"), "fast"], capture_output=True, text=True, check=True)
    _, batches, digest = whole.stdout.split()
    assert rest.stdout.split()[2] == digest
    assert int(rest.stdout.split()[1]) < int(batches)
    assert len(list((tmp_path / "cut").iterdir())) == 1


@pytest.mark.skipif(filling.fcntl is None, reason="the platform has no file locks")
def test_a_second_process_waits_and_uses_what_the_first_made(tmp_path: Path, bpe: TextTokenizer) -> None:
    corpus = open_corpus(DOCUMENTS)
    whole = build_token_cache(corpus, bpe, cache_dir=tmp_path)
    expected = tokens(whole)
    aside = tmp_path / "aside"
    os.rename(whole.path, aside)
    said = []

    class Watcher(QuietView):
        def status(self, message: str) -> None:
            said.append(message)
            if "waiting" in message:
                os.rename(aside, whole.path)  # the other one is done
                os.unlink(lock)
                os.close(handle)

    lock = tmp_path / f"{whole.path.name}.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    assert filling.fcntl is not None
    filling.fcntl.flock(handle, filling.fcntl.LOCK_EX)
    assert tokens(build_token_cache(corpus, bpe, cache_dir=tmp_path, view=Watcher())) == expected
    assert sum("waiting" in message for message in said) == 1
    assert list(tmp_path.iterdir()) == [whole.path]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("processes", [0, 1, 2, 3])
def test_the_same_tokens_by_any_number_of_processes(tmp_path: Path, bpe: TextTokenizer, processes: int) -> None:
    corpus = open_corpus(DOCUMENTS)
    alone = tokens(build_token_cache(corpus, bpe, cache_dir=tmp_path / "one"))
    many = build_token_cache(corpus, bpe, cache_dir=tmp_path / "many", processes=processes)
    assert tokens(many) == alone
    found = {f.name: f.measured for f in many.findings}
    assert ("processes" in found["encoder"]) == (processes > 1)


@pytest.mark.usefixtures("small_batches")
def test_a_process_that_dies_is_an_error_and_the_work_is_kept(
    tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus(DOCUMENTS)
    whole = tokens(build_token_cache(corpus, bpe, cache_dir=tmp_path / "whole"))
    encode, calls = encoding.EncoderPool.encode, []

    def dies(self: Any, texts: list[str]) -> Any:
        calls.append(1)
        if len(calls) == 12:
            for worker in self._all:
                worker.kill()
                worker.wait()
        return encode(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(encoding.EncoderPool, "encode", dies)
        with pytest.raises(TokenizerError, match=r"has ended \(exit code -9\)") as caught:
            build_token_cache(corpus, bpe, cache_dir=tmp_path / "cut", processes=2)
    assert "run again" in str(caught.value)
    assert len(list((tmp_path / "cut").glob("*.part/progress.json"))) == 1
    assert tokens(build_token_cache(corpus, bpe, cache_dir=tmp_path / "cut", processes=2)) == whole


def test_text_that_no_process_can_take(tmp_path: Path, bpe: TextTokenizer) -> None:
    with pytest.raises(DataError, match="not valid Unicode"):
        build_token_cache(open_corpus(["one", "two \ud800"]), bpe, cache_dir=tmp_path, processes=2)
    with encoding.EncoderPool(bpe, 1) as pool, pytest.raises(TokenizerError, match="not valid Unicode"):
        pool.encode(["two \ud800"])


class FakeAccelerator:
    """tokie's interface, with the library behind it; ``wrong`` changes the ids of texts that hold it."""

    def __init__(self, backend: Any, wrong: str | None) -> None:
        self.backend, self.wrong = backend, wrong

    def encode_batch_flat(self, texts: list[str], add_special_tokens: bool) -> tuple[Any, Any]:
        rows = [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]
        rows = [[1, *row[1:]] if self.wrong and self.wrong in t else row for t, row in zip(texts, rows, strict=True)]
        flat = np.asarray([i for row in rows for i in row], dtype=np.uint32)
        return flat, np.asarray([len(row) for row in rows], dtype=np.uint64)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("wrong", "measured", "reason"),
    [
        (None, "tokie 9.9", "ids equal to the library's"),
        ("The 3rd", "tokie 9.9", "ids equal"),  # stands nowhere
        ("The 2th", "the tokenizers library", "gives other ids for 'The 2th"),  # in the sample
        ("The 390th", "the tokenizers library", "gives other ids for 'The 390th"),  # far behind it
        ("can't", "the tokenizers library", "gives other ids for"),  # not in the text at all, a hard case
    ],
)
def test_an_accelerator_is_used_only_as_long_as_its_ids_are_the_librarys(
    tmp_path: Path,
    bpe: TextTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str | None,
    measured: str,
    reason: str,
) -> None:
    corpus = open_corpus([d for d in DOCUMENTS if d])
    whole = tokens(build_token_cache(corpus, bpe, cache_dir=tmp_path / "whole"))

    class Module:
        TokieError = RuntimeError

        class Tokenizer:
            @staticmethod
            def from_json(path: str) -> FakeAccelerator:
                assert json.loads(Path(path).read_text())["model"]["type"] == "BPE"
                return FakeAccelerator(bpe.backend_tokenizer, wrong)

    monkeypatch.setitem(sys.modules, "tokie", Module)
    monkeypatch.setattr(encoding.importlib.metadata, "version", lambda name: "9.9")
    monkeypatch.setattr(encoding, "ACCELERATE_FROM", 0)
    monkeypatch.setattr(filling, "_SAMPLE", 2000)
    monkeypatch.setattr(filling, "BATCH_CHARACTERS", 40)  # every document is the longest of its batch
    cache = build_token_cache(corpus, bpe, cache_dir=tmp_path / "fast")
    finding = next(f for f in cache.findings if f.name == "encoder")
    assert finding.measured == measured
    assert reason in finding.reason
    assert tokens(cache) == whole


def test_the_real_accelerator(bpe: TextTokenizer) -> None:
    pytest.importorskip("tokie")
    encode, finding = encoding.accelerated_encode(bpe, DOCUMENTS)
    assert finding.verdict in ("ok", "note")
    if encode is not None:  # whatever its version does wrong is found by the check above
        expected = encoding.library_encode(bpe)(DOCUMENTS)
        got = encode(DOCUMENTS)
        assert np.array_equal(got.ids, expected.ids)
        assert np.array_equal(got.lengths, expected.lengths)
