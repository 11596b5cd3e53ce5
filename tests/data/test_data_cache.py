"""The token cache: the tokens of the text, written whole or not at all, found again only for the same input."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anyformer.data.cache as cache_module
from anyformer.core.errors import DataError, TrainingError
from anyformer.core.protocols import Progress
from anyformer.core.view import QuietView
from anyformer.data import build_token_cache, filling, open_corpus
from anyformer.tokenization import BPETrainerConfig, CharacterLevelTokenizer, FastBPETrainer, TextTokenizer, encoding

DOCUMENTS = [f"The {n}th document says é, 世界 and {n * n}.\n" for n in range(200)]


@pytest.fixture(scope="module")
def bpe() -> TextTokenizer:
    return FastBPETrainer(BPETrainerConfig(vocab_size=400)).train_on_dataset(DOCUMENTS)


def test_documents_and_their_ends(tmp_path: Path, bpe: TextTokenizer) -> None:
    cache = build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path)
    assert cache.train.dtype == cache.val.dtype == np.uint16
    found = []
    for side in (cache.train, cache.val):
        *documents, rest = bpe.decode(side.tolist()).split("</s>")
        assert rest == ""
        found.append(documents)
    assert sorted(found[0] + found[1]) == sorted(DOCUMENTS)
    assert [d for d in DOCUMENTS if d in found[1]] == found[1]  # in order
    for side, documents, tokens in (("train", found[0], cache.train), ("val", found[1], cache.val)):
        assert cache.meta[side] == {
            "documents": len(documents),
            "bytes": sum(len(d.encode()) for d in documents),
            "tokens": len(tokens),
        }
    # the ids of each document are those the tokenizer gives it alone
    expected = [i for d in found[0] for i in [*bpe.encode(d), bpe.eos_token_id]]
    assert cache.train.tolist() == expected
    assert json.loads((cache.path / "meta.json").read_text())["fingerprint"] == cache.meta["fingerprint"]
    assert cache.meta["sha256"] == {
        side: hashlib.sha256((cache.path / f"{side}.bin").read_bytes()).hexdigest() for side in ("train", "val")
    }
    assert cache.path.name == cache.meta["fingerprint"][:16]
    assert cache.meta["path"] == str(cache.path)


def test_a_single_text_has_no_marks_inside(tmp_path: Path, bpe: TextTokenizer) -> None:
    text = "".join(DOCUMENTS) * 40
    cache = build_token_cache(open_corpus([text]), bpe, cache_dir=tmp_path)
    assert bpe.decode(cache.train.tolist()) + bpe.decode(cache.val.tolist()) == text
    assert cache.meta["train"]["documents"] == -(-cache.meta["train"]["bytes"] // 65_536)


def test_a_document_longer_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "BATCH_CHARACTERS", 100)
    documents = ["x" * 1234 + "\n" + "é\n" * 333, "y" * 100, "z" * 101]
    tokenizer = CharacterLevelTokenizer(400, texts=documents)
    cache = build_token_cache(open_corpus(documents), tokenizer, val_split=0.0, cache_dir=tmp_path)
    assert tokenizer.decode(cache.train.tolist()) == "</s>".join([*documents, ""])
    assert cache.meta["train"]["documents"] == 3
    assert len(cache.val) == 0


def test_found_again_only_for_the_same_input(
    tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path)
    bpe("a b c d", truncation=True, max_length=2, padding="max_length")  # must not change the key, nor later ids
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "fill", lambda *_: pytest.fail("encoded again"))
        again = build_token_cache(open_corpus(list(DOCUMENTS)), bpe, cache_dir=tmp_path)
        assert again.path == first.path
    other = FastBPETrainer(BPETrainerConfig(vocab_size=399)).train_on_dataset(DOCUMENTS)
    paths = {
        first.path,
        build_token_cache(open_corpus([*DOCUMENTS, "x"]), bpe, cache_dir=tmp_path).path,
        build_token_cache(open_corpus(DOCUMENTS[::-1]), bpe, cache_dir=tmp_path).path,
        build_token_cache(open_corpus(DOCUMENTS), other, cache_dir=tmp_path).path,
        build_token_cache(open_corpus(DOCUMENTS), bpe, val_split=0.2, cache_dir=tmp_path).path,
        build_token_cache(open_corpus(DOCUMENTS), bpe, val_corpus=open_corpus(["x"]), cache_dir=tmp_path).path,
    }
    assert len(paths) == 6


def edit_before_encoding(patch: pytest.MonkeyPatch, file: Path, old: str, new: str) -> None:
    """Another program writes into the file after it was scanned."""
    encode = cache_module.fill

    def edited(*arguments: Any) -> Any:
        file.write_text(file.read_text().replace(old, new))
        return encode(*arguments)

    patch.setattr(cache_module, "fill", edited)


@pytest.mark.parametrize("changed", ["train", "val"])
def test_text_that_changes_while_it_is_read(
    tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    files = {"train": tmp_path / "train.txt", "val": tmp_path / "val.txt"}
    files["train"].write_text("".join(DOCUMENTS))
    files["val"].write_text("".join(DOCUMENTS[:50]))
    corpora = {side: open_corpus(file) for side, file in files.items()}
    with monkeypatch.context() as patch:
        edit_before_encoding(patch, files[changed], "The 1", "THE 1")
        with pytest.raises(DataError, match=rf"{changed}\.txt changed while it was read") as caught:
            build_token_cache(corpora["train"], bpe, val_corpus=corpora["val"], cache_dir=tmp_path / "cache")
    assert "run again" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
    # the same corpora, as they are now
    cache = build_token_cache(corpora["train"], bpe, val_corpus=corpora["val"], cache_dir=tmp_path / "cache")
    assert bpe.decode(cache.train.tolist()) == files["train"].read_text()
    assert bpe.decode(cache.val.tolist()) == files["val"].read_text()


@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize("changed", ["train", "val"])
def test_documents_that_change_while_they_are_read(
    tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch, changed: str, shared: int
) -> None:
    texts = {"train": DOCUMENTS[:40], "val": [*DOCUMENTS[40:60], *DOCUMENTS[:shared]]}
    files = {side: tmp_path / f"{side}.jsonl" for side in texts}
    for side, rows in texts.items():
        files[side].write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    corpora = {side: open_corpus(file) for side, file in files.items()}
    with monkeypatch.context() as patch:
        edit_before_encoding(patch, files[changed], "document says", "Document says")
        with pytest.raises(DataError, match=rf"{changed}\.jsonl changed while it was read"):
            build_token_cache(corpora["train"], bpe, val_corpus=corpora["val"], cache_dir=tmp_path / "cache")
    cache = build_token_cache(corpora["train"], bpe, val_corpus=corpora["val"], cache_dir=tmp_path / "cache")
    assert cache.meta["val"]["documents"] == len(texts["val"])
    assert 40 - shared <= cache.meta["train"]["documents"] <= 40  # what was shared may be another text now


def test_the_training_text_cannot_be_held_out_as_well(tmp_path: Path, bpe: TextTokenizer) -> None:
    (tmp_path / "a.txt").write_text("".join(DOCUMENTS))
    (tmp_path / "copy.txt").write_text("".join(DOCUMENTS))
    a, copy = open_corpus(tmp_path / "a.txt"), open_corpus(tmp_path / "copy.txt")
    with pytest.raises(DataError, match="the held-out text is the training text"):
        build_token_cache(a, bpe, val_corpus=copy, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_fingerprint_that_runs_record_outlives_the_files_format(
    tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path).meta
    monkeypatch.setattr(cache_module, "_FORMAT", 99)
    after = build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path).meta
    assert (after["format"], after["fingerprint"]) == (99, before["fingerprint"])


def test_truncation_left_on_by_a_call_does_not_cut_the_text(tmp_path: Path, bpe: TextTokenizer) -> None:
    bpe("a b c d", truncation=True, max_length=2, padding="max_length")
    cache = build_token_cache(open_corpus(DOCUMENTS), bpe, val_split=0.0, cache_dir=tmp_path)
    assert cache.meta["train"]["tokens"] > 10 * len(DOCUMENTS)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = CharacterLevelTokenizer(70_000)
    text = "a\U0001f600" * 50
    cache = build_token_cache(open_corpus([text]), tokenizer, val_split=0.0, cache_dir=tmp_path)
    assert cache.train.dtype == np.uint32
    assert tokenizer.decode(cache.train.tolist()) == text


def test_any_hugging_face_tokenizer(tmp_path: Path, bpe: TextTokenizer) -> None:
    from transformers import AutoTokenizer

    bpe.save_pretrained(tmp_path / "tok")
    foreign = AutoTokenizer.from_pretrained(tmp_path / "tok")
    ours = build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path / "a")
    theirs = build_token_cache(open_corpus(DOCUMENTS), foreign, cache_dir=tmp_path / "b")
    assert np.array_equal(ours.train, theirs.train)


@pytest.mark.parametrize(
    "damage",
    ["no meta", "cut meta", "count", "short", "long", "bytes", "older format", "other", "empty folder", "file"],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, bpe: TextTokenizer, damage: str) -> None:
    first = build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path)
    expected, folder = first.train.tolist(), first.path
    meta = folder / "meta.json"
    if damage == "no meta":
        meta.unlink()
    elif damage == "cut meta":
        meta.write_text(meta.read_text()[:-20])
    elif damage == "count":  # what the statistics are made of
        meta.write_text(meta.read_text().replace('"bytes": ', '"bytes": 9', 1))
    elif damage == "short":
        os.truncate(folder / "train.bin", 100)
    elif damage == "long":
        with (folder / "val.bin").open("ab") as stream:
            stream.write(b"xx")
    elif damage == "bytes":  # as many bytes, one bit another
        data = bytearray((folder / "train.bin").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "train.bin").write_bytes(data)
    elif damage == "older format":  # without sums; the fingerprint, which runs record, is the same
        old = {key: value for key, value in first.meta.items() if key != "sha256"} | {"format": 1}
        meta.write_text(json.dumps(old))
    elif damage == "other":
        meta.write_text(meta.read_text().replace(first.meta["fingerprint"], "0" * 64))
    else:
        for file in folder.iterdir():
            file.unlink()
        if damage == "file":
            folder.rmdir()
            folder.write_text("in the way")
    again = build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path)
    assert again.train.tolist() == expected
    assert again.meta == first.meta
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]  # nothing is left lying about
    told = [f.verdict for f in again.findings if f.name == "token cache"]
    assert told == ([] if damage in ("no meta", "empty folder", "file") else ["warn"])
    assert all(f.name != "token cache" for f in first.findings)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_stays(
    tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    encode, calls = encoding.encode_texts, []

    def fails(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise failure
        return encode(*arguments)

    monkeypatch.setattr(encoding, "encode_texts", fails)
    monkeypatch.setattr(filling, "BATCH_CHARACTERS", 1000)
    expected = TrainingError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    if expected is TrainingError:
        assert str(tmp_path) in str(caught.value)
        assert "cache_dir" in str(caught.value)  # one was given, which ANYFORMER_CACHE does not change


def test_a_really_full_disk(tmp_path: Path) -> None:
    code = f"""
