"""Bounds on what a stranger's file may take: seconds while it runs, memory while it is built."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from anyformer.core.errors import AnyformerError, ConstructError
from anyformer.models.probes import preserved_rng

IMPORT_SECONDS = 120.0
"""A file that defines a model is read in well under a second; importing large packages may take a minute."""
BUILD_SECONDS = 600.0
"""Drawing the weights of a model of a few billion parameters takes minutes."""
_META_SECONDS = 30.0
_COUNT_ON_SECONDS = 5.0
"""How long an estimate that exceeds its bound goes on, for the size of the whole model."""
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
def no_way_out() -> Iterator[None]:
    """Make os._exit() the SystemExit of sys.exit(): it would end the program without a word."""

    def leave(status: int = 0) -> NoReturn:
        raise SystemExit(f"os._exit({status})")

    with mock.patch.object(os, "_exit", leave):
        yield


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the code inside after ``seconds``, or when the time of a limit around it is up.

    Without effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"still running after {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    begun = time.monotonic()
    before, interval = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, before) if before else seconds)
    try:
        yield
    except OutOfTime:
        # a package whose import was stopped is gone while its parts stay: it could never be imported again
        for name in [n for n in sys.modules if n.partition(".")[0] not in sys.modules]:
            del sys.modules[name]
        raise
    finally:
        left = max(before - (time.monotonic() - begun), 1e-3) if before else 0.0  # an outer limit that is up is up now
        signal.setitimer(signal.ITIMER_REAL, left, interval)
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
            found.append(int(limit) - int(used) + _cached())
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


def _cached() -> int:
    """Bytes of a container's memory that hold files and are given back when they are needed."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


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
    # what is raised here has no cause: its traceback would keep the unfinished model in memory
    if not may_be_large(numbers):
        with contextlib.suppress(_TooLarge), _Weights(min(_UNCOUNTED, free)):
            return build()
    refuse_huge(name, build, room)
    again()
    try:
        with _Weights(int(free / room)):
            return build()
    except _TooLarge as error:
        failed = _does_not_fit(name, f"at least {error.parameters:,} parameters", free, error.parameters)
        failed.detail = _untrained(room).strip()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        failed = _does_not_fit(name, str(error).splitlines()[0][:200], free)
    if failed.parameters is None:
        refuse_huge(name, build, room)
    raise failed


def _does_not_fit(name: str, size: str, free: int, parameters: int | None = None) -> DoesNotFit:
    return DoesNotFit(f"{name} does not fit: {size}; {free / 2**30:,.1f} GiB are free", "", parameters)


