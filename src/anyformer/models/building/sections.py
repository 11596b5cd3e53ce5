"""The model's section of a configuration that holds more: ``model: {…}`` beside ``train: {…}``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from anyformer.core.findings import Finding
from anyformer.models.building import configs
from anyformer.models.building.reads import reads_of

_MODEL = re.compile(
    r"(model|network|net|arch|architecture|transformer|lm|llm)(_?(config|cfg|args|params|kwargs|hparams))?"
)


def models_own(given: dict[str, Any], cls: Any, scope: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The values of the model's section among the others, where nothing reads that section by its name.

    Sections of other things (train, tokenizer) are set aside then. A configuration without such a section stays.
    """
    known = _names(cls, scope)
    sections = {k: v for k, v in given.items() if isinstance(v, dict) and k not in known}
    name = getattr(cls, "__name__", "").lower()
    own = [k for k in sections if _MODEL.fullmatch(k.lower()) or k.lower() == name]
    if not own:
        return given, []
    merged = {k: v for k, v in given.items() if k not in sections}
    for key in own:
        merged |= {str(k): v for k, v in sections[key].items()}
    aside = [k for k in sections if k not in own]
    reason = f"not the model's: {', '.join(aside)}" if aside else "nothing reads it by this name"
    return merged, [Finding("configuration", "note", f"section {', '.join(own)}", reason=reason)]


def _names(cls: Any, scope: Mapping[str, Any]) -> set[str]:
    """All that the constructor takes, reads, or that a configuration class or a global of the file has."""
    reads = reads_of(cls)
    names = {part for path in (*reads.required, *reads.optional, *reads.styles) for part in path}
    names |= set(inspect.signature(cls).parameters)
    for value in scope.values():
        if configs.is_config_class(value):
            names |= set(configs.field_names(value))
    return names | {n for n, v in scope.items() if isinstance(v, dict)}
