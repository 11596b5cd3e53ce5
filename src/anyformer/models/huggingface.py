"""Models of the transformers library: hub ids, folders, classes, configurations. Code of a hub is never run."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from anyformer.core.errors import ConstructError, SourceError
from anyformer.core.findings import Finding
from anyformer.core.optional import require
from anyformer.models.blame import blame
from anyformer.models.building import aliases
from anyformer.models.network.hub import HubRepository
from anyformer.models.weights import NOT_APPLICABLE

_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_CLASS_NAMES = ("architectures", "class_name", "model_name", "factory")
_PURPOSE = "loading a Hugging Face model"


@dataclass(frozen=True)
class HubModel:
    """A module of transformers and how it came to be."""

    module: nn.Module
    location: str
    sources: dict[str, Path]
    config: dict[str, Any] | None
    """Values that were given beside those of config.json."""
    findings: tuple[Finding, ...]


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a transformers model and no code of its own."""
    if (folder / "model.py").exists() or not (folder / "config.json").is_file():
        return False
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        return False
    return isinstance(values, dict) and ("model_type" in values or "architectures" in values)


def is_config(value: Any) -> bool:
    """Whether an object is a configuration of transformers, without importing it."""
    return any(c.__name__ in ("PretrainedConfig", "PreTrainedConfig") for c in type(value).__mro__)


def is_transformers(value: Any, kind: str) -> bool:
    """Whether a class derives from transformers' model ("PreTrainedModel") or configuration ("PretrainedConfig")."""
    names = ("PretrainedConfig", "PreTrainedConfig") if kind == "PretrainedConfig" else (kind,)
    return inspect.isclass(value) and any(c.__name__ in names for c in value.__mro__)


def is_library_class(value: Any) -> bool:
    """Whether it is a model or a configuration class of transformers itself, not one that a user derived."""
    own = (getattr(value, "__module__", None) or "").startswith("transformers.")
    return own and (is_transformers(value, "PreTrainedModel") or is_transformers(value, "PretrainedConfig"))


def load_hub(text: str, config: dict[str, Any] | None) -> HubModel:
    """``hf:ID``, ``hf:ID@revision`` or ``hf:FOLDER``: with its weights, or with random ones where it has none.

    HF_ENDPOINT names another hub. Where the hub does not answer, its cache on this machine is used, and that is said.
    Raises SourceError (not found, no network), ConstructError (no such architecture, code in the repository, weights
    that do not fit), DependencyError (transformers is missing).
    """
    name = text.removeprefix("hf:")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return load_folder(folder, config)
    if not name or name.startswith((".", "/", "~")):
        raise SourceError(f"no folder {name!r}", "hf: takes a folder with config.json or an id of the hub", "hf:gpt2")
    repository, _, revision = name.partition("@")
    found, pinned, cached = _download(repository, revision or None)
    loaded = _from_folder(found, config, pinned)
    findings = (cached, *loaded.findings) if cached else loaded.findings
    return HubModel(loaded.module, text, loaded.sources, loaded.config, findings)


def load_folder(folder: Path, config: dict[str, Any] | None) -> HubModel:
    """A folder as ``save_pretrained`` writes it: config.json and, where there are any, weights."""
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} has no config.json", "a Hugging Face model is a folder with config.json and weights"
        )
    return _from_folder(folder.resolve(), config, None)


def from_config(configuration: Any, config: dict[str, Any] | None) -> HubModel:
    """A module with random weights from a configuration of transformers; ``config`` changes some of its values."""
    for name, value in (config or {}).items():
        if name not in _CLASS_NAMES:
            setattr(configuration, name, value)
    cls = _class_for(configuration, config or {})
    module = _initialised(cls, configuration)
    finding = Finding("weights", "note", "random", reason=f"built from {type(configuration).__name__}, without weights")
    return HubModel(module, type(configuration).__name__, {}, configuration.to_diff_dict(), (finding,))


