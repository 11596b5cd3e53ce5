"""The house's tokenizer: a Hugging Face fast tokenizer whose ``encode`` also answers by name."""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsIndex, overload

import tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from anyformer.core.errors import TokenizerError
from anyformer.core.files import write_atomically

PAD = "<pad>"
SPECIAL_TOKENS: tuple[str, ...] = (PAD, "<unk>", "<s>", "</s>")

# Which role a special token plays, by the names in common use (Llama and T5; BERT; GPT-2; ChatML).
_ROLES: dict[str, tuple[str, ...]] = {
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "unk_token": ("<unk>", "[UNK]", "<|unk|>"),
    "bos_token": ("<s>", "<bos>", "[BOS]", "[CLS]", "<|startoftext|>", "<|begin_of_text|>", "<|im_start|>"),
    "mask_token": ("<mask>", "[MASK]", "<|mask|>"),
    "eos_token": ("</s>", "<eos>", "[EOS]", "[SEP]", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>"),
}


class EncodedIds(list[int]):
    """Token ids as a plain list, which also answers ``["input_ids"]`` and ``["attention_mask"]`` (1 = keep)."""

    def __init__(self, ids: Sequence[int] = (), attention_mask: Sequence[int] | None = None) -> None:
        super().__init__(ids)
        self.attention_mask = list(attention_mask) if attention_mask is not None else [1] * len(self)

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice | str) -> list[int]: ...
    def __getitem__(self, key: SupportsIndex | slice | str) -> int | list[int]:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key == "input_ids":
            return list(self)
        if key == "attention_mask":
            return list(self.attention_mask)
        raise KeyError(f"{key!r}: an encoded text has 'input_ids' and 'attention_mask'")


