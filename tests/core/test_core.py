"""Findings, optional imports and the plain view."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from anyformer.core import optional
from anyformer.core.errors import DependencyError
from anyformer.core.findings import MARKS, Finding
from anyformer.core.protocols import Progress, View
from anyformer.core.view import PlainView, QuietView, duration, percent, printable


def test_findings_survive_json() -> None:
    finding = Finding("causality", "fail", "∂ = 0.83", expected="0", reason="no mask")
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding
    with pytest.raises(TypeError):
        Finding.from_dict({**finding.to_dict(), "colour": "red"})


def test_an_unknown_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="'good' is none of"):
        Finding("x", "good", "1")  # type: ignore[arg-type]


def test_every_verdict_has_its_own_mark() -> None:
    marks = [Finding("x", verdict, "1").mark for verdict in MARKS]  # type: ignore[arg-type]
    assert len(set(marks)) == 5


def test_require_names_package_purpose_and_extra() -> None:
    assert optional.require("json") is json
    with pytest.raises(DependencyError) as caught:
        optional.require("no_such_package.part", extra="export", purpose="ONNX export")
    assert str(caught.value) == (
        "the package no_such_package is not installed; ONNX export needs it\n  → pip install 'anyformer[export]'"
    )


def test_require_does_not_blame_a_package_for_what_it_lacks_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "present_but_broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        optional.require("present_but_broken")
    assert not isinstance(caught.value, DependencyError)
    sys.modules.pop("present_but_broken", None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (58.4, "0:58"), (60, "1:00"), (725, "12:05"), (11220, "3:07:00"), (-3, "0:00")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines() -> None:
    stream = io.StringIO()
    view: View = PlainView(stream, every=3600)
    view.stage("model", "example:gpt", "1.9 M parameters")
    view.status("hidden")
    view.finding(Finding("precision", "note", "fp32", reason="bf16 is slower here"))
    for done in range(1, 101):
        view.progress(Progress(done, 100, loss=2.5, rate=11300.4, seconds_left=100 - done))
    view.line()
    lines = stream.getvalue().split("\n")
    assert lines[:2] == ["  model      example:gpt   1.9 M parameters", "  · precision: fp32 — bf16 is slower here"]
    assert lines[-3] == "  step 100/100   loss 2.500   11,300 tokens/s"  # the end is always shown
    assert len(lines) <= 6  # of 100 reports at most the first and the last


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    view: View = QuietView()
    view.stage("a", "b")
    view.line("text")
    view.progress(Progress(1, 1))
    view.finding(Finding("x", "ok", "1"))
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_printable_shows_what_would_steer_a_terminal() -> None:
    import unicodedata

    assert printable("\x1b[2J\x07a\x9b\u202eb\u2066\x7f\r\ud800") == r"\x1b[2J\x07a\x9b\u202eb\u2066\x7f\x0d\ud800"
    turning = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}  # Unicode's own names of them
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        kept = character in "\n\t" or (
            unicodedata.category(character) not in ("Cc", "Cs") and unicodedata.bidirectional(character) not in turning
        )
        assert (printable(character) == character) is kept, hex(code)
    text = "def f():\n\treturn 'é世界 \u2028 שלום \U0001f600'"
    assert printable(text) == text


def test_the_plain_view_steers_no_terminal() -> None:
    stream = io.StringIO()
    view = PlainView(stream)
    view.line("a\x1b[2Jb\nc")
    view.stage("data", "\x07x", "\u202ey")
    view.finding(Finding("n\x1b", "note", "m\x9b", reason="r"))
    assert stream.getvalue().count("\n") == 4
    assert not set(stream.getvalue()) & set("\x1b\x07\x9b\u202e")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1e-9, "less than 0.01 %"), (0.0035, "0.35 %"), (0.0996, "10 %"), (0.123, "12 %"), (1.0, "100 %")],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text
