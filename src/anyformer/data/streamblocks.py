"""A stream of documents as shuffled blocks of tokens, and a loader whose place in it can be saved.

B rows in a batch of all processes, T block length, N blocks in the shuffle buffer.
"""

from __future__ import annotations

import copy
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anyformer.core.errors import CheckpointError, DataError
from anyformer.data.blocks import Block, PackedBlocks
from anyformer.data.filling import cut_piece
from anyformer.data.order import EpochOrder
from anyformer.data.shares import share_rows
from anyformer.data.split import Piece
from anyformer.data.streaming import Place
from anyformer.data.streamsplit import Sides
from anyformer.tokenization import encoding

SHUFFLE_BUFFER = 2048
"""Blocks that are gathered and shuffled together: 1 M tokens, 4 MB, of 512 each."""
_GROUP = (1 << 8, 1 << 17)  # characters encoded at a time, least and most; a place is exact to these
Ids = NDArray[np.uint32]


@dataclass(frozen=True)
class Position:
    """Where a shuffle buffer begins: its first token."""

    epoch: int = 0
    buffer: int = 0
    """Number of the buffer in its epoch."""
    place: Place = None
    """Of the source, before the document that is encoded first."""
    parts: int = 0
    """Parts of that document, where it is a long one, that lie before."""
    tokens: int = 0
    """Tokens after that which belong to the buffer before."""


@dataclass(frozen=True)
class Buffer:
    """N blocks and the token after each, in the order of the stream; fewer at the end of an epoch."""

    begins: Position
    tokens: Ids
    """(N · T + 1)."""
    size: int
    digest: str
    """sha256 of the tokens."""
    following: Position
    """Where the next one of this epoch begins."""


@dataclass(frozen=True)
class _Group:
    """Tokens of some documents, and where the source stood before them."""

    place: Place
    parts: int
    ids: Ids


