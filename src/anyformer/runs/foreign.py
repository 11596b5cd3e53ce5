"""Checkpoint files that other programs wrote (``.ckpt``, ``.pt``): read as data, refused where they would run code.

``torch.load(weights_only=True)`` and nothing else. What a refused pickle would have run is read off its opcodes; no
opcode is executed for that.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from anyformer.core.errors import CheckpointError

_STRINGS = frozenset(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING"))
_STRINGS |= {"SHORT_BINSTRING"}
_HARMLESS = re.compile(  # what every file of torch.save names
    r"torch\.(\w+Storage|Size|device|Tensor|nn\.parameter\.Parameter|_utils\._rebuild_\w+)|collections\.OrderedDict"
)
_SHOWN = 6
_PICKLES = 8  # a file of torch.save before 1.6 is several pickles in a row


def read_ckpt(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The dictionary in a checkpoint file of Lightning (or of ``torch.save``), tensors on ``map_location``.

    Raises CheckpointError: there is no such file, it is cut short, holds no dictionary, or holds objects that can only
    be made by running code; then it says which, and none was run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols of files that the next line refuses anyway
            loaded = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        if calls := foreign_calls(path):
            raise _would_run(path, calls) from error
        detail = f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
        raise CheckpointError(f"{path} is not a readable checkpoint", detail, "copy it again; is it whole?") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a checkpoint (a dictionary)")
    return loaded


def _refused(path: Path, error: Exception) -> CheckpointError:
    if calls := foreign_calls(path):
        return _would_run(path, calls)
    return CheckpointError(f"{path} is not a readable checkpoint", str(error).split("\n", 1)[0])


def _would_run(path: Path, calls: list[str]) -> CheckpointError:
    more = f"\n… and {len(calls) - _SHOWN} more" if len(calls) > _SHOWN else ""
    return CheckpointError(
        f"{path} is not loaded: it is a pickle that runs code",
        "loading it would have imported and run:\n" + "\n".join(calls[:_SHOWN]) + more,
        "keep tensors and plain values only: in the program that wrote it, torch.save({'state_dict': "
        "model.state_dict()}, FILE); objects among save_hyperparameters() are often the cause",
    )


def foreign_calls(path: str | Path) -> list[str]:
    """Functions and classes that a pickle names beyond tensors, as ``module.name(first texts of the arguments)``.

    Read from its opcodes without running any. Empty where the file is no pickle.
    """
    found: list[str] = []
    for stream in _pickles(Path(path)):
        for _ in range(_PICKLES):
            names, whole = _named(stream)
            found += names
            if not whole:
                break  # no pickle, or the raw tensors behind the last one
    return list(dict.fromkeys(found))


def _pickles(path: Path) -> list[io.BytesIO]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith(".pkl")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return [io.BytesIO(path.read_bytes())]


def _named(stream: io.BytesIO) -> tuple[list[str], bool]:
    """Names in one pickle, those before a cut where it has one, and whether it was whole.

    A global made from texts takes the two before it; the texts between it and its call are its arguments.
    """
    calls: list[tuple[str, list[str]]] = []
    texts: list[str] = []
    memo: dict[int, str] = {}
    last = ""
    whole = True
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name in _STRINGS:
                last = str(argument)
                texts.append(last)
            elif name == "MEMOIZE":
                memo[len(memo)] = last
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[int(argument or 0)] = last
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                texts.append(memo.get(int(argument or 0), ""))
            elif name in ("GLOBAL", "INST") or (name == "STACK_GLOBAL" and len(texts) >= 2):
                called = ".".join(texts[-2:]) if name == "STACK_GLOBAL" else str(argument).replace(" ", ".")
                texts, last = [], ""
                calls.append((called, texts))
            elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "OBJ"):
                texts, last = [], ""
            else:
                last = ""
    except (ValueError, IndexError, EOFError, OverflowError):
        whole = False
    return [_call(called, given) for called, given in calls if not _is_harmless(called)], whole


def _call(name: str, texts: list[str]) -> str:
    shown = ", ".join(repr(text if len(text) <= 160 else text[:157] + "…") for text in texts[:2] if text)
    return f"{name}({shown})" if shown else name


def _is_harmless(name: str) -> bool:
    kind = getattr(torch, name.removeprefix("torch."), None) if name.startswith("torch.") else None
    return _HARMLESS.fullmatch(name) is not None or isinstance(kind, torch.dtype)
