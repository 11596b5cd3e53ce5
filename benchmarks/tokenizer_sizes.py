"""Tokenizers that are made here: the sizes asked for and got, the time and the peak memory of each.

    python benchmarks/tokenizer_sizes.py [--only sizes samples corpora characters] [--large 200]

Each row is a process of its own: its peak resident memory and the time of the training alone. sizes: byte-level BPE
on the Python standard library's sources, 10 MB and all of them, and on as many different words as the largest needs.
samples: documents of 300 words. corpora: --large megabytes of sources, of Chinese without spaces, of minified code
and of letters (one line without a space each), of different words. characters: without a text, with saving and loading.
Writes benchmarks/results/tokenizers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anyformer.tokenization import TextTokenizer

RESULTS = Path(__file__).parent / "results" / "tokenizers.md"
PARTS = ("sizes", "samples", "corpora", "characters")
HEAD = "| text | asked | got | seconds | CPU seconds | MB before | peak MB | said |\n|---|---|---|---|---|---|---|---|"
TITLE = """# Tokenizers made here: sizes, time, memory

Each row is a process of its own. Seconds: training alone, wall clock and CPU (a busy machine shows in the difference);
MB: resident memory before it (imports, and the text where it is a list) and at its peak.
"""
LOWER = "abcdefghijklmnopqrstuvwxyz"


def stdlib(size: int) -> Iterator[str]:
    """About ``size`` bytes of the standard library; where it has fewer, again with other names."""
    from anyformer.data import PYTHON_STDLIB, open_corpus

    given = turn = 0
    while True:
        for text in open_corpus(PYTHON_STDLIB):
            yield text if not turn else text.replace("self", f"self{turn}").replace("def ", f"def v{turn}_")
            given += len(text.encode())
            if given >= size:
                return
        turn += 1


def samples(count: int) -> Iterator[str]:
    """Documents of 300 words of the standard library's sources."""
    words = (word for text in stdlib(count * 6000) for word in text.split(" "))
    for _ in range(count):
        yield " ".join(next(words) for _ in range(300))


