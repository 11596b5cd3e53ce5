"""Every error that anyformer raises on purpose, drawn once.

    AnyformerError
    ├── SettingsError(ValueError)            ├── DataError(ValueError) ── DataNotFound(FileNotFoundError)
    ├── SourceError(FileNotFoundError)       ├── TokenizerError(ValueError)
    ├── TrustError(PermissionError)          ├── TrainingError(RuntimeError) ── Interrupted
    ├── ConstructError(ValueError)           ├── CheckpointError(RuntimeError) ── CorruptCheckpoint
    ├── CallError(TypeError)                 ├── ExportError(RuntimeError) ── ParityError
    └── DependencyError(ImportError)

A message says what happened, what was found or expected, and what to do, in that order.
"""

from __future__ import annotations

USAGE = 2
FAILURE = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class AnyformerError(Exception):
    """Base of all errors raised on purpose; ``str()`` is the whole message a user reads.

    what: one sentence, with the offending value in it.
    detail: what was found and what was expected (may have several lines).
    fix: what to do next, a command where there is one.
    """

    exit_code: int = FAILURE

    def __init__(self, what: str, detail: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.detail = detail
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  {line}" for line in self.detail.splitlines()]
        lines += [f"  → {line}" for line in self.fix.splitlines()]
        return "\n".join(lines)


class SettingsError(AnyformerError, ValueError):
    """A setting has a value that cannot be used, or two settings contradict each other."""

    exit_code = USAGE


class SourceError(AnyformerError, FileNotFoundError):
    """The model's source cannot be found, read or executed."""

    exit_code = USAGE


class TrustError(AnyformerError, PermissionError):
    """Code that came over a network was not approved."""

    exit_code = USAGE


class ConstructError(AnyformerError, ValueError):
    """The source was read but no module could be built from it, or weights do not fit the module."""

    exit_code = USAGE


class CallError(AnyformerError, TypeError):
    """The module was built but no way to call it could be proven, or what it does blocks training.

    check: the check of ``anyformer check`` that measures the cause, where it is known. where: the submodule at fault.
    """

    def __init__(self, what: str, detail: str = "", fix: str = "", *, check: str = "call", where: str = "") -> None:
        super().__init__(what, detail, fix)
        self.check = check
        self.where = where


class DependencyError(AnyformerError, ImportError):
    """A package is missing; the message names it and the extra that brings it."""


class DataError(AnyformerError, ValueError):
    """The data cannot be used as it is: empty, binary, too short, no such column."""

    exit_code = USAGE


class DataNotFound(DataError, FileNotFoundError):
    """No data at the given place."""


class TokenizerError(AnyformerError, ValueError):
    """A tokenizer cannot be built, read, or does not fit the model."""

    exit_code = USAGE


class TrainingError(AnyformerError, RuntimeError):
    """Training failed: a loss that is not finite, a disk that is full, a run directory that cannot be written."""


class Interrupted(TrainingError):
    """The user stopped the run; the work is saved and the message says how to go on."""

    exit_code = INTERRUPTED


class CheckpointError(AnyformerError, RuntimeError):
    """A checkpoint cannot be written, found or used."""


class CorruptCheckpoint(CheckpointError):
    """A checkpoint's bytes are not those that were saved."""


class ExportError(AnyformerError, RuntimeError):
    """A model cannot be exported."""


class ParityError(ExportError):
    """The exported artefact does not compute what the model computes."""
