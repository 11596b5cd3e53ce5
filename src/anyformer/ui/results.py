"""What a command found, as lines for a person. Answer first, way out last."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyformer.core.view import percent, printable, wrapped
from anyformer.ui.layout import NAME, sample_lines, table

if TYPE_CHECKING:  # these import torch
    from anyformer.api import Evaluation
    from anyformer.core.findings import Finding
    from anyformer.models.callplan import CallPlan
    from anyformer.models.repair import Repair
    from anyformer.models.source import LoadedModel


def loss_lines(figures: Mapping[str, Any], width: int) -> list[str]:
    """The held-out loss beside its baselines; ``figures`` as ``results`` in run.json, each of which may be missing."""
    loss, bits, single, pair = (
        figures.get(key) for key in ("val_loss", "bits_per_byte", "unigram_entropy", "bigram_entropy")
    )
    if loss is None:
        return ["  held-out loss not measured"]
    if figures.get("objective") == "classification":
        return _class_lines(figures, width)
    answer = f"held-out loss {loss:.2f}" + ("" if bits is None else f" ({bits:.2f} bits per byte)")
    right = figures.get("accuracy")
    if figures.get("objective") == "masked":
        answer += " per hidden token" + ("" if right is None else f", {percent(right)} guessed right")
    guesses = [
        f"by {kind} {value:.2f}"
        for kind, value in (("single tokens", single), ("token pairs", pair))
        if value is not None
    ]
    lines = _beside(answer, f"guessing {' · '.join(guesses)}" if guesses else "", width)
    unknown = figures.get("unknown_share")
    if bits is None and unknown:
        text = f"bits per byte is not given: {percent(unknown)} of the held-out text is unknown to the tokenizer"
        lines += wrapped(text, first="  ! ", rest="    ", width=width)
    if figures.get("beats_bigram") is False:
        lines += wrapped(_not_below(loss, single), first="  ! ", rest="    ", width=width)
    return lines


def _not_below(loss: float, single: float | None) -> str:
    """What it means that a loss is not below that of guessing by token pairs."""
    if single is not None and loss >= single:
        return "not below the loss by single tokens: it has not learned yet how often each token occurs; train longer"
    # the pairs of the text itself: a predictor that knows them, which no model of a short text can
    return (
        "not below the loss by token pairs yet: train longer (the pairs are counted in the held-out text itself; the"
        " shorter that is, the lower the figure)"
    )


def reproduction_lines(findings: Sequence[Finding], replay: Path | None, width: int) -> list[str]:
    """What was compared, the verdict, and where the replay lies."""
    lines: list[str] = []
    for finding in findings:
        reason = f" — {finding.reason}" if finding.reason else ""
        text = f"{finding.name}: {finding.measured}{reason}"
        lines += wrapped(text, first=f"  {finding.mark} ", rest="    ", width=width)
    return [*lines, *([] if replay is None else ["", f"  the replay: {replay}"])]


def _beside(answer: str, baselines: str, width: int) -> list[str]:
    """Both on one line where there is room."""
    one_line = f"  {answer}     {baselines}".rstrip()
    return [one_line] if len(one_line) <= width or not baselines else [f"  {answer}", f"  {baselines}"]


def _class_lines(figures: Mapping[str, Any], width: int) -> list[str]:
    """A classifier: how often it is right, beside always answering the most frequent class."""
    right, most, mean_f1, prior = (
        figures.get(key) for key in ("accuracy", "majority_accuracy", "macro_f1", "prior_entropy")
    )
    loss = f"held-out loss {figures['val_loss']:.2f}"
    if right is None:
        return [f"  {loss}"]
    answer = f"{100 * right:.1f} % right, {loss}" + ("" if mean_f1 is None else f", macro F1 {mean_f1:.2f}")
    baseline = "" if most is None else f"always the most frequent class {100 * most:.1f} %"
    baseline += "" if prior is None else f", loss {prior:.2f}"
    lines = _beside(answer, baseline, width)
    if figures.get("beats_majority") is False:
        text = "not better than always answering the most frequent class: it has learned nothing of use; train longer"
        lines += wrapped(text, first="  ! ", rest="    ", width=width)
    return lines


def training_lines(
    run: Path,
    figures: Mapping[str, Any],
    samples: Sequence[Mapping[str, str]],
    report: Path | None,
    step: str,
    width: int,
) -> list[str]:
    """The end of a training: loss, samples, report, and ``step``, the next command."""
    lines = ["", *loss_lines(figures, width)]
    for sample in samples:
        lines += ["", *sample_lines(sample["prompt"], sample["text"], width)]
    lines.append("")
    # not wrapped: they are there to be copied
    lines += [f"  {'report' if report else 'run':<{NAME}} {report or run}", f"  {'next':<{NAME}} {step}"]
    return [printable(line) for line in lines]


def next_command(run: Path, figures: Mapping[str, Any], samples: Sequence[Mapping[str, str]]) -> str:
    """What to do with a finished run: let it write, where it does; else measure it. One that was paused goes on."""
    if figures.get("out_of_time"):
        return f"anyformer train --resume {shlex.quote(str(run))}"
    if figures.get("objective") in ("masked", "classification"):
        return f"anyformer evaluate {shlex.quote(str(run))} --data FILE"
    return generate_command(run, samples)


def generate_command(run: Path, samples: Sequence[Mapping[str, str]]) -> str:
    """The command that continues one of the samples' prompts, of those that can be shown as they are on one line."""
    prompts = (sample["prompt"] for sample in samples)
    prompt = next((p for p in prompts if p and "\n" not in p and printable(p) == p), "")
    flag = f" --prompt {shlex.quote(prompt)}" if prompt else ""
    return f"anyformer generate {shlex.quote(str(run))}{flag}"