def from_class(cls: Any, config: dict[str, Any] | None, fallback: dict[str, Any] | None) -> HubModel:
    """A class of transformers, of a model or a configuration, at a small size: values given, then asked, then ours."""
    kind = cls.config_class if is_transformers(cls, "PreTrainedModel") else cls
    if kind is None:
        raise ConstructError(f"{cls.__name__} names no configuration class", "it is a base class of transformers")
    given = {k: v for k, v in (config or {}).items() if k not in _CLASS_NAMES}
    small = _small(kind(), given, fallback or {})
    values = {**small, **given}
    configuration = kind(**values)
    model = cls if cls is not kind else _class_for(configuration, config or {})
    module = _initialised(model, configuration)
    findings = [Finding("weights", "note", "random", reason=f"{model.__name__} was built from a configuration")]
    if small:
        said = ", ".join(f"{k}={v!r}" for k, v in small.items())
        why = "chosen by anyformer, small; put your own into config.json or load weights with hf:ID"
        findings.append(Finding("sizes", "warn", said, reason=why))
    return HubModel(module, cls.__name__, {}, values or None, tuple(findings))


def _small(configuration: Any, given: dict[str, Any], fallback: dict[str, Any]) -> dict[str, Any]:
    """Small sizes that fit together for the fields that a configuration has under names known to us."""
    have = configuration.to_dict()
    found = aliases.roles(have)
    known: dict[str, Any] = {r: given[k] for k, r in aliases.roles(given).items()}
    known |= {r: fallback[k] for k, r in aliases.roles(fallback).items() if r not in known}
    small: dict[str, Any] = {}
    sized = ("vocab_size", "d_model", "n_heads", "n_kv_heads", "n_layers", "n_encoder_layers", "n_decoder_layers")
    for name, meaning in sorted(found.items(), key=lambda pair: pair[1] not in known):
        number = isinstance(have[name], int) and not isinstance(have[name], bool)
        if number and name not in given and meaning in (*sized, "d_ff", "max_len", "head_dim"):
            value = known.get(meaning)
            small[name] = value if value is not None else aliases.default(meaning, known)
            known[meaning] = small[name]
    vocabulary = known.get("vocab_size")
    for name, value in have.items():
        # special tokens of the published vocabulary, beyond the small one
        if (
            name.endswith("token_id")
            and isinstance(value, int)
            and vocabulary
            and value >= vocabulary
            and name not in given
        ):
            small[name] = vocabulary - 1
    return small


def _from_folder(folder: Path, config: dict[str, Any] | None, revision: str | None) -> HubModel:
    transformers = _transformers()
    path = folder / "config.json"
    values = _read(path)
    given = {k: v for k, v in (config or {}).items() if k not in _CLASS_NAMES}
    findings = [_own_code(folder, values)] if values.get("auto_map") else []
    try:
        configuration = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, **given)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ConstructError(
            f"transformers has no model for {path}",
            f"model_type is {values.get('model_type')!r}\n{str(error).splitlines()[0]}",
            "update transformers, or give the model's own Python file",
        ) from error
    cls = _class_for(configuration, config or {})
    weights = next((n for n in (*_SAFE_WEIGHTS, *_PICKLED_WEIGHTS) if (folder / n).is_file()), None)
    module = _initialised(cls, configuration) if weights is None else _filled(cls, configuration, folder, weights)
    said = weights or "random"
    why = (
        f"revision {revision}" if weights and revision else "" if weights else f"{folder.name} has a configuration only"
    )
    findings.append(Finding("weights", "note", said, reason=why))
    if weights is not None:
        findings.append(Finding("initialisation", "n/a", "random start", reason=NOT_APPLICABLE))
    findings.append(Finding("class", "note", cls.__name__, reason=_why(configuration, cls)))
    return HubModel(module, str(folder), {"config.json": path}, given or None, tuple(findings))


