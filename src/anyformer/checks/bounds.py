"""Tier 1: what a module does at the ends of its range: the shortest and longest texts, the first and last ids.

T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from anyformer.checks.places import alike_behind
from anyformer.checks.results import CheckResult
from anyformer.checks.subject import Subject
from anyformer.models.blame import blame
from anyformer.models.calls.locating import seen_of
from anyformer.models.calls.positions import named_lengths

_CLAMPED = "positions beyond the last one are taken for another (clamped, or counted from 0 again): raise instead"


def lengths(subject: Subject) -> CheckResult:
    """1, 2 and the most tokens run; one more raises."""
    plan, expected = subject.plan, "1, 2 and the most tokens run; one more raises"
    if plan.only_length:
        return CheckResult("lengths", 1, "note", f"exactly {plan.only_length:,} tokens", expected)
    T = plan.max_positions
    tried = [1, 2, *([T] if T and subject.limits.longest >= T else [])]
    failed = [(n, error) for n in tried if (error := _error(subject, n)) is not None]
    rows = max(_position_rows(subject), default=None)
    beyond = (rows or 0) + 1
    if rows and rows <= subject.limits.longest and T is None and _error(subject, beyond) is None:
        measured = f"{beyond:,} tokens run, with {rows:,} positions"
        return CheckResult("lengths", 1, "fail", measured, f"{beyond:,} tokens raise", _CLAMPED)
    if T is None and (named := alike_behind(subject)):
        measured = f"{named + 4:,} tokens run, with {named:,} positions"
        return CheckResult("lengths", 1, "fail", measured, f"{named + 1:,} tokens raise", _CLAMPED)
    if T and _runs(subject, T + 1):
        measured = f"{T + 1:,} tokens run, and give logits for fewer"
        cause = "a text that is too long is cut without a word: raise instead, or cut where the ids are made"
        return CheckResult("lengths", 1, "warn", measured, f"{T + 1:,} tokens raise", cause)
    if T and (unused := _rows_before(subject, T)):
        table, first, held = unused
        measured = f"{table} has {held:,} places, of which {T:,} can be used: the first token asks for row {first}"
        cause = f"positions are counted from {first}: count them from 0, or it never takes as long a text as it names"
        return CheckResult("lengths", 1, "warn", measured, f"{held:,} tokens run", cause, table)
    if T and (named := _longer_named(subject, T, rows)):
        measured = f"{T + 1:,} tokens raise, while it names {named:,}"
        cause = "a table of positions with too few rows, or a limit that is another number than the one it names"
        return CheckResult("lengths", 1, "warn", measured, f"{named:,} tokens run", cause)
    if failed:
        n, error = failed[0]
        line, _, words = blame(error).rpartition("\n")
        cause = "a squeeze() or a shape that is taken for granted: no text may then begin with its first token alone"
        measured = f"{n:,} token{'' if n == 1 else 's'}: {words}"
        return CheckResult("lengths", 1, "warn", measured, expected, cause if n < 3 else "", line)
    most = f"up to {T:,}, where one more raises" if T else "no limit found"
    return CheckResult("lengths", 1, "ok", f"1 and 2 tokens run; {most}", expected)


def _longer_named(subject: Subject, T: int, rows: int | None) -> int | None:
    """The least length that the module names, where it names longer ones than it takes alone.

    A table with more rows than can be asked for counts from another number (RoBERTa, OPT), which is meant so.
    """
    named = named_lengths(subject.module)
    if subject.trained or not named or min(named) <= T or (rows is not None and rows > T):
        return None
    least = min(named)
    tables = {m.num_embeddings for m in subject.awake.modules() if isinstance(m, nn.Embedding)}
    return None if least in tables and least - T <= _OFFSET else least


_OFFSET = 2
"""Rows before the first place: fairseq counts from the padding's id + 1."""


def _position_rows(subject: Subject) -> list[int]:
    try:
        return seen_of(subject.prober, subject.plan).position_rows
    except Exception:  # noqa: BLE001  (a stranger's forward may raise anything: then nothing is known of its positions)
        return []


