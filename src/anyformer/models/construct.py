"""From a class or a factory and a configuration to a module."""

from __future__ import annotations

import ast
import inspect
import itertools
import random
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from anyformer.core.errors import AnyformerError, ConstructError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.building import aliases, configs, smaller
from anyformer.models.building.arguments import Arguments, Missing, call
from anyformer.models.building.configs import MISSING, VARIADIC
from anyformer.models.building.finish import initialised, one_dtype
from anyformer.models.building.padding import pads_otherwise, rows_for_padding
from anyformer.models.building.reads import function_node
from anyformer.models.building.sections import models_own
from anyformer.models.building.sizes import CLASS_KEYS, Ledger, Seen, chosen_sizes, guessed_sizes, is_json
from anyformer.models.building.written import Written
from anyformer.models.files.limits import (
    BUILD_SECONDS,
    DoesNotFit,
    OutOfTime,
    build_within,
    has_no_memory,
    numbers_in,
    require_hashable,
    time_limit,
    without_memory,
)

FACTORY = re.compile(r"(build|create|get|make|init|load|construct)_?\w*|\w+_(factory|builder)", re.I)
"""Functions that may build the model: build_model, create_model, get_model, make_transformer."""
_CLASS_FACTORY = re.compile(r"(build|create|make)(_model)?|from_(config|args|cfg)")
_MAX_FILLED = 64
_MAX_TOLD = 8
_GUESSES = (4, 2, 8, 1, 16, 64, 0.5, 0.1)
"""For a number that nobody knows: counts and widths first, which other sizes mostly divide, then rates."""


@dataclass
class _Try:
    """One way to build the module."""

    target: Any
    option: int
    fill_none: bool
    everything: bool
    tuples: bool
    """With tuples for the lists of the configuration: JSON has no tuples."""
    fill_parameters: bool = False
    """With sizes for the constructor's own defaults of None."""
    guess: int | float | None = None
    """For required numbers of which neither the name nor the use says what they mean."""
    plain: bool = False
    """With number formats as text, which the constructor looks up by itself."""


def construct(
    cls: Any,
    config: dict[str, Any] | None,
    namespace: types.ModuleType | None,
    *,
    fallback: dict[str, Any] | None = None,
    text: str | None = None,
    consumed: frozenset[str] = frozenset(),
) -> tuple[nn.Module, dict[str, Any] | None, list[Finding]]:
    """Build a class, or call a factory: keywords from ``config``, a configuration object made of it, or no argument.

    namespace: the module that defines it; text: its source, whose own sizes and calls fill what is required and not
    given. fallback: values for what is then still open; small ones of ours come last. consumed: keys of ``config``
    that were used before (as globals of a script). Where nothing is given and the file's own sizes do not fit here,
    small ones take their place.
    Returns the module, the values it was given (None for none) and findings (the way taken, sizes chosen, names
    translated, keys not used). Raises ConstructError with every attempt and its error, or naming what is missing.
    """
    written = Written(text, namespace) if text is not None and namespace is not None else None
    scope = dict(vars(namespace)) if namespace is not None else {}
    asked = dict(fallback or {})
    rows = rows_for_padding(text or "")
    sizes = {k: v for k, v in asked.items() if type(v) is int}
    named = [k for k, r in aliases.roles(sizes).items() if r in aliases.VOCABULARIES]
    ours = aliases.default("vocab_size", {})  # chosen where nobody names a size
    few = [k for k in named if sizes[k] < rows] if named else ["vocab_size"] if ours and rows > ours else []
    asked |= dict.fromkeys(few, rows)
    if isinstance(cls, nn.Module):
        return cls, None, [Finding("construction", "note", f"the {type(cls).__name__} that the file builds itself")]
    given, sections = models_own(dict(config or {}), cls, scope)
    state = _random_state()
    builder = _Builder(cls, given, asked, written, scope, text or "")
    try:
        module, used, findings = builder.build(consumed)
        if pads := pads_otherwise(module, used or {}, given, asked):
            state()
            module, used, findings = _Builder(cls, given, asked | pads, written, scope, text or "").build(consumed)
            own = ", ".join(f"{name}={number}" for name, number in pads.items())
            findings.append(Finding("padding", "note", own, reason="as padding_idx of its embeddings"))
        if few and rows in (used or {}).values():
            why = f"the file writes padding_idx={rows - 1:,}, which a smaller vocabulary has not"
            expected = "as many as asked" if named else ""
            sections = [*sections, Finding("vocabulary", "warn", f"{rows:,} ids", expected, why)]
        return module, used, [*sections, *findings]
    except DoesNotFit as refusal:
        small = {} if smaller.states_sizes(given) else smaller.small_sizes(builder.seen, asked)
        if not small or refusal.parameters is None:
            raise
        values = {**given, **builder.seen.rest, **small}
        again = _Builder(cls, values, asked, written, scope, text or "", trained=True)
        try:
            state()
            module, used, findings = again.build(consumed)
        except ConstructError:
            raise refusal from None
        unchanged = values.keys() - small.keys()
        sizes = {k: v for k, v in (used or {}).items() if k not in unchanged and k not in CLASS_KEYS}
        told = [f for f in findings if f.name not in ("sizes", "configuration")]
        return module, used, [*sections, *told, smaller.said(refusal.parameters, module, sizes)]


