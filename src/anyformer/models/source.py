"""From what a user typed as MODEL to a module on the CPU, with where it came from."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from anyformer.core.errors import AnyformerError, ConstructError, SourceError
from anyformer.core.findings import Finding
from anyformer.core.gistref import GistRef, parse_gist
from anyformer.core.protocols import View
from anyformer.models import example_gpt, huggingface
from anyformer.models.calls.overrides import FILE, read_overrides
from anyformer.models.construct import construct
from anyformer.models.files.beside import config_beside
from anyformer.models.files.choose import choose_class, module_class
from anyformer.models.files.importing import import_path, imported
from anyformer.models.files.neighbours import LEVELS
from anyformer.models.files.pyfile import UserFile
from anyformer.models.network.gistcache import Gist
from anyformer.models.network.gistmodel import class_wanted, in_gists_words, require_approved
from anyformer.models.probes import preserved_rng
from anyformer.models.trust import TrustRequest
from anyformer.models.weights import load_weights, sha256_of, without_fresh_start

Kind = Literal["file", "folder", "import", "module", "example", "gist", "hf"]

ACCEPTED = (
    "accepted: model.py, model.py:ClassName, a folder with model.py, pkg.module:ClassName, example:gpt, example:gpt2,"
    " gist:ID or a gist's address, hf:ID, hf:FOLDER,"
    " or in Python an nn.Module"
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "gpt": {},
    # Radford et al. 2019, table 2, smallest model: 124,439,808 parameters with the head tied
    "gpt2": {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "bias": True},
}
_ELSEWHERE = re.compile(r"(manual|https?|git\+\w+):")
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
    revision: str | None = None
    """Commit of a source that came over a network."""
    owner: str | None = None
    """Who published it there."""
    weights: dict[str, str] | None = None
    """Name of the file of the user's own weights → its sha256; None where none were given."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Provenance:
        """Back from JSON; keys of other records are ignored, an unknown kind raises ValueError."""
        if record["kind"] not in get_args(Kind):
            raise ValueError(f"kind {record['kind']!r} is none of {get_args(Kind)}")
        known = {name: record[name] for name in ("kind", "location", "class_name", "files", "config")}
        later = {name: record.get(name) for name in ("revision", "owner", "weights")}
        return cls(**{**known, **later})


@dataclass(frozen=True)
class LoadedModel:
    """A module and how it came to be."""

    module: nn.Module
    provenance: Provenance
    sources: dict[str, Path]
    """Name relative to the source's folder → file on disk, the main file first; empty for a plain nn.Module."""
    findings: tuple[Finding, ...]
    overrides: dict[str, Any] | None = None
    """What ``call:`` of an anyformer.yaml beside the file states, or the caller's overrides, for the call plan."""

    def stating(self, overrides: dict[str, Any] | None) -> LoadedModel:
        """The same with what a caller states about the call; it wins over the anyformer.yaml, key by key."""
        return self if overrides is None else replace(self, overrides={**(self.overrides or {}), **overrides} or None)


def load_model(
    model: str | Path | nn.Module,
    *,
    config: dict[str, Any] | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View | None = None,
    fallback: dict[str, Any] | None = None,
) -> LoadedModel:
    """Load a model from MODEL: a file, a folder, an import path, an example, a gist, hf:ID, or an nn.Module.

    config: values for the constructor; they win over those of a config.json beside the file.
    fallback: values that are used only where the constructor requires them and nothing else gives them.
    weights: .safetensors file or state dict to start from.
    seed: seeds torch, numpy and random for the construction; their state is put back afterwards.
    trust: approves the code of a gist as it is now. approve: asked about it instead of the terminal, with what is to be
    known of it; only True means yes. Code that was approved before is not asked about again.
    view: where a fetch and the review are shown; lines on stderr where not given.
    Raises SourceError (not found, not Python, fails while loaded), DependencyError (a missing package), TrustError
    (nobody approved the code of a gist), ConstructError (no class, several, cannot be built, weights that do not fit).
    """
    with preserved_rng() if seed is not None else contextlib.nullcontext(), _kept_directory():
        gist = _gist_named(str(model)) if isinstance(model, str | Path) else None
        if gist is not None:
            loaded = _from_gist(gist, config, seed, require_approved(gist, trust, approve, view), fallback)
        else:
            loaded = _load(model, config, seed, fallback)
    return loaded if weights is None else _with_weights(loaded, Path(weights).expanduser())


