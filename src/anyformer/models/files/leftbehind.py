"""What a model's file changes in the running program while it is loaded, and putting it back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _device

from anyformer.core.findings import Finding


@dataclass(frozen=True)
class _Setting:
    """One switch of the program: how it is read and put back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _default_device() -> str | None:
    """Where torch makes new tensors; None where nothing was set, or a device that is not there."""
    context = _device.CURRENT_DEVICE  # torch.get_default_device() would make a tensor on it
    return None if context is None else str(context)


def _sigint(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGINT, handler)


def _cudnn(flags: tuple[bool, bool]) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def _deterministic(state: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _of_sys(name: str) -> _Setting:
    def write(value: Any) -> None:
        setattr(sys, name, value)

    return _Setting(f"sys.{name}", lambda: getattr(sys, name, None), write)


_WHILE_BUILDING = (_Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),)
"""They apply until the model is built."""
_AT_ONCE = (
    _Setting("gradients on:", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting("default device", _default_device, torch.set_default_device),
    _Setting(
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _deterministic,
    ),
    _Setting("cudnn", lambda: (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark), _cudnn),
    _Setting("anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Setting("threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting("the answer to Ctrl-C", lambda: signal.getsignal(signal.SIGINT), _sigint),
    *(_of_sys(name) for name in ("excepthook", "displayhook", "exit", "stderr")),
)
"""They are put back before the model is built: weights are drawn on the CPU, by the program's own rules."""


class LeftBehind:
    """The program's settings as they were before a model's file ran."""

    def __init__(self) -> None:
        self._before = [(setting, setting.read()) for setting in (*_AT_ONCE, *_WHILE_BUILDING)]
        self._changed: dict[str, str] = {}

    def put_back(self, *, building: bool) -> None:
        """Undo what the file changed. building: the model is built next; the default dtype applies until then."""
        for setting, before in self._before:
            now = setting.read()
            if now == before:
                continue
            self._changed.setdefault(setting.name, f"{setting.name} {_shown(now)}")
            if not (building and setting in _WHILE_BUILDING):
                setting.write(before)

    def finding(self) -> Finding | None:
        """What the file had changed, None where nothing."""
        if not self._changed:
            return None
        said = "put back as they were before the file ran"
        if any(s.name in self._changed for s in _WHILE_BUILDING):
            said += "; the default dtype applied until the model was built"
        return Finding("settings", "note", ", ".join(self._changed.values()), reason=said)


@contextlib.contextmanager
def kept_places() -> Iterator[None]:
    """Come back to the working directory, sys.path and the filters of warnings."""
    folder, path = os.getcwd(), list(sys.path)
    with warnings.catch_warnings():
        try:
            yield
        finally:
            sys.path[:] = path
            os.chdir(folder)


def _shown(value: object) -> str:
    """A value in a few words: functions by their name."""
    return str(getattr(value, "__name__", value)).removeprefix("torch.")
