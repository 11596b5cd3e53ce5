"""Text → token files: memory-mapped, keyed by content, written beside and moved into place whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from anyformer.core.errors import DataError, TrainingError
from anyformer.core.findings import Finding
from anyformer.core.places import default_cache_dir as default_cache_dir
from anyformer.core.protocols import Progress, View
from anyformer.data.corpus import Corpus
from anyformer.data.split import Piece, split_finding, split_pieces
from anyformer.tokenization.base import encode_texts, id_count

_FORMAT = 2  # of the files; 2: their sha256 in meta.json
_TOKENS = 1  # of the fingerprint, which runs record: raised only where the same text would give other tokens
_BATCH_CHARACTERS = 1 << 20  # text encoded at a time; bounds the memory
_STALE_SECONDS = 24 * 3600  # a temporary folder this old belongs to a process that was killed
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
) -> TokenCache:
    """The tokens of a corpus, from the cache where they are there, else encoded into it.

    Documents of a corpus with many end with the tokenizer's end-of-text id where it has one; pieces of a single text
    follow each other unmarked. One pass hashes the content (its fingerprint names the folder), a second encodes.
    val_split 0 puts all into ``train``, 1 into ``val``. Raises DataError for text that cannot be used, that changed
    between the passes, or that is held out and trained on at once; TrainingError where the cache cannot be written.
    """
    if view is not None:
        view.status(f"reading {corpus.name}")
    if val_corpus is not None and val_corpus.scan.fingerprint == corpus.scan.fingerprint:
        raise DataError(
            "the held-out text is the training text",
            f"{val_corpus.name} and {corpus.name} hold the same: every figure measured on it would be false",
            "give other text to hold out, or none: then a part of the data is held out",
        )
    fingerprint = _fingerprint(corpus, tokenizer, val_split, val_corpus)
    findings = (split_finding(corpus, val_split, val_corpus),)
    base = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    final = base / fingerprint[:16]
    found = _open(final, fingerprint, findings)
    if found is not None:
        return found
    total = corpus.scan.size + (val_corpus.scan.size if val_corpus is not None else 0)
    with _temporary_folder(base, final.name) as folder:
        meta = _encode(split_pieces(corpus, val_split, val_corpus), tokenizer, folder, total, view)
        for read in (corpus, val_corpus):
            if read is not None:
                _require_unchanged(read)
        meta = {"format": _FORMAT, "fingerprint": fingerprint, **meta}
        _write_meta(folder / "meta.json", meta)
        return _publish(folder, final, fingerprint, findings)


def _require_unchanged(corpus: Corpus) -> None:
    """DataError where the text is no longer what the fingerprint was made of: the tokens may be of either."""
    before = corpus.scan.fingerprint
    if corpus.rescan().fingerprint != before:
        raise DataError(f"{corpus.name} changed while it was read", fix="run again")


def _fingerprint(corpus: Corpus, tokenizer: Any, val_split: float, val_corpus: Corpus | None) -> str:
    """sha256 over content, tokenizer, split and format: everything the files depend on."""
    record = {
        "format": _TOKENS,
        "corpus": corpus.scan.fingerprint,
        "val_corpus": val_corpus.scan.fingerprint if val_corpus is not None else None,
        "val_split": val_split if val_corpus is None else None,
        "tokenizer": _tokenizer_state(tokenizer),
        "eos": tokenizer.eos_token_id,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _tokenizer_state(tokenizer: Any) -> Any:
    """tokenizer.json without padding and truncation (they change with every call); else its class and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        return {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    return [type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items())]


def _open(folder: Path, fingerprint: str, findings: tuple[Finding, ...]) -> TokenCache | None:
    """The cache in a folder; None where it is absent, half-written, damaged or another's."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != _FORMAT or meta["fingerprint"] != fingerprint:
            return None
        dtype = np.dtype(meta["dtype"])
        for side in ("train", "val"):
            file = folder / f"{side}.bin"
            # the size first: it costs nothing
            if file.stat().st_size != meta[side]["tokens"] * dtype.itemsize or _sha256(file) != meta["sha256"][side]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    arrays = {side: _map(folder / f"{side}.bin", dtype, meta[side]["tokens"]) for side in ("train", "val")}
    return TokenCache(folder, arrays["train"], arrays["val"], {**meta, "path": str(folder)}, findings)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _map(path: Path, dtype: np.dtype[Any], size: int) -> Any:
    if size == 0:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", shape=(size,))


@contextmanager
def _temporary_folder(base: Path, name: str) -> Iterator[Path]:
    """A folder beside the final one, gone afterwards whatever happens; TrainingError where the disk refuses."""
    folder: Path | None = None
    try:
        base.mkdir(parents=True, exist_ok=True)
        for old in base.glob(f"{name}.tmp-*"):
            if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=base))
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TrainingError(
                f"the disk is full: the token cache in {base} could not be written",
                detail=str(error),
                fix="free some space, or set ANYFORMER_CACHE to a folder on another disk",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise TrainingError(
                f"the token cache cannot be written to {base}",
                detail=str(error),
                fix="set ANYFORMER_CACHE to a folder of your own",
            ) from error
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


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
        json.dump(meta, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())


def _encode(pieces: Iterator[Piece], tokenizer: Any, folder: Path, total: int, view: View | None) -> dict[str, Any]:
    """Write train.bin and val.bin, a million characters at a time; return what they hold."""
    size = id_count(tokenizer)
    dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
    eos: int | None = tokenizer.eos_token_id
    counts = {side: {"documents": 0, "bytes": 0, "tokens": 0} for side in ("train", "val")}
    hashes = {side: hashlib.sha256() for side in ("train", "val")}
    start = time.monotonic()
    done = 0
    with (folder / "train.bin").open("wb") as train, (folder / "val.bin").open("wb") as val:
        files: dict[str, BinaryIO] = {"train": train, "val": val}
        for batch in _batches(pieces):
            encoded = encode_texts(tokenizer, [piece.text for piece in batch])
            for piece, ids in zip(batch, encoded, strict=True):
                count = counts[piece.side]
                array = np.asarray([*ids, eos] if piece.marked and eos is not None else ids, dtype=dtype)
                data = array.tobytes()
                files[piece.side].write(data)
                hashes[piece.side].update(data)
                count["tokens"] += len(array)
                text_bytes = len(piece.text.encode("utf-8"))
                count["bytes"] += text_bytes
                count["documents"] += piece.ends
                done += text_bytes
            if view is not None:
                rate = done / max(1e-9, time.monotonic() - start)
                view.progress(
                    Progress(done, total, rate=rate, seconds_left=(total - done) / rate, unit="bytes", label="byte")
                )
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    sums = {side: digest.hexdigest() for side, digest in hashes.items()}
    return {"dtype": dtype.name, "vocab_size": size, "eos": eos, **counts, "sha256": sums}


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of about a million characters; a longer document is cut after a line, only for encoding."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        for part in _parts(piece):
            batch.append(part)
            size += len(part.text)
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _parts(piece: Piece) -> Iterator[Piece]:
    text, start = piece.text, 0
    while len(text) - start > _BATCH_CHARACTERS:
        line_end = text.rfind("\n", start + _BATCH_CHARACTERS // 2, start + _BATCH_CHARACTERS)
        end = line_end + 1 if line_end >= 0 else start + _BATCH_CHARACTERS
        yield Piece(piece.side, text[start:end], False, False)
        start = end
    yield Piece(piece.side, text[start:], piece.ends, piece.marked)
