"""What each section of the page says, as plain words; escaping is the template's."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from anyformer.core.findings import MARKS
from anyformer.core.settings import TrainSettings
from anyformer.core.view import percent
from anyformer.report.kinds import words
from anyformer.report.words import NOTHING, count, decimal, number, plural, setting, size, time

_MOMENTS = 3
_SAMPLE_LENGTH = 1500  # characters of a sample that are shown; the file has all of it
_ORDER = ("fail", "warn", "ok", "note", "n/a")
_SPOKEN = {"ok": "proven", "note": "note", "warn": "warning", "fail": "failed", "n/a": "does not apply"}

Rows = list[dict[str, float | None]]


@dataclass(frozen=True)
class Verdict:
    """The answer: tone is "good", "plain" or "bad"; mark and sentence stand alone without colour."""

    tone: str
    mark: str
    sentence: str
    detail: str


@dataclass(frozen=True)
class Samples:
    """What the model wrote after one prompt, at up to three moments of training."""

    prompt: str
    moments: list[tuple[str, str, str]]
    """(moment, the prompt, what followed it)."""


def results(run: dict[str, Any]) -> dict[str, Any]:
    """The results, empty where there are none."""
    return _part(run, "results")


def verdict(run: dict[str, Any], rows: Rows) -> Verdict:
    """One sentence: how good the model is, or why nothing can be said yet."""
    state = run.get("state")
    step = count(_last(rows, "step")) if rows else None
    error = str(run.get("error") or "")
    quality = _class_quality(results(run)) if run.get("objective") == "classification" else _quality(results(run))
    if state == "failed":
        at = f" at step {step}" if step else ""
        return Verdict("bad", MARKS["fail"], f"The run failed{at}", error or "no error was recorded")
    if state == "interrupted":
        sentence = f"Interrupted at step {step}" if step else "Interrupted before the first step was recorded"
        return Verdict("plain", MARKS["warn"], sentence, _sentences(quality.sentence if quality else None, error))
    if state == "paused":
        total = number(_part(run, "effective").get("total_steps"))
        sentence = f"Paused at step {step} of {count(total)}: max_time was up" if step and total else "Paused"
        return Verdict("plain", MARKS["note"], sentence, quality.sentence if quality else "")
    if state == "running":
        total = number(_part(run, "effective").get("total_steps"))
        of = f" of {count(total)}" if total else ""
        sentence = f"Still running: step {step}{of} when this page was written" if step else "Just begun"
        return Verdict("plain", MARKS["note"], sentence, "")
    return quality or Verdict("plain", MARKS["note"], "No result on held-out text is recorded", error)


def _quality(result: dict[str, Any]) -> Verdict | None:
    loss, single, pair = (number(result.get(key)) for key in ("val_loss", "unigram_entropy", "bigram_entropy"))
    if loss is None:
        return None
    if pair is None or single is None:
        return Verdict("plain", MARKS["note"], f"Held-out loss {decimal(loss)}", "No baselines were measured.")
    # two digits may hide the difference that the sentence speaks of
    digits = 2 if decimal(loss) != decimal(pair) else 4
    pairs = f"held-out loss {decimal(loss, digits)} against {decimal(pair, digits)}"
    if loss < pair:
        return Verdict("good", MARKS["ok"], f"Better than guessing from token pairs: {pairs}", "")
    if loss < single:
        detail = (
            f"It is better than guessing by single tokens ({decimal(single)}). Train longer, or look at the findings."
        )
        return Verdict("plain", MARKS["warn"], f"Not yet better than guessing from token pairs: {pairs}", detail)
    singles = f"held-out loss {decimal(loss)} against {decimal(single)}"
    detail = "It has learned less than how often each token occurs. Look at the findings and the learning rate."
    return Verdict("bad", MARKS["warn"], f"Not yet better than guessing by single tokens: {singles}", detail)


def _class_quality(result: dict[str, Any]) -> Verdict | None:
    right, most, loss = (number(result.get(key)) for key in ("accuracy", "majority_accuracy", "val_loss"))
    if right is None or most is None:
        sentence = f"Held-out loss {decimal(loss)}"
        return Verdict("plain", MARKS["note"], sentence, "No baselines were measured.") if loss is not None else None
    shares = f"{100 * right:.1f} % right against {100 * most:.1f} %"
    if right > most:
        return Verdict("good", MARKS["ok"], f"Better than always answering the most frequent class: {shares}", "")
    detail = "It has learned nothing that helps. Train longer, or look at the findings and the learning rate."
    sentence = f"Not better than always answering the most frequent class: {shares}"
    return Verdict("bad", MARKS["warn"], sentence, detail)


def subtitle(run: dict[str, Any]) -> str:
    """Model, data and day."""
    model, data = _part(run, "model"), _part(run, "data")
    parts = [str(model["class_name"])] if model.get("class_name") else []
    if number(model.get("parameters")):
        parts.append(f"{parameters(model['parameters'])} parameters")
    if data.get("name"):
        parts.append(f"on {data['name']}")
    if run.get("created"):
        parts.append(f"{datetime.fromisoformat(str(run['created'])):%-d %B %Y, %H:%M %Z}".strip())
    return " · ".join(parts)


def parameters(value: Any) -> str:
    """1.9 M, 124.4 M, 512"""
    found = number(value) or 0.0
    if found >= 1e9:
        return f"{found / 1e9:.1f} G"
    return f"{found / 1e6:.1f} M" if found >= 1e5 else count(found)


def is_example(run: dict[str, Any]) -> bool:
    """Whether the house's own example model was trained."""
    return bool(_part(run, "model").get("example"))


