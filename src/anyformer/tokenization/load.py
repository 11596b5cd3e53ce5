"""A tokenizer from the user's own file or folder. Nothing is fetched, no code of the folder is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from anyformer.core.errors import TokenizerError
from anyformer.core.text_encoding import utf8_command
from anyformer.tokenization.base import TextTokenizer, special_roles, with_padding, wrap_backend


def load_tokenizer(path: str | os.PathLike[str]) -> TextTokenizer:
    """The tokenizer in a folder (as ``save_pretrained`` writes it, or vocab.json + merges.txt …) or a tokenizer.json.

    One without a padding token pads with another it has. Raises TokenizerError where there is none, or its file cannot
    be read.
    """
    return with_padding(_read(path))


def _read(path: str | os.PathLike[str]) -> TextTokenizer:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise TokenizerError(f"{path!r} is no path of a tokenizer", fix="give a tokenizer.json, or its folder")
    place = Path(path).expanduser()
    if not place.exists():
        raise TokenizerError(
            f"no tokenizer at {place}", fix="give a tokenizer.json, or a folder written by save_pretrained"
        )
    if place.name == "vocab.txt" and place.is_file():
        return _from_wordpieces(place)
    if place.name in ("vocab.json", "merges.txt") and {"vocab.json", "merges.txt"} <= _names(place.parent):
        return _from_ranks(place.parent)  # one of the two files was given, both are needed
    if place.is_file():
        return _from_file(place)
    if (place / "tokenizer.json").is_file() and not (place / "tokenizer_config.json").is_file():
        return _from_file(place / "tokenizer.json")
    if {"vocab.json", "merges.txt"} <= _names(place) and not list(place.glob("tokenizer*.json")):
        return _from_ranks(place)
    if (place / "vocab.txt").is_file() and not list(place.glob("*.json")):
        return _from_wordpieces(place / "vocab.txt")
    return _from_folder(place)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _from_wordpieces(file: Path) -> TextTokenizer:
    """BERT's own form, one piece a line; text is folded to lower case where no piece has a capital letter."""
    try:
        pieces = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start:,}",
            fix=utf8_command(file, error.object),
        ) from error
    if "[UNK]" not in pieces or len(set(pieces)) != len(pieces):
        raise TokenizerError(
            f"{file} is no vocabulary of BERT's kind", f"{len(pieces):,} lines", "one piece a line, [UNK] among them"
        )
    specials = list(special_roles(pieces).values())
    lower = not any(piece != piece.lower() for piece in pieces if not (piece[:1] == "[" and piece[-1:] == "]"))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
        ends = {token: (token, vocabulary[token]) for token in ("[SEP]", "[CLS]")}
        backend.post_processor = processors.BertProcessing(ends["[SEP]"], ends["[CLS]"])
    backend.add_special_tokens(specials)
    return wrap_backend(backend, specials)


def _from_ranks(folder: Path) -> TextTokenizer:
    """GPT-2's own form: vocab.json and merges.txt of a byte-level BPE."""
    try:
        backend = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library raises a bare Exception for every fault of a file
        raise TokenizerError(f"vocab.json and merges.txt in {folder} do not fit together", detail=str(error)) from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    specials = list(special_roles(list(backend.get_vocab())).values())
    backend.add_special_tokens(specials)
    return wrap_backend(backend, specials)


def _from_file(file: Path) -> TextTokenizer:
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception for every fault of a file
        raise TokenizerError(
            f"{file} is not a tokenizer file", detail=str(error), fix="tokenizer.save('x.json') writes one"
        ) from error
    backend.no_truncation()
    backend.no_padding()
    specials = [t.content for _, t in sorted(backend.get_added_tokens_decoder().items()) if t.special]
    return wrap_backend(backend, specials)


def _from_folder(folder: Path) -> TextTokenizer:
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises a dozen kinds; all mean the same to the user
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        whole = folder / "tokenizer.json"
        raise TokenizerError(
            f"no tokenizer could be read from {folder}",
            detail=f"it holds {names}\n{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix=f"its code is never run; the file alone may do: {whole}"
            if whole.is_file()
            else "give a tokenizer.json, or a folder written by save_pretrained",
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TokenizerError(
            f"the tokenizer in {folder} ({type(loaded).__name__}) has no fast form",
            fix="convert it to a tokenizer.json",
        )
    roles = {
        role: str(token)
        for role, token in loaded.special_tokens_map.items()
        if role.endswith("_token") and isinstance(token, str)
    }
    # post-processing (BERT's [CLS] … [SEP]) travels in the backend; the data layer switches it off per call
    return TextTokenizer(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        clean_up_tokenization_spaces=bool(getattr(loaded, "clean_up_tokenization_spaces", False)),
        model_max_length=loaded.model_max_length,
        padding_side=loaded.padding_side,
        truncation_side=loaded.truncation_side,
        **roles,
    )