def _with_weights(loaded: LoadedModel, file: Path) -> LoadedModel:
    """The user's own weights in place, and in the record."""
    load_weights(loaded.module, file)
    digest = sha256_of(file)
    given = Finding("weights", "note", file.name, reason=f"sha256 {digest[:16]}…; every tensor fits")
    return replace(
        loaded,
        provenance=replace(loaded.provenance, weights={file.name: digest}),
        findings=(*without_fresh_start(loaded.findings), given),
    )


@contextlib.contextmanager
def _kept_directory() -> Iterator[None]:
    """Come back to the working directory: a model file that changes it must not move the run."""
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


def _load(
    model: str | Path | nn.Module, config: dict[str, Any] | None, seed: int | None, fallback: dict[str, Any] | None
) -> LoadedModel:
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise SourceError(f"{model.__name__} is a class, not a module", fix=f"build it first: {model.__name__}(…)")
    if isinstance(model, nn.Module):
        if config:
            raise ConstructError("config is given together with a finished module", fix="leave one of them out")
        return _from_module(model)
    if huggingface.is_config(model):
        _seed(seed)
        return _from_transformers(huggingface.from_config(model, config), "module")
    text = str(model)
    if text.startswith("example:"):
        return _from_example(text, config, seed)
    if text.startswith("hf:"):
        _seed(seed)
        folder = Path(text.removeprefix("hf:")).expanduser()
        return _from_transformers(huggingface.load_hub(text, config), "hf", folder if folder.is_dir() else None)
    path, name = _path_and_class(text)
    if path.is_dir() and huggingface.is_folder(path):
        _seed(seed)
        return _from_transformers(huggingface.load_folder(path, config), "hf", path)
    if path.is_dir():
        return _from_file(_model_file(path), name, config, seed, kind="folder", fallback=fallback)
    if path.is_file():
        return _from_file(path, name, config, seed, kind="file", fallback=fallback)
    if path.exists():
        raise SourceError(f"{path} is neither a file nor a folder", ACCEPTED)
    if _ELSEWHERE.match(text):
        raise SourceError(f"{text} cannot be loaded here: {text.partition(':')[0]} sources are not supported", ACCEPTED)
    if _IMPORT.fullmatch(text) and not text.partition(":")[0].endswith(".py"):
        return _from_import(text, config, seed, fallback)
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
    path: Path,
    name: str | None,
    config: dict[str, Any] | None,
    seed: int | None,
    *,
    kind: Kind,
    fallback: dict[str, Any] | None = None,
    levels: int = LEVELS,
) -> LoadedModel:
    """levels: how many folders above the file's own are searched for what it imports."""
    merged, beside = config_beside(path, config)
    user = UserFile(path, levels=levels)
    with user.importable():
        _seed(seed)  # a module that the file builds itself draws its weights while the file runs
        namespace = user.execute(merged, fallback)
        try:
            cls, findings = choose_class(namespace, user.text, path, name, merged)
        except ConstructError as error:
            raise user.explain(error) from error
        user.require_complete(cls)
        user.fill_globals(cls, merged, fallback)
        _seed(seed)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                module, used, more = construct(
                    cls, merged, namespace, fallback=fallback, text=user.text, consumed=frozenset(user.sizes_of(cls))
                )
        except ConstructError as error:
            raise user.explain(error) from error
    sources = user.sources()
    overrides = read_overrides(path.parent)
    for extra in (beside, path.parent / FILE if overrides is not None else None):
        if extra is not None:
            sources[(user.folder.relative_to(user.root()) / extra.name).as_posix()] = extra
    location = str(user.folder if kind == "folder" else user.path)
    recorded = {**user.sizes_of(cls), **(used or {})} or None
    provenance = Provenance(kind, location, _loadable_name(namespace, cls, module), _hashes(sources), recorded)
    return LoadedModel(module, provenance, sources, (*user.findings, *findings, *more), overrides)


