"""Which class of a file is the model."""

from __future__ import annotations

import ast
import inspect
import re
import types
from pathlib import Path
from typing import Any

from torch import nn

from anyformer.core.errors import ConstructError
from anyformer.core.findings import Finding
from anyformer.models.building.configs import annotation_of
from anyformer.models.building.reads import reads_of
from anyformer.models.building.sizes import CLASS_KEYS
from anyformer.models.building.written import CallSite, Written
from anyformer.models.construct import FACTORY
from anyformer.models.files.assigned import assigned_model
from anyformer.models.files.definitions import NO_MODEL
from anyformer.models.files.syntax import mentions, reached

_NO_MODEL = re.compile(r"loss|criterion|smoothing|trainer|optim|schedul|metric|dataset|tokeniz|callback|early", re.I)
_PART = re.compile(
    r"(Block|Layer|Encoder|Decoder|Head|Heads|Attention|Attn|FeedForward(Net(work)?)?|FFN|FFWD|MLP|Norm|Embedding|Embeddings"
    r"|Encoding|Residual|Sublayer|SublayerConnection|Mixer|Wrapper|Router|Expert|Generator|Classifier|Pooler)(_?[vV]?\d+)?$"
)
_LANGUAGE_MODEL = re.compile(
    r"(ForCausalLM|LMHeadModel|LanguageModel|ForConditionalGeneration|ForMaskedLM|LM)(_?[vV]?\d+)?$"
)
_MODEL = re.compile(
    r"(GPT|Transformer|BERT|Bert|LLa?[Mm][Aa]\d*|T5|Seq2Seq|Model|Net|Network|Mamba|RWKV|ViT)(_?[vV]?\d+)?$"
)
_TRAINS = re.compile(r"trainer|training", re.I)
_TABLE = re.compile(r"embeddings?$|^(token|word)?_?embed", re.I)
"""Of a part that looks ids up, and does no more."""
_BATCH = re.compile(r"(mini_?)?batch(es)?|batch_data|data_batch", re.I)
_OTHER_TASK = re.compile(
    r"For(Sequence|Token|Question|Multiple|Image|Audio|PreTraining|NextSentence|Classif)|Cls(Head|Model)"
)
_TRIAL = re.compile(r"^(Dummy|Toy|Test|Simple|Mini|Base|Abstract|_)", re.I)


def module_class(found: Any, name: str, where: str) -> Any:
    """``found`` if it is a class of nn.Module, a function that may build one, or a module; else ConstructError."""
    if inspect.isclass(found) and issubclass(found, nn.Module):
        return found
    if isinstance(found, types.FunctionType | nn.Module):
        return found
    kind = "a class" if inspect.isclass(found) else f"of type {type(found).__name__}"
    raise ConstructError(f"{name} in {where} is not a subclass of torch.nn.Module", f"it is {kind}")


def choose_class(
    module: types.ModuleType, source: str, path: Path, name: str | None, config: dict[str, Any] | None
) -> tuple[Any, list[Finding]]:
    """The model's class: by name, by config.json, the only one that no other uses, or the one complete model.

    source: the file's text. Where the file has no class of its own: its factory, or the module that it builds.
    Raises ConstructError naming the candidates where there are none or several.
    """
    classes = _classes(module)
    assigned = _assigned(module, source, name) if name is not None and not hasattr(module, name) else None
    if assigned is not None:
        return assigned
    if name is not None:
        return _by_name(module, classes, path, name), []
    named = _named_by_config(module, classes, config or {})
    if named is not None:
        return named
    if not classes:
        return _without_class(module, source, path)
    used = _used_by_others(module, source, classes)
    top = [n for n in classes if n not in used] or list(classes)
    function = _assembling(module, source, classes, top)
    if function is not None:
        return function
    best, why = (top[0], "") if len(top) == 1 else _most_complete(module, source, classes, top)
    trained = None
    if best is not None:
        trained = _trained_by(best, module, source, classes) or _of_batches(best, module, source, classes)
    if trained is not None:
        reason = f"the model that {best} trains (that one: {path.name}:{best})"
        return classes[trained], [Finding("class", "note", trained, reason=reason)]
    if len(top) == 1:
        why = "the only nn.Module of the file" if len(classes) == 1 else "the only nn.Module that no other uses"
        return classes[top[0]], [Finding("class", "note", top[0], reason=why)]
    if best is not None:
        others = ", ".join(n for n in top if n != best)
        reason = f"{why}; not taken: {others} (name one: {path.name}:{next(n for n in top if n != best)})"
        return classes[best], [Finding("class", "note", best, reason=reason)]
    raise ConstructError(
        f"{path} holds several models: {', '.join(top)}",
        "none of them is used by another, so which one is meant cannot be told",
        "name it: " + "\nor: ".join(f"{path}:{n}" for n in top),
    )


