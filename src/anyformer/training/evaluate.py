"""A finished run measured again: on what was held out of its own data, or on other data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anyformer.core.errors import DataError, SettingsError
from anyformer.core.findings import Finding
from anyformer.core.places import from_here
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.data.cache import build_token_cache
from anyformer.data.corpus import open_corpus
from anyformer.data.examples import Kind, fingerprint, open_examples
from anyformer.data.module import open_held_out
from anyformer.data.pairs import encode_examples
from anyformer.data.streamed import sides_of_stream, streamed
from anyformer.data.streaming import open_stream
from anyformer.models.masking import Masking
from anyformer.models.plan import Objective
from anyformer.runs.rebuild import LoadedRun
from anyformer.training.examples import columns_of, held_out_columns, reads_padding, require_same_classes, sides_of
from anyformer.training.measure import measure_examples, measure_text
from anyformer.training.objective import choose_masking, start_and_end
from anyformer.training.prepare import id_limit


@dataclass(frozen=True)
class Evaluation:
    """How well a run's model does on held-out data. What the run's objective has no use for is None."""

    run_path: Path
    data: str
    """Name of the data."""
    loss: float
    """Mean cross-entropy, nats per target: per token, hidden token, token to write, or example."""
    perplexity: float | None
    bits_per_byte: float | None
    """None where a part of the text cannot be written by the tokenizer."""
    unknown_share: float | None
    """That part: the share of tokens that stand for unknown text."""
    tokens: int | None
    """Targets counted."""
    unigram_entropy: float | None
    bigram_entropy: float | None
    """No predictor that sees only the previous token can have a lower loss on this text."""
    beats_bigram: bool | None
    findings: list[Finding]
    objective: str = "causal"
    beats_unigram: bool | None = None
    examples: int | None = None
    """Examples classified."""
    accuracy: float | None = None
    """Share of the hidden tokens, or examples, that were the model's first guess."""
    macro_f1: float | None = None
    majority_accuracy: float | None = None
    """What always answering the most frequent class would score."""
    prior_entropy: float | None = None
    """The lowest loss of a guess that never looks at the text."""
    beats_majority: bool | None = None

    @classmethod
    def of(
        cls, run: Path, loaded: LoadedRun, data: str, figures: dict[str, Any], findings: list[Finding]
    ) -> Evaluation:
        """From what ``evaluate_run`` gives."""
        weights = Finding("weights", "note", loaded.checkpoint.name, reason="best by held-out loss")
        return cls(
            run_path=run,
            data=data,
            loss=figures["val_loss"],
            tokens=figures.get("evaluated_tokens"),
            examples=figures.get("evaluated_examples"),
            objective=objective_of(loaded),
            findings=[*findings, weights],
            **{key: figures.get(key) for key in _FIGURES},
        )

    @property
    def figures(self) -> dict[str, Any]:
        """As "results" in run.json."""
        return {
            "objective": self.objective,
            "val_loss": self.loss,
            **{name: getattr(self, name) for name in _FIGURES},
            "evaluated_tokens": self.tokens,
            "evaluated_examples": self.examples,
        }


# figures that have one name in an Evaluation and in a run's results
_FIGURES = (
    *("perplexity", "bits_per_byte", "unknown_share", "unigram_entropy", "bigram_entropy", "beats_unigram"),
    *("beats_bigram", "accuracy", "macro_f1", "majority_accuracy", "prior_entropy", "beats_majority"),
)


def objective_of(loaded: LoadedRun) -> Objective:
    """What the run was trained on; of a run from before this was recorded, the next token."""
    objective: Objective = loaded.manifest.get("objective", "causal")
    return objective


