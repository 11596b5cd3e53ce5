"""One value by its name and meaning, from the best place that gives it, with a record of where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from anyformer.core.errors import ConstructError
from anyformer.core.findings import Finding
from anyformer.models.building import aliases
from anyformer.models.building.configs import MISSING
from anyformer.models.building.reads import MATRIX, Path, Reads
from anyformer.models.building.words import meaning_of
from anyformer.models.building.written import Written

CLASS_KEYS = ("class_name", "model_name", "architectures", "factory", "model_type")
"""Keys of config.json that may name the class or the function that builds it."""
_WIDE = ("vocab_size", "d_model", "n_layers", "n_heads")
_RATES: dict[float, float] = {4: 0.1, 2: 0.5, 8: 1.0}
"""What is tried for a ``float`` in place of a count: rates first."""
_NUMBERS = re.compile(r"\d+(,\s*\d+)*")
_TRIAL_VOCABULARY = 64
"""A smaller one in a call or a function's variable is a trial run's: no text can be written with it."""
_CLASSES = 20
"""As many classes or fewer; a text in as few ids is none that anybody writes."""
_BYTES = 256
"""A smaller one, below which the file itself draws random ids, is one, too."""


@dataclass
class Ledger:
    """Where the values of one attempt came from."""

    used: set[str] = field(default_factory=set)
    """Keys of the configuration."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """Sizes that anyformer chose."""
    guessed: dict[str, Any] = field(default_factory=dict)
    """Those of them of which nobody knows what they mean."""
    vectors: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Parameters that are random where vectors learnt elsewhere are wanted: rows, width."""
    asked: dict[str, Any] = field(default_factory=dict)
    """Values of the caller's fallback."""
    written: dict[str, Any] = field(default_factory=dict)
    """Values that stand in the user's file."""
    called: dict[str, Any] = field(default_factory=dict)
    """Those of them that are arguments of the file's own call of the model."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Name that the constructor reads → key of the configuration."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Defaults of the flags of a program beside the file; the file alone does not give them again."""
    made: dict[str, str] = field(default_factory=dict)
    """Parameter → how its configuration object was made."""
    kept: list[str] = field(default_factory=list)
    """Parameters that are None because the class only keeps them."""
    moved: list[str] = field(default_factory=list)
    """Arguments that named a device which is not there."""


