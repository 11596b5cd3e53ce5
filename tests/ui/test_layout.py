"""Lines that fit, at any width."""

from __future__ import annotations

import pytest

from anyformer.core.findings import Finding
from anyformer.ui.layout import finding_lines, sample_lines, stage_lines, table


def test_a_stage_with_room_stands_in_columns() -> None:
    (line,) = stage_lines("data", "python-stdlib", "1,604 files, 23 MB", 100)
    assert line == "  data       python-stdlib        1,604 files, 23 MB"


def test_a_stage_without_room_puts_its_details_below() -> None:
    lines = stage_lines("data", "python-stdlib", "1,604 files, 23 MB → 7.1 M tokens      held out: 81 files", 60)
    assert lines == [
        "  data       python-stdlib",
        "             1,604 files, 23 MB → 7.1 M tokens",
        "             held out: 81 files",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_everything_fits_its_width(width: int) -> None:
    words = "a figure of 3.1 seconds measured here and explained at length " * 3
    lines = stage_lines("tokenizer", "byte-level BPE", words, width)
    lines += finding_lines(Finding("precision", "note", words, reason=words), width)
    lines += table([("tokens", "idx (B, T) int64", words), ("causal", words, "")], width)
    assert "".join(lines).count("explained") == 3 + 6 + 6  # wrapped, nothing cut
    lines += sample_lines("def ", "x" * 300, width) + sample_lines("a\nb", words, width)
    assert max(map(len, lines)) <= width


def test_a_path_is_never_broken() -> None:
    path = "/a/very/long/path/" + "x" * 80
    assert any(path in line for line in stage_lines("run", path, "detail", 60))


def test_samples_show_the_prompt_once() -> None:
    assert sample_lines("def ", "def f(x):\n    return x\n\n", 80) == ["  def │ f(x):", "      │     return x"]
    assert sample_lines("import os\nclass ", "A:", 80) == ["   │ import os", "   │ class A:"]


def test_long_samples_are_cut_with_a_sign() -> None:
    lines = sample_lines("p", "\n".join(map(str, range(50))), 80)
    assert len(lines) == 6
    assert lines[-1].endswith("…")
