"""The page says what the files say, escapes all of it, and is written whatever is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.errors import SourceError, TrainingError
from anyformer.report import page, write_report
from anyformer.report.sections import samples, verdict
from anyformer.report.words import count, decimal, size

Make = Callable[..., Path]


class Reader(HTMLParser):
    """Collects text, tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag == "style"
        self.addresses += [value or "" for key, value in attrs if key in ("href", "src", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)


def read(run: Path) -> tuple[str, Reader]:
    html = write_report(run).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(html)
    return " ".join(" ".join(reader.text).split()), reader


def test_everything_a_reader_looks_for(make_run: Make) -> None:
    run = make_run()
    text, _ = read(run)
    for expected in (
        "Better than guessing from token pairs: held-out loss 3.08 against 3.55",
        *("single tokens 6.02", "token pairs 3.55", "perplexity 21.79", "11,312", "2:38", "2,000 steps"),
        "anyformer’s own example",
        *("before training", "step 1,000", "step 2,000"),
        *("∂logits[t]/∂token[>t] = 0 at 12 positions", "expected: no change before position t"),
        *("1,912,320", "81 documents, 1.2 MB, 371,202 tokens", "byte-level BPE", "bytes per token 3.23"),
        *("max_steps 2000 not set", "learning_rate 0.0012", "warmup steps 100"),
        "anyformer train example:gpt --data python-stdlib --max_steps 2000 --learning_rate 0.0012 --name demo",
        *("settings.yaml", "metrics/metrics.csv", "pytorch-lightning"),
    ):
        assert expected in text.replace("\N{NO-BREAK SPACE}", " "), expected
    assert "batch_size" not in text  # given as the default: no difference


def test_one_file_no_network_no_script(make_run: Make) -> None:
    run = make_run()
    text, reader = read(run)
    assert not {"script", "iframe", "object", "embed", "img", "base"} & set(reader.tags)
    for address in reader.addresses:
        assert address == "data:," or (run / address).exists(), address
    css = re.findall(r"<style>(.*?)</style>", (run / "report.html").read_text(), re.DOTALL)[0]
    assert "url(" not in css
    assert "@import" not in css
    assert "class <script>alert(1)</script>" in text  # shown, not run


@pytest.mark.parametrize("field", ["name", "error", "command", "model", "data", "tokenizer", "findings", "settings"])
def test_whatever_a_manifest_holds_is_text(make_run: Make, field: str) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    values: dict[str, Any] = {
        "model": {"class_name": evil, "location": evil, "files": {evil: evil}},
        "data": {"name": evil, "description": evil, "fingerprint": evil},
        "tokenizer": {"kind": evil},
        "findings": [{"name": evil, "verdict": evil, "measured": evil, "expected": evil, "reason": evil}],
        "settings": {evil: evil},
    }
    _, reader = read(make_run(state="failed", **{field: values.get(field, evil)}))
    assert not {"script", "img"} & set(reader.tags)


@pytest.mark.parametrize(
    ("changes", "sentence", "tone"),
    [
        ({}, "Better than guessing from token pairs: held-out loss 3.08 against 3.55", "good"),
        ({"val_loss": 3.5532}, "Better than guessing from token pairs: held-out loss 3.5532 against 3.5533", "good"),
        ({"val_loss": 4.0}, "Not yet better than guessing from token pairs: held-out loss 4.00 against 3.55", "plain"),
        ({"val_loss": 7.0}, "Not yet better than guessing by single tokens: held-out loss 7.00 against 6.02", "bad"),
        ({"bigram_entropy": None}, "Held-out loss 3.08", "plain"),
        ({"val_loss": float("nan")}, "No result on held-out text is recorded", "plain"),
    ],
)
def test_verdict_of_a_finished_run(changes: dict[str, Any], sentence: str, tone: str) -> None:
    results = {"val_loss": 3.0812, "unigram_entropy": 6.0187, "bigram_entropy": 3.5533, **changes}
    found = verdict({"state": "finished", "results": results}, [])
    assert (found.sentence, found.tone) == (sentence, tone)


def test_verdict_of_other_states(make_run: Make) -> None:
    text, _ = read(make_run(state="failed", results=None, error="the loss is not finite at step 740\n  → lower it"))
    assert "The run failed at step 2,000" in text
    assert "the loss is not finite at step 740" in text
    text, _ = read(make_run(state="interrupted", results=None, error="resume with --resume runs/demo"))
    assert "Interrupted at step 2,000" in text
    assert "--resume runs/demo" in text
    text, _ = read(make_run(state="running", results=None, effective={"total_steps": 9000}))
    assert "Still running: step 2,000 of 9,000" in text
    text, _ = read(make_run(state="running", results=None, rows=[]))
    assert "Just begun" in text
    assert "No metrics were recorded" in text


def test_what_warns_stands_first(make_run: Make) -> None:
    html = write_report(make_run()).read_text()
    marks = re.findall(r'<span class="mark" role="img" aria-label="[^"]+">(.)</span>', html)
    assert marks == ["!", "✓", "✓", "✓", "·", "·"]


@pytest.mark.parametrize("remove", ["run.json", "metrics/metrics.csv", "samples.jsonl", "settings.yaml"])
def test_a_missing_file_still_gives_a_page(make_run: Make, remove: str) -> None:
    run = make_run()
    (run / remove).unlink()
    text, _ = read(run)
    assert "demo" in text
    assert remove != "run.json" or "run.json could not be read" in text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"model": 3, "results": [], "findings": {"a": 1}}']
)
def test_a_broken_manifest_still_gives_a_page(make_run: Make, content: bytes) -> None:
    run = make_run()
    (run / "run.json").write_bytes(content)
    assert "Loss" in read(run)[0]


