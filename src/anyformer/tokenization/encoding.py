"""Text → ids in bulk: the fastest way that gives the library's own ids, proven on the text at hand.

N texts in a batch. Ids come as one array and the number of ids of each text.
"""

from __future__ import annotations

import importlib.metadata
import os
import queue
import random
import subprocess
import sys
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.tokenization import accelerator, encode_worker
from anyformer.tokenization.base import TextTokenizer, as_made, encode_texts, splits_special_tokens

ACCELERATOR = "tokie"
"""Optional package (extra ``fast``); ``accelerator`` says for which text it gives the library's ids."""
PROCESSES_FROM = 32 << 20  # bytes of text; below, starting processes (0.3 s) costs more than it gives
_PROCESSES = 2
ACCELERATE_FROM = 1 << 20
_AT_ONCE = 1 << 20  # characters that one call of the library encodes
_LONG = 1 << 13
"""Characters of a part of a text, where parts give the same ids: long texts leave threads idle and are slower by the
byte. benchmarks/results/token_cache.md has 4,096 to 32,768 beside the library on whole texts."""
_LEAST_GIVEN = 0.5  # share of the text that the accelerator must be fit for: with less the library alone is as fast
_SLICE = 4096  # characters of each batch that are encoded both ways, for as long as the accelerator is used
# What fast tokenizers get wrong: runs of white space, contractions, marks that combine, text beyond the BMP.
PROBES = (
    "  two  spaces\n\n\n and\ttabs \r\n end ",
    "don't I'll WE'RE 'tis can't've",
    "e\u0301 ñ 世界 שלום \u202eabc\u202c 👩‍👩‍👧‍👦 🇩🇪 \U0001f3fd",
    "1234567890 3.14159 1,000,000 ½ ²",
    "\x00\x01\x7f\u00a0\u2003\u3000\ufeff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "",
)
_HARDER = (*PROBES, "end\n\n\x0cpage  \x0b x", "\t'title' \u24b6's", "\t\t'sql'\r\n   x")
"""PROBES are part of fingerprints; these are not."""


class Ids(NamedTuple):
    """The ids of a batch of texts, one after the other, and how many each text has."""

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]


class EncoderMismatch(Exception):
    """The accelerator gave other ids than the library somewhere in the middle: what it encoded cannot be used."""


Encode = Callable[[list[str]], Ids]


def library_encode(tokenizer: Any) -> Encode:
    """Encoding in this process by the tokenizer itself. Raises TokenizerError as ``encode_texts`` does.

    The library keeps some 200 bytes for each token until a call returns: few texts at once, and long ones in parts.
    """
    parted = _cuts_long_texts(tokenizer)

    def encode(texts: list[str]) -> Ids:
        parts, counts = _in_parts(texts) if parted else (texts, [1] * len(texts))
        ids, lengths = array("I"), array("q")  # an array is four times as fast as NumPy at reading a list
        for few in _groups(parts):
            for row in encode_texts(tokenizer, few):
                ids.fromlist(row if isinstance(row, list) else list(row))
                lengths.append(len(row))
        return Ids(np.frombuffer(ids, dtype=np.uintc).astype(np.uint32, copy=False), _summed(lengths, counts))

    return encode


