"""How places are told apart: what tables are asked for, what is added to a token's vector, how queries and keys turn.

Two rows that each hold one token all along: what differs from place to place is then the place alone.
T time, D width, N heads of all rows together, K size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anyformer.checks.attended import Attention, attended
from anyformer.checks.subject import Subject
from anyformer.models.calls.positions import named_lengths
from anyformer.models.inputs import Inputs

_LONG = 64
"""Tokens of the texts: positions that are clamped or begin anew do so at a round number."""
_SHIFTS = 0.4
"""Of the difference of two tokens, the share that may change with the place: 0 where positions are added."""
_TRIED = 2048
"""Tokens of the longest text that is tried for what lies behind the last place."""
_DROWNED = 2e-3
"""Size of what is added for places, beside what tells two tokens apart: 0.01 with N(0, 1) times the root of 4096."""
_STRAIGHT = 0.99
"""Cosine of what may be called the same direction: rounding of angles is far below."""
_EDGE = 4
"""Places at the beginning that a short convolution sees with zeros before them."""


@dataclass(frozen=True)
class Misplaced:
    """What is wrong with the positions."""

    measured: str
    expected: str
    cause: str
    where: str = ""


def misplaced(subject: Subject) -> Misplaced | None:
    """The first that is wrong: rows asked for twice, equal vectors, vectors that are multiplied, products of places."""
    length = subject.plan.only_length or min(subject.plan.max_positions or _LONG, _LONG)
    for text in ("read", "source") if subject.two else ("read",):
        inputs = _two_tokens(subject, length, text)
        if inputs is None:
            continue
        asked, vectors, own = _seen(subject, inputs, text)
        found = (
            asked
            or _of_vectors(vectors, subject)
            or (_of_products(own) if own is not None and _alike(vectors) else None)
        )
        if found is not None:
            return found
    return None


def _two_tokens(subject: Subject, length: int, text: str) -> Inputs | None:
    """Two rows of one token each; of two texts the other one is a little shorter, so that they are told apart."""
    other = length if subject.plan.only_length else max(1, length - 1)
    T, S = (length, other) if text == "read" else (other, length)
    inputs = subject.prober.inputs(subject.plan, 2, T if not subject.two else S, 300, T)
    ids = subject.read(inputs) if text == "read" else inputs.input_ids
    first = ids[0, 0]
    others = ids[1][ids[1] != first]
    if not len(others) or length < 3:
        return None
    constant = torch.stack([first, others[0]])[:, None].expand(2, ids.shape[1]).contiguous()
    return subject.with_read(inputs, constant) if text == "read" else replace(inputs, input_ids=constant)


def _seen(subject: Subject, inputs: Inputs, text: str) -> tuple[Misplaced | None, Tensor | None, Attention | None]:
    """(rows of a table that come again, what the first module to read numbers reads (2, T, D), the first attention)."""
    T = (subject.read(inputs) if text == "read" else inputs.input_ids).shape[1]
    asked: list[Misplaced] = []
    vectors: list[Tensor] = []

    def table(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[object, ...]) -> None:
            rows = _rows(given[0] if given else None, T)
            if rows and len(set(rows)) < T <= module.num_embeddings:  # type: ignore[operator]
                why = "positions are clamped or taken modulo far too early: later places cannot be told apart"
                shown = ", ".join(map(str, rows[:20])) + (" …" if T > 20 else "")
                asked.append(Misplaced(f"{name} is asked for rows {shown}", "a row of its own for each", why, name))

        return hook

    def read(module: nn.Module, given: tuple[object, ...]) -> None:
        x = given[0] if given else None
        if not isinstance(x, Tensor) or vectors or not x.is_floating_point():
            return
        if x.dim() == 3 and x.shape[0] == 2 and x.shape[1] in (T, T + 1) and x.shape[2] > 3:
            vectors.append(x.detach()[:, -T:].clone())  # a class token may stand before the text

    handles = [m.register_forward_pre_hook(table(n)) for n, m in _tables(subject.awake)]
    # nn.MultiheadAttention has a child, and reads before it
    first = [m for m in subject.awake.modules() if isinstance(m, nn.MultiheadAttention) or not list(m.children())]
    handles += [m.register_forward_pre_hook(read) for m in first]
    try:
        with attended(T) as watch:
            subject.logits(inputs)
    finally:
        for handle in handles:
            handle.remove()
    own = next((one for one in watch.found if one.product.shape[-2:] == (T, T) and one.weights is not None), None)
    return (asked[0] if asked else None), (vectors[0].double() if vectors else None), own


def _tables(module: nn.Module) -> list[tuple[str, nn.Embedding]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Embedding)]


def _rows(asked: object, T: int) -> list[int]:
    """The rows of an embedding that begins to count places; empty where it does not."""
    if not isinstance(asked, Tensor) or asked.is_floating_point() or asked.numel() not in (T, 2 * T):
        return []
    rows: list[int] = asked.reshape(-1, T)[0].tolist()
    counts = rows[:3] == list(range(rows[0], rows[0] + 3)) and rows[0] < 3
    return rows if counts else []


def _alike(vectors: Tensor | None) -> bool:
    """Whether no place is added: all vectors of a row are the same."""
    return vectors is not None and bool(
        torch.allclose(vectors, vectors[:, :1].expand_as(vectors), rtol=1e-5, atol=1e-7)
    )


def _of_vectors(vectors: Tensor | None, subject: Subject) -> Misplaced | None:
    """vectors: of each row's one token, with its place, (2, T, D)."""
    if vectors is None or _alike(vectors):
        return None
    apart = vectors[0] - vectors[1]
    common = apart.mean(0, keepdim=True)
    changes = float((apart - common).norm()) / max(float(apart.norm()), 1e-30)
    row = vectors[0]
    if (again := _again(vectors)) is not None:
        first, second = again
        if first + 1 in named_lengths(subject.module):
            return None  # behind the last place that there is: told by its lengths
        why = "positions are clamped, or begin anew: what lies at both places cannot be told apart"
        return Misplaced(f"places {first} and {second} have the same vector", "each place its own", why)
    share = float((row - row.mean(0)).square().mean().sqrt()) / max(float(common.square().mean().sqrt()), 1e-30)
    zeros = any(p.dim() > 1 and not bool(p.detach().any()) for p in subject.module.parameters())  # places yet to learn
    if changes < 1e-3 and share < _DROWNED and not zeros:
        why = "tokens' vectors are far too large beside it: embeddings times √width, not times the width or more"
        return Misplaced(f"what is added for places is {share:.1g} of what tells tokens apart", "the order counts", why)
    if changes > _SHIFTS and not _scaled(apart):
        measured = "what tells two tokens apart is another direction at each place"
        why = "positions are multiplied with the tokens' vectors: add them (Vaswani et al. 2017, §3.5)"
        return Misplaced(measured, "a token's vector, and something added for its place", why)
    return None