class StreamBlocks:
    """Shuffle buffers of an epoch of a stream's training side, from any position on; the same ones every time.

    Tokens are those that the token cache would hold for the same documents, end-of-text ids included.
    """

    def __init__(self, sides: Sides, tokenizer: Any, block_size: int, seed: int, buffer_blocks: int) -> None:
        if buffer_blocks < 1:
            raise DataError(f"shuffle_buffer is {buffer_blocks}; it must be at least 1 block")
        self.sides = sides
        self.block_size = block_size
        self.seed = seed
        self.buffer_blocks = buffer_blocks
        self._eos: int | None = tokenizer.eos_token_id
        self._encode = encoding.library_encode(copy.deepcopy(tokenizer))  # of its own: it may be used in a thread
        self._group = min(max(buffer_blocks * block_size // 8, _GROUP[0]), _GROUP[1])
        self._first: Buffer | None = None

    def buffers(self, begins: Position) -> Iterator[Buffer]:
        """The buffers of an epoch from a position on; the tail that fills no block is left out."""
        if self._first is not None and begins == Position():
            yield self._first  # asked for more than once, before a run begins
            begins = self._first.following
        for buffer in self._filled(begins):
            if buffer.begins == Position():
                self._first = buffer
            yield buffer

    def order(self, buffer: Buffer) -> NDArray[np.int64]:
        """The order in which a buffer's blocks are given out: a function of (seed, epoch, number of the buffer)."""
        number = (buffer.begins.epoch << 32) + buffer.begins.buffer
        return EpochOrder(buffer.size, self.seed).indices(number, 0, buffer.size)

    def rows(self, buffer: Buffer, numbers: NDArray[np.int64]) -> Block:
        """Blocks of a buffer by their numbers: (B, T) tensors."""
        blocks: Block = PackedBlocks(buffer.tokens, self.block_size).__getitems__(numbers.tolist()).tensors
        return blocks

    def _filled(self, begins: Position) -> Iterator[Buffer]:
        groups = self._groups(begins)
        held: deque[_Group] = deque()
        offset, count, ended = begins.tokens, -begins.tokens, False
        wanted = self.buffer_blocks * self.block_size + 1
        while not ended:
            while count < wanted and not ended:
                group = next(groups, None)
                if group is None:
                    ended = True
                else:
                    held.append(group)
                    count += len(group.ids)
            size = min(self.buffer_blocks, (count - 1) // self.block_size)
            if size < 1:
                return
            used = size * self.block_size
            tokens = _joined(held, offset, used + 1)
            offset, count = offset + used, count - used
            while len(held[0].ids) <= offset:
                offset -= len(held.popleft().ids)
            following = replace(
                begins, buffer=begins.buffer + 1, place=held[0].place, parts=held[0].parts, tokens=offset
            )
            yield Buffer(begins, tokens, size, hashlib.sha256(tokens.tobytes()).hexdigest(), following)
            begins = following

    def _groups(self, begins: Position) -> Iterator[_Group]:
        """Tokens of about ``_group`` characters at a time."""
        group: list[Piece] = []
        size = 0
        place, parts = begins.place, begins.parts
        for where, number, piece in self._pieces(begins):
            if not group:
                place, parts = where, number
            group.append(piece)
            size += len(piece.text)
            if size >= self._group:
                yield _Group(place, parts, self._ids(group))
                group, size = [], 0
        if group:
            yield _Group(place, parts, self._ids(group))

    def _pieces(self, begins: Position) -> Iterator[tuple[Place, int, Piece]]:
        """(place of the document, number of the part, part); a document is in parts only where it is a long one."""
        skipped = begins.parts
        for where, document in self.sides.training(begins.epoch, begins.place):
            for number, part in enumerate(cut_piece(document)):
                if number >= skipped:
                    yield where, number, part
            skipped = 0

    def _ids(self, pieces: list[Piece]) -> Ids:
        return encode_pieces(self._encode, pieces, self._eos)


def encode_pieces(encode: encoding.Encode, pieces: list[Piece], eos: int | None) -> Ids:
    """Ids of pieces one after the other, the end-of-text id after those that are marked."""
    ids, lengths = encode([piece.text for piece in pieces])
    if eos is None:
        return ids
    marked = np.asarray([piece.marked for piece in pieces])
    return np.insert(ids, np.cumsum(lengths)[marked], eos)


def _joined(held: deque[_Group], offset: int, count: int) -> Ids:
    """``count`` tokens from ``offset`` on."""
    taken: list[Ids] = []
    for group in held:
        part = group.ids[offset : offset + count]
        taken.append(part)
        offset = max(0, offset - len(group.ids))
        count -= len(part)
        if count == 0:
            break
    return np.concatenate(taken)


@dataclass(frozen=True)
class _Mark:
    """A buffer that was begun."""

    row: int
    """Rows of this pass that were given out before it."""
    buffer: Buffer
    given: int
    """Rows of it that were given out before this pass."""


@dataclass(frozen=True)
class _Start:
    """Where a pass begins: a buffer, the rows of it that were given out before, and its digest where that is known."""

    position: Position = Position()
    given: int = 0
    digest: str | None = None


class StreamLoader:
    """Batches of a stream, an epoch in each pass; ``state_dict`` says how far training, not reading ahead, has come.

    rank, world_size: every process reads the whole stream and takes its part of each batch.
    ahead: a thread fills the next buffer meanwhile.
    trained: the batches that were trained on in all, from the trainer; None where there is none, and what was given
    counts. on_epoch: called with the number of the next epoch when one ends.
    """

    def __init__(
        self,
        blocks: StreamBlocks,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        ahead: bool = False,
        pin_memory: bool = False,
        trained: Callable[[], int | None] = lambda: None,
        on_epoch: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        self.blocks = blocks
        self._step = batch_size
        self._rank, self._world_size = rank, world_size
        self._ahead, self._pin = ahead, pin_memory
        self._trained, self._on_epoch = trained, on_epoch
        self._start = _Start()
        self._loaded = False
        self._before = 0  # batches trained on before this pass
        self._marks: deque[_Mark] = deque()
        self._rows = 0  # given out in this pass, by all processes
        self._ended: Position | None = None  # where the next epoch begins, once this one's end is known

    def __iter__(self) -> Iterator[Block]:
        # not a generator: where the pass begins is fixed here. It goes on from what was trained on in the one before:
        # a trainer may end a pass early, or ask twice for an iterator
        if not self._loaded:
            self._start = self._after(self._trained_rows())
        self._loaded = False
        self._before = self._trained() or 0
        self._marks.clear()
        self._rows, self._ended = 0, None
        return self._pass(self._start)

    def _pass(self, start: _Start) -> Iterator[Block]:
        rest: Block | None = None  # rows that fill no batch yet
        buffers = self.blocks.buffers(start.position)
        given = start.given
        for buffer in _filled_ahead(buffers) if self._ahead else buffers:
            if not self._marks and start.digest not in (None, buffer.digest):
                raise DataError(
                    f"{self.blocks.sides.stream.name} gives other documents than before it was interrupted",
                    f"buffer {buffer.begins.buffer:,} of the stream is not the one that was being trained on",
                    "a source must give the same documents each time it is read; start another run, with --weights",
                )
            waiting = 0 if rest is None else len(rest["input_ids"])
            order = self.blocks.order(buffer)
            self._marks.append(_Mark(self._rows + waiting, buffer, given))
            while given < buffer.size:
                last = min(buffer.size, given + self._step - waiting)
                rest = _joined_rows(rest, self.blocks.rows(buffer, order[given:last]))
                given, waiting = last, len(rest["input_ids"])
                if waiting == self._step:
                    batch, rest, waiting = rest, None, 0
                    yield self._give(batch)
            given = 0
        if rest is not None:
            yield self._give(rest)
        self._ended = Position(epoch=start.position.epoch + 1)
        if self._rows == 0:
            yield from self._next_epoch(start.position)
        else:
            self._on_epoch(self._ended.epoch)

    def _next_epoch(self, begun: Position) -> Iterator[Block]:
        """A pass that began where, as it turned out, an epoch ended gives the next one."""
        if begun.place is None and begun.tokens == 0:
            raise DataError(
                f"{self.blocks.sides.stream.name} is too short to train on: an epoch of it fills no batch",
                f"blocks of {self.blocks.block_size:,} tokens, {self._step:,} in a batch of all processes",
                "give more text, or a smaller max_length",
            )
        assert self._ended is not None
        self._start, self._ended = _Start(self._ended), None
        self._marks.clear()
        yield from self._pass(self._start)

    def _give(self, batch: Block) -> Block:
        done = self._trained_rows()
        while len(self._marks) > 1 and self._marks[1].row <= done:
            self._marks.popleft()  # nothing will go back to it
        self._rows += len(batch["input_ids"])
        mine = share_rows(batch, self._rank, self._world_size)
        return {name: rows.pin_memory() for name, rows in mine.items()} if self._pin else mine

    def _trained_rows(self) -> int:
        """Rows of this pass that were trained on."""
        trained = self._trained()
        return self._rows if trained is None else min(self._rows, (trained - self._before) * self._step)

    def _after(self, rows: int) -> _Start:
        """Where to begin after so many rows of this pass."""
        if self._ended is not None and rows >= self._rows:
            return _Start(self._ended)
        mark = next((mark for mark in reversed(self._marks) if mark.row <= rows), None)
        if mark is None:
            return self._start
        return _Start(mark.buffer.begins, mark.given + rows - mark.row, mark.buffer.digest)

    def state_dict(self) -> dict[str, Any]:
        """The next row to train on, as plain data: buffer, rows given out of it, and what the stream was read with."""
        start = self._start if self._loaded else self._after(self._trained_rows())
        return {**asdict(start), "read_with": self._read_with()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass where ``state_dict`` was taken: at most one buffer is read again.

        Raises CheckpointError where the stream is cut into other blocks, or shuffled in another order, than then.
        """
        if (before := state.get("read_with")) != (now := self._read_with()):
            raise CheckpointError(
                "the place in the stream was saved with other settings", f"then {before}, now {now}", "resume as it was"
            )
        self._start = _Start(Position(**state["position"]), state["given"], state["digest"])
        self._loaded = True

    def _read_with(self) -> dict[str, Any]:
        return {
            "max_length": self.blocks.block_size,
            "shuffle_buffer": self.blocks.buffer_blocks,
            "seed": self.blocks.seed,
            "val_split": self.blocks.sides.val_split,
        }


def _joined_rows(rows: Block | None, more: Block) -> Block:
    return more if rows is None else {name: torch.cat([rows[name], more[name]]) for name in more}


def _filled_ahead(buffers: Iterator[Buffer]) -> Iterator[Buffer]:
    """The same buffers, the next one always being filled in a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="stream") as thread:
        waiting = thread.submit(next, buffers, None)
        while (buffer := waiting.result()) is not None:
            waiting = thread.submit(next, buffers, None)
            yield buffer