def evaluation_lines(evaluation: Evaluation, width: int) -> list[str]:
    """Loss, baselines and on how much text."""
    kinds = {"masked": "hidden tokens", "seq2seq": "tokens to write"}
    if evaluation.examples is not None:
        measured = f"on {evaluation.examples:,} examples"
    else:
        measured = f"on {evaluation.tokens or 0:,} {kinds.get(evaluation.objective, 'tokens')}"
    if evaluation.perplexity is not None:
        measured += f" · perplexity {evaluation.perplexity:,.1f}"
    return [*loss_lines(evaluation.figures, width), f"  {measured}"]


def plan_lines(loaded: LoadedModel, plan: CallPlan, width: int) -> list[str]:
    """The table of ``anyformer inspect``: what was detected, how it was measured, what follows."""
    provenance = loaded.provenance
    parameters = sum(parameter.numel() for parameter in loaded.module.parameters())
    sha = next(iter(provenance.files.values()), "")
    head = f"{provenance.class_name} in {provenance.location}" + (f" (sha256 {sha[:4]}…)" if sha else "")
    findings = [*loaded.findings, *plan.findings]
    rows = [
        (
            f"{finding.mark} {finding.name}" if finding.verdict in ("warn", "fail") else finding.name,
            finding.measured,
            finding.reason,
        )
        for finding in findings
    ]
    tasks = {
        "encoder": "masked language modelling",
        "encoder_decoder": "sequence to sequence",
        "classifier": "classification",
    }
    task = "causal language modelling" if plan.causal else "no causal language model: it sees later tokens"
    task = tasks.get(plan.family, task)
    if any(finding.verdict == "fail" for finding in findings):
        task = "not trainable as it is: see ✗ above"
    return [
        *wrapped(f"{head}    {parameters:,} parameters", first="", rest="  ", width=width),
        *table(rows, width),
        f"family: {plan.family} → {task}",
    ]


def diff_text(diff: str, *, colour: bool) -> str:
    """A unified diff as it may be shown; on a terminal additions are green and removals red."""
    if not colour:
        return diff.rstrip("\n")
    lines = []
    for line in printable(diff).rstrip("\n").split("\n"):
        code = "1" if line.startswith(("+++", "---")) else {"+": "32", "-": "31", "@": "36"}.get(line[:1], "")
        lines.append(f"\x1b[{code}m{line}\x1b[0m" if code else line)
    return "\n".join(lines)


def repair_lines(found: Repair, model: str, written: str | None, width: int) -> list[str]:
    """What a repair changes and how it was proven; what to do with it."""
    if not found.needed:
        return [f"  ✓ nothing to repair: {found.findings[0].reason}"]
    lines = ["", "what changes"]
    for change in found.changes:
        lines += wrapped(change, first="  - ", rest="    ", width=width)
    lines += ["proven on the corrected file", *table([(f.name, f.measured, f.reason) for f in found.findings], width)]
    if written is None:
        step = f"anyformer repair {shlex.quote(model)} --write OUT.py   (nothing is written yet)"
    else:
        step = f"written to {written}"
    return [printable(line) for line in [*lines, f"  {'next' if written is None else 'file':<{NAME}} {step}"]]