class TextTokenizer(PreTrainedTokenizerFast):
    """A ``transformers`` fast tokenizer with ``save("x.json")`` and an ``encode`` that answers by name.

    Of itself it adds no special tokens. A folder it saves loads in ``transformers.AutoTokenizer``.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (transformers declares it so)

    def encode(
        self,
        text: str | list[str],
        text_pair: str | list[str] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        pad_to_multiple_of: int | None = None,
        split_special_tokens: bool | None = None,
    ) -> Any:
        """Ids of one text: an ``EncodedIds``, or with ``return_tensors`` what transformers gives, (1, T).

        The arguments mean what they mean in transformers. Raises TokenizerError for text that is not valid
        Unicode or has characters for which a tokenizer without ``<unk>`` and bytes has no id.
        """
        encoded = self(
            text,
            text_pair=text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            padding_side=padding_side,
            return_tensors=return_tensors,
            pad_to_multiple_of=pad_to_multiple_of,
            split_special_tokens=split_special_tokens,
            return_attention_mask=True,
        )
        if return_tensors is not None:
            return encoded["input_ids"]
        return EncodedIds(encoded["input_ids"], encoded["attention_mask"])

    def batch_encode(
        self,
        texts: Sequence[str],
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Any:
        """Several texts at once: "input_ids" and "attention_mask" (1 = keep), a row of each for every text.

        The arguments mean what they mean in transformers. Raises TokenizerError as ``encode`` does, and for what is no
        list of strings.
        """
        return self(
            _listed(texts),
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        # every way of encoding in transformers ends here; the keywords are transformers' own
        texts = [text] if isinstance(text, str) else text
        self.check_texts(texts)
        try:
            return super()._encode_plus(text, text_pair=text_pair, **kwargs)
        except TypeError:
            _check_unicode(texts)
            raise

    def check_texts(self, texts: Any) -> None:
        """TokenizerError where a text has a character without an id (only without ``<unk>`` and bytes)."""
        alphabet = self.closed_alphabet()
        if alphabet is None:
            return
        for text in texts:
            # a character of an added token is known within that token only
            if isinstance(text, str) and set(text) - alphabet and (unknown := self._without_added(text) - alphabet):
                shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in sorted(unknown)[:5])
                raise TokenizerError(
                    f"the character tokenizer has no id for {shown}" + (" …" if len(unknown) > 5 else ""),
                    detail=f"it knows {len(alphabet)} characters and has no <unk> and no bytes to fall back on",
                    fix="leave these characters out, or use a vocabulary with room for <unk>",
                )

    def _without_added(self, text: str) -> set[str]:
        """The characters of a text beside the special and added tokens in it."""
        whole = splits_special_tokens(self)
        added = [token for token in self.added_tokens_decoder.values() if not (whole and token.special)]
        words = [rf"\b{re.escape(t.content)}\b" if t.single_word else re.escape(t.content) for t in added]
        return set("".join(re.split("|".join(sorted(words, key=len, reverse=True)), text)) if words else text)

    def closed_alphabet(self) -> frozenset[str] | None:
        """The only characters that can be encoded, those of added tokens aside; None where every character can."""
        if "_alphabet" not in self.__dict__:
            backend = self.backend_tokenizer
            model = backend.model
            closed = (
                isinstance(model, BPE)
                and model.unk_token is None
                and not model.byte_fallback
                and backend.pre_tokenizer is None
            )
            self.__dict__["_alphabet"] = _single_characters(backend) if closed else None
        alphabet: frozenset[str] | None = self.__dict__["_alphabet"]
        return alphabet

    def train_new_from_iterator(
        self,
        text_iterator: Any,
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[Any] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **trainer_options: Any,
    ) -> Any:
        """Another tokenizer of this kind for other texts, with the same special tokens, as transformers has it.

        text_iterator: strings, or lists of them. trainer_options: of the library's trainer; there is none, and
        TokenizerError, for a tokenizer of characters.
        """
        if not self._is_of_characters():
            return super().train_new_from_iterator(  # type: ignore[no-untyped-call]
                text_iterator, vocab_size, length, new_special_tokens, special_tokens_map, **trainer_options
            )
        from anyformer.tokenization.character import characters_anew  # it imports this module

        if trainer_options:
            raise TokenizerError(
                f"a tokenizer of characters has no trainer with {', '.join(trainer_options)}",
                fix="leave it out: vocab_size, new_special_tokens and special_tokens_map are what it takes",
            )
        return characters_anew(self, text_iterator, vocab_size, new_special_tokens or (), special_tokens_map or {})

    def _is_of_characters(self) -> bool:
        """Whether nothing is merged: the library would train a BPE of it that has lost its bytes."""
        backend = self.backend_tokenizer
        if not isinstance(backend.model, BPE) or backend.pre_tokenizer is not None:
            return False
        return not json.loads(backend.to_str())["model"]["merges"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the one-file form (tokenizer.json of the ``tokenizers`` library) to ``path``."""
        target = Path(path)
        if target.is_dir():
            raise TokenizerError(f"{target} is a folder", fix="give a file name, or use save_pretrained(folder)")
        backend = as_made(self)
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, backend.to_str(pretty=True).encode("utf-8"))

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Write tokenizer.json and tokenizer_config.json into a folder, as transformers does."""
        as_made(self)
        with _told(save_directory):
            files: tuple[str, ...] = super().save_pretrained(save_directory, *args, **kwargs)
            # transformers notes the class's name and looks it up among its own when loading
            config_file = Path(save_directory) / "tokenizer_config.json"
            config = json.loads(config_file.read_text(encoding="utf-8"))
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return files


def _single_characters(backend: tokenizers.Tokenizer) -> frozenset[str]:
    """The characters with an id of their own; longer entries are special tokens, or merged of these."""
    before, after = backend.model.continuing_subword_prefix or "", backend.model.end_of_word_suffix or ""
    entries = backend.get_vocab(with_added_tokens=False)
    return frozenset(e for entry in entries if len(e := entry.removeprefix(before).removesuffix(after)) == 1)


def _listed(texts: Any) -> list[Any]:
    """The texts as a list; TokenizerError where they are one string, or not strings (or pairs of them)."""
    if isinstance(texts, str):
        shown = f"{texts!r:.60}"
        raise TokenizerError(
            f"texts is one string: {shown}",
            "each of its letters would become a row",
            f"give a list of strings: batch_encode([{shown}]), or encode({shown}) for one text",
        )
    fix = "give a list of strings"
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise TokenizerError(f"texts is {texts!r:.60} ({type(texts).__name__})", fix=fix)
    listed = list(texts)
    if not listed:
        raise TokenizerError("there are no texts: the list is empty", fix="give at least one string")
    for number, text in enumerate(listed):
        if not isinstance(text, str | tuple | list):
            raise TokenizerError(f"text {number:,} is {text!r:.60} ({type(text).__name__})", fix=fix)
    return listed


@contextmanager
def _told(place: str | os.PathLike[str]) -> Iterator[None]:
    """What the disk refuses, as TokenizerError; the library's own writing raises a bare Exception for it."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        fix = "free some space, or another place"
        raise TokenizerError(f"the tokenizer cannot be written to {os.fspath(place)}", str(error), fix) from error