class _Weights:
    """Counts the parameters and buffers that modules register inside it; raises _TooLarge above a bound.

    Copies (copy.deepcopy) register no parameters: they are found when their module gets a parent.
    """

    def __init__(self, most: int, *, estimate: bool = False, empty: bool = False) -> None:
        """most: bytes. estimate: count tensors without memory, too, and somewhat beyond the bound.

        empty: take the memory from each parameter as it is registered (a meta parameter in its place).
        """
        self._most, self._estimate, self._empty = most, estimate, empty
        self._bytes = 0
        self._exceeded: float | None = None
        self._tensors: MutableMapping[torch.Tensor, int] = WeakIdKeyDictionary()
        self._modules: MutableMapping[nn.Module, bool] = WeakIdKeyDictionary()
        self._replaced: MutableMapping[torch.Tensor, nn.Parameter] = WeakIdKeyDictionary()

    def __enter__(self) -> _Weights:
        self._handles = [
            register_module_parameter_registration_hook(self._parameter),
            register_module_buffer_registration_hook(self._buffer),
            register_module_module_registration_hook(self._module),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def live(self) -> tuple[int, int]:
        """Bytes, and the number of parameters, of what is still in use; what was replaced is gone."""
        found = list(self._tensors.items())
        return sum(size for _, size in found), sum(t.numel() for t, _ in found if isinstance(t, nn.Parameter))

    # Any: torch's registration takes the answer for the parameter, its annotation says None
    def _parameter(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if not self._empty or type(parameter) is not nn.Parameter or parameter.is_meta:
            self._add(parameter)
            return None
        if parameter not in self._replaced:
            without = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
            without.__dict__.update(parameter.__dict__)
            self._replaced[parameter] = without
        replacement = self._replaced[parameter]
        self._add(replacement)
        return replacement

    def _buffer(self, module: nn.Module, name: str, buffer: torch.Tensor | None) -> None:
        self._add(buffer)

    def _module(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        todo = [child]
        while todo:
            part = todo.pop()
            if part is None or part in self._modules:
                continue
            self._modules[part] = True
            # not parameters(): it fails for a class without a hash
            for held in ("_parameters", "_buffers"):
                for tensor in list(part.__dict__.get(held, {}).values()):
                    self._add(tensor)
            todo += part.__dict__.get("_modules", {}).values()

    def _add(self, tensor: torch.Tensor | None) -> None:
        if tensor is None or is_lazy(tensor) or tensor in self._tensors or (tensor.is_meta and not self._estimate):
            return
        size = tensor.numel() * tensor.element_size()
        if tensor.layout is torch.strided:
            size = min(size, tensor.untyped_storage().nbytes())  # an expanded tensor takes less
        self._tensors[tensor] = size
        self._bytes += size
        if self._bytes <= self._most:
            return
        self._bytes, count = self.live()
        if self._bytes <= self._most:
            return
        now = time.monotonic()
        self._exceeded = self._exceeded or now
        if not self._estimate or not tensor.is_meta or now >= self._exceeded + _COUNT_ON_SECONDS:
            raise _TooLarge(count)


def refuse_huge(name: str, build: Callable[[], Any], room: float = _ROOM) -> None:
    """Build without memory and count. Raises DoesNotFit if room × it exceeds the free memory.

    First with every tensor on torch's meta device; where that fails (the constructor reads a value), with the
    parameters alone there. A constructor that fails is judged by what it had registered until then; one that cannot
    run so and is still small is left to the real build.
    """
    free = available_memory()
    if free is None:
        return
    if not _estimated(name, build, room, free, every_tensor=True):
        _estimated(name, build, room, free, every_tensor=False)


def _estimated(name: str, build: Callable[[], Any], room: float, free: int, *, every_tensor: bool) -> bool:
    """Whether there is nothing more to learn without memory. Raises DoesNotFit."""
    quiet = io.StringIO()
    weights = _Weights(int(free / room), estimate=True, empty=not every_tensor)
    stopped: type[BaseException] | None = None
    try:
        with (
            preserved_rng(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
            time_limit(_META_SECONDS),
            torch.device("meta") if every_tensor else contextlib.nullcontext(),
            weights,
        ):
            module = build()
    except (Exception, SystemExit, OutOfTime, _TooLarge) as error:  # noqa: BLE001  (a stranger's code)
        size, count = weights.live()  # the traceback still holds the unfinished module
        stopped = type(error)
    if stopped is not None:
        if size * room <= free:
            # a missing value, or time: not for lack of the tensors' values
            return issubclass(stopped, AnyformerError | AttributeError | KeyError | OutOfTime)
        refusal = _does_not_fit(name, f"at least {size / 2**30:,.1f} GiB ({count:,} parameters)", free, count)
        where = "" if stopped is _TooLarge else f", until its constructor stopped there ({stopped.__name__})"
        refusal.detail = f"it was counted without building it{where}{_untrained(room)}"
        raise refusal
    if not isinstance(module, nn.Module):
        return True
    require_hashable(module)
    tensors = list({id(t): t for t in (*module.parameters(), *module.buffers()) if not is_lazy(t)}.values())
    need = sum(t.numel() * t.element_size() for t in tensors)
    if need * room > free:
        count = sum(p.numel() for p in module.parameters() if not is_lazy(p))
        raise DoesNotFit(
            f"{name} would take {need / 2**30:,.1f} GiB ({count:,} parameters); {free / 2**30:,.1f} GiB are free",
            f"largest: {_largest(module)}\nit was counted without building it; training takes about four times as much"
            + _untrained(room),
            count,
        )
    return True


def _untrained(room: float) -> str:
    return "\nno sizes were given, and its defaults cannot be trained here" if room > _ROOM else ""


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