def chinese(size: int) -> Iterator[str]:
    """Characters of falling frequency (Zipf), a comma after each thirty, no space."""
    rng = np.random.default_rng(0)
    order = rng.permutation(np.arange(0x4E00, 0x4E00 + 20_000))
    share = 1 / np.arange(1, 20_001)
    for _ in range(size // 913_000):
        chosen = "".join(map(chr, rng.choice(order, 300_000, p=share / share.sum())))
        yield "，".join(chosen[i : i + 30] for i in range(0, 300_000, 30))


def minified(size: int) -> Iterator[str]:
    """Pieces of one line without a space: names, brackets and numbers."""
    rng = random.Random(0)
    names = ["".join(rng.choices(LOWER, k=rng.randint(1, 7))) for _ in range(20_000)]
    marks = [".", "(", ")", ";", ",", "=", "(function(", "){return ", "}", *map(str, range(50))]
    for _ in range(size // 600_000):
        yield "".join(map("".join, zip(rng.choices(names, k=100_000), rng.choices(marks, k=100_000), strict=True)))


def different(size: int) -> Iterator[str]:
    """Words of eight random letters: hardly one occurs twice."""
    for piece in letters(size):
        row = bytearray(piece.encode())
        row[8::9] = b" " * len(row[8::9])
        yield row.decode()


def twice(size: int) -> Iterator[str]:
    """Different words, all of them two times."""
    yield from different(size // 2)
    yield from different(size // 2)


def letters(size: int) -> Iterator[str]:
    """Pieces of one line of random letters."""
    rng = random.Random(0)
    for _ in range(size // 900_000):
        yield rng.randbytes(900_000).translate((LOWER.encode() * 10)[:256]).decode()


SOURCES = {
    "stdlib": stdlib,
    "samples": samples,
    "chinese": chinese,
    "minified": minified,
    "different": different,
    "twice": twice,
    "letters": letters,
}


def texts_of(source: str, amount: int, folder: str) -> list[str] | Path:
    """In memory up to 40 MB of sources, else one file: what the peak of memory shows is then the training's."""
    if source in ("stdlib", "samples") and amount <= 40_000_000:
        return list(SOURCES[source](amount))
    file = Path(folder) / "corpus.txt"
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(SOURCES[source](amount))
    return file


def saved_and_loaded(made: TextTokenizer, folder: str) -> str:
    """What AutoTokenizer gives back of a few hard texts."""
    from transformers import AutoTokenizer

    made.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    hard = ["Hello, World!", "世界 e\u0301 👩‍👩‍👧‍👦 \U0010ffff \ue000 \x00\n", "שלום, 안녕"]
    back = sum(loaded.decode(loaded.encode(text)) == text and len(loaded) == len(made) for text in hard)
    return f"AutoTokenizer: {back} of {len(hard)} hard texts come back"


def measure(source: str, amount: int, vocab_size: int) -> dict[str, object]:
    """One row, in this process."""
    from anyformer.core.errors import TokenizerError
    from anyformer.tokenization import BPETrainerConfig, CharacterLevelTokenizer, FastBPETrainer

    said = ""
    with tempfile.TemporaryDirectory() as folder:
        texts = texts_of(source, amount, folder) if source != "characters" else None
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        start, used = time.perf_counter(), time.process_time()
        if texts is None:
            made = CharacterLevelTokenizer(vocab_size)
            got, said = len(made), saved_and_loaded(made, folder)
        else:
            trainer = FastBPETrainer(BPETrainerConfig(vocab_size))
            try:
                got = len(trainer.train_on_dataset(texts))
                said = "; ".join(f"{f.name}: {f.measured}" for f in trainer.findings[1:])
            except TokenizerError as error:
                got = 0
                said = f"error: {error.what}; {error.detail.splitlines()[0]}"
        seconds, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"got": got, "seconds": seconds, "used": used, "before": before, "peak": peak, "said": said}


def row(source: str, amount: int, vocab_size: int, label: str) -> str:
    """One row of the table, measured in a process of its own."""
    arguments = [sys.executable, __file__, "--row", source, str(amount), str(vocab_size)]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    got = f"{found['got']:,}" if found["got"] else "–"
    print(f"{label}: {vocab_size:,} → {got}, {found['seconds']:.1f} s, {found['peak']} MB", file=sys.stderr)
    figures = f"{found['seconds']:.1f} | {found['used']:.1f} | {found['before']:,} | {found['peak']:,}"
    return f"| {label} | {vocab_size:,} | {got} | {figures} | {found['said']} |"


def rows(part: str, large: int) -> Iterator[str]:
    """The rows of a part."""
    if part == "sizes":
        for size in (260, 300, 1000, 8192, 32_768, 100_000, 262_144):
            yield row("stdlib", 10_000_000, size, "stdlib, 10 MB")
        yield row("stdlib", 31_000_000, 100_000, "stdlib, 31 MB")
        yield row("stdlib", 31_000_000, 262_144, "stdlib, 31 MB")
        yield row("twice", 8_000_000, 262_144, "different words, each twice, 8 MB")
    elif part == "samples":
        for count in (100, 1000, 10_000):
            yield row("samples", count, 1000, f"{count:,} samples")
            yield row("samples", count, 8192, f"{count:,} samples")
    elif part == "corpora":
        for source in ("stdlib", "chinese", "minified", "different", "letters"):
            yield row(source, large * 1_000_000, 8192, f"{source}, {large} MB")
        yield row("different", 6_300_000, 8192, "different, 6.3 MB: nearly the most that is taken whole")
    else:
        for size in (100, 260, 1000, 50_000, 500_000, 1_112_324):
            yield row("characters", 0, size, "characters")


def main() -> None:
    """Measure and write the page; with ``--row`` measure one row and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--large", type=int, default=200, help="megabytes of the large corpora")
    parser.add_argument("--row", nargs=3, metavar=("SOURCE", "AMOUNT", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        source, amount, size = options.row
        print(json.dumps(measure(source, int(amount), int(size))))
        return
    for part in options.only:
        write(part, section(part, options.large))


def section(part: str, large: int) -> str:
    """The table of a part, under the circumstances of its measurement."""
    import tokenizers

    before = os.getloadavg()[0]
    table = "\n".join(rows(part, large))
    command = f"`python benchmarks/tokenizer_sizes.py --only {part}{'' if large == 200 else f' --large {large}'}`"
    versions = f"Python {platform.python_version()}, tokenizers {tokenizers.__version__}"
    where = f"{time.strftime('%Y-%m-%d')} · {os.cpu_count()} shared cores ({platform.machine()}) · {versions}"
    busy = f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    return f"## {part}\n\n{command} · {where} · {busy}\n\n{HEAD}\n{table}\n"


def write(part: str, text: str) -> None:
    """The page with this part new and the others as they were."""
    old = RESULTS.read_text("utf-8").split("\n## ")[1:] if RESULTS.exists() else []
    sections = {each.split("\n")[0]: f"## {each.rstrip()}\n" for each in old} | {part: text}
    page = [TITLE, *(sections[name] for name in PARTS if name in sections)]
    RESULTS.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