def _rows_before(subject: Subject, T: int) -> tuple[str, int, int] | None:
    """A table of as many places as a length that the module names, whose first rows nobody asks for.

    Its name, the first row that is asked for, how many there are.

    A table that keeps a row for padding, or has more rows than the module names, is meant so (RoBERTa, OPT).
    """
    asked: dict[str, int] = {}

    def watching(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[object, ...], made: Tensor) -> None:
            rows = given[0] if given else None
            if isinstance(rows, Tensor) and not rows.is_floating_point() and rows.numel() >= 4:
                first = int(rows.flatten()[0])
                if rows.flatten()[:4].tolist() == list(range(first, first + 4)):
                    asked[name] = first

        return hook

    tables = {n: m for n, m in subject.awake.named_modules() if type(m) is nn.Embedding and m.padding_idx is None}
    handles = [m.register_forward_hook(watching(n)) for n, m in tables.items()]
    try:
        subject.logits(subject.batch(0, 2, min(T, 8)))
    finally:
        for handle in handles:
            handle.remove()
    named = named_lengths(subject.module)
    for name, first in asked.items():
        rows = tables[name].num_embeddings
        if first > 0 and rows - first == T and rows in named:
            return name, first, rows
    return None


def _runs(subject: Subject, T: int) -> bool:
    """Whether forward itself takes so many tokens, whatever comes out."""
    if subject.plan.layout == "last" or subject.limits.longest < T or subject.prober.device.type != "cpu":
        return False  # on a GPU a place that is not there would end the process
    with torch.no_grad():
        return subject.prober.run(replace(subject.plan, max_positions=None), subject.batch(0, 2, T))[1] is None


def _error(subject: Subject, T: int) -> Exception | None:
    """What a text of T tokens raises."""
    try:
        logits = subject.logits(subject.batch(0, 2, T))
    except Exception as error:  # noqa: BLE001  (a stranger's forward may raise anything; it is the result)
        return error
    return ValueError("a logit is NaN") if bool(logits.isnan().any()) else None


def ids(subject: Subject) -> CheckResult:
    """0 and V − 1 are read; V raises: an id beyond the vocabulary is a mistake, not another token."""
    plan, expected = subject.plan, "the first and last id run; one beyond raises"
    rows = plan.target_vocab if subject.two else plan.embedding_rows
    if rows is None:
        return CheckResult("ids", 1, "n/a", "no limit of its ids is known", expected)
    if subject.prober.device.type != "cpu":
        return CheckResult("ids", 1, "n/a", "a wrong id would end a process on a GPU", expected)

    def error(id_: int) -> Exception | None:
        base = subject.batch(0, 2)
        given = subject.with_read(base, _last_set(subject.read(base), id_))
        try:
            subject.logits(given)
        except Exception as raised:  # noqa: BLE001  (a stranger's forward may raise anything; it is the result)
            return raised
        return None

    for id_ in (0, rows - 1):
        if (raised := error(id_)) is not None:
            line, _, words = blame(raised).rpartition("\n")
            return CheckResult("ids", 1, "fail", f"id {id_:,}: {words}", expected, "", line)
    held = max((m.num_embeddings for m in subject.awake.modules() if isinstance(m, nn.Embedding)), default=0)
    if subject.writes and rows < plan.vocab_size <= held and error(rows) is not None:
        measured = f"id {rows:,} raises, with {held:,} rows in the embedding and {plan.vocab_size:,} logits"
        cause = "ids are counted from another number inside: the last one that can be written cannot be read"
        return CheckResult("ids", 1, "warn", measured, expected, cause)
    if error(rows) is None:
        measured = f"id {rows:,} runs, with {rows:,} rows in the embedding"
        cause = "ids are clamped or taken modulo V: a tokenizer that does not fit would train without a word"
        return CheckResult("ids", 1, "warn", measured, expected, cause)
    return CheckResult("ids", 1, "ok", f"0 and {rows - 1:,} run, {rows:,} raises", expected)


def _last_set(ids_: Tensor, id_: int) -> Tensor:
    return torch.cat((ids_[:, :-1], torch.full_like(ids_[:, -1:], id_)), dim=1)
