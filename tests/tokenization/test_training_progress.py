"""What is shown while a tokenizer trains: the share where the total is known, the time left, one moving line."""

from __future__ import annotations

import io
import itertools
import json
import re
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from anyformer.tokenization import BPETrainerConfig, FastBPETrainer, training_progress
from anyformer.tokenization.texts import Sample, training_texts
from anyformer.tokenization.training_progress import TrainingProgress, extent_of, size_text

TEXTS = [f"The {n}th line isn't like the others, it's café number {n}.\n" for n in range(300)]
CHARACTERS = sum(len(text) for text in TEXTS)
Clock = Callable[[float], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time as it is set; the thread that shows it is not started."""
    now = [0.0]
    monkeypatch.setattr(training_progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def at(seconds: float) -> None:
        now[0] = seconds

    return at


def column() -> Any:
    return datasets.Dataset.from_dict({"text": TEXTS})


def kinds(folder: Path) -> dict[str, tuple[Any, int | None, str]]:
    """Texts of every kind, how much there is, and of what."""
    file = folder / "all.txt"
    file.write_text("".join(TEXTS), encoding="utf-8")
    size = file.stat().st_size
    assert size > CHARACTERS
    return {
        "list": (TEXTS, CHARACTERS, "characters"),
        "tuple": (tuple(TEXTS), CHARACTERS, "characters"),
        "file": (file, size, "bytes"),
        "files": ([file], size, "bytes"),
        "dataset": (column(), 300, "rows"),
        "parts": (datasets.DatasetDict({"test": column().select(range(9)), "train": column()}), 300, "rows"),
        "column": (column()["text"], 300, "rows"),
        "columns": ({"n": list(range(300)), "text": TEXTS}, 300, "rows"),
        "iterator": (iter(TEXTS), None, ""),
        "generator": ((text for text in TEXTS), None, ""),
        "file and text": ([file, "text"], None, ""),
        "missing": (folder / "none.txt", None, ""),
        "no strings": (["a", 3], None, ""),
        "one string": ("abc", None, ""),
        "number": (7, None, ""),
    }


def test_how_much_there_is(tmp_path: Path) -> None:
    for name, (texts, total, unit) in kinds(tmp_path).items():
        _, extent = extent_of(texts)
        assert (extent and (extent.total, extent.unit)) == (total and (total, unit)), name


def test_a_shown_training_gives_the_same_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def merges(texts: Any, shown: bool) -> Any:
        made = FastBPETrainer(BPETrainerConfig(500)).train_on_dataset(texts, show_progress=shown)
        return json.loads(made.backend_tokenizer.to_str())["model"]["merges"]

    expected = merges(TEXTS, shown=False)
    assert capsys.readouterr().err == ""
    for name, (texts, _, _) in itertools.islice(kinds(tmp_path).items(), 10):
        assert merges(texts, shown=True) == expected, name
        # no terminal: a training of less than 10 s is one line, without carriage returns
        assert re.fullmatch(r"BPE: 500 entries from 1\d\.\d kB of text in \d+\.\d s\n", capsys.readouterr().err), name


def begun(texts: Any, taking: int | None = None) -> tuple[TrainingProgress, Iterator[list[str]]]:
    """A progress that is asked by hand, and the batches of a sample as the library takes them."""
    progress = TrainingProgress(texts, 1234, shown=True)
    sample = Sample(training_texts(progress.texts)(), 1 << 40, None, progress.read)
    return progress, progress.reading(sample, taking)


def bar(share: float, seconds: float) -> tuple[str, str]:
    """The bar, and the time left."""
    full = int(20 * share)
    return f"[{'#' * full + '-' * (20 - full)}] {share:4.0%}", f"0:{round(seconds * (1 - share) / share):02d} left"


def test_a_list_is_shown_by_its_characters(clock: Clock) -> None:
    progress, batches = begun(["é " * 300_000] * 10)
    read = sum(map(len, next(batches)))
    assert 1_000_000 <= read < 1_200_000
    clock(4.0)
    shown, left = bar(read / 6_000_000, 4.0)
    assert progress.line() == f"BPE: reading {shown}  {read / 1e6:.1f} M of 6.0 M characters, {left}"
    for _ in batches:
        clock(9.5)
    assert progress.line() == "BPE: learning up to 1,234 merges, 0 s"
    clock(22.0)
    assert progress.line() == "BPE: learning up to 1,234 merges, 12 s"


@pytest.mark.parametrize("taking", [None, 3_000_000])
def test_a_file_and_a_sample_of_it_are_shown_by_their_bytes(clock: Clock, tmp_path: Path, taking: int | None) -> None:
    file = tmp_path / "text.txt"
    file.write_text("é a " * 1_000_000, encoding="utf-8")  # 5 MB
    progress, batches = begun(file, taking)
    read = sum(len(text.encode()) for text in next(batches))
    clock(0.5)
    total = taking or 5_000_000
    shown, _ = bar(read / total, 1.0)
    what = "reading" if taking is None else "reading a sample"
    assert progress.line() == f"BPE: {what} {shown}  {read / 1e6:.1f} MB of {total / 1e6:.1f} MB"  # too soon for more


def test_a_smaller_sample_is_looked_for_in_all_of_the_text(clock: Clock) -> None:
    progress, batches = begun(["é" * 1000] * 4, taking=1000)
    assert list(batches)
    texts = progress.looking(progress.texts)  # the words of the sample were too many
    next(texts)
    next(texts)
    assert " 25%  1.0 k of 4.0 k characters" in progress.line()


def test_rows_are_counted_where_some_are_empty(clock: Clock) -> None:
    rows = datasets.Dataset.from_dict({"text": ["", None, "a text"] * 1000})
    progress = TrainingProgress(rows, 10, shown=True)
    shown = []
    for batch in progress.texts.iter(batch_size=1000):
        shown.append(progress.line())
        assert len(batch["text"]) == 1000
        clock(3.0)
    assert shown[1] == "BPE: reading [######--------------]  33%  1,000 of 3,000 rows, 0:06 left"
    assert progress.line() == "BPE: reading [####################] 100%  3,000 of 3,000 rows, 0:00 left"
    for _ in itertools.islice(progress.texts, 2):  # another pass begins anew
        pass
    assert " 1 of 3,000 rows" in progress.line()


def test_where_the_total_is_not_known_what_was_read_is_shown(clock: Clock) -> None:
    progress = TrainingProgress(iter(TEXTS), 10, shown=True)
    texts = progress.looking(["a" * 3_000_000, "b"])
    next(texts)
    next(texts)
    clock(2.0)
    assert progress.line() == "BPE: looking through the text, 3.0 M characters, 1.5 M/s"


def test_a_look_through_the_text_before_has_a_share_too(clock: Clock) -> None:
    progress = TrainingProgress(["é" * 1000] * 4, 10, shown=True)
    texts = progress.looking(progress.texts)
    next(texts)
    next(texts)
    clock(3.0)
    assert progress.line() == (
        "BPE: looking through the text [#####---------------]  25%  1.0 k of 4.0 k characters, 0:09 left"
    )


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, fails: bool = False, terminal: str = "xterm") -> str:
    """All that a training of 0.1 s and more writes, shown every 5 ms."""
    monkeypatch.setattr(training_progress, "_MOVING", 0.005)
    monkeypatch.setattr(training_progress, "_LINES", 0.005)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", terminal)
    texts: list[Any] = ["word " * 60_000] * 6
    with TrainingProgress(texts, 44, shown=True) as progress:
        seen = 0
        for _ in progress.looking(texts):
            until = time.monotonic() + 5
            while stream.getvalue().count("BPE") == seen and time.monotonic() < until:  # until it was shown
                time.sleep(0.001)
            seen = stream.getvalue().count("BPE")
        if not fails:
            progress.done(300, 1_800_000)
    return stream.getvalue()


def test_on_a_terminal_one_line_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines_of(Screen(), monkeypatch)
    *moving, last = told.split("\r")
    assert re.fullmatch(r"BPE: 300 entries from 1\.8 MB of text in \d+\.\d s\n", last)
    assert told.count("\n") == 1
    shown = [line for line in moving if "looking through the text [" in line]
    assert len(shown) >= 6
    assert len({re.findall(r"\d+%", line)[0] for line in shown}) >= 4  # it went on
    assert moving[-1].strip() == ""  # taken away before the last line
    assert len(moving[-1]) == len(moving[-2])
    broken = lines_of(Screen(), monkeypatch, fails=True)
    assert broken.endswith(" \r")  # what the error says begins on a line of its own


def test_in_a_log_lines_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines_of(io.StringIO(), monkeypatch)
    assert "\r" not in told
    assert all(line.startswith("BPE: ") for line in told.splitlines())
    assert len(told.splitlines()) > 6


def test_in_a_notebook_one_line_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    assert lines_of(stream, monkeypatch).count("\n") == 1
    dumb = lines_of(Screen(), monkeypatch, terminal="dumb")
    assert dumb.count("\r") == 0


def test_sizes() -> None:
    for size, text in ((999, "999 bytes"), (1000, "1.0 kB"), (12_340_000, "12.3 MB"), (5_000_000_000, "5.0 GB")):
        assert size_text(size) == text
