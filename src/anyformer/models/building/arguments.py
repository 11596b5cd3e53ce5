"""The arguments of a constructor, each from the best place that gives it, with a record of where it came from."""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from anyformer.models.building import aliases, configs
from anyformer.models.building.configs import MISSING, VARIADIC
from anyformer.models.building.objects import Objects
from anyformer.models.building.parts import part_of
from anyformer.models.building.reads import MATRIX, Reads, reads_of
from anyformer.models.building.sizes import CLASS_KEYS, is_absent, is_few, is_open, is_trial
from anyformer.models.building.unsaid import class_counts, is_unread
from anyformer.models.building.written import CallSite, Partly, Unknown

_MAX_DEPTH = 8
_FIELDS = "__dataclass_fields__"


class Missing(Exception):
    """Required values that nothing gives: the names, and what needs them."""

    def __init__(self, names: list[str], target: Any) -> None:
        super().__init__(", ".join(names))
        self.names, self.target = names, target


class Arguments(Objects):
    """Finds the arguments of a class or function: configuration, the file's own values, the caller's, then ours."""

    def of(self, target: Any, site: CallSite | None = None, depth: int = 0) -> dict[str, Any]:
        """Keyword arguments for a call. Raises Missing, ConstructError (two keys of one meaning that differ)."""
        parameters = [p for p in _signature(target) if p.kind not in VARIADIC]
        variadic = [p.name for p in _signature(target) if p.kind is inspect.Parameter.VAR_KEYWORD]
        reads = reads_of(target)
        # what a part reads of keywords that are handed on, and what was found lacking
        open_names = [n for v in variadic for n in dict.fromkeys([*reads.under((v,)), *sorted(self.extra)])]
        names = [p.name for p in parameters] + [n for n in open_names if n not in {p.name for p in parameters}]
        meanings = {n: m for v in variadic for n, m in self._meanings(open_names, reads, (v,)).items()}
        meanings |= self._meanings(names, reads)
        meanings |= class_counts(target, names, meanings)
        counted = {n for n in names if _is_vocabulary(n, reads)}
        meanings |= {n: aliases.role(n) or "vocab_size" for n in counted}
        found = self._matched(names, meanings, [p.name for p in parameters if p.default is not MISSING])
        required = [p for p in parameters if p.default is MISSING and p.name not in found]
        by_name = {p.name: p for p in _signature(target)}
        defaults = {p.name: p.default for p in parameters}
        # a configuration is laid over the file's own call: it need not repeat what stands there
        open_at_all = required or any(p.default is MISSING for p in parameters)
        shown = self._from_site(target, site, depth) if open_at_all and site is not None else {}
        drawn = self.written.drawn if self.written is not None else ()
        texts = [v for n, v in shown.items() if meanings.get(n) in aliases.VOCABULARIES and type(v) is int]
        text = any(not is_trial(v, drawn) for v in texts)
        for name, value in shown.items():
            trial = meanings.get(name) in aliases.VOCABULARIES and is_trial(value, drawn)
            trial = trial and not (text and is_few(value))
            own = defaults.get(name)
            # one number per text is a score; the classes are what can be trained
            score = meanings.get(name) == "num_classes" and value == 1 and type(own) is int and own > 1
            partly = isinstance(value, Partly) and not self._is_config(target, by_name[name], reads)
            if name not in found and not trial and not score and not partly:
                found[name] = value
        plain = {n: v for n, v in found.items() if n in shown and isinstance(v, int | float | str | bool)}
        self.ledger.written.update(plain)
        if not depth:
            self.ledger.called.update(plain)
        known = {meanings[n]: v for n, v in found.items() if n in meanings}
        known |= {n: v for n, v in found.items() if meanings.get(n) == n}  # of two with one meaning, the one so called
        for p in parameters:
            if p.name in meanings and p.default is not MISSING:
                known.setdefault(meanings[p.name], p.default)
        missing = []
        for p in parameters:
            value = self._argument(target, p, found, reads, meanings, known, depth)
            if value is MISSING and p.default is MISSING:
                missing.append(p.name)
            elif value is not MISSING:
                found[p.name] = value
                known.setdefault(meanings.get(p.name, ""), value)
        for name in open_names:
            value = found.get(name, self.size(name, meanings.get(name), known))
            value = self.guessed(name, (variadic[0], name), reads) if value is MISSING else value
            if value is not MISSING:
                found[name] = value
        if missing:
            raise Missing(missing, target)
        self.seen.add(names, defaults, found)
        if depth:  # a part's own sizes are those of what is built around it
            own_sizes = {meanings[n]: v for n, v in {**defaults, **found}.items() if meanings.get(n) in aliases.SIZES}
            self.decided = {m: v for m, v in own_sizes.items() if type(v) is int} | self.decided
        usable = {n: self._usable(n, v, meanings.get(n), _by_name(parameters, n)) for n, v in found.items()}
        # a vocabulary of which the length and special tokens are read: any entries, as many as the number says
        counts = {n: v for n, v in usable.items() if n in counted and type(v) is int}
        usable |= {n: _entries(reads.under((n,)), v) for n, v in counts.items()}
        scope = self._scope(target)
        declared = {p.name: configs.annotation_of(p, scope) for p in parameters if p.name in usable}
        return {n: configs.member(declared.get(n), v) for n, v in usable.items()}

    def module(self, target: Any, site: CallSite | None, depth: int) -> Any:
        """A module that is itself an argument."""
        if depth > _MAX_DEPTH:
            raise Missing([getattr(target, "__name__", "?")], target)
        return call(target, self.of(target, site, depth))

    def _from_site(self, target: Any, site: CallSite | None, depth: int) -> dict[str, Any]:
        """Those arguments of a call in the user's file whose values are known without running it."""
        found: dict[str, Any] = {}
        if site is None or self.written is None:
            return found
        names = [p.name for p in _signature(target) if p.kind is not inspect.Parameter.VAR_KEYWORD]
        pairs: list[tuple[str | None, ast.expr]] = [*zip(names, site.node.args, strict=False)]
        pairs += [(k.arg, k.value) for k in site.node.keywords]
        for name, node in pairs:
            with contextlib.suppress(Unknown):
                if isinstance(node, ast.Starred):
                    break
                value = self.written.evaluate(node, site.scope)
                if name is None:  # Model(**settings)
                    whole = value.known_values if isinstance(value, Partly) else dict(value)
                    found |= {k: v for k, v in whole.items() if k in names}
                elif isinstance(value, CallSite):
                    found[name] = self.module(value.target, value, depth + 1)
                else:
                    found[name] = value
        return found

    def _argument(
        self,
        target: Any,
        p: inspect.Parameter,
        found: dict[str, Any],
        reads: Reads,
        meanings: dict[str, str],
        known: dict[str, Any],
        depth: int,
    ) -> Any:
        """The value of one parameter; MISSING where its default applies or nothing gives it."""
        if self._is_config(target, p, reads):
            # an optional one is made where there is something to put into it, or where leaving it out failed
            rest = self.given.keys() - {x.name for x in _signature(target)} - self.ledger.used - set(CLASS_KEYS)
            if p.default is MISSING or rest or self.fill_none or p.name in found:
                return self._config(target, p, reads, found.get(p.name, MISSING))
            return MISSING
        if p.name in found:
            return found[p.name]
        meaning = meanings.get(p.name)
        if p.default is not MISSING:
            if meaning in aliases.VOCABULARIES and is_open(p.default):
                return self.size(p.name, meaning, known)
            if p.default is None and meaning in ("src_pad_id", "tgt_pad_id"):
                return self.size(p.name, meaning, known)  # texts of two lengths are always padded
            if p.default is None and self.fill_parameters and aliases.role(p.name) in (*aliases.SIZES, "device"):
                return self.size(p.name, meaning, known)
            return p.default if meaning == "device" and is_absent(p.default) else MISSING
        part = self._part(target, p)
        if part is not None and part is not target:
            sites = self.written.sites(part) if self.written is not None else []
            return self.module(part, sites[0] if sites else None, depth + 1)
        annotation = configs.annotation_of(p, self._scope(target))
        if annotation is bool and meaning is None:
            meaning = "flag"
        if configs.is_tuple(annotation):
            return MISSING  # one value for each part: none of ours fits
        if meaning == MATRIX:
            return self.vectors(p.name, known)
        value = self.size(p.name, meaning, known)
        # one for each layer
        if configs.is_list(annotation) and isinstance(value, int | float) and p.name in self.ledger.chosen:
            layers = known.get("n_layers")
            value = [value] * (layers if type(layers) is int else aliases.default("n_layers", known))
            self.ledger.chosen[p.name] = value
        if value is MISSING and is_unread(target, p.name):
            self.ledger.kept.append(p.name)
            return None
        if value is MISSING and self.guess is not None and configs.is_words(p):
            self.ledger.chosen[p.name] = self.ledger.guessed[p.name] = ["first", "second"]
            return ["first", "second"]
        return value if value is not MISSING else self.guessed(p.name, (p.name,), reads, annotation)

    def _part(self, target: Any, p: inspect.Parameter) -> type[nn.Module] | None:
        return part_of(target, p, configs.annotation_of(p, self.scope), self.scope)

    def _is_config(self, target: Any, p: inspect.Parameter, reads: Reads) -> bool:
        annotation = configs.annotation_of(p, self._scope(target))
        if p.name in configs.CONFIG_NAMES or p.name.endswith(("_config", "_cfg", "_args", "_params")):
            return True
        if configs.is_config_class(annotation) and configs.CONFIG_CLASS.search(annotation.__name__):
            return True
        if configs.is_mapping(annotation):
            return True
        if inspect.isclass(annotation) and configs.is_config_class(annotation) and hasattr(annotation, _FIELDS):
            return p.default is MISSING or not self.given.keys().isdisjoint(configs.field_names(annotation))
        return p.default is MISSING and self._part(target, p) is None and bool(aliases.roles(reads.under((p.name,))))


