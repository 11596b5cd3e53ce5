"""Text → token files: memory-mapped, keyed by content, written beside and moved into place whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyformer.core.errors import DataError, TokenizerError, TrainingError
from anyformer.core.findings import Finding
from anyformer.core.places import default_cache_dir as default_cache_dir
from anyformer.core.protocols import View
from anyformer.data.corpus import Corpus, TextHash, encode_utf8
from anyformer.data.filling import SIDES, fill, part_folder
from anyformer.data.split import Piece, shared_documents, split_finding, split_pieces
from anyformer.tokenization.base import encode_texts, splits_special_tokens
from anyformer.tokenization.encoding import PROBES

_FORMAT = 4  # of the files; 2: their sha256 in meta.json; 3: that of its own fields; 4: no ids of a wrong accelerator
_TOKENS = 1  # of the fingerprint, which runs record: raised only where the same text would give other tokens
Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class TokenCache:
    """Token ids of the two sides, memory-mapped 1-D arrays of uint16 or uint32, and what they came from."""

    path: Path
    train: Tokens
    val: Tokens
    meta: dict[str, Any]
    """format, fingerprint, path, dtype, vocab_size, eos; train and val, each with documents, bytes and tokens;
    sha256 of train.bin and val.bin."""
    findings: tuple[Finding, ...] = ()


def build_token_cache(
    corpus: Corpus,
    tokenizer: Any,
    *,
    val_split: float = 0.1,
    val_corpus: Corpus | None = None,
    cache_dir: str | Path | None = None,
    view: View | None = None,
    processes: int | None = None,
) -> TokenCache:
    """The tokens of a corpus, from the cache where they are there, else encoded into it.

    Documents of a corpus with many end with the tokenizer's end-of-text id where it has one; pieces of a single text
    follow each other unmarked. One pass hashes the content (its fingerprint names the folder), a second encodes.
    val_split 0 puts all into ``train``, 1 into ``val``. processes: that encode beside this one; some on four cores or
    more where the text is large. A process that is killed loses seconds: the next one goes on where it stopped. Raises
    DataError for text that cannot be used, that changed between the passes, or that is held out and trained on at once;
    TrainingError where the cache cannot be written; TokenizerError for what is no tokenizer.
    """
    if not hasattr(tokenizer, "get_vocab") or not hasattr(tokenizer, "eos_token_id"):
        raise TokenizerError(
            f"tokenizer is {tokenizer!r:.60} ({type(tokenizer).__name__}), no tokenizer of Hugging Face's kind",
            fix="anyformer.tokenization.load_tokenizer(path) gives one of a file or folder",
        )
    if view is not None:
        view.status(f"reading {corpus.name}")
    findings: tuple[Finding, ...] = (split_finding(corpus, val_split, val_corpus),)
    shared = shared_documents(corpus, val_corpus)
    if shared:
        measured, why = f"{shared:,} left out of the training text", "they are held out, too, and only measured"
        findings += (Finding("shared texts", "warn", measured, "0", why),)
    fingerprint = _fingerprint(corpus, tokenizer, val_split, val_corpus, shared)
    base = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    final = base / fingerprint[:16]
    there = (final / "meta.json").exists()
    found = _open(final, fingerprint, findings)
    if found is not None:
        return found
    if there:
        reason = "its files are not what was written; a disk that damages one file may damage others"
        damaged = Finding("token cache", "warn", f"{final} is damaged or of an older version: made anew", reason=reason)
        findings += (damaged,)
        if view is not None:
            view.status(damaged.measured)
    total = corpus.scan.size + (val_corpus.scan.size if val_corpus is not None else 0)
    with part_folder(base, final.name, view) as folder:
        found = _open(final, fingerprint, findings)  # another process may have filled it while this one waited
        if found is not None:
            return found
        read = _Reading(corpus, val_split, val_corpus)
        filled = fill(folder, fingerprint, read.pieces, tokenizer, total, view, processes)
        read.require_unchanged(shared)
        meta = {"format": _FORMAT, "fingerprint": fingerprint, **filled.meta}
        _write_meta(folder / "meta.json", meta)
        return _publish(folder, final, fingerprint, (*findings, *filled.findings))


class _Reading:
    """All text as ``split_pieces`` gives it, hashed on the way: it may change while it is read."""

    def __init__(self, corpus: Corpus, val_split: float, val_corpus: Corpus | None) -> None:
        self._corpora = (corpus,) if val_corpus is None else (corpus, val_corpus)
        self._split = (corpus, val_split, val_corpus)
        self._seen: list[TextHash] = []

    def pieces(self) -> Iterator[Piece]:
        self._seen = seen = [TextHash(corpus.single_text) for corpus in self._corpora]
        for piece in split_pieces(*self._split):
            of = len(seen) - 1 if piece.side == "val" else 0  # with a held-out corpus each side is one of its own
            seen[of].add(encode_utf8(piece.text, self._corpora[of].name))
            yield piece

    def require_unchanged(self, shared: int) -> None:
        """DataError where the text is no longer what the fingerprint was made of: the tokens may be of either.

        shared: documents of the corpus that were left out, and so were not hashed: it is read once more.
        """
        for corpus, seen in zip(self._corpora, self._seen, strict=True):
            if shared and corpus is self._corpora[0]:
                seen = TextHash(corpus.single_text)
                for document in corpus:
                    seen.add(encode_utf8(document, corpus.name))
            if seen.fingerprint() != corpus.scan.fingerprint:
                corpus.forget_scan()
                raise DataError(f"{corpus.name} changed while it was read", fix="run again")


def _fingerprint(corpus: Corpus, tokenizer: Any, val_split: float, val_corpus: Corpus | None, shared: int) -> str:
    """sha256 over content, tokenizer, split and format: everything the files depend on."""
    record = {
        "format": _TOKENS,
        "corpus": corpus.scan.fingerprint,
        "val_corpus": val_corpus.scan.fingerprint if val_corpus is not None else None,
        "val_split": val_split if val_corpus is None else None,
        "tokenizer": tokenizer_state(tokenizer),
        "eos": tokenizer.eos_token_id,
    }
    if shared:
        record["shared"] = "left out"  # the others' fingerprints, which runs record, stay as they were
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def tokenizer_state(tokenizer: Any) -> Any:
    """tokenizer.json without padding and truncation (they change with every call).

    Of one without: its class, vocabulary, plain attributes, and the ids that it gives for hard texts.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
        return {**state, "split_special_tokens": True} if splits_special_tokens(tokenizer) else state
    # it is known by what it does: its settings may lie anywhere
    ids = [_ids_or_refusal(tokenizer, probe) for probe in PROBES]
    plain = {n: v for n, v in getattr(tokenizer, "__dict__", {}).items() if isinstance(v, str | bool | None)}
    return [type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items()), ids, sorted(plain.items())]


