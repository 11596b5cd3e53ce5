"""The lines at a command's end, whatever was measured."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.findings import Finding
from anyformer.ui.layout import finding_lines, sample_lines, stage_lines, table
from anyformer.ui.results import generate_command, loss_lines, training_lines

FIGURES: dict[str, Any] = {
    "val_loss": 2.65,
    "bits_per_byte": 1.31,
    "unigram_entropy": 6.02,
    "bigram_entropy": 3.55,
    "beats_bigram": True,
}
CONTROLS = set("\x1b\x07\x9b\r\u202e\u2066")
EVIL = "\x1b]0;title\x07 \x9b2J \u202e\u2066 end\r"


def test_all_figures() -> None:
    (line,) = loss_lines(FIGURES, 120)
    assert line == (
        "  held-out loss 2.65 (1.31 bits per byte)     guessing by single tokens 6.02 · by token pairs 3.55"
    )
    assert loss_lines({**FIGURES, "unknown_share": 0.0}, 120) == [line]
    assert "not below the loss by token pairs" in loss_lines({**FIGURES, "beats_bigram": False}, 120)[1]
    too_high = {**FIGURES, "val_loss": 17.5, "beats_bigram": False}
    assert "not below the loss by single tokens: it has not learned yet how often" in loss_lines(too_high, 120)[1]
    assert len(loss_lines(FIGURES, 60)) == 2


def test_no_bits_per_byte_where_text_is_unknown() -> None:
    assert loss_lines({**FIGURES, "bits_per_byte": None, "unknown_share": 0.123}, 120) == [
        "  held-out loss 2.65     guessing by single tokens 6.02 · by token pairs 3.55",
        "  ! bits per byte is not given: 12 % of the held-out text is unknown to the tokenizer",
    ]
    assert len(loss_lines({**FIGURES, "bits_per_byte": None}, 120)) == 1


def test_anything_may_be_missing() -> None:
    for count in range(len(FIGURES) + 1):
        for names in itertools.combinations(FIGURES, count):
            without = {key: value for key, value in FIGURES.items() if key not in names}
            none = {**FIGURES, **dict.fromkeys(names)}
            lines = loss_lines(without, 120)
            assert lines == loss_lines(none, 120)
            assert "None" not in "".join(lines)
            assert not any(line.startswith("  !") for line in lines)  # what is not known is no warning
    assert loss_lines({"val_loss": 2.65}, 120) == ["  held-out loss 2.65"]
    assert loss_lines({}, 120) == ["  held-out loss not measured"]


def test_no_line_steers_the_terminal() -> None:
    lines = sample_lines("a" + EVIL, "a" + EVIL + "more" + EVIL, 200) + sample_lines(EVIL * 9, EVIL, 60)
    lines += stage_lines("data", EVIL, EVIL, 60) + stage_lines("data", EVIL, EVIL, 300)
    lines += finding_lines(Finding("n", "note", EVIL, reason=EVIL), 80)
    lines += table([(EVIL, EVIL, EVIL)], 60) + table([(EVIL, EVIL, "")], 300)
    sample = {"prompt": EVIL, "text": EVIL}
    lines += training_lines(Path("runs/" + EVIL), FIGURES, [sample], None, "next" + EVIL, 80)
    assert not set("".join(lines)) & CONTROLS
    assert all(r"\x1b]0;title\x07" in line for line in sample_lines("p", "p" + EVIL, 200))


@pytest.mark.parametrize(
    ("prompts", "chosen"),
    [
        (["def f(", "b"], "def f("),
        (["", "two\nlines", EVIL, "it's é"], "it's é"),
        (["\x1b[2J", "\u202eabc"], None),
        ([], None),
    ],
)
def test_the_command_that_follows_can_be_shown_and_run(prompts: list[str], chosen: str | None) -> None:
    command = generate_command(Path("runs/a b"), [{"prompt": prompt, "text": ""} for prompt in prompts])
    expected = ["anyformer", "generate", "runs/a b", *(["--prompt", chosen] if chosen else [])]
    assert shlex.split(command) == expected
