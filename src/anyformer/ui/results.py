"""What a command found, as lines for a person. Answer first, way out last."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyformer.core.view import percent, printable
from anyformer.ui.layout import NAME, sample_lines, table, wrapped

if TYPE_CHECKING:  # these import torch
    from anyformer.api import Evaluation
    from anyformer.models.callplan import CallPlan
    from anyformer.models.source import LoadedModel


def loss_lines(figures: Mapping[str, Any], width: int) -> list[str]:
    """The held-out loss beside its baselines; ``figures`` as ``results`` in run.json, each of which may be missing."""
    loss, bits, single, pair = (
        figures.get(key) for key in ("val_loss", "bits_per_byte", "unigram_entropy", "bigram_entropy")
    )
    if loss is None:
        return ["  held-out loss not measured"]
    answer = f"held-out loss {loss:.2f}" + ("" if bits is None else f" ({bits:.2f} bits per byte)")
    guesses = [
        f"by {kind} {value:.2f}"
        for kind, value in (("single tokens", single), ("token pairs", pair))
        if value is not None
    ]
    lines = [f"  {answer}"]
    if guesses:
        baselines = f"guessing {' · '.join(guesses)}"
        one_line = f"  {answer}     {baselines}"
        lines = [one_line] if len(one_line) <= width else [f"  {answer}", f"  {baselines}"]
    unknown = figures.get("unknown_share")
    if bits is None and unknown:
        text = f"bits per byte is not given: {percent(unknown)} of the held-out text is unknown to the tokenizer"
        lines += wrapped(text, first="  ! ", rest="    ", width=width)
    beats = figures.get("beats_bigram")
    if beats is not None and not beats:
        text = "not below the loss by token pairs: so far it uses no more than the token before; train longer"
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


def generate_command(run: Path, samples: Sequence[Mapping[str, str]]) -> str:
    """The command that continues one of the samples' prompts, of those that can be shown as they are on one line."""
    prompts = (sample["prompt"] for sample in samples)
    prompt = next((p for p in prompts if p and "\n" not in p and printable(p) == p), "")
    flag = f" --prompt {shlex.quote(prompt)}" if prompt else ""
    return f"anyformer generate {shlex.quote(str(run))}{flag}"


def evaluation_lines(evaluation: Evaluation, width: int) -> list[str]:
    """Loss, baselines and on how much text."""
    figures = {
        "val_loss": evaluation.loss,
        "bits_per_byte": evaluation.bits_per_byte,
        "unigram_entropy": evaluation.unigram_entropy,
        "bigram_entropy": evaluation.bigram_entropy,
        "beats_bigram": evaluation.beats_bigram,
        "unknown_share": evaluation.unknown_share,
    }
    measured = f"on {evaluation.tokens:,} tokens · perplexity {evaluation.perplexity:,.1f}"
    return [*loss_lines(figures, width), f"  {measured}"]


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
    task = "causal language modelling" if plan.causal else "no causal language model: it sees later tokens"
    if any(finding.verdict == "fail" for finding in findings):
        task = "not trainable as it is: see ✗ above"
    return [
        *wrapped(f"{head}    {parameters:,} parameters", first="", rest="  ", width=width),
        *table(rows, width),
        f"family: {plan.family} → {task}",
    ]