def _ids_or_refusal(tokenizer: Any, text: str) -> Any:
    try:
        return [int(i) for row in encode_texts(tokenizer, [text]) for i in row]
    except (LookupError, ValueError, TypeError, TokenizerError) as error:
        return type(error).__name__  # an alphabet of its own, without these characters


def _open(folder: Path, fingerprint: str, findings: tuple[Finding, ...]) -> TokenCache | None:
    """The cache in a folder; None where it is absent, half-written, damaged or another's."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != _FORMAT or meta["fingerprint"] != fingerprint or meta.pop("own") != _own_hash(meta):
            return None
        dtype = np.dtype(meta["dtype"])
        for side in SIDES:
            file = folder / f"{side}.bin"
            # the size first: it costs nothing
            if file.stat().st_size != meta[side]["tokens"] * dtype.itemsize or _sha256(file) != meta["sha256"][side]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    arrays = {side: _map(folder / f"{side}.bin", dtype, meta[side]["tokens"]) for side in SIDES}
    return TokenCache(folder, arrays["train"], arrays["val"], {**meta, "path": str(folder)}, findings)


def _own_hash(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _map(path: Path, dtype: np.dtype[Any], size: int) -> Any:
    if size == 0:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", shape=(size,))


def _publish(folder: Path, final: Path, fingerprint: str, findings: tuple[Finding, ...]) -> TokenCache:
    """Move the finished folder into place. Where another process was first, its work is used."""
    for _ in range(3):
        try:
            os.replace(folder, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            there = _open(final, fingerprint, findings)
            if there is not None:
                return there
            aside = Path(tempfile.mkdtemp(prefix=f"{final.name}.tmp-", dir=final.parent))
            os.replace(final, aside / "damaged")
            shutil.rmtree(aside, ignore_errors=True)
            continue
        there = _open(final, fingerprint, findings)
        if there is not None:
            return there
    raise TrainingError(f"the token cache {final} cannot be put in place", fix=f"remove {final} and try again")


def _write_meta(path: Path, meta: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        json.dump({**meta, "own": _own_hash(meta)}, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