import resource
from anyformer.data import build_token_cache, open_corpus
from anyformer.tokenization import CharacterLevelTokenizer
corpus = open_corpus(["some text " * 9999])
tokenizer = CharacterLevelTokenizer(300, texts=corpus)
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
build_token_cache(corpus, tokenizer, cache_dir={str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "TrainingError: the disk is full" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="give as cache_dir a folder of your own"):
        build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path / "file" / "cache")
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(TrainingError, match="set ANYFORMER_CACHE to a folder of your own"):
        build_token_cache(open_corpus(DOCUMENTS), bpe)


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = f"""
import sys
from anyformer.data import build_token_cache, open_corpus
from anyformer.tokenization import CharacterLevelTokenizer
corpus = open_corpus([f"document {{n}}" for n in range(3000)])
tokenizer = CharacterLevelTokenizer(300, texts=corpus)
print("ready", flush=True); sys.stdin.readline()
for split in (0.1, 0.2, 0.3, 0.4, 0.5):
    cache = build_token_cache(corpus, tokenizer, val_split=split, cache_dir={str(tmp_path)!r})
    print(len(cache.train), int(cache.train.astype("int64").sum()), flush=True)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(list(tmp_path.iterdir())) == 5


def test_race_lost(tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks another process may finish while this one encodes: its files are used, ours are removed."""
    monkeypatch.setattr(filling, "fcntl", None)
    encode = cache_module.fill

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(cache_module, "fill", encode)
        build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path)
        return encode(*arguments)

    monkeypatch.setattr(cache_module, "fill", slow)
    cache = build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path)
    assert cache.meta["train"]["tokens"] == len(cache.train)
    assert len(list(tmp_path.iterdir())) == 1