def figures(run: dict[str, Any], rows: Rows) -> list[tuple[str, str, str]]:
    """The four numbers: (name, value, beneath it)."""
    result = results(run)
    loss = number(result.get("val_loss"))
    from_curve = loss is None
    if from_curve:
        loss = _last(rows, "val_loss")
    baselines = [
        f"{name} {decimal(result[key])}".replace(" ", "\N{NO-BREAK SPACE}")
        for key, name in words(run).levels
        if number(result.get(key)) is not None
    ]
    beneath = " · ".join(baselines) or ("the last one measured" if from_curve and loss is not None else "")
    speed = number(result.get("tokens_per_second"))
    speed = _last(rows, "tokens_per_second") if speed is None else speed
    seconds = number(run.get("seconds"))
    seconds = _last(rows, "seconds") if seconds is None else seconds
    steps = number(result.get("steps"))
    steps = _last(rows, "step") if steps is None else steps
    return [
        ("held-out loss", decimal(loss), beneath),
        _second_figure(run, result),
        ("tokens per second", count(speed), str(_part(run, "effective").get("device") or "")),
        ("time", time(seconds), plural(steps, "step") if steps is not None else ""),
    ]


def _second_figure(run: dict[str, Any], result: dict[str, Any]) -> tuple[str, str, str]:
    """What the objective is judged by beside the loss: (name, value, beneath it)."""
    objective = run.get("objective")
    right = number(result.get("accuracy"))
    share = NOTHING if right is None else f"{100 * right:.1f} %"
    if objective == "classification":
        most, mean_f1 = number(result.get("majority_accuracy")), number(result.get("macro_f1"))
        beneath = [f"macro F1 {decimal(mean_f1)}" if mean_f1 is not None else ""]
        beneath.append(f"most frequent class {100 * most:.1f} %" if most is not None else "")
        return "accuracy", share, " · ".join(filter(None, beneath))
    if objective == "masked":
        return "guessed right", share, "of the hidden tokens"
    perplexity = number(result.get("perplexity"))
    if objective == "seq2seq":
        return "perplexity", decimal(perplexity), "per token to write"
    beneath = [f"perplexity {decimal(perplexity)}" if perplexity else "", _no_bits(result)]
    return "bits per byte", decimal(result.get("bits_per_byte")), " · ".join(filter(None, beneath))


def _no_bits(result: dict[str, Any]) -> str:
    """Why bits per byte is missing, where that is known."""
    unknown = number(result.get("unknown_share"))
    if number(result.get("bits_per_byte")) is not None or not unknown:
        return ""
    return f"not given: {percent(unknown)} of the held-out text is unknown to the tokenizer"