def _filled(cls: Any, configuration: Any, folder: Path, weights: str) -> nn.Module:
    try:
        with _quiet():
            module: nn.Module = cls.from_pretrained(
                str(folder),
                config=configuration,
                use_safetensors=weights in _SAFE_WEIGHTS,
                weights_only=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except Exception as error:  # the library's many kinds
        raise ConstructError(
            f"the weights in {folder} do not fit {cls.__name__}",
            blame(error),
            "give the config.json that belongs to them",
        ) from error
    # float32 as other models: the run's precision is chosen by measurement
    return module.float().train()


def _initialised(cls: Any, configuration: Any) -> nn.Module:
    try:
        with _quiet():
            build = getattr(cls, "_from_config", cls)
            module: nn.Module = build(configuration)
    except Exception as error:  # the library's many kinds
        raise ConstructError(
            f"{cls.__name__} could not be built from its configuration", blame(error), "check the sizes in config.json"
        ) from error
    return module.float().train()


def _class_for(configuration: Any, config: dict[str, Any]) -> Any:
    """The class that config.json's ``architectures`` names, else the one of its model_type for its objective."""
    transformers = _transformers()
    wanted = [config.get(k) for k in _CLASS_NAMES] + [configuration.architectures]
    for value in wanted:
        for name in value if isinstance(value, list) else [value]:
            cls = getattr(transformers, name, None) if isinstance(name, str) else None
            if is_transformers(cls, "PreTrainedModel"):
                return cls
    auto = transformers.models.auto.modeling_auto
    masked, causal = auto.MODEL_FOR_MASKED_LM_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING
    sequence = auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    classes = (
        (sequence, bool(configuration.is_encoder_decoder)),
        (masked, not getattr(configuration, "is_decoder", False)),
        (causal, True),
        (sequence, True),
        (auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, True),
        (auto.MODEL_MAPPING, True),
    )
    for mapping, fits in classes:
        if fits and type(configuration) in mapping:
            found = mapping[type(configuration)]
            return found[0] if isinstance(found, tuple | list) else found
    raise ConstructError(
        f"transformers has no language model for {type(configuration).__name__}",
        f"model_type is {configuration.model_type!r}",
        'name the class in config.json: {"architectures": ["…ForCausalLM"]}',
    )


def _why(configuration: Any, cls: Any) -> str:
    if configuration.architectures and cls.__name__ in configuration.architectures:
        return "config.json names it (architectures)"
    return f"the class for model_type {configuration.model_type}"


def _own_code(folder: Path, values: dict[str, Any]) -> Finding:
    """config.json is data: it can point at code, and that code is not run."""
    modules = sorted({str(v).partition(".")[0] + ".py" for v in _flat(values["auto_map"])})
    said = f"{', '.join(modules)} not run"
    return Finding(
        "code", "warn", said, "none", f"config.json of {folder.name} names code (auto_map); code of a hub is never run"
    )


def _flat(auto_map: Any) -> list[Any]:
    listed = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    return [v for value in listed for v in (value if isinstance(value, list) else [value]) if v]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConstructError(f"{path} is not JSON", str(error)) from error
    if not isinstance(values, dict):
        raise ConstructError(f"{path} holds a {type(values).__name__}", "expected an object with model_type")
    if values.get("auto_map") and not _known(values):
        raise ConstructError(
            f"{path} asks for code of its own repository: {_flat(values['auto_map'])[0]}",
            f"model_type {values.get('model_type')!r} is not part of transformers; code of a hub is never run",
            "look at the code, and if you trust it give that file: anyformer inspect FOLDER/modeling_….py",
        )
    return values


def _known(values: dict[str, Any]) -> bool:
    return values.get("model_type") in _transformers().models.auto.configuration_auto.CONFIG_MAPPING


def _download(repository: str, revision: str | None) -> tuple[Path, str, Finding | None]:
    """The folder in the hub's cache with config.json and weights, the revision, and whether only the cache was used."""
    found = HubRepository(repository, revision)
    config = found.file("config.json")
    if config is None:
        raise SourceError(f"hf:{repository} has no config.json", "it is no model of transformers")
    _read(config)  # refused before the weights are fetched
    weights = found.first((*_SAFE_WEIGHTS, *_PICKLED_WEIGHTS))
    if weights is not None and weights.name.endswith(".index.json"):
        for shard in sorted(set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())):
            found.file(shard)
    return config.parent, config.parent.name, found.finding


def _transformers() -> Any:
    with _quiet():
        return require("transformers", purpose=_PURPOSE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the library prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
