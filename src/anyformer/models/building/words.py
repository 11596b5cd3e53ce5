"""What a name that nobody listed means, from the words that it is made of: ``num_decoder_blocks``, ``tgt_sos_idx``."""

from __future__ import annotations

import functools
import re

_WORDS: dict[str, tuple[str, ...]] = {
    "source": ("src", "source", "enc", "encoder", "inp", "input"),
    "target": ("tgt", "trg", "target", "targ", "dec", "decoder", "output", "out"),
    "count": ("n", "num", "nb", "number", "count", "cnt", "of", "nr"),
    "size": ("size", "sz"),
    "width": ("dim", "dims", "dimension", "d", "width", "units", "channels"),
    "length": ("len", "length", "lengths"),
    "most": ("max", "maximum"),
    "vocabulary": ("vocab", "vocabulary", "voc", "dict", "dictionary", "alphabet"),
    "word": (
        "word",
        "words",
        "token",
        "tokens",
        "char",
        "chars",
        "character",
        "characters",
        "tok",
        "symbol",
        "symbols",
    ),
    "layer": ("layer", "layers", "block", "blocks", "blk", "blks", "stack", "stacks"),
    "depth": ("depth",),
    "head": ("head", "heads"),
    "key": ("kv", "key", "value", "group", "groups"),
    "attention": ("attention", "attn", "att", "self", "multi", "multihead", "mha"),
    "model": ("model", "embed", "embedding", "embeddings", "emb", "embd", "hidden", "hid", "transformer"),
    "forward": ("ff", "ffn", "feedforward", "feed", "forward", "fwd", "mlp", "inner", "intermediate", "pf", "pwff"),
    "sequence": (
        "seq",
        "sequence",
        "sent",
        "sentence",
        "context",
        "ctx",
        "position",
        "positions",
        "pos",
        "text",
    ),
    "expert": ("expert", "experts", "moe"),
    "chosen": ("k", "top", "topk", "active", "activated", "selected", "per"),
    "dropout": ("drop", "dropout"),
    "rate": ("p", "prob", "probability", "rate", "ratio"),
    "times": ("mult", "multiplier", "ratio", "factor", "expansion", "expand", "scale"),
    "class": ("class", "classes", "label", "labels", "category", "categories", "tag", "tags", "targets", "cls"),
    "kind": (
        *("sentiment", "sentiments", "intent", "intents", "emotion", "emotions", "output", "final", "target"),
        *("slot", "slots", "entity", "entities", "ner", "topic", "topics", "relation", "relations"),
    ),
    "padding": ("pad", "padding"),
    "start": ("sos", "bos", "cls"),
    "end": ("eos", "sep"),
    "unknown": ("unk", "unknown"),
    "id": ("id", "idx", "index", "ind", "ids", "token", "tok"),
}
_KINDS: dict[str, frozenset[str]] = {
    word: frozenset(kind for kind, words in _WORDS.items() if word in words)
    for word in {word for words in _WORDS.values() for word in words}
}
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


_MARKS = ("pad_id", "bos_id", "eos_id", "unk_id")


def meaning_of(name: str) -> str | None:
    """The meaning of a name whose words are known (of a special id but one at an end); None where they say nothing."""
    pieces = [_cut(piece.lower()) for piece in _PIECE.findall(name)]
    if None in pieces and pieces.count(None) == 1 and None in (pieces[0], pieces[-1]):
        marked = _together([piece for piece in pieces if piece is not None])  # pad_token_id_smiles: a text's own word
        return marked if marked in _MARKS else None
    return None if None in pieces else _together([piece for piece in pieces if piece is not None])


def _together(pieces: list[tuple[str, ...]]) -> str | None:
    words = [word for piece in pieces for word in piece]
    return _meaning([_KINDS[word] for word in words]) if len(words) > 1 else None


@functools.lru_cache(maxsize=512)
def _cut(piece: str) -> tuple[str, ...] | None:
    """A piece in as few known words as possible: maxlen → max, len. Letters alone only by themselves."""
    if piece in _KINDS:
        return (piece,)
    ways = []
    for end in range(2, len(piece) - 1):
        if piece[:end] in _KINDS and (rest := _cut(piece[end:])) is not None and all(len(w) > 1 for w in rest):
            ways.append((piece[:end], *rest))
    if piece[0] in "nd" and (rest := _cut(piece[1:])) is not None and all(len(w) > 2 for w in rest):
        ways.append((piece[0], *rest))  # nlayers, dmodel
    return min(ways, key=len, default=None)


def _meaning(words: list[frozenset[str]]) -> str | None:
    def has(*kinds: str) -> bool:
        return any(word & set(kinds) for word in words)

    def only(*kinds: str) -> bool:
        return all(word & set(kinds) for word in words)

    side = "src_" if has("source") else "tgt_" if any("target" in w and "class" not in w for w in words) else ""
    sides, sizes = ("source", "target"), ("size", "width")
    of_side = {"src_": "encoder_", "tgt_": "decoder_", "": ""}[side]
    marks = [kind for kind in ("padding", "start", "end", "unknown") if has(kind)]
    if len(marks) == 1 and has("id") and only("source", "target", "id", "word", marks[0]):
        return {"padding": f"{side}pad_id", "start": "bos_id", "end": "eos_id", "unknown": "unk_id"}[marks[0]]
    if has("dropout"):
        parts = ("attention", "model", "forward", "source", "target", "word", "sequence")
        return "dropout" if only("dropout", "rate", *parts) else None
    if has("expert"):
        if has("chosen") and only("expert", "chosen", "count", "word"):
            return "experts_per_token"
        return "n_experts" if has("count") and only("expert", "count") else None
    if has("vocabulary"):
        return f"{side}vocab_size" if only("vocabulary", *sides, *sizes, "count", "length", "word") else None
    if has("head"):
        if has("key"):
            return "n_kv_heads" if only("head", "key", "count", "attention") else None
        if has(*sizes):
            return "head_dim" if only("head", "attention", *sizes) else None
        return "n_heads" if only("head", "count", "attention", "model", *sides) else None
    if has("forward"):
        if has("times"):
            return "ff_mult" if only("forward", "times") else None
        return "d_ff" if only("forward", "model", "count", *sizes, *sides) else None
    if has("layer", "depth"):
        counted = has("count", "depth", *sides) and only("layer", "depth", "count", "model", "attention", *sides)
        return f"n_{of_side}layers" if counted else None
    if has("class") and only("class", "kind", "count", "size"):
        return "num_classes"
    if has("length", "most") and only("most", "length", "sequence", "count", "size", "word", "model", *sides):
        return f"{side}max_len" if has("length", "sequence") else None
    if has("sequence") and has("size", "count") and only("sequence", "size", "count", *sides):
        return f"{side}max_len"
    if has("word") and has("count") and only("word", "count"):
        return "vocab_size"
    if has("width") and has("word") and only("word", "width", *sides):
        return "d_model"
    return "d_model" if has("model") and has(*sizes) and only("model", "word", *sizes, *sides) else None
