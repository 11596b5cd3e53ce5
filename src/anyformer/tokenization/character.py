"""One id per character, for any vocabulary size; bytes for the rest where they fit."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from tokenizers import Tokenizer, decoders, models

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.view import PlainView
from anyformer.tokenization.base import (
    SPECIAL_TOKENS,
    TextTokenizer,
    check_special_tokens,
    init_fields,
    special_roles,
    whole_number,
    with_padding,
)
from anyformer.tokenization.texts import training_texts

BYTES = 256
_BYTE_TOKENS = [f"<0x{value:02X}>" for value in range(BYTES)]  # the spelling that tokenizers' ByteFallback reads


class CharacterLevelTokenizer(TextTokenizer):
    """Characters as tokens: special tokens first, then 256 bytes where they fit, then characters.

    With ``texts`` the characters are theirs, most frequent first (ties by code point), and the tokenizer may be
    smaller than asked; without, they are filled up in code point order, printable ASCII first. From 256 + special
    tokens up, every string survives encode and decode; below, unknown characters become ``<unk>``, or raise
    TokenizerError where there is none: that is shown, and ``findings`` says which.
    """

    def __init__(
        self,
        vocab_size: int,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        texts: Any = None,
        *,
        view: View | None = None,
    ) -> None:
        """texts: strings, a Path or several (UTF-8 text), a Dataset or a dict with a text column; each read once.
        view: is shown what becomes of unknown characters where bytes do not fit, and that there are fewer characters
        than asked where no text limits them; stderr where not given."""
        specials = check_special_tokens(special_tokens)
        vocab_size = whole_number("vocab_size", vocab_size)
        if vocab_size <= len(specials):
            raise TokenizerError(
                f"vocab_size is {vocab_size}; {len(specials)} special tokens leave no room for characters",
                fix="a larger vocabulary, or fewer special_tokens",
            )
        with_bytes = vocab_size >= BYTES + len(specials)
        reserved = specials + (_BYTE_TOKENS if with_bytes else [])
        room = vocab_size - len(reserved)
        # a special token of one character is an entry already
        counts = None if texts is None else count_characters(texts)
        candidates = (c for c in (_code_points() if counts is None else counts) if c not in specials)
        characters = list(islice(candidates, room))
        left_out = [] if counts is None else [counts[c] for c in candidates]
        share = sum(left_out) / sum(counts.values()) if counts else 0.0
        vocab = {token: number for number, token in enumerate([*reserved, *characters])}
        roles = special_roles(specials)
        backend = Tokenizer(
            models.BPE(vocab=vocab, merges=[], byte_fallback=with_bytes, unk_token=roles.get("unk_token"))
        )
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        if specials:
            backend.add_special_tokens(specials)
        super().__init__(tokenizer_object=backend, **init_fields(specials))  # type: ignore[no-untyped-call]
        with_padding(self)
        source = "Unicode has" if texts is None else "the text gave"
        self.findings = _findings(vocab_size, len(vocab), source, len(specials), len(left_out), share, roles)
        told = [f for f in self.findings if f.verdict != "ok" and (texts is None or f.name == "unknown characters")]
        for finding in told:
            (view or PlainView()).finding(finding)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> TextTokenizer:
        """The saved tokenizer, as a plain house tokenizer (its characters are in the file)."""
        loaded: TextTokenizer = TextTokenizer.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return loaded


def characters_anew(
    tokenizer: TextTokenizer, texts: Any, vocab_size: int, further: Sequence[Any], renamed: Mapping[str, str]
) -> CharacterLevelTokenizer:
    """The character tokenizer of other texts, with the special tokens of this one, their roles, and further ones.

    texts: as the constructor takes them, or lists of strings. Raises TokenizerError.
    """
    mine = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    specials = [*(renamed.get(token, token) for token in mine), *map(str, further)]
    unknown = renamed.get(str(tokenizer.unk_token))
    if unknown is not None and "unk_token" not in special_roles([unknown]):
        raise TokenizerError(
            f"special_tokens_map renames {tokenizer.unk_token!r} to {unknown!r}, which is no name of an unknown token",
            fix="<unk>, [UNK] or <|unk|>",
        )
    made = CharacterLevelTokenizer(vocab_size, list(dict.fromkeys(specials)), _each_text(texts))
    for role in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
        if (token := getattr(tokenizer, role, None)) is not None:
            setattr(made, role, renamed.get(str(token), str(token)))
    return made


def _each_text(texts: Any) -> Any:
    """The texts, batches of them taken apart: transformers gives lists of texts."""
    if not isinstance(texts, list | tuple | Iterator):
        return texts
    return chain.from_iterable(item if isinstance(item, list | tuple) else [item] for item in texts)


def count_characters(texts: Any) -> dict[str, int]:
    """Each character of the texts and how often, most frequent first, ties by code point.

    texts: as the tokenizer takes them. Raises TokenizerError where there is no text, an item is not a string, or the
    text is not valid Unicode.
    """
    counts: Counter[str] = Counter()
    # an iterator is read once here and need not be kept
    for number, text in enumerate(texts if isinstance(texts, Iterator) else training_texts(texts)()):
        if not isinstance(text, str):
            raise TokenizerError(
                f"text {number:,} is {text!r:.60} ({type(text).__name__}); characters are taken from strings"
            )
        counts.update(text)
    surrogates = [c for c in counts if "\ud800" <= c <= "\udfff"]
    if surrogates:
        raise TokenizerError(f"the text is not valid Unicode: it holds {surrogates[0]!r}, half of a surrogate pair")
    if not counts:
        raise TokenizerError("there is no text to take characters from", fix="give at least one non-empty text")
    return dict(sorted(counts.items(), key=lambda of: (-of[1], of[0])))


def _code_points() -> Iterator[str]:
    """All characters: printable ASCII, tab and newline, then those Unicode assigns, then the rest."""
    ascii_first = [*map(chr, range(0x20, 0x7F)), "\n", "\t", "\r"]
    yield from ascii_first
    rest = []
    for character in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(character)
        if category in ("Cc", "Cn", "Co"):
            rest.append(character)
        elif category != "Cs" and not " " <= character <= "~":  # surrogates (Cs) are no characters
            yield character
    yield from (character for character in rest if character not in "\n\t\r")


def _findings(
    asked: int, got: int, source: str, specials: int, left_out: int, share: float, roles: dict[str, str]
) -> list[Finding]:
    """specials: how many special tokens; left_out, share: characters of the text without an id, their share of it."""
    found = []
    if got < asked:
        measured = f"asked {asked:,}, {source} {got:,}"
        found.append(Finding("tokenizer size", "note", measured, f"{asked:,}", "all its characters"))
    if asked >= BYTES + specials:
        found.append(Finding("unknown characters", "ok", "written as their UTF-8 bytes", "every string round-trips"))
    elif "unk_token" in roles:
        reason = "256 bytes and the special tokens do not fit"
        measured = f"become {roles['unk_token']}"
        if left_out:
            measured += (
                f": {100 * share:.2g} % of the text, {left_out:,} different {'one' if left_out == 1 else 'ones'}"
            )
            enough = min(got + left_out, specials + BYTES)
            reason += f"; a vocabulary of {enough:,} holds them, of a model that is built for so many ids"
        found.append(
            Finding("unknown characters", "warn" if left_out else "note", measured, "every string round-trips", reason)
        )
    else:
        reason = "neither bytes nor <unk> fit"
        found.append(
            Finding("unknown characters", "note", "are refused with an error", "every string round-trips", reason)
        )
    return found