def call(target: Any, values: Mapping[str, Any]) -> Any:
    """Call with keywords, or by position where a parameter takes only that."""
    positional = [
        p.name for p in _signature(target) if p.kind is inspect.Parameter.POSITIONAL_ONLY and p.name in values
    ]
    rest = {k: v for k, v in values.items() if k not in positional}
    return target(*(values[n] for n in positional), **rest)


def _signature(target: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(target).parameters.values())


def _by_name(parameters: list[inspect.Parameter], name: str) -> inspect.Parameter | None:
    return next((p for p in parameters if p.name == name), None)


_SPECIAL = re.compile(r"<\|?\w+\|?>|\[\w+\]|(pad|unk|bos|eos|sos|mask)", re.I)
_ENTRIES = re.compile(r"word|vocab|dict|char|lang|stoi|itos|map(ping)?$|2(id|idx|index)$", re.I)


def _is_vocabulary(name: str, reads: Reads) -> bool:
    """Whether a parameter is a collection of words of which nothing but the length and special tokens are read."""
    words = [*reads.under((name,)), *reads.maybe_under((name,))]
    if (name,) not in reads.sized or not all(_SPECIAL.fullmatch(w) for w in words):
        return False
    return bool(_ENTRIES.search(name)) and (name,) not in reads.meanings


def _entries(special: list[str], size: int) -> dict[str, int]:
    """A vocabulary of so many words, those asked for by name first: padding has id 0, as our tokenizers give it."""
    first = sorted(special, key=lambda w: "pad" not in w.lower())
    return {word: i for i, word in enumerate([*first, *map(str, range(len(first), size))][:size])}