def evaluate_run(
    loaded: LoadedRun,
    source: Any,
    text_column: str | None,
    *,
    target_data: str | None = None,
    batch_size: int,
    device: torch.device,
    view: View,
) -> tuple[str, dict[str, Any], list[Finding]]:
    """(name of the data, figures as in "results" of run.json, findings).

    source: a path or an object, all of which is measured; None for the run's own held-out part.
    target_data: file with the texts to write, of a run on two files.
    Raises DataError where that is not what it was, or the data does not fit the run.
    """
    settings = loaded.manifest["settings"]
    recorded = TrainSettings(**{**settings, **from_here(loaded.path, settings)})
    if source is None and recorded.data.startswith("<"):
        raise DataError(
            f"the run was trained on a Python object ({recorded.data.strip('<>')}), which is not kept",
            fix="evaluate(run, data=...), or --data FILE",
        )
    objective = objective_of(loaded)
    if target_data is not None and source is None:
        raise SettingsError("target_data is given without data", fix="--data FILE holds the texts to read")
    if target_data is not None and objective != "seq2seq":
        raise SettingsError(f"target_data is given, but the run's objective is {objective}", fix="leave it out")
    if objective in ("seq2seq", "classification"):
        given = (source, target_data)
        return _examples(loaded, recorded, objective, given, text_column, batch_size, device, view)
    if source is None and recorded.stream:
        return _of_stream(loaded, recorded, objective, batch_size, device, view)
    if source is not None:
        corpus, held_out, split = open_corpus(source, text_column), None, 1.0
    else:
        corpus = open_corpus(recorded.data, recorded.text_column)
        held_out = open_held_out(recorded.val_data, recorded.text_column)
        split = recorded.val_split
    cache = build_token_cache(corpus, loaded.tokenizer, val_split=split, val_corpus=held_out, view=view)
    if source is None:
        _require_same(loaded, corpus.name, cache.meta["fingerprint"])
    masking = _masking(loaded, recorded.seed) if objective == "masked" else None
    view.status("measuring")
    figures = measure_text(
        loaded.module,
        loaded.plan,
        cache.val,
        loaded.tokenizer,
        masking,
        block_size=loaded.manifest["effective"]["max_length"],
        batch_size=batch_size,
        device=device,
        bytes_total=cache.meta["val"]["bytes"],
        view=view,
    )
    return corpus.name if held_out is None else held_out.name, figures, list(corpus.findings)


def _of_stream(
    loaded: LoadedRun,
    recorded: TrainSettings,
    objective: Objective,
    batch_size: int,
    device: torch.device,
    view: View,
) -> tuple[str, dict[str, Any], list[Finding]]:
    """The documents that the run held out of the beginning of its stream."""
    stream = open_stream(recorded.data, recorded.text_column)
    held_out = open_held_out(recorded.val_data, recorded.text_column)
    length = loaded.manifest["effective"]["max_length"]
    read = streamed(
        sides_of_stream(stream, recorded.val_split, held_out),
        loaded.tokenizer,
        block_size=length,
        seed=recorded.seed,
        shuffle_buffer=recorded.shuffle_buffer,
        val_corpus=held_out,
        view=view,
    )
    _require_same(loaded, stream.name, read.fingerprint)
    masking = _masking(loaded, recorded.seed) if objective == "masked" else None
    view.status("measuring")
    figures = measure_text(
        loaded.module,
        loaded.plan,
        read.val,
        loaded.tokenizer,
        masking,
        block_size=length,
        batch_size=batch_size,
        device=device,
        bytes_total=read.val_facts["bytes"],
        view=view,
    )
    return stream.name if held_out is None else held_out.name, figures, [*stream.findings, *read.findings]


def _examples(
    loaded: LoadedRun,
    recorded: TrainSettings,
    kind: Kind,
    given: tuple[Any, str | None],
    text_column: str | None,
    batch_size: int,
    device: torch.device,
    view: View,
) -> tuple[str, dict[str, Any], list[Finding]]:
    source, target_data = given
    columns = columns_of(recorded)
    if source is None:
        train, examples, _ = sides_of(recorded.data, recorded, kind)
        _require_same(loaded, train.name, fingerprint(train, examples))
    else:
        columns = replace(columns, text=text_column or columns.text)
        if target_data is not None:
            columns = replace(columns, target_data=target_data)
        elif columns.target_data is not None:
            columns = held_out_columns(columns, str(source)) if isinstance(source, str) else columns
        examples = open_examples(source, kind, columns)
    classes = tuple(loaded.manifest["data"].get("classes", ()))
    if kind == "classification":
        require_same_classes(examples, classes)
    padded, _, notes = encode_examples(
        examples,
        loaded.tokenizer,
        loaded.manifest["effective"]["max_length"],
        classes=classes,
        start_end=start_and_end(loaded.tokenizer, id_limit(loaded.plan)) if kind == "seq2seq" else None,
        pad_to=loaded.plan.only_length,
    )
    exact, _ = reads_padding(loaded.module, loaded.plan, padded)
    view.status("measuring")
    figures = measure_examples(
        loaded.module, loaded.plan, padded, exact=exact, batch_size=batch_size, device=device, view=view
    )
    return examples.name, figures, [*examples.findings, *notes]


def _masking(loaded: LoadedRun, seed: int) -> Masking:
    """How the run hides tokens."""
    return choose_masking(loaded.tokenizer, loaded.plan, seed, loaded.module)[0]


def _require_same(loaded: LoadedRun, name: str, found: str) -> None:
    if found != loaded.manifest["data"]["fingerprint"]:
        raise DataError(
            f"{name} is no longer the text that the run was trained on",
            "a part of it may have been held out then and trained on since, or the other way round",
            "name the text to measure: --data FILE",
        )
