"""Bounds on what a stranger's file may take: seconds while it runs, memory while it is built."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from anyformer.core.errors import ConstructError
from anyformer.models.probes import preserved_rng

IMPORT_SECONDS = 120.0
"""A file that defines a model is read in well under a second; importing large packages may take a minute."""
BUILD_SECONDS = 600.0
"""Drawing the weights of a model of a few billion parameters takes minutes."""
_META_SECONDS = 30.0
_LARGE_MATRIX = 30_000_000
"""Elements; below 50,257 × 768, the embedding of the smallest GPT-2. Smaller models are not estimated first."""


_UNCOUNTED = 800 * 2**20
"""Bytes of weights that are drawn without an estimate: 200 million parameters, a second or two."""
_ROOM = 1.2
"""Memory that a build takes for each byte of its weights, buffers and temporary values included."""
_TRAINING = 4.0
"""Memory that training takes: weights, gradients and the two moments of Adam."""


_SMALLER = (
    "write smaller sizes into config.json beside the file, under the names that the constructor reads"
    ' (such as {"n_layer": 4, "n_embd": 256}), or use a machine with more memory'
)


class DoesNotFit(ConstructError):
    """The model takes more memory than is free."""

    def __init__(self, what: str, detail: str, parameters: int | None) -> None:
        super().__init__(what, detail, _SMALLER)
        self.parameters = parameters
        """Of the whole model, or of the part that was built before it was stopped; None where neither is known."""


class _TooLarge(BaseException):
    """Raised inside the user's constructor when its weights exceed a bound; not an Exception, as OutOfTime."""

    def __init__(self, parameters: int) -> None:
        super().__init__(f"{parameters:,} parameters so far")
        self.parameters = parameters


class OutOfTime(BaseException):
    """Raised inside the user's code; not an Exception, so that its handlers let it through."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the code inside after ``seconds``; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"still running after {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


def available_memory() -> int | None:
    """Bytes that can be taken now, the limits of a container included; None where the system does not tell."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(int(limit) - int(used))
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource  # not on Windows

        limit_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit_bytes != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            found.append(limit_bytes - pages * os.sysconf("SC_PAGE_SIZE"))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)


def may_be_large(numbers: list[int]) -> bool:
    """Whether two of the sizes make a matrix that is worth an estimate before it is allocated."""
    top = sorted((n for n in numbers if n > 0), reverse=True)[:2]
    return len(top) == 2 and top[0] * top[1] >= _LARGE_MATRIX


def numbers_in(text: str) -> list[int]:
    """Whole numbers that stand in a file, powers of ten among them."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            found.append(node.value)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                base, power = ast.literal_eval(node.left), ast.literal_eval(node.right)
                found.append(int(base**power) if power < 40 else 10**40)
    return found


def build_within(
    name: str, build: Callable[[], Any], again: Callable[[], None], numbers: list[int], *, asked: bool
) -> Any:
    """Build; what may be large is counted without memory first. Raises DoesNotFit, a ConstructError.

    again: puts the random state back before a second start. numbers: the sizes that stand in the file.
    asked: the user gave sizes: they are built where they can be; a class's defaults where they can be trained.
    """
    room = _ROOM if asked else _TRAINING
    free = available_memory()
    if free is None:
        return build()
    if may_be_large(numbers):
        refuse_huge(name, build, room)
        again()
    else:
        try:
            with _bounded(min(_UNCOUNTED, free)):
                return build()
        except _TooLarge:
            refuse_huge(name, build, room)
            again()
    try:
        with _bounded(int(free / _ROOM)):
            return build()
    except _TooLarge as error:
        raise _does_not_fit(name, f"at least {error.parameters:,} parameters", free, error.parameters) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            refuse_huge(name, build, room)
            raise _does_not_fit(name, str(error).splitlines()[0][:200], free) from error
        raise


def _does_not_fit(name: str, size: str, free: int, parameters: int | None = None) -> DoesNotFit:
    return DoesNotFit(f"{name} does not fit: {size}; {free / 2**30:,.1f} GiB are free", "", parameters)


@contextlib.contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Raise _TooLarge in a constructor as soon as its parameters take more than ``most`` bytes."""
    total = count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total, count
        if parameter is not None and not is_lazy(parameter) and not parameter.is_meta:
            total += parameter.numel() * parameter.element_size()
            count += parameter.numel()
        if total > most:
            raise _TooLarge(count)

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()


def refuse_huge(name: str, build: Callable[[], Any], room: float = _ROOM) -> None:
    """Build without memory (torch's meta device) and count. Raises DoesNotFit if room × it exceeds the free memory.

    A constructor that cannot run so is left to the real build.
    """
    free = available_memory()
    if free is None:
        return
    quiet = io.StringIO()
    try:
        with (
            preserved_rng(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
            time_limit(_META_SECONDS),
            torch.device("meta"),
        ):
            module = build()
    except (Exception, SystemExit, OutOfTime):  # noqa: BLE001  (whatever the stranger's code raises there)
        return
    if not isinstance(module, nn.Module):
        return
    require_hashable(module)
    tensors = list({id(t): t for t in (*module.parameters(), *module.buffers()) if not is_lazy(t)}.values())
    need = sum(t.numel() * t.element_size() for t in tensors)
    if need * room > free:
        count = sum(p.numel() for p in module.parameters() if not is_lazy(p))
        raise DoesNotFit(
            f"{name} would take {need / 2**30:,.1f} GiB ({count:,} parameters); {free / 2**30:,.1f} GiB are free",
            f"largest: {_largest(module)}\nit was counted without building it; training takes about four times as much"
            + ("\nno sizes were given, and its defaults cannot be trained here" if room > _ROOM else ""),
            count,
        )


def _largest(module: nn.Module) -> str:
    sized = [pair for pair in module.named_parameters() if not is_lazy(pair[1])]
    named = sorted(sized, key=lambda pair: -pair[1].numel())[:2]
    return ", ".join(f"{name} {tuple(p.shape)}" for name, p in named)


def require_hashable(module: nn.Module) -> None:
    """Raise ConstructError for a class that defines ``__eq__`` alone: it has no hash then, and torch needs one."""
    todo = [module]
    while todo:
        part = todo.pop()
        if type(part).__hash__ is None:
            name = type(part).__name__
            raise ConstructError(
                f"{name} has no hash: its class defines __eq__ without __hash__",
                f"torch keeps modules in sets: {name}(…).parameters() raises TypeError, so no optimizer can be made",
                f"write __hash__ = nn.Module.__hash__ into class {name}",
            )
        todo += [child for child in part.__dict__.get("_modules", {}).values() if child is not None]


def has_no_memory(module: nn.Module) -> bool:
    """Whether a tensor is still on the meta device: the constructor kept one from the estimate."""
    return any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def without_memory(module: nn.Module) -> ConstructError:
    """The refusal of such a module, with the names of those tensors."""
    names = [n for n, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    return ConstructError(
        f"{type(module).__name__} leaves {len(names)} tensors without memory",
        f"its code puts them on torch's meta device: {', '.join(names[:3])}",
        "give them a real device, or sizes in config.json that do not use this part",
    )