def _loadable_name(namespace: Any, chosen: Any, module: nn.Module) -> str:
    """The class's name, or that of the function or variable that gives it where the class is not the file's own."""
    name = type(module).__name__
    own = isinstance(getattr(namespace, name, None), type) and not type(module).__module__.startswith("torch.")
    built_here = chosen.__code__.co_filename == namespace.__file__ if inspect.isfunction(chosen) else True
    if not built_here:  # a variable's statements: the class alone would be built of other values
        return str(chosen.__name__)
    if isinstance(chosen, type) or own:
        return name
    return next((n for n, value in vars(namespace).items() if value is chosen), name)


def _from_transformers(found: huggingface.HubModel, kind: Kind, folder: Path | None = None) -> LoadedModel:
    """folder: of the user's own, where an anyformer.yaml is read."""
    name = type(found.module).__name__
    overrides, stated = _stated_beside(folder)
    sources = {**found.sources, **stated}
    provenance = Provenance(kind, found.location, name, _hashes(sources), found.config)
    return LoadedModel(found.module, provenance, sources, found.findings, overrides)


def _stated_beside(folder: Path | None) -> tuple[dict[str, Any] | None, dict[str, Path]]:
    """What the folder's anyformer.yaml states about the call, and the file by its name; nothing where there is none."""
    overrides = None if folder is None else read_overrides(folder)
    return overrides, {} if folder is None or overrides is None else {FILE: (folder / FILE).resolve()}


def _gist_named(text: str) -> GistRef | None:
    """MODEL as a gist; what lies on this disk under that very name is not one."""
    return None if Path(text).exists() else parse_gist(text)


def _from_gist(
    ref: GistRef,
    config: dict[str, Any] | None,
    seed: int | None,
    approved: tuple[Gist, Finding],
    fallback: dict[str, Any] | None = None,
) -> LoadedModel:
    """The model of a gist. The one place where code of a network runs: it takes what ``require_approved`` returned."""
    gist, trusted = approved
    name, named = class_wanted(gist, ref)
    path = gist.folder / gist.main
    try:
        loaded = _from_file(path, name, config, seed, kind="file", fallback=fallback, levels=0)
    except AnyformerError as error:
        raise in_gists_words(error, gist) from error
    sources = {gist.main: path, **{file: gist.folder / file for file in gist.files}}
    files = {file: gist.files[file] for file in sources}  # as approved, whatever the code did to the folder meanwhile
    cls = loaded.provenance.class_name
    location = gist.location + (f":{cls}" if name else "")
    provenance = Provenance("gist", location, cls, files, loaded.provenance.config, gist.revision, gist.owner)
    findings = (*gist.findings, trusted, *named, *loaded.findings)
    return LoadedModel(loaded.module, provenance, sources, findings, loaded.overrides)


def _from_import(
    text: str, config: dict[str, Any] | None, seed: int | None, fallback: dict[str, Any] | None = None
) -> LoadedModel:
    dotted, _, name = text.partition(":")
    with import_path(str(Path.cwd())), contextlib.redirect_stdout(sys.stderr):
        namespace = imported(dotted, ACCEPTED)
        found: Any = namespace
        for part in name.split("."):
            if not hasattr(found, part):
                classes = [n for n, c in vars(namespace).items() if inspect.isclass(c) and issubclass(c, nn.Module)]
                raise ConstructError(f"{dotted} has no class {name}", f"its models: {', '.join(classes) or 'none'}")
            found = getattr(found, part)
        file = getattr(inspect.getmodule(found) or namespace, "__file__", None)
        sources = {Path(file).name: Path(file)} if file and file.endswith(".py") else {}
        overrides, stated = _stated_beside(next((path.parent for path in sources.values()), None))
        own = {**sources, **stated}
        _seed(seed)
        if huggingface.is_library_class(found):
            hub = huggingface.from_class(found, config, fallback)
            provenance = Provenance("import", text, type(hub.module).__name__, _hashes(own), hub.config)
            return LoadedModel(hub.module, provenance, own, hub.findings, overrides)
        cls = module_class(found, name, dotted)
        source = next(iter(sources.values())).read_text(encoding="utf-8-sig") if sources else None
        module, used, findings = construct(
            cls, config, inspect.getmodule(found) or namespace, fallback=fallback, text=source
        )
    provenance = Provenance("import", text, type(module).__name__, _hashes(own), used)
    return LoadedModel(module, provenance, own, tuple(findings), overrides)


def _hashes(sources: dict[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sources.items()}


def _seed(seed: int | None) -> None:
    if seed is not None:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
