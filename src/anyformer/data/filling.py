"""Filling a token cache: one process at a time, continued where a killed one stopped, moved into place whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anyformer.core.errors import TrainingError
from anyformer.core.files import write_atomically
from anyformer.core.findings import Finding
from anyformer.core.places import default_cache_dir
from anyformer.core.protocols import Progress, View
from anyformer.data.split import Piece
from anyformer.tokenization import encoding
from anyformer.tokenization.base import id_count

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BATCH_CHARACTERS = 1 << 20  # text encoded at a time; bounds the memory
JOURNAL_BYTES = 64 << 20  # of text; what a kill costs at most, some seconds
_SAMPLE = 1 << 18  # characters on which an accelerator has to give the library's ids
_STALE_SECONDS = 14 * 24 * 3600  # a part this old will not be continued
_WAIT_SECONDS = 0.2
SIDES = ("train", "val")


class Filled(NamedTuple):
    """What the files of a filled folder hold: meta.json's fields about them, and how they were made."""

    meta: dict[str, Any]
    findings: tuple[Finding, ...]


@contextmanager
def part_folder(base: Path, name: str, view: View | None) -> Iterator[Path]:
    """The folder in which a cache is filled, held by this process alone; what an earlier one left is in it.

    Removed where nothing of it can be continued. Without locks (Windows, some network disks) a folder of our own.
    Raises TrainingError where the disk refuses.
    """
    folder = base / f"{name}.part"
    try:
        base.mkdir(parents=True, exist_ok=True)
        _remove_stale(base)
        with ExitStack() as stack:
            if not stack.enter_context(_held(base / f"{name}.lock", view)):
                folder = Path(tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=base))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            finally:
                if not (folder / "progress.json").is_file():
                    shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        elsewhere = "set ANYFORMER_CACHE to" if base.is_relative_to(default_cache_dir()) else "give as cache_dir"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            shutil.rmtree(folder, ignore_errors=True)  # the space is needed more than the time it took
            raise TrainingError(
                f"the disk is full: the token cache in {base} could not be written",
                detail=str(error),
                fix=f"free some space, or {elsewhere} a folder on another disk",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise TrainingError(
                f"the token cache cannot be written to {base}",
                detail=str(error),
                fix=f"{elsewhere} a folder of your own",
            ) from error
        raise


def _remove_stale(base: Path) -> None:
    for pattern in ("*.tmp-*", "*.part"):
        for old in base.glob(pattern):
            with suppress(OSError):  # another process may be removing it as well
                if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _held(path: Path, view: View | None) -> Iterator[bool]:
    """Hold a lock file, waiting for the process that does; False where there are no locks. Gone afterwards."""
    handle = _wait_for(path, view) if fcntl is not None else None
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # before letting go: those who wait see that it is gone and begin anew
        os.close(handle)


def _wait_for(path: Path, view: View | None) -> int | None:
    said = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_at(handle, path):
                return handle
        except BlockingIOError:
            if view is not None and not said:
                view.status("another process is filling this token cache; waiting for it")
                said = True
            time.sleep(_WAIT_SECONDS)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(handle)
                raise
            os.close(handle)
            path.unlink(missing_ok=True)
            return None
        os.close(handle)


def _is_open_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def fill(
    folder: Path,
    fingerprint: str,
    pieces: Callable[[], Iterator[Piece]],
    tokenizer: Any,
    total: int,
    view: View | None = None,
    processes: int | None = None,
) -> Filled:
    """Encode ``pieces()`` into train.bin and val.bin of ``folder``, from where an earlier process stopped.

    total: bytes of text. processes: that encode beside this one; by the size of the text where not given.
    """
    fast, finding = _accelerator(pieces, tokenizer, total)
    if fast is not None:
        try:
            meta = _Filling(folder, fingerprint, tokenizer, total, view).run(pieces(), fast, 0)
            return Filled(meta, (finding,))
        except encoding.EncoderMismatch as error:
            (folder / "progress.json").unlink(missing_ok=True)  # from the start: what it encoded may be wrong
            finding = Finding("encoder", "note", "the tokenizers library", "equal ids", str(error))
    if processes is None:
        processes = encoding.process_count(total)
    filling = _Filling(folder, fingerprint, tokenizer, total, view)
    if processes < 2 or not encoding.EncoderPool.fits(tokenizer):
        return Filled(filling.run(pieces(), encoding.library_encode(tokenizer), 0), (finding,))
    with encoding.EncoderPool(tokenizer, processes) as pool:
        meta = filling.run(pieces(), pool.encode, processes)
    return Filled(meta, (Finding("encoder", "note", f"{finding.measured}, {processes} processes", "", finding.reason),))


def _accelerator(
    pieces: Callable[[], Iterator[Piece]], tokenizer: Any, total: int
) -> tuple[encoding.Encode | None, Finding]:
    if total < encoding.ACCELERATE_FROM:
        return None, Finding("encoder", "note", "the tokenizers library", reason="a small text")
    sample: list[str] = []
    size = 0
    for piece in pieces():
        sample.append(piece.text[:_SAMPLE])
        size += len(sample[-1])
        if size >= _SAMPLE:
            break
    return encoding.accelerated_encode(tokenizer, sample)


class _Filling:
    """train.bin and val.bin as far as they are written, their counts and hashes, and the journal of both."""

    def __init__(self, folder: Path, fingerprint: str, tokenizer: Any, total: int, view: View | None) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.total = total
        self.view = view
        size = id_count(tokenizer)
        self.dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
        self.vocab_size = size
        self.eos: int | None = tokenizer.eos_token_id
        self.batches = 0
        self.counts = {side: {"documents": 0, "bytes": 0, "tokens": 0} for side in SIDES}
        self.hashes = {side: hashlib.sha256() for side in SIDES}

    @property
    def done(self) -> int:
        """Bytes of text whose tokens are written."""
        return sum(count["bytes"] for count in self.counts.values())

    def run(self, pieces: Iterator[Piece], encode: encoding.Encode, ahead: int) -> dict[str, Any]:
        """Write the tokens of all pieces; returns meta.json's fields about them. ahead: batches encoded at once."""
        self._continue()
        start, skipped = time.monotonic(), self.done
        journaled = skipped
        with ExitStack() as stack:
            files = {side: stack.enter_context((self.folder / f"{side}.bin").open("ab")) for side in SIDES}
            waiting: deque[list[Piece]] = deque()
            for encoded in encoding.encode_stream(encode, self._texts(pieces, waiting), ahead):
                for side, (ids, counts) in self._sides(waiting.popleft(), encoded).items():
                    data = ids.astype(self.dtype).tobytes()
                    files[side].write(data)
                    self.hashes[side].update(data)
                    for name, count in counts.items():
                        self.counts[side][name] += count
                self.batches += 1
                if self.done - journaled >= JOURNAL_BYTES:
                    for file in files.values():
                        file.flush()
                        os.fsync(file.fileno())
                    self._journal()
                    journaled = self.done
                if self.view is not None:
                    self._show((self.done - skipped) / max(1e-9, time.monotonic() - start))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        (self.folder / "progress.json").unlink(missing_ok=True)
        sums = {side: digest.hexdigest() for side, digest in self.hashes.items()}
        return {
            "dtype": self.dtype.name,
            "vocab_size": self.vocab_size,
            "eos": self.eos,
            **self.counts,
            "sha256": sums,
        }

    def _texts(self, pieces: Iterator[Piece], waiting: deque[list[Piece]]) -> Iterator[list[str]]:
        """The texts of each batch that is not written yet; the batch itself goes to ``waiting``."""
        first = self.batches
        for number, batch in enumerate(batches(pieces)):
            if number >= first:
                waiting.append(batch)
                yield [piece.text for piece in batch]

    def _sides(self, batch: list[Piece], encoded: encoding.Ids) -> dict[str, tuple[NDArray[np.uint32], dict[str, int]]]:
        """Ids of a batch by side, end-of-text ids put in, with the documents, bytes and tokens that they are."""
        ids, lengths = encoded
        held = np.asarray([piece.side == "val" for piece in batch])
        if self.eos is not None:
            marked = np.asarray([piece.marked for piece in batch])
            ids = np.insert(ids, np.cumsum(lengths)[marked], self.eos)
            lengths = lengths + marked
        per_id = np.repeat(held, lengths)
        result = {}
        for side, mine in zip(SIDES, (~held, held), strict=True):
            of_side = [piece for piece, is_mine in zip(batch, mine, strict=True) if is_mine]
            own = ids[per_id if side == "val" else ~per_id]
            counts = {
                "documents": sum(piece.ends for piece in of_side),
                "bytes": sum(len(piece.text.encode("utf-8")) for piece in of_side),
                "tokens": len(own),
            }
            result[side] = own, counts
        return result

    def _journal(self) -> None:
        record = {
            "fingerprint": self.fingerprint,
            "batch_characters": BATCH_CHARACTERS,
            "batches": self.batches,
            "counts": self.counts,
        }
        write_atomically(self.folder / "progress.json", json.dumps(record).encode())

    def _continue(self) -> None:
        """Take over what the journal says is written; files longer than that are cut, anything else is begun anew."""
        try:
            record = json.loads((self.folder / "progress.json").read_text(encoding="utf-8"))
            if (record["fingerprint"], record["batch_characters"]) != (self.fingerprint, BATCH_CHARACTERS):
                raise ValueError("another's")
            counts = {side: {name: int(record["counts"][side][name]) for name in self.counts[side]} for side in SIDES}
            for side in SIDES:
                self.hashes[side] = _cut(self.folder / f"{side}.bin", counts[side]["tokens"] * self.dtype.itemsize)
        except (OSError, ValueError, KeyError, TypeError):
            self.hashes = {side: hashlib.sha256() for side in SIDES}
            for side in SIDES:
                (self.folder / f"{side}.bin").write_bytes(b"")
            return
        self.batches, self.counts = int(record["batches"]), counts
        if self.view is not None:
            self.view.status(
                f"an earlier run got to {self.done / max(1, self.total):.0%} of the tokens; going on there"
            )

    def _show(self, rate: float) -> None:
        assert self.view is not None
        left = (self.total - self.done) / max(1e-9, rate)
        self.view.progress(Progress(self.done, self.total, rate=rate, seconds_left=left, unit="bytes", label="byte"))


def _cut(file: Path, size: int) -> Any:
    """The file's first ``size`` bytes, the rest removed: their sha256. Raises ValueError where it is shorter."""
    if file.stat().st_size < size:
        raise ValueError("shorter than its journal says")
    os.truncate(file, size)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256")


def batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of about a million characters; a longer document is cut after a line, only for encoding."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        for part in cut_piece(piece):
            batch.append(part)
            size += len(part.text)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def cut_piece(piece: Piece) -> Iterator[Piece]:
    """A long piece in parts of a million characters at most, each encoded alone; cut after a line if there is one."""
    text, start = piece.text, 0
    while len(text) - start > BATCH_CHARACTERS:
        line_end = text.rfind("\n", start + BATCH_CHARACTERS // 2, start + BATCH_CHARACTERS)
        end = line_end + 1 if line_end >= 0 else start + BATCH_CHARACTERS
        yield Piece(piece.side, text[start:end], False, False)
        start = end
    yield Piece(piece.side, text[start:], piece.ends, piece.marked)