def _defaults_alike(target: Any, name: str) -> dict[str, Any]:
    """Arguments that a name may stand for, with their own defaults."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}
    role = aliases.role(name)
    alike = {p.name: p.default for p in parameters if role is not None and aliases.role(p.name) == role}
    return {k: v for k, v in alike.items() if v is not inspect.Parameter.empty and k != name and is_json(v)}


class _Builder:
    def __init__(
        self,
        cls: Any,
        given: dict[str, Any],
        fallback: dict[str, Any],
        written: Written | None,
        scope: dict[str, Any],
        text: str,
        trained: bool = False,
    ) -> None:
        """trained: build only what can be trained here, as where nothing is given."""
        self._cls, self._given, self._fallback = cls, given, fallback
        self._written, self._scope, self._text = written, scope, text
        self._failures: list[str] = []
        self._missing: list[Missing] = []
        self._asked = bool(given) and not trained
        self.seen = Seen()
        """Of the last attempt."""

    def build(self, consumed: frozenset[str]) -> tuple[nn.Module, dict[str, Any] | None, list[Finding]]:
        state = _random_state()
        for attempt in self._tries():
            given = {k: configs.tupled(v) for k, v in self._given.items()} if attempt.tuples else self._given
            arguments = Arguments(given, self._fallback, self._written, self._scope)
            arguments.option, arguments.fill_none = attempt.option, attempt.fill_none
            arguments.fill_parameters, arguments.guess = attempt.fill_parameters, attempt.guess
            arguments.plain = attempt.plain
            built = self._attempt(attempt, arguments, state)
            if built is not None:
                module, how = built
                if not isinstance(module, nn.Module):
                    raise ConstructError(
                        f"{_name(attempt.target)} gave a {type(module).__name__}, not a torch.nn.Module"
                    )
                findings = self._findings(how, arguments.ledger, consumed)
                findings += initialised(module)
                if "dtype" not in aliases.roles(self._given).values():
                    findings += one_dtype(module)
                return module, self._record(attempt, arguments.ledger, consumed), findings
        instance = self._instance()
        if instance is not None:
            return (
                instance,
                None,
                [Finding("construction", "note", f"the {_name(type(instance))} that the file builds")],
            )
        raise self._failed()

    def _tries(self) -> Iterator[_Try]:
        """Ways to build, best first: never one that drops values which another would use."""
        lists = any(isinstance(v, list) for v in self._given.values())
        for tuples, target in itertools.product((False, True) if lists else (False,), self._targets()):
            seen = 1
            for fill_none in (False, True):
                option = 0
                while option < max(1, seen):
                    for everything in self._keywords(target):
                        attempt = _Try(target, option, fill_none, everything, tuples)
                        yield attempt
                        seen = max(seen, self._options)
                    option += 1
        for tuples, target in itertools.product((False, True) if lists else (False,), self._targets()):
            for everything in self._keywords(target) if _leaves_sizes_open(target) else ():
                yield _Try(target, 0, True, everything, tuples, fill_parameters=True)
        if any("dtype" in failure or "torch.float" in failure for failure in self._failures):
            for target in self._targets():
                yield _Try(target, 0, False, False, False, plain=True)
        for target in self._targets():
            for guess in _GUESSES:
                yield _Try(target, 0, False, False, False, guess=guess)
                if not self._guessed:
                    break

    _options = 1
    _guessed = False

    def _targets(self) -> list[Any]:
        if not inspect.isclass(self._cls):
            return [self._cls]
        factories = self._factories()
        named = [f for f in factories if f.__name__ == self._given.get("factory")]
        if named:
            return named
        if factories and self._needs_modules():
            return [*factories, self._cls]
        drawing = [f for f in factories if _draws_weights(f)]
        return [*drawing, self._cls, *(f for f in factories if f not in drawing)]

    def _factories(self) -> list[Any]:
        """Functions of the file that build the class, by name and by what their body calls."""
        own = [f for f in self._scope.values() if isinstance(f, types.FunctionType)]
        found = []
        for function in own:
            node = function_node(function) if FACTORY.fullmatch(function.__name__) else None
            if node is None or not any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(node)):
                continue
            called = {getattr(n.func, "id", "") for n in ast.walk(node) if isinstance(n, ast.Call)}
            if self._cls.__name__ in called:
                found.append(function)
        return found + self._class_methods()

    def _class_methods(self) -> list[Any]:
        """Class methods that build the class from a configuration: ``build_model(cls, args)``."""
        named = [n for n, v in vars(self._cls).items() if isinstance(v, classmethod) and _CLASS_FACTORY.fullmatch(n)]
        found = []
        for method in (getattr(self._cls, n) for n in named):
            node = function_node(method)
            called = [] if node is None else [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
            if {"cls", self._cls.__name__} & {getattr(c, "id", "") for c in called}:
                found.append(method)
        return found

    def _needs_modules(self) -> bool:
        for p in inspect.signature(self._cls).parameters.values():
            annotation = configs.annotation_of(p, self._scope)
            module = inspect.isclass(annotation) and issubclass(annotation, nn.Module)
            unknown = aliases.role(p.name, letters=True) is None and p.name not in configs.CONFIG_NAMES
            if p.kind not in VARIADIC and p.default is MISSING and p.name not in self._given and (module or unknown):
                return True
        return False

    def _keywords(self, target: Any) -> tuple[bool, ...]:
        """Whether to hand the whole configuration to a constructor that takes any keyword."""
        parameters = inspect.signature(target).parameters.values()
        names = {p.name for p in parameters}
        rest = self._given.keys() - set(CLASS_KEYS) - names
        if not rest or not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            return (False,)
        # a constructor that takes keywords only is made for the whole configuration
        return (False, True) if names & self._given.keys() else (True, False)

    def _attempt(self, attempt: _Try, arguments: Arguments, state: Callable[[], None]) -> tuple[Any, str] | None:
        target = attempt.target
        sites = self._written.sites(target) if self._written is not None else []
        site = sites[0] if sites else None

        def make() -> Any:
            arguments.ledger = Ledger()
            arguments.decided = {}
            self.seen = arguments.seen
            values = arguments.of(target, site)
            if attempt.everything:
                extra = {k: v for k, v in self._given.items() if k not in CLASS_KEYS and k not in values}
                arguments.ledger.used |= extra.keys()
                values |= extra
            self.how = _described(target, values, arguments.ledger)
            return call(target, values)

        while True:
            state()
            self.how = _name(target)
            try:
                with time_limit(BUILD_SECONDS):
                    module = build_within(_name(target), make, state, self._numbers(), asked=self._asked)
                    if isinstance(module, nn.Module):
                        require_hashable(module)
                    if isinstance(module, nn.Module) and has_no_memory(module):
                        module = make()
                if isinstance(module, nn.Module) and has_no_memory(module):
                    raise without_memory(module)
                return module, self.how
            except Missing as error:
                if attempt.guess is not None:
                    return None
                self._missing.append(error)
                self._tell(f"{_name(error.target)} needs {error}")
                return None
            except AnyformerError:
                raise
            except (Exception, SystemExit, OutOfTime) as error:  # noqa: BLE001  (a stranger's code may raise anything)
                lacking = {_lacking(error)} if _lacking(error) else _asked_for(error, self.seen)
                if not lacking <= arguments.extra and len(arguments.extra) < _MAX_FILLED:
                    arguments.extra |= lacking
                    continue
                if attempt.guess is None:
                    self._tell(f"{self.how}:\n  " + blame(error).replace("\n", "\n  "))
                return None
            finally:
                self._options = max(1, len(arguments.options))
                self._guessed = bool(arguments.ledger.guessed)

    def _tell(self, failure: str) -> None:
        if failure not in self._failures:
            self._failures.append(failure)

    def _numbers(self) -> list[int]:
        values = [*self._given.values(), *self._fallback.values()]
        return [v for v in values if type(v) is int] + (numbers_in(self._text) if self._text else [])

    def _instance(self) -> nn.Module | None:
        return next((v for v in self._scope.values() if type(v) is self._cls), None)

    def _record(self, attempt: _Try, ledger: Ledger, consumed: frozenset[str]) -> dict[str, Any] | None:
        """What builds the same module again from the same file."""
        record = {k: v for k, v in self._given.items() if k in ledger.used | consumed}
        record |= {k: v for k, v in {**ledger.flags, **ledger.asked, **ledger.chosen}.items() if is_json(v)}
        if record:  # beside values that are given, the file's own call may no longer be looked at
            record = {k: v for k, v in ledger.called.items() if is_json(v)} | record
        for name in consumed - ledger.used:  # a global: built again, it must not be taken for an argument's other name
            record |= {k: v for k, v in _defaults_alike(attempt.target, name).items() if k not in record}
        if attempt.target is not self._cls and inspect.isclass(self._cls):
            record["factory"] = attempt.target.__name__
        return record or None

    def _findings(self, how: str, ledger: Ledger, consumed: frozenset[str]) -> list[Finding]:
        told = "; ".join(f.replace("\n", " ") for f in self._failures[:2])
        reason = f"after {len(self._failures)} other ways failed: {told}" if self._failures else ""
        findings = [Finding("construction", "note", how, reason=reason)]
        if ledger.chosen.keys() - ledger.guessed.keys() or ledger.asked:
            findings.append(chosen_sizes(ledger))
        findings += guessed_sizes(ledger)
        if ledger.flags:
            said = ", ".join(f"{name}={value!r}" for name, value in ledger.flags.items())
            findings.append(
                Finding("flags", "note", said, reason="the defaults of the program beside the model's file")
            )
        if ledger.aliases:
            said = ", ".join(f"{name} from {key}" for name, key in ledger.aliases.items())
            findings.append(
                Finding("names", "note", said, reason="the constructor reads these names; the configuration has others")
            )
        if ledger.kept:
            said = ", ".join(f"{name}=None" for name in ledger.kept)
            findings.append(Finding("parts", "note", said, reason="the model keeps it and its forward does not use it"))
        if ledger.moved:
            why = "this machine has no such device; the run moves the model where it trains"
            findings.append(Finding("device", "note", f"cpu instead of {', '.join(ledger.moved)}", reason=why))
        unused = [k for k in self._given if k not in ledger.used and k not in CLASS_KEYS and k not in consumed]
        if unused:
            findings.append(
                Finding(
                    "configuration",
                    "warn",
                    f"not used: {', '.join(f'{k}={self._given[k]!r}' for k in unused)}",
                    "every value has a parameter of the constructor",
                    "the constructor has no such parameter; what the code says applies",
                )
            )
        return findings

    def _failed(self) -> ConstructError:
        if self._missing and len(self._failures) == 1:
            return self._needs(self._missing[0])
        told = self._failures[:_MAX_TOLD]
        names = sorted({n for m in self._missing for n in m.names})
        fix = configs.how_to_give(self._missing[0].target, names) if names else ""
        return ConstructError(
            f"{_name(self._cls)} could not be built",
            "\n".join(told)
            + (f"\n… and {len(self._failures) - _MAX_TOLD} more" if len(self._failures) > _MAX_TOLD else ""),
            fix or _of_the_file(self._failures) or "give the constructor's values in config.json beside the file",
        )

    def _needs(self, missing: Missing) -> ConstructError:
        given = [k for k in self._given if k not in CLASS_KEYS]
        said = f"given: {', '.join(given)}" if given else "no config.json beside it"
        return ConstructError(
            f"{_name(missing.target)} needs {missing}",
            f"its constructor: {_name(missing.target)}{inspect.signature(missing.target)}\n{said}\n"
            f"tried: config.json, the file's own values and calls, the sizes that anyformer knows by name or by use",
            configs.how_to_give(missing.target, missing.names),
        )


def _draws_weights(function: Any) -> bool:
    """Whether it gives back one thing, whose weights it draws itself: ``for p in model.parameters(): nn.init...``."""
    node = function_node(function)
    parts = [] if node is None else list(ast.walk(node))
    given = [p.value for p in parts if isinstance(p, ast.Return) and p.value is not None]
    calls = [ast.unparse(p.func) for p in parts if isinstance(p, ast.Call)]
    draws = any(re.fullmatch(r"(torch\.)?(nn\.)?init\.\w+_", name) for name in calls)
    return draws and bool(given) and all(isinstance(value, ast.Name | ast.Call) for value in given)


_NO_VALUE_HELPS = re.compile(
    r"([\w.-]+\.py:\d+): .*\n\s*(NameError: .*|TypeError: .*(missing \d+ required|unexpected keyword argument|"
    r"takes \d+ positional arguments? but).*)$"
)


def _of_the_file(failures: list[str]) -> str:
    """What mends an error that lies in the file itself, at one line, whatever values it is built with; "" for none."""
    found = [_NO_VALUE_HELPS.search(failure) for failure in failures]
    places = {match[1] if match else "" for match in found}
    place = places.pop() if len(places) == 1 else ""
    return f"mend {place}: the error lies in the file, whatever values it is built with" if place else ""


def _described(target: Any, values: dict[str, Any], ledger: Ledger) -> str:
    def shown(name: str, value: Any) -> str:
        if isinstance(value, nn.Module):
            return f"{name}={_name(type(value))}(…)"
        if name in ledger.made:
            return f"{name}={ledger.made[name]}"
        text = repr(value)
        return f"{name}={text if len(text) < 60 else text[:57] + '…'}"

    return f"{_name(target)}({', '.join(shown(k, v) for k, v in values.items())})"


def _lacking(error: BaseException) -> str:
    """The value that a configuration object turned out not to have."""
    if isinstance(error, AttributeError) and not isinstance(error.obj, nn.Module | types.ModuleType):
        return error.name or "" if error.obj is not None and not isinstance(error.obj, int | float | str) else ""
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str) and error.args[0].isidentifier():
        return error.args[0]
    return ""


def _asked_for(error: BaseException, seen: Seen) -> set[str]:
    """Sizes without a value that the error names: a configuration that checks itself says which it needs."""
    if not isinstance(error, ValueError | AssertionError | TypeError):
        return set()
    words = set(re.findall(r"\w+", str(error)))
    return {n for n, v in seen.values.items() if v is None and n in words and aliases.role(n) in aliases.SIZES}


def _leaves_sizes_open(target: Any) -> bool:
    parameters = inspect.signature(target).parameters.values()
    return any(p.default is None and aliases.role(p.name) in (*aliases.SIZES, "device") for p in parameters)


def _random_state() -> Callable[[], None]:
    """A function that puts the random state of now back: every attempt draws the same weights."""
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def back() -> None:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)

    return back


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", type(target).__name__))