def _again(vectors: Tensor) -> tuple[int, int] | None:
    """The first two places with one vector, where something is added for each: (2, T, D)."""
    apart = vectors[0] - vectors[1]
    if float((apart - apart.mean(0, keepdim=True)).norm()) > 1e-4 * float(apart.norm()):
        return None  # what a convolution, or a state, gives comes to rest
    row = vectors[0]
    near = torch.cdist(row, row) <= 1e-6 * row.norm(dim=-1).max()
    found = near.triu(1).nonzero()
    return (int(found[0][0]), int(found[0][1])) if len(found) else None


def alike_behind(subject: Subject) -> int | None:
    """The length that the module names, and behind which all places are alike; None where that cannot be told."""
    for length in sorted(n for n in named_lengths(subject.module) if 4 <= n <= _TRIED):
        inputs = _two_tokens(subject, length + 4, "read")
        if inputs is None or subject.prober.run(subject.plan, inputs)[1] is not None:
            continue
        _, vectors, _ = _seen(subject, inputs, "read")
        if vectors is not None and not _alike(vectors) and _again(vectors) == (length - 1, length):
            return length
    return None


def _scaled(apart: Tensor) -> bool:
    """Whether only the size changes from place to place, as it does under a norm: (T, D)."""
    unit = apart / apart.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return bool((unit @ unit[0]).abs().min() > _STRAIGHT)


def _of_products(own: Attention) -> Misplaced | None:
    """Whether queries and keys, the first half of N of the one token, are turned by their places, both alike."""
    queries, keys = own.queries.double(), own.keys.double()
    N, T, _ = queries.shape
    window = T // 3
    if N % 2 or keys.shape != queries.shape or T < 3 * _EDGE:
        return None
    turned = [_turned(each[: N // 2, _EDGE:] - each[N // 2 :, _EDGE:]) for each in (queries, keys)]
    expected = "queries and keys turned by their places, so that their product is of the distance"
    if turned[0] != turned[1] and _still((keys if turned[0] else queries)[:, _EDGE:]):
        name, still = ("queries", "keys") if turned[0] else ("keys", "queries")
        why = f"rotary positions are for both (Su et al. 2021, §3.2): {still} are left as they are, or not given on"
        return Misplaced(f"only {name} are turned by their places", expected, why)
    if not all(turned) or own.values is None or not _still(own.values.double()[:, _EDGE:]):
        return None  # values that differ from place to place have it from what was added before
    product = queries @ keys.transpose(1, 2)
    places = range(max(window, _EDGE) + _EDGE, T)
    lines = torch.stack([product[:, t, t - window + 1 : t + 1] for t in places], 1)  # the same distances for each t
    unit = lines / lines.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    if float((unit * unit[:, :1]).sum(-1).min()) < _STRAIGHT:
        why = "queries and keys are turned by other angles, or the wrong way: both by the angles of their own place"
        return Misplaced("at one distance the product of a query and a key differs from place to place", expected, why)
    return None


def _still(given: Tensor) -> bool:
    """Whether nothing changes with the place: (N, T, K)."""
    return bool(torch.allclose(given, given[:, :1].expand_as(given), rtol=1e-4, atol=1e-6))


def _turned(apart: Tensor) -> bool:
    """Whether the direction changes with the place: (N, T, K)."""
    sizes = apart.norm(dim=-1)
    if not bool((sizes > 1e-12).all()):
        return False
    unit = apart / sizes[..., None]
    return bool((unit * unit[:, :1]).sum(-1).min() < _STRAIGHT)