def _named_by_config(
    module: types.ModuleType, classes: dict[str, type[nn.Module]], config: dict[str, Any]
) -> tuple[Any, list[Finding]] | None:
    for key in CLASS_KEYS:
        value = config.get(key)
        for candidate in value if isinstance(value, list) else [value]:
            if not isinstance(candidate, str):
                continue
            exact = [candidate, f"{candidate}Model", f"{candidate}LMHeadModel"]
            found = next((n for n in exact if n in classes), None)
            if found is None and key != "model_type":
                found = next((n for n in classes if n.lower() == candidate.lower()), None)
            if found is not None:
                return classes[found], [Finding("class", "note", found, reason=f"config.json names it ({key})")]
            factory = vars(module).get(candidate)
            if key != "model_type" and isinstance(factory, types.FunctionType):
                return factory, [Finding("class", "note", candidate, reason=f"config.json names this function ({key})")]
    return None


def _without_class(module: types.ModuleType, source: str, path: Path) -> tuple[Any, list[Finding]]:
    for name, value in vars(module).items():
        own = isinstance(value, types.FunctionType) and value.__module__ == module.__name__
        if own and FACTORY.fullmatch(name) and ("model" in name.lower() or "transformer" in name.lower()):
            return value, [
                Finding("class", "note", f"{name}()", reason="the function of the file that builds the model")
            ]
    function = _assembling(module, source, {}, [])
    if function is not None:
        return function
    for name, value in vars(module).items():
        if isinstance(value, nn.Module):
            return value, [Finding("class", "note", name, reason="the module that the file builds itself")]
    assigned = _assigned(module, source, None)
    if assigned is not None:
        return assigned
    raise ConstructError(
        f"{path} {NO_MODEL}",
        _what_it_defines(source),
        "define the model as a class that inherits from torch.nn.Module",
    )


def _assigned(module: types.ModuleType, source: str, name: str | None) -> tuple[Any, list[Finding]] | None:
    """A function that builds what a script assigns at its module level: ``model = GPT2LMHeadModel(config)``."""
    found = assigned_model(source, module, name)
    if found is None:
        return None
    lines = ", ".join(str(s.lineno) for s in found.statements)
    left = f"; left out, it wraps the model for training: {', '.join(found.wrappers)}" if found.wrappers else ""
    reason = f"the variable in which the script keeps its model (line {lines}){left}"
    return found.factory(module), [Finding("class", "note", found.name, reason=reason)]


def _assembling(
    module: types.ModuleType, source: str, classes: dict[str, type[nn.Module]], top: list[str]
) -> tuple[Any, list[Finding]] | None:
    """The function that puts the file's parts together in one of torch's containers, an embedding among them.

    ``def PaLM(dim, num_tokens, depth): return nn.Sequential(nn.Embedding(...), *[Residual(...)], nn.Linear(...))``:
    no class uses it, and it uses every class that no other does.
    """
    tree = ast.parse(source)
    names = mentions(tree)
    by_classes = set[str]().union(*(reached(names, n) for n in classes))
    found = []
    for node in tree.body:
        value = vars(module).get(node.name) if isinstance(node, ast.FunctionDef) else None
        if not isinstance(node, ast.FunctionDef) or not isinstance(value, types.FunctionType):
            continue
        if node.name in by_classes or node.name.startswith("_") or not set(top) <= reached(names, node.name):
            continue
        embeds = any(isinstance(n, ast.Attribute | ast.Name) and _last(n) == "Embedding" for n in ast.walk(node))
        if embeds and _gives_container(node, module):
            found.append(value)
    if len(found) != 1:
        return None
    reason = "the function of the file that puts the model together"
    return found[0], [Finding("class", "note", f"{found[0].__name__}()", reason=reason)]