def _cuts_long_texts(tokenizer: Any) -> bool:
    """Whether a text may be encoded in parts that end before a space; said by the tokenizer's own pattern."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return isinstance(backend, tokenizers.Tokenizer) and accelerator.is_known(as_made(tokenizer).to_str())


def _in_parts(texts: list[str]) -> tuple[list[str], list[int]]:
    """The texts, long ones in parts, and how many parts each has."""
    cuts = [_cut(text) for text in texts]
    return [part for cut in cuts for part in cut], [len(cut) for cut in cuts]


def _cut(text: str) -> list[str]:
    """The text in parts of at least so many characters, cut at the first place where the ids stay the same."""
    parts, start = [], 0
    while len(text) - start > 2 * _LONG:
        place = accelerator.BEFORE_SPACE.search(text, start + _LONG)
        if place is None:
            break
        parts.append(text[start : place.start()])
        start = place.start()
    return [*parts, text[start:]]


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """The texts in lists of about a million characters."""
    few: list[str] = []
    size = 0
    for text in texts:
        few.append(text)
        size += len(text)
        if size >= _AT_ONCE:
            yield few
            few, size = [], 0
    if few:
        yield few


def _summed(lengths: Iterable[int], counts: list[int]) -> NDArray[np.int64]:
    """Of the ids of parts, those of each text."""
    ends = np.cumsum([0, *lengths], dtype=np.int64)
    summed: NDArray[np.int64] = np.diff(ends[np.cumsum([0, *counts])])
    return summed


def accelerated_encode(tokenizer: Any, sample: list[str]) -> tuple[Encode | None, Finding]:
    """Encoding by the optional accelerator where it gives the library's ids on ``sample`` and on hard cases.

    (None, why not) otherwise. Of every batch a slice is encoded both ways; where they differ, EncoderMismatch.
    """
    try:
        import tokie
    except ImportError:
        return None, Finding("encoder", "note", "the tokenizers library", reason=f"{ACCELERATOR} is not installed")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        return None, Finding("encoder", "note", type(tokenizer).__name__, reason="it has no tokenizer.json")
    which = f"{ACCELERATOR} {importlib.metadata.version(ACCELERATOR)}"
    library = library_encode(tokenizer)
    if not accelerator.is_known(as_made(tokenizer).to_str()):
        why = f"of {which} only byte-level BPE with GPT-2's pattern is known to give the library's ids"
        return None, Finding("encoder", "note", "the tokenizers library", reason=why)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        as_made(tokenizer).save(str(file))
        try:
            fast: Any = tokie.Tokenizer.from_json(str(file))
        except (tokie.TokieError, OSError, ValueError) as error:
            why = f"{which} cannot read this tokenizer: {error}"
            return None, Finding("encoder", "note", "the tokenizers library", which, why)

    def encode(texts: list[str]) -> Ids:
        cuts = [None if accelerator.errs(text) else accelerator.cut(text) for text in texts]
        parts = [part for cut in cuts if cut is not None for part in cut]
        try:
            ids, lengths = fast.encode_batch_flat(parts, add_special_tokens=False)
        except BaseException as error:
            if not accelerator.is_panic(error):
                raise
            raise EncoderMismatch(f"{which} failed: {error}") from error
        return _joined(texts, cuts, Ids(np.asarray(ids, np.uint32), np.asarray(lengths, np.int64)), library)

    fit = sum(len(text) for text in sample if not accelerator.errs(text) and accelerator.cut(text) is not None)
    share = fit / max(1, sum(len(text) for text in sample))
    if share < _LEAST_GIVEN:
        why = f"{1 - share:.0%} of the text holds what {which} is known to err in"
        return None, Finding("encoder", "note", "the tokenizers library", reason=why)
    specials = [str(token) for token in backend.get_added_tokens_decoder().values()]
    probes = [*_HARDER, *(f"a{token} b {token}{token}" for token in specials), *sample]
    if isinstance(tokenizer, TextTokenizer) and tokenizer.closed_alphabet() is not None:
        probes = sample
    at = _first_difference(probes, encode, library)
    if at is not None:
        why = f"{which} gives other ids for {probes[at][:60]!r}"
        return None, Finding("encoder", "note", "the tokenizers library", "equal ids", why)

    place = random.Random(0)

    def checked(texts: list[str]) -> Ids:
        if isinstance(tokenizer, TextTokenizer):
            tokenizer.check_texts(texts)
        part = []
        if texts:  # another place of another text each time, the longer ones more often
            text = place.choices(texts, [len(text) + 1 for text in texts])[0]
            start = place.randrange(max(1, len(text) - _SLICE))
            part = [text[start : start + _SLICE]]
        if _first_difference(part, encode, library) is not None:
            raise EncoderMismatch(f"{which} gives other ids for {part[0][:60]!r}")
        return encode(texts)

    size = sum(len(text) for text in probes if not accelerator.errs(text))
    same = f"ids equal to the library's on {size:,} characters, and on {_SLICE:,} of every million"
    if share < 1:
        same += f"; {1 - share:.2g} of its text, in which it is known to err, goes to the library"
    return checked, Finding("encoder", "ok", which, "equal ids", same)


def _joined(texts: list[str], cuts: list[list[str] | None], fast: Ids, library: Encode) -> Ids:
    """The ids of all texts: of those that were cut their parts', of those that were left out (None) the library's."""
    if all(cut is not None and len(cut) == 1 for cut in cuts):
        return fast
    left = library([text for text, cut in zip(texts, cuts, strict=True) if cut is None])
    ends, left_ends = np.cumsum(fast.lengths), np.cumsum(left.lengths)
    rows: list[NDArray[np.uint32]] = []
    part = at = left_part = left_at = 0
    for cut in cuts:
        if cut is None:
            end = int(left_ends[left_part])
            rows.append(left.ids[left_at:end])
            left_part, left_at = left_part + 1, end
        else:
            part += len(cut)
            end = int(ends[part - 1])
            rows.append(fast.ids[at:end])
            at = end
    return Ids(np.concatenate(rows), np.asarray([*map(len, rows)], dtype=np.int64))


def _first_difference(texts: list[str], one: Encode, other: Encode) -> int | None:
    """The first text to which the two give different ids."""
    for number, text in enumerate(texts):
        if not np.array_equal(one([text]).ids, other([text]).ids):
            return number
    return None


class EncoderPool:
    """Processes, each encoding whole batches by the library with its share of the cores. Use it in a ``with``.

    Only for tokenizers with a tokenizer.json (``fits``). Memory: some 60 MB per process and 2 batches in flight each.
    """

    def __init__(self, tokenizer: Any, processes: int) -> None:
        self._tokenizer = tokenizer
        self._header = as_made(tokenizer).to_str().encode("utf-8")
        self._parted = _cuts_long_texts(tokenizer)
        self._count = processes
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._all: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def fits(tokenizer: Any) -> bool:
        """Whether the tokenizer can be handed to another process as text."""
        whole = isinstance(getattr(tokenizer, "backend_tokenizer", None), tokenizers.Tokenizer)
        return whole and not splits_special_tokens(tokenizer)  # which no tokenizer.json holds

    def __enter__(self) -> EncoderPool:
        command = [sys.executable, "-P", encode_worker.__file__]  # -P: the files beside it must not shadow others
        threads = max(1, core_count() // self._count)
        own = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "true",
            "RAYON_NUM_THREADS": str(threads),
            "MALLOC_ARENA_MAX": "1",
        }
        for _ in range(self._count):
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=own)
            self._all.append(worker)
            self._free.put(worker)
            assert worker.stdin is not None
            worker.stdin.write(np.asarray([len(self._header)], dtype="<i8").tobytes() + self._header)
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._all:
            worker.kill()
        for worker in self._all:
            worker.communicate()

    def encode(self, texts: list[str]) -> Ids:
        """One batch, by the next process that is free. Raises TokenizerError where the process has ended."""
        if isinstance(self._tokenizer, TextTokenizer):
            self._tokenizer.check_texts(texts)
        parts, counts = _in_parts(texts) if self._parted else (texts, [1] * len(texts))
        try:
            data = [part.encode("utf-8") for part in parts]
        except UnicodeEncodeError:
            return library_encode(self._tokenizer)(texts)  # says in its own words what is wrong with the text
        worker = self._free.get()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(np.asarray([len(data), *map(len, data)], dtype="<i8").tobytes())
            worker.stdin.write(b"".join(data))
            worker.stdin.flush()
            lengths = encode_worker.read_array(worker.stdout, "<i8", len(data))
            ids = encode_worker.read_array(worker.stdout, "<u4", int(lengths.sum()))
        except (EOFError, OSError) as error:
            with suppress(subprocess.TimeoutExpired):  # its pipe closes a moment before it has ended
                worker.wait(timeout=5)
            raise TokenizerError(
                f"a process that encodes text has ended (exit code {worker.returncode})",
                detail="the machine may have run out of memory",
                fix="run again: what is encoded already is kept",
            ) from error
        finally:
            self._free.put(worker)
        return Ids(ids, _summed(lengths, counts))


def encode_stream(encode: Encode, batches: Iterable[list[str]], ahead: int = 0) -> Iterator[Ids]:
    """The ids of every batch, in order. ahead: batches that are encoded at once, in threads; 0 one by one, here."""
    if ahead < 1:
        yield from map(encode, batches)
        return
    with ThreadPoolExecutor(ahead) as threads:
        waiting: deque[Future[Ids]] = deque()
        try:
            for batch in batches:
                waiting.append(threads.submit(encode, batch))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def process_count(size: int) -> int:
    """How many processes encode ``size`` bytes of text beside this one; 0: this one alone, by the library's threads.

    On two cores the threads are faster (benchmarks/results/token_cache.md). More of them took more than 600 MB.
    """
    return _PROCESSES if size >= PROCESSES_FROM and core_count() >= 4 else 0


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
