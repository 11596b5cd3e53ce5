"""From what a user typed as MODEL to a module on the CPU, with where it came from."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from anyformer.core.errors import AnyformerError, ConstructError, DependencyError, SourceError
from anyformer.core.findings import Finding
from anyformer.models import example_gpt
from anyformer.models.blame import blame
from anyformer.models.choose import choose_class, module_class
from anyformer.models.construct import construct
from anyformer.models.probes import preserved_rng
from anyformer.models.pyfile import UserFile
from anyformer.models.weights import load_weights

Kind = Literal["file", "folder", "import", "module", "example"]

ACCEPTED = (
    "accepted: model.py, model.py:ClassName, a folder with model.py, pkg.module:ClassName, example:gpt, example:gpt2,"
    " or in Python an nn.Module"
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "gpt": {},
    # Radford et al. 2019, table 2, smallest model: 124,439,808 parameters with the head tied
    "gpt2": {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "bias": True},
}
_ELSEWHERE = re.compile(r"(gist|hf|manual|https?|git\+\w+):")
_IMPORT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_WITH_CLASS = re.compile(r"(?P<path>.+):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Provenance:
    """Where a module came from; enough to build it again from the stored files."""

    kind: Kind
    location: str
    """The path, import path or example's name, as given (paths absolute)."""
    class_name: str
    files: dict[str, str]
    """File name relative to the source's folder → sha256 of its bytes."""
    config: dict[str, Any] | None
    """The values the constructor was given; None where it was given none."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Provenance:
        """Back from JSON; keys of other records are ignored, an unknown kind raises ValueError."""
        if record["kind"] not in get_args(Kind):
            raise ValueError(f"kind {record['kind']!r} is none of {get_args(Kind)}")
        return cls(**{name: record[name] for name in ("kind", "location", "class_name", "files", "config")})


@dataclass(frozen=True)
class LoadedModel:
    """A module and how it came to be."""

    module: nn.Module
    provenance: Provenance
    sources: dict[str, Path]
    """Name relative to the source's folder → file on disk, the main file first; empty for a plain nn.Module."""
    findings: tuple[Finding, ...]


def load_model(
    model: str | Path | nn.Module,
    *,
    config: dict[str, Any] | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
) -> LoadedModel:
    """Load a model from MODEL: a file, a folder, an import path, an example, or an nn.Module. Never uses a network.

    config: values for the constructor; they win over those of a config.json beside the file.
    weights: .safetensors file or state dict to start from.
    seed: seeds torch, numpy and random for the construction; their state is put back afterwards.
    Raises SourceError (not found, not Python, fails while loaded), DependencyError (a missing package),
    ConstructError (no class, several, cannot be built, weights that do not fit).
    """
    with preserved_rng() if seed is not None else contextlib.nullcontext():
        with _kept_directory():
            loaded = _load(model, config, seed)
        if weights is not None:
            load_weights(loaded.module, weights)
    return loaded


@contextlib.contextmanager
def _kept_directory() -> Iterator[None]:
    """Come back to the working directory: a model file that changes it must not move the run."""
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


def _load(model: str | Path | nn.Module, config: dict[str, Any] | None, seed: int | None) -> LoadedModel:
    if isinstance(model, nn.Module):
        if config:
            raise ConstructError("config is given together with a finished module", fix="leave one of them out")
        return _from_module(model)
    text = str(model)
    if text.startswith("example:"):
        return _from_example(text, config, seed)
    path, name = _path_and_class(text)
    if path.is_dir():
        return _from_file(_model_file(path), name, config, seed, kind="folder")
    if path.is_file():
        return _from_file(path, name, config, seed, kind="file")
    if path.exists():
        raise SourceError(f"{path} is neither a file nor a folder", ACCEPTED)
    if _ELSEWHERE.match(text):
        raise SourceError(f"{text} cannot be loaded here: {text.partition(':')[0]} sources are not supported", ACCEPTED)
    if _IMPORT.fullmatch(text) and not text.partition(":")[0].endswith(".py"):
        return _from_import(text, config, seed)
    raise _not_found(text, path)


def _path_and_class(text: str) -> tuple[Path, str | None]:
    path = Path(text).expanduser()
    match = _WITH_CLASS.fullmatch(text)
    if path.exists() or match is None:
        return path, None
    return Path(match["path"]).expanduser(), match["name"]


def _model_file(folder: Path) -> Path:
    path = folder / "model.py"
    if path.is_file():
        return path
    if (folder / "run.json").is_file():
        raise SourceError(
            f"{folder} is a run, not a model's source", ACCEPTED, f"anyformer evaluate {folder}, or generate {folder}"
        )
    files = sorted(p.name for p in folder.glob("*.py"))
    raise SourceError(
        f"{folder} has no model.py",
        f"its Python files: {', '.join(files)}" if files else "it holds no Python file",
        "\n".join(f"{folder / name}" for name in files),
    )


