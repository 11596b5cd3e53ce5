"""Text into the token cache: how fast, beside the library's own ``encode_batch_fast``, and in how much memory.

    python benchmarks/token_cache.py speed [--megabytes 24] [--rounds 8]
    python benchmarks/token_cache.py memory [--megabytes 1000] [--plain] [--processes 2]

speed: the same text of the Python standard library, ways taken in turn in one process, medians; the tokenizer is a BPE
of 8,192 trained on it. The time of the cache is that of all it does: reading, hashing, encoding, writing, verifying.
memory: one build in a process of its own; the resident memory of it and its children, summed, five times a second
(pages that they share are counted more than once).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tokenizers

from anyformer.core.findings import Finding
from anyformer.data import PYTHON_STDLIB, build_token_cache, filling, open_corpus
from anyformer.data.split import Piece
from anyformer.tokenization import BPETrainerConfig, FastBPETrainer, TextTokenizer, encoding

BUILD = """
import sys
from anyformer.data import build_token_cache, open_corpus
from anyformer.tokenization import encoding, load_tokenizer
text, tokenizer, cache, plain, processes = sys.argv[1:]
if plain == "plain":
    encoding.ACCELERATE_FROM = 1 << 60
count = int(processes) if processes else None
built = build_token_cache(open_corpus(text), load_tokenizer(tokenizer), cache_dir=cache, processes=count)
print(len(built.train) + len(built.val), next(f.measured for f in built.findings if f.name == "encoder"))
"""
PAGE = os.sysconf("SC_PAGE_SIZE")


def write_text(file: Path, size: int) -> None:
    """``size`` bytes of the standard library's sources, over and over, each time with other numbers in between."""
    written = round_number = 0
    with file.open("wb") as stream:
        while written < size:
            for number, document in enumerate(open_corpus(PYTHON_STDLIB)):
                written += stream.write(document.encode() + f"\n# {round_number} {number}\n".encode())
                if written >= size:
                    break
            round_number += 1


def train(folder: Path) -> TextTokenizer:
    """A byte-level BPE of 8,192 from 10 MB of the standard library."""
    file = folder / "train.txt"
    write_text(file, 10_000_000)
    return FastBPETrainer(BPETrainerConfig(vocab_size=8192)).train_on_dataset(open_corpus(file))


def seconds_of_library(tokenizer: TextTokenizer, batches: list[list[str]]) -> float:
    """The library alone on the same documents, with its own threads, ids thrown away: no reading, writing, arrays."""
    start = time.perf_counter()
    for texts in batches:
        tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return time.perf_counter() - start


def seconds_of_cache(tokenizer: TextTokenizer, file: Path, accelerated: bool, processes: int) -> tuple[float, Finding]:
    """One build into an empty folder."""
    encoding.ACCELERATE_FROM = 1 << 20 if accelerated else 1 << 60
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        built = build_token_cache(open_corpus(file), tokenizer, cache_dir=cache, processes=processes)
        seconds = time.perf_counter() - start
    return seconds, next(f for f in built.findings if f.name == "encoder")


def speed(megabytes: int, rounds: int) -> None:
    """Print the table of throughputs and their ratios to the library's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train(folder)
        file = folder / "text.txt"
        write_text(file, megabytes * 1_000_000)
        batches = filling.batches(Piece("train", text, True, False) for text in open_corpus(file))
        texts = [[piece.text for piece in batch] for batch in batches]
        names = ["library alone", "cache, plain", "cache, processes", "cache, accelerated"]
        ways: dict[str, list[float]] = {way: [] for way in names}
        cores, notes = encoding.core_count(), {}
        for number in range(rounds):
            first = number % len(names)  # each way is first in turn: what follows a fast one finds a cooler machine
            for way in names[first:] + names[:first]:
                if way == "library alone":
                    ways[way].append(seconds_of_library(tokenizer, texts))
                    continue
                processes = cores if way == "cache, processes" else 0
                seconds, finding = seconds_of_cache(tokenizer, file, way == "cache, accelerated", processes)
                ways[way].append(seconds)
                notes[way] = f"{finding.measured}: {finding.reason}"
        print(
            f"{megabytes} MB, {rounds} rounds, {cores} cores, {platform.machine()}, tokenizers {tokenizers.__version__}"
        )
        print("| way | MB/s | against the library alone | |\n|---|---|---|---|")
        for way, times in ways.items():
            median = statistics.median(times)
            ratio = statistics.median(b / t for b, t in zip(ways["library alone"], times, strict=True))
            print(f"| {way} | {megabytes / median:.1f} | {ratio:.2f} | {notes.get(way, '')} |")


def resident(pid: int) -> int:
    """Bytes resident of a process and all below it."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            own = int(status.parent.name)
            if own == pid:
                total += int(fields[21]) * PAGE
            elif int(fields[1]) == pid:
                total += resident(own)
        except OSError:  # it has ended meanwhile
            continue
    return total


def memory(megabytes: int, plain: bool, processes: int | None) -> None:
    """Print the memory of one build as a curve, and its peak."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder).save(folder / "tokenizer.json")
        file = folder / "text.txt"
        write_text(file, megabytes * 1_000_000)
        command = [sys.executable, "-c", BUILD, str(file), str(folder / "tokenizer.json"), str(folder / "cache")]
        start = time.perf_counter()
        command += ["plain" if plain else "any", str(processes or "")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        curve = []
        while process.poll() is None:
            curve.append((time.perf_counter() - start, resident(process.pid) / 1e6))
            time.sleep(0.2)
        assert process.stdout is not None
        print(f"{megabytes} MB in {time.perf_counter() - start:.0f} s: {process.stdout.read().strip()}")
        step = max(1, len(curve) // 12)
        print("| s | MB resident |\n|---|---|")
        for seconds, megabyte in curve[::step]:
            print(f"| {seconds:.0f} | {megabyte:.0f} |")
        print(f"| peak | {max(m for _, m in curve):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--megabytes", type=int)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--plain", action="store_true", help="without the accelerator")
    parser.add_argument("--processes", type=int, help="that encode; as the cache chooses where left out")
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.megabytes or 24, given.rounds)
    else:
        memory(given.megabytes or 1000, given.plain, given.processes)


if __name__ == "__main__":
    main()
