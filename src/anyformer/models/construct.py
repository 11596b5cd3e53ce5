"""From a class and a configuration to a module."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from anyformer.core.errors import AnyformerError, ConstructError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.choose import CLASS_KEYS

_CONFIG_NAMES = ("config", "cfg", "args", "hparams", "conf", "configuration", "params")
_CONFIG_CLASS = re.compile(r"(Config|Configuration|Args|Arguments|HParams|Hparams|Hyperparameters|Params|Settings)$")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class _Attempt:
    """One way to call the constructor."""

    how: str
    arguments: Callable[[], dict[str, Any]]
    """Builds the keyword arguments; may raise what the user's configuration class raises."""
    used: frozenset[str]
    """Keys of the configuration that it uses."""


def construct(
    cls: type[nn.Module], config: dict[str, Any] | None, namespace: types.ModuleType | None
) -> tuple[nn.Module, dict[str, Any] | None, list[Finding]]:
    """Build the class: keyword arguments from ``config``, a configuration object made of it, or no argument.

    namespace: the module that defines the class, where its configuration classes are looked up.
    Returns the module, the values it was given (None for none) and findings (the way taken, keys not used).
    Raises ConstructError with every attempt and its error, or naming the required values that are missing.
    """
    values = dict(config or {})
    parameters = _parameters(cls)
    attempts = _attempts(cls, parameters, values, namespace)
    if not attempts:
        raise _missing_values(cls, parameters, values)
    failures: list[str] = []
    for attempt in attempts:
        try:
            module: Any = cls(**attempt.arguments())
        except AnyformerError:
            raise
        except Exception as error:  # noqa: BLE001  (a stranger's constructor may raise anything)
            failures.append(f"{attempt.how}:\n  " + blame(error).replace("\n", "\n  "))
            continue
        if not isinstance(module, nn.Module):
            raise ConstructError(f"{cls.__name__} gave a {type(module).__name__}, not a torch.nn.Module")
        given = {k: v for k, v in values.items() if k in attempt.used}
        return module, given or None, _findings(attempt, values, failures)
    raise ConstructError(
        f"{cls.__name__} could not be built",
        "\n".join(failures),
        "give the constructor's values in config.json beside the file",
    )


def _parameters(cls: type[nn.Module]) -> list[inspect.Parameter]:
    return list(inspect.signature(cls).parameters.values())


def _attempts(
    cls: type[nn.Module],
    parameters: list[inspect.Parameter],
    values: dict[str, Any],
    namespace: types.ModuleType | None,
) -> list[_Attempt]:
    """Ways to call the constructor, best first. Never one that drops values which another would use."""
    named = [p for p in parameters if p.kind not in _VARIADIC]
    matched = {p.name: values[p.name] for p in named if p.name in values}
    required = [p for p in named if p.default is inspect.Parameter.empty]
    unfilled = [p for p in required if p.name not in matched]
    attempts: list[_Attempt] = []
    nested = _nested_parameter(cls, named, unfilled, matched, values, namespace)
    if nested is not None:
        attempts += _nested_attempts(cls, nested, matched, values, namespace)
    elif not unfilled:
        how = f"{cls.__name__}({', '.join(f'{k}={v!r}' for k, v in matched.items())})"
        attempts.append(_Attempt(how, lambda: matched, frozenset(matched)))
        extra = {k: v for k, v in values.items() if k not in CLASS_KEYS}
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) and extra.keys() - matched.keys():
            everything = _Attempt(f"{cls.__name__}(**config)", lambda: extra, frozenset(extra))
            # a constructor that takes keywords only is made for the whole configuration
            attempts.insert(1 if matched else 0, everything)
    return attempts


def _nested_parameter(
    cls: type[nn.Module],
    named: list[inspect.Parameter],
    unfilled: list[inspect.Parameter],
    matched: dict[str, Any],
    values: dict[str, Any],
    namespace: types.ModuleType | None,
) -> inspect.Parameter | None:
    """The parameter that wants a configuration object: the one required value left, or an optional one by name."""
    if len(unfilled) == 1:
        candidates = unfilled
    elif not unfilled and values.keys() - set(CLASS_KEYS) and not matched:
        candidates = named
    else:
        return None
    for parameter in candidates:
        annotation = _annotation(cls, parameter, namespace)
        if parameter.name in _CONFIG_NAMES or dataclasses.is_dataclass(annotation):
            return parameter
    return None