def _not_found(text: str, path: Path) -> SourceError:
    where = path.parent
    if not where.is_dir():
        return SourceError(f"no such file: {path}", f"{where} is no folder\n{ACCEPTED}")
    names = [p.name for p in where.iterdir() if p.suffix == ".py" or (p / "model.py").is_file()]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    fix = "did you mean " + " or ".join(str(where / name) for name in close) + "?" if close else ""
    return SourceError(f"no such file: {text}", ACCEPTED, fix)


def _from_module(module: nn.Module) -> LoadedModel:
    cls = type(module)
    provenance = Provenance("module", f"{cls.__module__}:{cls.__qualname__}", cls.__name__, {}, None)
    return LoadedModel(module, provenance, {}, ())


def _from_example(text: str, config: dict[str, Any] | None, seed: int | None) -> LoadedModel:
    name = text.partition(":")[2]
    if name not in EXAMPLES:
        raise SourceError(f"no example named {name!r}", f"examples: {', '.join(f'example:{n}' for n in EXAMPLES)}")
    path = Path(example_gpt.__file__)
    _seed(seed)
    module, used, findings = construct(example_gpt.GPT, {**EXAMPLES[name], **(config or {})} or None, None)
    sources = {path.name: path}
    provenance = Provenance("example", text, "GPT", _hashes(sources), used)
    return LoadedModel(module, provenance, sources, tuple(findings))


def _from_file(
    path: Path, name: str | None, config: dict[str, Any] | None, seed: int | None, *, kind: Kind
) -> LoadedModel:
    merged, beside = _config_beside(path, config)
    user = UserFile(path)
    with user.importable():
        namespace = user.execute()
        cls, findings = choose_class(namespace, user.text, path, name, merged)
        _seed(seed)
        with contextlib.redirect_stdout(sys.stderr):
            module, used, more = construct(cls, merged, namespace)
    sources = user.sources()
    if beside is not None:
        sources[beside.name] = beside
    location = str(user.folder if kind == "folder" else user.path)
    provenance = Provenance(kind, location, cls.__name__, _hashes(sources), used)
    return LoadedModel(module, provenance, sources, (*findings, *more))


def _from_import(text: str, config: dict[str, Any] | None, seed: int | None) -> LoadedModel:
    dotted, _, name = text.partition(":")
    with _import_path(str(Path.cwd())), contextlib.redirect_stdout(sys.stderr):
        namespace = _import(dotted)
        found: Any = namespace
        for part in name.split("."):
            if not hasattr(found, part):
                classes = [n for n, c in vars(namespace).items() if inspect.isclass(c) and issubclass(c, nn.Module)]
                raise ConstructError(f"{dotted} has no class {name}", f"its models: {', '.join(classes) or 'none'}")
            found = getattr(found, part)
        cls = module_class(found, name, dotted)
        _seed(seed)
        module, used, findings = construct(cls, config, namespace)
    file = getattr(namespace, "__file__", None)
    sources = {Path(file).name: Path(file)} if file and file.endswith(".py") else {}
    provenance = Provenance("import", text, cls.__name__, _hashes(sources), used)
    return LoadedModel(module, provenance, sources, tuple(findings))


def _import(dotted: str) -> Any:
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name and (dotted == error.name or dotted.startswith(error.name + ".")):
            raise SourceError(
                f"no module named {error.name}", ACCEPTED, "start in its folder, or install it"
            ) from error
        raise DependencyError(
            f"{dotted} imports {error.name}, which is not installed", blame(error), f"pip install {error.name}"
        ) from error
    except AnyformerError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise SourceError(f"{dotted} failed while it was imported", blame(error)) from error


@contextlib.contextmanager
def _import_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _config_beside(path: Path, config: dict[str, Any] | None) -> tuple[dict[str, Any] | None, Path | None]:
    """Values of the config.json beside the file, overridden by ``config``, and the file they came from."""
    beside = path.parent / "config.json"
    if not beside.is_file():
        return config, None
    try:
        values = json.loads(beside.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConstructError(f"{beside} is not JSON", str(error)) from error
    if not isinstance(values, dict):
        raise ConstructError(f"{beside} holds a {type(values).__name__}", 'expected an object: {"vocab_size": 4096}')
    return {**values, **(config or {})}, beside


def _hashes(sources: dict[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sources.items()}


def _seed(seed: int | None) -> None:
    if seed is not None:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
