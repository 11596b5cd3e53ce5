"""Bytes of a file, unpacked on the way where it ends in .gz or .zst: one piece at a time, never the whole."""

from __future__ import annotations

import gzip
import io
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from anyformer.core.errors import DataError, DependencyError
from anyformer.core.optional import require

PACKED_SUFFIXES = (".gz", ".zst")
_STEP = 1 << 20  # bytes unpacked at a time


def is_packed(path: Path) -> bool:
    """Whether the file's name says that it is compressed."""
    return path.suffix.lower() in PACKED_SUFFIXES


def kind_of(path: Path) -> str:
    """The suffix that says what is inside, in small letters: .jsonl for a.jsonl, A.JSONL.gz and a.jsonl.zst."""
    return Path(path.stem).suffix.lower() if is_packed(path) else path.suffix.lower()


def open_bytes(path: Path) -> BinaryIO:
    """A stream of the file's content, unpacked. Reading a damaged one raises DataError.

    Raises DependencyError where nothing that reads zstd is installed.
    """
    if not is_packed(path):
        return path.open("rb")
    raw: Any = gzip.open(path, "rb") if path.suffix.lower() == ".gz" else _zstd_stream(path)  # noqa: SIM115
    return io.BufferedReader(_Unpacked(raw, path.name), _STEP)


def skip_bytes(stream: BinaryIO, count: int) -> None:
    """Move ``count`` bytes on from the start; by reading where the stream cannot jump."""
    if stream.seekable():
        stream.seek(count)
        return
    while count > 0 and (block := stream.read(min(count, _STEP))):
        count -= len(block)


def size_of(path: Path) -> int:
    """Bytes of the unpacked content; for a compressed file a pass over it."""
    if not is_packed(path):
        return path.stat().st_size
    with open_bytes(path) as stream:
        return sum(iter(lambda: len(stream.read(_STEP)), 0))


@contextmanager
def open_seekable(path: Path) -> Iterator[Any]:
    """Something that formats with a table of contents at the end can be read from: the path itself, or for a
    compressed file a temporary copy, gone afterwards. Raises DataError where that copy cannot be written."""
    if not is_packed(path):
        yield path
        return
    with tempfile.TemporaryFile() as copy, open_bytes(path) as stream:
        try:
            while block := stream.read(_STEP):
                copy.write(block)
            copy.flush()
        except OSError as error:
            raise DataError(
                f"{path.name} cannot be unpacked into {tempfile.gettempdir()}",
                str(error),
                "unpack it where there is room, and give the unpacked file",
            ) from error
        copy.seek(0)
        yield copy


def _zstd_stream(path: Path) -> Any:
    """zstandard where it is installed, else pyarrow's codec; several frames in a row are one content."""
    try:
        library: Any = require("zstandard", purpose="reading .zst")
    except DependencyError:
        arrow = require("pyarrow", purpose="reading .zst")
        if not arrow.Codec.is_available("zstd"):
            raise DependencyError(
                f"{path.name} is packed with zstd, which nothing here unpacks", fix="pip install zstandard"
            ) from None
        return arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd")
    return library.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)


class _Unpacked(io.RawIOBase):
    """A decompressing stream whose errors name the file. It reads forward only."""

    def __init__(self, stream: Any, name: str) -> None:
        super().__init__()
        self._stream = stream
        self._name = name
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            cut = "it is cut off" if isinstance(error, EOFError) else str(error).splitlines()[0]
            raise self._damaged(cut) from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # a class of an optional package
                raise
            raise self._damaged(str(error)) from error
        buffer[: len(block)] = block
        self._done += len(block)
        return len(block)

    def _damaged(self, why: str) -> DataError:
        return DataError(
            f"{self._name} cannot be unpacked after byte {self._done:,} of its content",
            why,
            "fetch or pack the file again",
        )

    def close(self) -> None:
        self._stream.close()
        super().close()