def test_any_field_may_be_of_any_kind(make_run: Make) -> None:
    run = make_run()
    whole = json.loads((run / "run.json").read_text())
    for field in whole:
        (run / "run.json").write_text(json.dumps({k: v for k, v in whole.items() if k != field}))
        write_report(run)
        for value in (None, 3, "text", [1], {"a": None}, [{}]):
            (run / "run.json").write_text(json.dumps({**whole, field: value}))
            write_report(run)


@pytest.mark.parametrize("content", [b"", b"step\n", b"a,b\n1,2\n", b"\x00\xff", b"step,train_loss\n1,nan\nx,2\n3"])
def test_broken_metrics_still_give_a_page(make_run: Make, content: bytes) -> None:
    run = make_run()
    (run / "metrics" / "metrics.csv").write_bytes(content)
    assert "Better than guessing" in read(run)[0]


def test_ten_thousand_rows_stay_small(make_run: Make) -> None:
    rows = [{"step": step, "train_loss": 8 / (1 + step) ** 0.2, "tokens_per_second": 9e3} for step in range(10_000)]
    assert write_report(make_run(rows=rows)).stat().st_size < 120_000


def test_samples_skip_cut_lines_and_pick_three_moments(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    lines = [json.dumps({"step": step, "prompt": "a", "text": f"a{step}"}) for step in (0, 10, 20, 30, 40)]
    file.write_text("\n".join([*lines, '{"step": 50, "pro', "[]"]))
    assert [(moment, start, rest) for moment, start, rest in samples(file)[0].moments] == [
        ("before training", "a", "0"),
        ("step 20", "a", "20"),
        ("step 40", "a", "40"),
    ]


def test_no_folder_and_a_full_disk(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="no run folder"):
        write_report(tmp_path / "none")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_atomically", full)
    with pytest.raises(TrainingError, match="is full"):
        write_report(make_run())


def test_words() -> None:
    assert (decimal(None), decimal(True), decimal("3"), decimal(float("inf"))) == ("–",) * 4
    assert (count(11_312.4), size(1_211_950), size(12)) == ("11,312", "1.2 MB", "12 bytes")


def test_why_bits_per_byte_is_missing(make_run: Make) -> None:
    results = json.loads((make_run() / "run.json").read_text())["results"]
    text, _ = read(make_run(results={**results, "bits_per_byte": None, "unknown_share": 0.123}))
    why = "not given: 12 % of the held-out text is unknown to the tokenizer"
    assert f"bits per byte – perplexity 21.79 · {why}" in text
    assert "unknown to the tokenizer" not in read(make_run(results={**results, "unknown_share": 0.0}))[0]
    assert "unknown to the tokenizer" not in read(make_run(results={**results, "bits_per_byte": None}))[0]


@pytest.mark.parametrize("key", ["val_loss", "bits_per_byte", "unigram_entropy", "bigram_entropy", "beats_bigram"])
def test_any_result_may_be_missing(make_run: Make, key: str) -> None:
    results = json.loads((make_run() / "run.json").read_text())["results"]
    missing = {name: value for name, value in results.items() if name != key}
    changes = (missing, {**results, key: None}, {**results, key: float("nan")})
    pages = [read(make_run(name="demo", results=changed))[0] for changed in changes]
    assert pages[0] == pages[1] == pages[2]
    assert "could not be read" not in pages[0]
    assert "None" not in pages[0].split("Findings")[0]


def test_samples_with_other_line_ends(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\u0085four"
    (tmp_path / "samples.jsonl").write_text(
        json.dumps({"step": 1, "prompt": "p", "text": text}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert samples(tmp_path / "samples.jsonl")[0].moments == [("step 1", "p", text)]


def test_no_control_character_reaches_the_page(make_run: Make) -> None:
    evil = "a\x1b]0;t\x07b\x9bc\u202ed\u2066e\x00f\r"
    values: dict[str, Any] = {
        "model": {"class_name": evil, "location": evil, "files": {evil: evil}},
        "data": {"name": evil, "description": evil, "fingerprint": evil},
        "tokenizer": {"kind": evil},
        "findings": [{"name": evil, "verdict": evil, "measured": evil, "expected": evil, "reason": evil}],
        "settings": {evil: evil},
        "effective": {evil: evil},
        "machine": {"platform": evil},
        "versions": {evil: evil},
    }
    run = make_run(state="failed", name=evil, error=evil, command=evil, **values)
    (run / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": evil, "text": evil + evil}) + "\n")
    text, _ = read(run)
    html = (run / "report.html").read_bytes().decode("utf-8")
    assert not set(html) & set("\x1b\x07\x9b\u202e\u2066\x00\r")
    assert text.count(r"a\x1b]0;t\x07b\x9bc\u202ed\u2066e\x00f\x0d") >= 20
    assert json.loads((run / "samples.jsonl").read_text())["prompt"] == evil  # what is stored stays as it is