@dataclass
class Seen:
    """The names that one attempt set or left at their own values."""

    values: dict[str, Any] = field(default_factory=dict)
    """Name → value that the constructor got, its defaults and the file's own included."""
    meanings: dict[str, str] = field(default_factory=dict)
    """Name → meaning, for those that are known by name."""
    rest: dict[str, Any] = field(default_factory=dict)
    """Plain values of a dict of the file, whole: sizes of ours must not replace it."""

    def add(self, names: Collection[str], defaults: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        values = {n: v for n in names if (v := found.get(n, defaults.get(n, MISSING))) is not MISSING}
        self.values |= values
        # by name only: what a use alone suggests changes no value that the file gives
        self.meanings |= {n: m for n, m in aliases.roles(names, letters=True).items() if n in values}

    def add_dict(self, values: Mapping[str, Any]) -> None:
        self.rest |= {k: v for k, v in values.items() if k not in CLASS_KEYS and is_json(v)}


class Sizes:
    """Single values by name: from the configuration, the file's own, the caller's, then ours; with a record of each."""

    def __init__(
        self, given: dict[str, Any], fallback: dict[str, Any], written: Written | None, scope: Mapping[str, Any]
    ) -> None:
        self.given = {k: v for k, v in given.items() if k not in CLASS_KEYS or k == "model_type"}
        self.fallback, self.written, self.scope = fallback, written, scope
        self._names = written.names() if written is not None else {}
        self._given_roles = aliases.roles(self.given)
        self._written_roles = aliases.roles(self._names)
        self._fallback_roles = aliases.roles(fallback)
        self.ledger = Ledger()
        self.seen = Seen()
        self.decided: dict[str, Any] = {}
        """Meaning → the size chosen for it: the parts of one model get the same."""
        self.extra: set[str] = set()
        """Names that a configuration object lacked when the constructor ran."""
        self.fill_none = False
        """Whether sizes that a configuration object holds as None are filled, too."""
        self.fill_parameters = False
        """Whether sizes that the constructor itself leaves at None are filled."""
        self.guess: int | float | None = None
        self.plain = False
        """What a number is set to of which neither the name nor the use says what it means."""
        self.option = 0
        """Which of the configuration objects that are possible is taken."""
        self.options: list[str] = []

    def size(self, name: str, meaning: str | None, known: dict[str, Any]) -> Any:
        """A value that nothing in the configuration gives: from the file, the caller, or a small one of ours."""
        for spelled in (name, name.upper(), name.lower()):
            if spelled in self._names and _fits(meaning, self._names[spelled]) and not self._is_trial(meaning, spelled):
                self.ledger.written[name] = self._names[spelled]
                return self._remember(meaning, known, self._names[spelled])
        if name in self.fallback and _fits(meaning, self.fallback[name]):
            self.ledger.asked[name] = self.fallback[name]
            return self._remember(meaning, known, self.fallback[name])
        if meaning is None or meaning == "flag":
            switch = aliases.flag(name)
            switch = False if switch is None and meaning == "flag" else switch
            if switch is None:
                return MISSING
            self.ledger.chosen[name] = switch
            return switch
        for wanted in (meaning, aliases.PARENTS.get(meaning)):
            for key in (k for k, r in self._written_roles.items() if r == wanted):
                if _fits(meaning, self._names[key]) and not self._is_trial(wanted, key):
                    self.ledger.written[name] = self._names[key]
                    return self._remember(meaning, known, self._names[key])
        for wanted in (meaning, aliases.PARENTS.get(meaning)):
            for key in (k for k, r in self._fallback_roles.items() if r == wanted):
                if _fits(meaning, self.fallback[key]):
                    self.ledger.asked[name] = self.fallback[key]
                    return self._remember(meaning, known, self.fallback[key])
        return self._ours(name, meaning, known)

    def _ours(self, name: str, meaning: str, known: dict[str, Any]) -> Any:
        """A small value that fits the known ones; the parts of one model get the same."""
        value: Any = torch.float32 if meaning == "dtype" else self.decided.get(meaning)
        if value is None:
            value = aliases.default(meaning, {**self.decided, **known})
        if value is None:
            return MISSING
        self.decided[meaning] = value
        self.ledger.chosen[name] = value
        return self._remember(meaning, known, value)

    def guessed(self, name: str, path: Path, reads: Reads, annotation: Any = None) -> Any:
        """A value for a required one without a known meaning; MISSING where nothing says what it could be.

        That which the part has of itself to which it is handed on, else the first word that it is compared with, else
        a number that is tried.
        """
        if path in reads.defaults and reads.meanings.get(path) is None:
            self.ledger.chosen[name] = reads.defaults[path]
            return reads.defaults[path]
        whole = isinstance(self.guess, int)
        if self.guess is not None and path in reads.words and annotation in (None, str):
            self.ledger.chosen[name] = self.ledger.guessed[name] = reads.words[path]
            return reads.words[path]
        number = path in reads.numbers or annotation in (int, float)
        if self.guess is None or not number or path in reads.sized or reads.under(path):
            return MISSING
        if reads.meanings.get(path) is not None or annotation not in (None, float, *((int,) if whole else ())):
            return MISSING
        value = _RATES.get(self.guess, float(self.guess)) if annotation is float else self.guess
        self.ledger.chosen[name] = self.ledger.guessed[name] = value
        return value

    def vectors(self, name: str, known: dict[str, Any]) -> Any:
        """Random vectors (rows, width) in place of those that were learnt elsewhere."""
        wanted = {"vocab_size": "vocab_size", "d_model": "d_model"}
        given = self._matched(list(wanted), wanted)
        rows, width = (given.get(n) or known.get(n) or self.size(n, n, known) for n in wanted)
        self.ledger.vectors[name] = rows, width
        self.ledger.made[name] = f"random ({rows:,}, {width:,})"
        return torch.randn(rows, width)

    @staticmethod
    def _remember(meaning: str | None, known: dict[str, Any], value: Any) -> Any:
        if meaning is not None:
            known[meaning] = value
        return value

    def _is_trial(self, meaning: str | None, name: str) -> bool:
        """Whether a vocabulary is a local variable's, and too small for text."""
        value = self._names[name]
        drawn = self.written.drawn if self.written is not None else ()
        return meaning in aliases.VOCABULARIES and is_trial(value, drawn) and self.scope.get(name) != value

    def _meanings(self, names: list[str], reads: Reads, container: tuple[str, ...] = ()) -> dict[str, str]:
        """What each name means: by itself, by the names it is handed on under, or by how it is used."""
        found = aliases.roles(names, letters=True)
        for name in names:
            path = (*container, name)
            used = reads.meanings.get(path)
            if used == MATRIX or (len(name) == 1 and used in aliases.SIZES):
                found[name] = str(used)  # N layers, and N places: a letter says less than its use
            if name in found or aliases.flag(name) is not None:
                continue
            handed = aliases.roles(sorted(reads.names.get(path, ())))
            meaning = next(iter(handed.values()), used)
            said = meaning_of(name)
            # "d_model" is what any Linear makes of it; classes are called so for nothing else
            if meaning in (None, "flag", "d_model") or said == "num_classes":
                meaning = said or meaning
            if meaning is not None:
                found[name] = meaning
        return found

    def _matched(self, names: list[str], meanings: Mapping[str, str], settled: Collection[str] = ()) -> dict[str, Any]:
        """Values of the configuration: under the very name, else under another name of the same meaning.

        settled: names that have a value of their own; these are matched by their name's meaning, never by a use alone.
        """
        named = aliases.roles(names, letters=True)
        found = {n: self.given[n] for n in names if n in self.given}
        self.ledger.used |= found.keys()
        for name in names:
            meaning = meanings.get(name)
            if name in found or meaning in (None, "flag") or (name in settled and name not in named):
                continue
            for wanted in (meaning, aliases.PARENTS.get(str(meaning))):
                keys = [k for k, r in self._given_roles.items() if r == wanted and k not in names]
                if keys:
                    if any(self.given[k] != self.given[keys[0]] for k in keys):
                        raise _conflict(name, {k: self.given[k] for k in keys})
                    found[name] = self.given[keys[0]]
                    self.ledger.used.update(keys)
                    self.ledger.aliases[name] = keys[0]
                    break
        return found

    def _usable(self, name: str, value: Any, meaning: str | None, p: Any = None, like: Any = None) -> Any:
        """A value as the constructor can use it: a dtype for its name, a device that is there."""
        default = p.default if p is not None else like
        if meaning == "dtype" and self.plain and isinstance(value, str | torch.dtype):
            return str(value).removeprefix("torch.")
        if meaning == "dtype" and isinstance(value, str) and not isinstance(default, str):
            dtype = getattr(torch, value.removeprefix("torch."), None)
            if isinstance(dtype, torch.dtype) and (p is None or p.annotation not in (str, "str")):
                return dtype
        if meaning == "filter_sizes" and isinstance(value, str) and _NUMBERS.fullmatch(value):
            return [int(n) for n in value.split(",")]  # as a flag takes them, and its program splits them
        if (meaning == "device" or isinstance(value, torch.device)) and is_absent(value):
            self.ledger.moved.append(f"{name}={str(value)!r}")
            return torch.device("cpu") if isinstance(value, torch.device) else "cpu"
        return value


def is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def guessed_sizes(ledger: Ledger) -> list[Finding]:
    """What was made up: numbers without a known meaning, random vectors where learnt ones are wanted."""
    found = []
    if ledger.guessed:
        said = ", ".join(f"{name}={value!r}" for name, value in ledger.guessed.items())
        why = "values that the constructor asks for and anyformer does not know; the model can be built with these"
        found.append(Finding("guessed", "warn", said, reason=f"{why}. Put yours into config.json beside it"))
    for name, (rows, width) in ledger.vectors.items():
        why = (
            "the constructor wants vectors that were learnt elsewhere: build the model with yours, and pass the module"
        )
        found.append(Finding("vectors", "warn", f"{name}: random, {rows:,} of {width:,}", reason=why))
    return found


def chosen_sizes(ledger: Ledger) -> Finding:
    """What the constructor asks for and nothing gives."""
    known = {k: v for k, v in ledger.chosen.items() if k not in ledger.guessed}
    parts = [", ".join(f"{k}={v!r}" for k, v in d.items()) for d in (ledger.asked, known)]
    said = "; ".join(p + w for p, w in zip(parts, (" (as asked)", ""), strict=True) if p)
    wide = [k for k in ledger.chosen if (aliases.role(k) or meaning_of(k)) in _WIDE]
    return Finding(
        "sizes",
        "warn" if wide else "note",
        said,
        reason="chosen by anyformer because the constructor asks for them; put your own into config.json beside it",
    )


def is_trial(vocabulary: Any, drawn: Container[int] = ()) -> bool:
    """Whether a vocabulary is that of a trial run. drawn: below what the file draws random ids."""
    if not isinstance(vocabulary, int) or isinstance(vocabulary, bool) or vocabulary < 0:
        return False
    return vocabulary < (_BYTES if vocabulary in drawn else _TRIAL_VOCABULARY)


def is_few(vocabulary: Any) -> bool:
    """Whether a size called a vocabulary may be one of classes, beside that of a text: Transformer(20000, 2, …)."""
    return type(vocabulary) is int and 2 <= vocabulary <= _CLASSES


def is_open(vocabulary: Any) -> bool:
    """Whether a vocabulary is left for later: None, -1 or 0."""
    return vocabulary is None or (type(vocabulary) is int and vocabulary in (-1, 0))


def is_absent(device: Any) -> bool:
    """Whether a device is named that this machine has not."""
    name = str(device).partition(":")[0]
    if name == "cuda":
        return not torch.cuda.is_available()
    return name == "mps" and not torch.backends.mps.is_available()


def _fits(meaning: str | None, value: Any) -> bool:
    """Whether a value found by its name can be meant: a size is a positive number."""
    if meaning in ("device", "dtype", "activation", None):
        return value is not None
    if meaning == "flag":
        return isinstance(value, bool)
    if meaning == "filter_sizes":
        return isinstance(value, list | tuple)
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _conflict(name: str, keys: dict[str, Any]) -> ConstructError:
    return ConstructError(
        f"the configuration gives {name} twice: {', '.join(f'{k}={v!r}' for k, v in keys.items())}",
        f"the constructor reads {name}; these keys mean the same",
        f'keep one of them, or write "{name}"',
    )