def test_progress_in_bytes(tmp_path: Path, bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress] = []

    class Watcher(QuietView):
        def progress(self, progress: Progress) -> None:
            seen.append(progress)

    monkeypatch.setattr(filling, "BATCH_CHARACTERS", 1000)
    build_token_cache(open_corpus(DOCUMENTS), bpe, cache_dir=tmp_path, view=Watcher())
    total = sum(len(d.encode()) for d in DOCUMENTS)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (total, total, "bytes")
    assert len(seen) > 5


@pytest.mark.soak
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    code = """
import resource, sys
from anyformer.data import build_token_cache, open_corpus
from anyformer.tokenization import CharacterLevelTokenizer
small, large, cache = sys.argv[1:]
tokenizer = CharacterLevelTokenizer(300, texts=open_corpus(small))
peaks = []
for path in (small, large):
    build_token_cache(open_corpus(path), tokenizer, cache_dir=cache)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(peaks[1] - peaks[0])
"""
    line = "some ordinary words in a line of text\n"
    for name, size in (("small", 4_000_000), ("large", 40_000_000)):
        (tmp_path / f"{name}.txt").write_text(line * (size // len(line)))
    arguments = [str(tmp_path / "small.txt"), str(tmp_path / "large.txt"), str(tmp_path / "cache")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20  # MB, for 36 MB more text and 72 MB more of tokens


class Words:
    """A tokenizer without a tokenizer.json, with a setting of its own."""

    eos_token_id = None

    def __init__(self, lower: bool) -> None:
        self.lower = lower

    def __len__(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(n): n for n in range(256)}

    def encode(self, text: str) -> list[int]:
        return list((text.lower() if self.lower else text).encode())


def test_the_cache_of_a_tokenizer_with_another_setting_is_another(tmp_path: Path) -> None:
    plain, lower, same = (
        build_token_cache(open_corpus(DOCUMENTS), Words(lower), cache_dir=tmp_path) for lower in (False, True, True)
    )
    assert plain.path != lower.path == same.path
    assert bytes(plain.train.astype(np.uint8)).lower() == bytes(lower.train.astype(np.uint8))
    assert not np.array_equal(plain.train, lower.train)


def test_a_call_that_splits_special_tokens_changes_no_later_one(tmp_path: Path, bpe: TextTokenizer) -> None:
    documents = [f"{n} </s> of many\n" for n in range(100)]
    first = build_token_cache(open_corpus(documents), bpe, cache_dir=tmp_path / "a")
    bpe("x </s>", split_special_tokens=True)
    again = build_token_cache(open_corpus(documents), bpe, cache_dir=tmp_path / "b")
    assert np.array_equal(first.train, again.train)
    split = TextTokenizer(tokenizer_object=bpe.backend_tokenizer, eos_token="</s>", split_special_tokens=True)
    apart = build_token_cache(open_corpus(documents), split, cache_dir=tmp_path / "a")
    assert apart.path != first.path
    assert len(apart.train) > len(first.train)


class OwnAlphabet(Words):
    """Knows the characters of its text alone, has no __dict__, and counts its calls."""

    __slots__ = ("calls", "lower")

    def __init__(self, lower: bool = False) -> None:
        self.lower, self.calls = lower, 0

    def encode(self, text: str) -> list[int]:
        self.calls += 1
        return [{"a": 0, "b": 1, " ": 2}[c] for c in text]


def test_a_tokenizer_that_knows_its_own_letters_alone(tmp_path: Path) -> None:
    first = build_token_cache(open_corpus(["ab ba" * 20]), OwnAlphabet(), cache_dir=tmp_path, val_split=0)
    again = build_token_cache(open_corpus(["ab ba" * 20]), OwnAlphabet(), cache_dir=tmp_path, val_split=0)
    assert first.path == again.path
    assert first.train.tolist() == [0, 1, 2, 1, 0] * 20