def _gives_container(function: ast.FunctionDef, module: types.ModuleType) -> bool:
    """Whether what it returns is one of torch's own modules, made in its body."""
    made = {
        t.id: n.value
        for n in ast.walk(function)
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    for node in ast.walk(function):
        value = node.value if isinstance(node, ast.Return) else None
        value = made.get(value.id) if isinstance(value, ast.Name) else value
        if isinstance(value, ast.Call):
            target = getattr(nn, _last(value.func), None)
            own = vars(module).get(_last(value.func), target)
            if inspect.isclass(target) and issubclass(target, nn.Module) and own is target:
                return True
    return False


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _classes(module: types.ModuleType) -> dict[str, type[nn.Module]]:
    """nn.Module classes that the file defines; if it defines none, those it imported from its own folder."""
    found = {n: c for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, nn.Module)}
    own = {n: c for n, c in found.items() if c.__module__ == module.__name__ and c.__name__ == n}
    if own:
        return own
    folder = Path(module.__file__ or "").parent
    return {n: c for n, c in found.items() if folder in _file_of(c).parents}


def _file_of(cls: type) -> Path:
    try:
        return Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError):  # a built-in class, or one whose module is gone
        return Path()


def _by_name(module: types.ModuleType, classes: dict[str, type[nn.Module]], path: Path, name: str) -> Any:
    if not hasattr(module, name):
        raise ConstructError(
            f"{path} has no class {name}",
            f"its models: {', '.join(classes) or 'none'}",
            "\n".join(f"{path}:{n}" for n in classes),
        )
    return module_class(getattr(module, name), name, str(path))