def samples(file: Path) -> list[Samples]:
    """The samples by prompt; of more than three moments the first, middle and last. Damaged lines are skipped."""
    by_prompt: dict[tuple[str, int], dict[int, str]] = {}
    if not file.is_file():
        return []
    times: Counter[tuple[str, int]] = Counter()  # one prompt may be sampled several times at a step
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):  # splitlines cuts at U+2028
        try:
            record = json.loads(line)
            step, prompt, text = int(record["step"]), str(record["prompt"]), str(record["text"])
        except (ValueError, TypeError, KeyError):
            continue  # a line cut short when the run was killed
        by_prompt.setdefault((prompt, times[prompt, step]), {})[step] = text
        times[prompt, step] += 1
    found = []
    for (prompt, _), texts in by_prompt.items():
        steps = sorted(texts)
        if len(steps) > _MOMENTS:
            steps = [steps[0], steps[len(steps) // 2], steps[-1]]
        moments = []
        for step in steps:
            text = texts[step]
            rest = text.removeprefix(prompt)
            moment = "before training" if step == 0 else f"step {count(step)}"
            moments.append((moment, prompt, rest[:_SAMPLE_LENGTH] + ("…" if len(rest) > _SAMPLE_LENGTH else "")))
        found.append(Samples(prompt, moments))
    return found


def findings(run: dict[str, Any]) -> list[dict[str, str]]:
    """The findings, what blocks or warns first; each with its mark and the mark in words."""
    records = [record for record in run.get("findings") or [] if isinstance(record, dict)]
    shown = []
    for record in records:
        text = {key: str(record.get(key) or "") for key in ("name", "verdict", "measured", "expected", "reason")}
        text["mark"] = MARKS.get(text["verdict"], MARKS["note"])
        text["spoken"] = _SPOKEN.get(text["verdict"], text["verdict"])
        shown.append(text)
    return sorted(shown, key=lambda text: _ORDER.index(text["verdict"]) if text["verdict"] in _ORDER else len(_ORDER))


def facts(run: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Model, data and tokenizer at a glance: (heading, [(name, value)])."""
    groups = [("Model", _model(run)), ("Data", _data(run)), ("Tokenizer", _tokenizer(run))]
    return [(heading, rows) for heading, rows in groups if rows]


def _model(run: dict[str, Any]) -> list[tuple[str, str]]:
    model, plan = _part(run, "model"), _part(run, "call_plan")
    rows = [("class", model.get("class_name")), ("from", model.get("location"))]
    if number(model.get("parameters")) is not None:
        rows.append(("parameters", count(model["parameters"])))
    for name, digest in _part(model, "files").items():
        rows.append((name, f"sha256 {str(digest)[:12]}…"))
    if plan:
        rows.append(("family", f"{str(plan.get('family')).replace('_', '-')} → {words(run).task}"))
        rows.append(("tokens go in as", plan.get("token_arg")))
        path = "".join(f"[{key!r}]" for key in plan.get("logits_path") or ())
        rows.append(("logits", f"output{path}, {count(plan.get('vocab_size'))} wide"))
        rows.append(("positions", count(plan["max_positions"]) if plan.get("max_positions") else "no limit found"))
    return _known(rows)


def _data(run: dict[str, Any]) -> list[tuple[str, str]]:
    data = _part(run, "data")
    rows = [("corpus", " · ".join(str(data[key]) for key in ("name", "description") if data.get(key)))]
    for key, name in (("train", "trained on"), ("val", "held out")):
        split = _part(data, key)
        if split:
            documents = plural(split.get("documents"), words(run).examples)
            rows.append((name, f"{documents}, {size(split.get('bytes'))}, {count(split.get('tokens'))} tokens"))
    if data.get("classes"):
        rows.append(("classes", ", ".join(f"{place} = {name}" for place, name in enumerate(data["classes"]))))
    if data.get("fingerprint"):
        rows.append(("fingerprint", f"{str(data['fingerprint'])[:16]}"))
    return _known(rows)


def _tokenizer(run: dict[str, Any]) -> list[tuple[str, str]]:
    tokenizer, train = _part(run, "tokenizer"), _part(_part(run, "data"), "train")
    kinds = {"bpe": "byte-level BPE", "char": "characters", "file": "your own", "pretrained": "pretrained"}
    rows = [("kind", kinds.get(str(tokenizer.get("kind")), tokenizer.get("kind")))]
    if number(tokenizer.get("size")) is not None:
        rows.append(("entries", count(tokenizer["size"])))
    if number(train.get("bytes")) and number(train.get("tokens")):
        rows.append(("bytes per token", decimal(train["bytes"] / train["tokens"])))
    if number(tokenizer.get("seconds")) and tokenizer.get("kind") in ("bpe", "char"):
        rows.append(("trained in", f"{decimal(tokenizer['seconds'], 1)} s"))
    return _known(rows) if tokenizer else []


def settings(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The settings that differ from the defaults: (name, value, default)."""
    given = _part(run, "settings")
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    return [
        (name, setting(value), setting(defaults[name]) if name in defaults else NOTHING)
        for name, value in given.items()
        if name not in defaults or value != defaults[name]
    ]


def effective(run: dict[str, Any]) -> list[tuple[str, str]]:
    """What was derived for the settings that were not given."""
    return [
        (name.replace("_", " "), count(value) if isinstance(value, int) else setting(value))
        for name, value in _part(run, "effective").items()
    ]


def machine(run: dict[str, Any]) -> list[tuple[str, str]]:
    """The machine, then the versions."""
    facts = _part(run, "machine")
    rows = [(name, facts.get(name)) for name in ("platform", "processor", "cores", "threads")]
    if number(facts.get("memory_gb")) is not None:
        rows.append(("memory", f"{decimal(facts['memory_gb'], 1)} GB"))
    rows.append(("device", facts.get("device")))
    rows += list(_part(run, "versions").items())
    if run.get("seed") is not None:
        rows.append(("seed", run["seed"]))
    return _known(rows)


def _part(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _known(rows: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _last(rows: Rows, column: str) -> float | None:
    for row in reversed(rows):
        value = row.get(column)
        if value is not None and math.isfinite(value):
            return value
    return None


def _sentences(*parts: str | None) -> str:
    return ". ".join(part.rstrip(".") for part in parts if part)
