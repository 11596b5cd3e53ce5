"""What differs on the page between the objectives: words, units and baselines. Anything unknown reads as causal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ObjectiveWords:
    """How one objective is spoken of."""

    task: str
    unit: str
    """Of the loss: nats per …"""
    levels: tuple[tuple[str, str], ...]
    """(key in the results, name) of the losses that guesses reach."""
    caption: str
    """What the dashed lines of the chart are."""
    examples: str
    """What the data is counted in."""


_TOKENS = (("unigram_entropy", "single tokens"), ("bigram_entropy", "token pairs"))
_CAUSAL = ObjectiveWords(
    "next-token prediction",
    "token",
    _TOKENS,
    "Over optimizer steps. Dashed: the lowest loss that anything can reach which sees no context (single tokens), or"
    " only the token before (token pairs), measured on the same held-out tokens.",
    "document",
)
_WORDS = {
    "causal": _CAUSAL,
    "masked": ObjectiveWords(
        "masked language modelling",
        "hidden token",
        _TOKENS,
        "Over optimizer steps. Dashed: guessing the same hidden tokens by how often each occurs in the held-out text"
        " (single tokens), or follows the token before it there (token pairs).",
        "document",
    ),
    "seq2seq": ObjectiveWords(
        "sequence to sequence",
        "token to write",
        _TOKENS,
        "Over optimizer steps. Dashed: the lowest loss that anything can reach which sees no context (single tokens),"
        " or only the token before (token pairs), measured on the same held-out texts to write.",
        "pair",
    ),
    "classification": ObjectiveWords(
        "classification",
        "example",
        (("prior_entropy", "class frequencies"),),
        "Over optimizer steps. Dashed: the lowest loss of a guess that never looks at the text, by how often each class"
        " occurs among the same held-out examples.",
        "example",
    ),
}


def words(run: dict[str, Any]) -> ObjectiveWords:
    """Of the run's objective, as its manifest says."""
    return _WORDS.get(str(run.get("objective")), _CAUSAL)