def _what_it_defines(source: str) -> str:
    nodes = ast.parse(source).body
    names = [n.name for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    return f"it defines: {', '.join(names)}" if names else "it defines no class and no function"


def _used_by_others(module: types.ModuleType, source: str, classes: dict[str, type[nn.Module]]) -> set[str]:
    """Classes that another one uses: named in its code or bases, through functions, or handed to it as a module."""
    names = mentions(ast.parse(source))
    used: set[str] = set()
    for start in classes:
        used |= reached(names, start) & set(classes) - {start}
    for owner, part in _handed(module, source, classes):
        if owner not in reached(names, part):
            used.add(part)
    return used


def _handed(module: types.ModuleType, source: str, classes: dict[str, type[nn.Module]]) -> set[tuple[str, str]]:
    """(owner, part): the file builds the part and passes it to the owner, or a parameter is named like the part."""
    found = set()
    written = Written(source, module)
    for site in written.calls:
        owner = getattr(site.target, "__name__", "")
        if owner not in classes:
            continue
        for argument in (*site.node.args, *(k.value for k in site.node.keywords)):
            for name in (n.id for n in ast.walk(argument) if isinstance(n, ast.Name)):
                value = site.scope.get(name)
                part = getattr(value.target, "__name__", "") if isinstance(value, CallSite) else name
                if part in classes and owner != part:
                    found.add((owner, part))
    lower = {n.lower(): n for n in classes}
    for owner, cls in classes.items():
        for parameter in inspect.signature(cls).parameters:
            part = lower.get(parameter.replace("_", "").lower(), owner)
            if part != owner:
                found.add((owner, part))
    return found


def _trained_by(owner: str, module: types.ModuleType, source: str, classes: dict[str, type[nn.Module]]) -> str | None:
    """The model that a wrapper for training takes as its argument, by the annotation; None where it is no such."""
    if not _TRAINS.search(owner) or _embeds(owner, {}, classes, set()):
        return None
    scope, names = vars(module), mentions(ast.parse(source))
    wanted = [annotation_of(p, scope) for p in inspect.signature(classes[owner]).parameters.values()]
    found = [n for n, c in classes.items() if c in wanted and _embeds(n, names, classes, set())]
    return found[0] if len(found) == 1 else None


def _of_batches(owner: str, module: types.ModuleType, source: str, classes: dict[str, type[nn.Module]]) -> str | None:
    """The model that the file hands to a class whose forward takes a whole batch, texts and targets, in one."""
    forward = [p for p in inspect.signature(classes[owner].forward).parameters.values() if p.name != "self"]
    if len(forward) != 1 or not _BATCH.fullmatch(forward[0].name) or _embeds(owner, {}, classes, set()):
        return None
    handed, names = _handed(module, source, classes), mentions(ast.parse(source))
    found = [part for o, part in handed if o == owner and _embeds(part, names, classes, handed)]
    return found[0] if len(found) == 1 else None


def _most_complete(
    module: types.ModuleType, source: str, classes: dict[str, type[nn.Module]], top: list[str]
) -> tuple[str | None, str]:
    """Of several classes that no other uses, the one that is a whole model; None where two are equally so."""
    names = mentions(ast.parse(source))
    whole = [n for n in top if not _NO_MODEL.search(n)] or top
    if len(whole) == 1:
        return whole[0], "the others are no models"
    handed = _handed(module, source, classes)
    embedding = [n for n in whole if _embeds(n, names, classes, handed)]
    if len(embedding) == 1 and not _TABLE.search(embedding[0]):
        return embedding[0], "the only one that embeds token ids"
    candidates = whole if len(embedding) == 1 else embedding or whole
    for why, chosen in (
        ("its name is a language model's", [n for n in candidates if _LANGUAGE_MODEL.search(n)]),
        ("the others are trials, parts or other tasks", [n for n in candidates if not _lesser(n)]),
        ("the one that the file builds", _built(module, source, candidates)),
        ("its name is the head's of a language model", [n for n in candidates if n.endswith("LMHead")]),
        ("its name is a whole model's", [n for n in candidates if _MODEL.search(n) and not _PART.search(n)]),
    ):
        if len(chosen) == 1:
            return chosen[0], why
        candidates = chosen or candidates
    return None, ""


def _lesser(name: str) -> bool:
    return bool(_PART.search(name) or _OTHER_TASK.search(name) or _TRIAL.search(name))


def _embeds(
    name: str, names: dict[str, set[str]], classes: dict[str, type[nn.Module]], handed: set[tuple[str, str]]
) -> bool:
    """Whether the class, or a part of it, looks token ids up in a table."""
    parts = {name, *(p for o, p in handed if o == name)}
    parts |= {p for part in parts for p in reached(names, part) & set(classes)}
    for part in parts:
        for function in vars(classes[part]).values():
            code = getattr(inspect.unwrap(function), "__code__", None)
            if code is not None and {"Embedding", "embedding", "one_hot"} & set(_all_names(code)):
                return True
        meanings = set(reads_of(classes[part]).meanings.values())
        if "vocab_size" in meanings and "Embedding" in names.get(part, ()):
            return True
    return False


def _all_names(code: types.CodeType) -> list[str]:
    inner = [n for c in code.co_consts if isinstance(c, types.CodeType) for n in _all_names(c)]
    return [*code.co_names, *inner]


def _built(module: types.ModuleType, source: str, candidates: list[str]) -> list[str]:
    """Those that the file itself builds at module level, in main() or in another function."""
    calls = Written(source, module).calls
    for rank in (0, 1, 2):
        found = [n for n in candidates if any(c.rank <= rank and getattr(c.target, "__name__", "") == n for c in calls)]
        if found:
            return found
    return []