def special_roles(tokens: Sequence[str]) -> dict[str, str]:
    """The role of each special token ({"eos_token": "</s>", …}), by the names in common use, first match first."""
    roles: dict[str, str] = {}
    for role, names in _ROLES.items():
        for name in names:
            if name in tokens:
                roles[role] = name
                break
    return roles


def check_special_tokens(tokens: Sequence[str]) -> list[str]:
    """The special tokens as a list; TokenizerError for an empty one, a double, or not a list of strings."""
    if (
        not isinstance(tokens, Sequence)
        or isinstance(tokens, str)
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise TokenizerError(f"special_tokens is {tokens!r}; it must be a list of strings")
    for token in tokens:
        if not token or not token.isascii():
            raise TokenizerError(f"special token {token!r} must be non-empty ASCII text")
        if tokens.count(token) > 1:
            raise TokenizerError(f"special token {token!r} is given twice")
    return list(tokens)


def wrap_backend(backend: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> TextTokenizer:
    """A house tokenizer around a ``tokenizers`` one; roles of the special tokens by their names."""
    tokenizer = TextTokenizer(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, **init_fields(special_tokens)
    )
    return with_padding(tokenizer)


def with_padding(tokenizer: TextTokenizer) -> TextTokenizer:
    """The tokenizer, which pads: with its end-of-text token, or another it has, where it has no padding token.

    No id is added. What is padded is told by the attention mask, and labels there are −100.
    """
    if tokenizer.pad_token_id is None:
        stand_in = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token or tokenizer.bos_token
        if stand_in is not None:
            tokenizer.pad_token = stand_in
    return tokenizer


def whole_number(name: str, value: Any) -> int:
    """The value as an int; TokenizerError where it is no whole number."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TokenizerError(f"{name} is {value!r:.60} ({type(value).__name__}); it must be a whole number")
    return operator.index(value)


def init_fields(special_tokens: Sequence[str]) -> dict[str, Any]:
    """What transformers' constructor is told beside the backend: roles, other special tokens, no clean-up."""
    roles = special_roles(special_tokens)
    others = [token for token in special_tokens if token not in roles.values()]
    fields: dict[str, Any] = {**roles, "clean_up_tokenization_spaces": False}
    return {**fields, "extra_special_tokens": others} if others else fields


def id_count(tokenizer: Any) -> int:
    """One more than the largest id the tokenizer gives: the embedding rows it needs (holes in the ids count)."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def encode_texts(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of each text, without special tokens, padding or truncation; house, Hugging Face or any ``encode``.

    Fast path: the backend's ``encode_batch_fast`` (parallel, no offsets). Raises TokenizerError as ``encode`` does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, tokenizers.Tokenizer):
        if isinstance(tokenizer, TextTokenizer):
            tokenizer.check_texts(texts)
        as_made(tokenizer)
        try:
            return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            _check_unicode(texts)
            raise
    if callable(tokenizer):
        encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return encoded
    return [list(tokenizer.encode(text)) for text in texts]


def as_made(tokenizer: Any) -> tokenizers.Tokenizer:
    """The backend as it was made: transformers leaves padding and more of the last call switched on."""
    backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = splits_special_tokens(tokenizer)
    return backend


def splits_special_tokens(tokenizer: Any) -> bool:
    """Whether a tokenizer is set to cut special tokens in a text like any other text."""
    return bool(getattr(tokenizer, "split_special_tokens", False))


def _check_unicode(texts: Any) -> None:
    """TokenizerError where a text cannot be written as UTF-8 (a lone surrogate)."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text is not valid Unicode: {text[error.start]!r} at character {error.start:,}",
                detail="half of a surrogate pair stands alone; it has no UTF-8 form",
                fix='text.encode("utf-8", "replace").decode("utf-8") replaces it',
            ) from error
        except AttributeError:
            return  # not a string: the TypeError of the library says it