def _nested_attempts(
    cls: type[nn.Module],
    parameter: inspect.Parameter,
    matched: dict[str, Any],
    values: dict[str, Any],
    namespace: types.ModuleType | None,
) -> list[_Attempt]:
    fields = {k: v for k, v in values.items() if k not in matched and k not in CLASS_KEYS}
    attempts = []

    def attempt(kind: str, build: Callable[[], Any], used: set[str]) -> None:
        how = f"{cls.__name__}({parameter.name}={kind})"
        attempts.append(_Attempt(how, lambda: {**matched, parameter.name: build()}, frozenset(used | matched.keys())))

    annotation = _annotation(cls, parameter, namespace)
    if annotation is dict or typing.get_origin(annotation) in (dict, Mapping) or annotation is Mapping:
        attempt("dict", lambda: dict(fields), set(fields))
        return attempts
    for config_class in _config_classes(annotation, namespace):
        accepted = _accepted(config_class, fields)
        attempt(
            f"{config_class.__name__}({', '.join(f'{k}={v!r}' for k, v in accepted.items())})",
            lambda config_class=config_class, accepted=accepted: _build(config_class, accepted),  # type: ignore[misc]
            set(accepted),
        )
    if fields and not attempts:
        attempt("SimpleNamespace(**config)", lambda: types.SimpleNamespace(**fields), set(fields))
        attempt("dict(config)", lambda: dict(fields), set(fields))
    return attempts


def _annotation(cls: type[nn.Module], parameter: inspect.Parameter, namespace: types.ModuleType | None) -> Any:
    """The parameter's annotation as an object; text that names nothing stays text, ``X | None`` becomes X."""
    annotation: Any = parameter.annotation
    if isinstance(annotation, str):
        name = annotation.strip("'\"").replace("Optional[", "").rstrip("]").partition("|")[0].strip()
        head = name.partition("[")[0]
        annotation = {"dict": dict, "Dict": dict, "Mapping": Mapping}.get(head) or vars(namespace or types).get(head)
    inner = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(inner) == 1:
        annotation = inner[0]
    return annotation


def _config_classes(annotation: Any, namespace: types.ModuleType | None) -> list[type]:
    """The annotated class, else the file's dataclasses and classes that are named like a configuration."""
    plain = inspect.isclass(annotation) and annotation is not inspect.Parameter.empty
    if plain and annotation.__module__ not in ("builtins", "typing", "types", "argparse", "collections.abc"):
        return [annotation]
    found = [c for c in vars(namespace).values() if inspect.isclass(c)] if namespace is not None else []
    own = [c for c in found if not issubclass(c, nn.Module) and not c.__module__.startswith(("torch", "typing"))]
    named = [c for c in own if _CONFIG_CLASS.search(c.__name__)]
    return named or [c for c in own if dataclasses.is_dataclass(c)]


def _accepted(config_class: type, fields: dict[str, Any]) -> dict[str, Any]:
    """Those values that the configuration class has a field, a parameter or a class attribute for."""
    if dataclasses.is_dataclass(config_class):
        names = {f.name for f in dataclasses.fields(config_class) if f.init}
        return {k: v for k, v in fields.items() if k in names}
    parameters = inspect.signature(config_class).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(fields)
    names = {p.name for p in parameters if p.kind not in _VARIADIC}
    return {k: v for k, v in fields.items() if k in names or hasattr(config_class, k)}


def _build(config_class: type, values: dict[str, Any]) -> Any:
    """The configuration object; values that its constructor does not take are set as attributes."""
    parameters = inspect.signature(config_class).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return config_class(**values)
    names = {p.name for p in parameters}
    built = config_class(**{k: v for k, v in values.items() if k in names})
    for name in values.keys() - names:
        setattr(built, name, values[name])
    return built


def _findings(attempt: _Attempt, values: dict[str, Any], failures: list[str]) -> list[Finding]:
    reason = f"after {len(failures)} other ways failed: {'; '.join(failures)}" if failures else ""
    findings = [Finding("construction", "note", attempt.how, reason=reason)]
    unused = [k for k in values if k not in attempt.used and k not in CLASS_KEYS]
    if unused:
        findings.append(
            Finding(
                "configuration",
                "warn",
                f"not used: {', '.join(f'{k}={values[k]!r}' for k in unused)}",
                "every value has a parameter of the constructor",
                "the constructor has no such parameter; what the code says applies",
            )
        )
    return findings


def _missing_values(
    cls: type[nn.Module], parameters: list[inspect.Parameter], values: dict[str, Any]
) -> ConstructError:
    required = [p for p in parameters if p.kind not in _VARIADIC and p.default is inspect.Parameter.empty]
    missing = [p.name for p in required if p.name not in values]
    given = f"given: {', '.join(k for k in values if k not in CLASS_KEYS)}" if values else "no config.json beside it"
    example = ", ".join(f'"{name}": …' for name in missing)
    if len(missing) == 1 and missing[0] in _CONFIG_NAMES:
        example = '"vocab_size": …, and what else the model reads from it'
    return ConstructError(
        f"{cls.__name__} needs {', '.join(missing)}",
        f"its constructor: {cls.__name__}{inspect.signature(cls)}\n{given}",
        f"write config.json beside the file: {{{example}}}",
    )
