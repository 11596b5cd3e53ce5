"""A user's Python file as a module: executed under a name of its own, with its folder importable while it runs."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import itertools
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from anyformer.core.errors import AnyformerError, ConstructError, DependencyError, SourceError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.building import aliases
from anyformer.models.files.assigned import holds_model
from anyformer.models.files.definitions import Definitions, LeftOut, shown_lines, starts_work
from anyformer.models.files.filetext import compiled, read_text, syntax_error
from anyformer.models.files.late import LateImports, late_files
from anyformer.models.files.leftbehind import LeftBehind, kept_places
from anyformer.models.files.limits import IMPORT_SECONDS, OutOfTime, no_way_out, time_limit
from anyformer.models.files.neighbours import LEVELS, importable_names, neighbours, shadowing, too_deep
from anyformer.models.files.notebooklines import remember, without_notebook_lines
from anyformer.models.files.opened import relative_opens
from anyformer.models.files.openglobals import filled, size_of
from anyformer.models.files.siblings import LazyPackage, Siblings, enter_packages, used_places
from anyformer.models.files.syntax import lived, mentions, reached

_LARGEST_OPENED = 10_000_000  # bytes of a data file that is kept with the model
_COUNT = itertools.count(1)
_KEPT = ("__name__", "__file__", "__package__", "__doc__", "__loader__", "__spec__")


class UserFile:
    """A Python file and the modules that it imports from its own folder and from those above it.

    Its siblings are visible as plain imports (``import layers``), from the repository's root (``from models.layers
    import X``) and as relative ones (``from .layers import X``, ``from ..util import X``) while ``importable()`` is
    entered. Afterwards they leave sys.modules under their plain names, so that neither another
    model nor an installed package of that name meets them; they stay there under a name of their own.
    """

    def __init__(self, path: Path, *, levels: int = LEVELS) -> None:
        """levels: how many folders above its own are searched for what the file imports."""
        self.path = path.resolve()
        self.folder = self.path.parent
        self._package = f"_anyformer_source_{next(_COUNT)}"
        self._siblings: dict[str, types.ModuleType] = {}
        self.text, of_notebook = without_notebook_lines(read_text(path))
        remember(self.path, self.text, altered=bool(of_notebook))
        self.module = types.ModuleType(f"{self._package}.{self.path.stem.replace('.', '_')}")
        self.module.__file__ = str(self.path)
        self._around = neighbours(self.path, self.text, levels)
        within = self._around.package_of(self.folder)
        reach = self.folder.parents[self._around.above - 1] if self._around.above else self.folder
        if within is None or len(within.split(".")) <= self._around.above:
            within = ".".join((self._package, *self.folder.relative_to(reach).parts))
        self.module.__package__ = self._inside = within
        libraries = shadowing(self.folder)
        self._names = (importable_names(self.folder) - libraries) | self._around.places.keys()
        self._late = LateImports(self._names, self.importable)
        self.module.__dict__["__builtins__"] = self._late.namespace
        libs = dict.fromkeys(libraries, self.folder)
        self._finder = Siblings(self._around.places, self._names, self._package, libs, vars(self.module))
        self.findings: list[Finding] = []
        """What was not run, and what stands in for it."""
        if of_notebook:
            said = f"not run: {shown_lines(map(str, of_notebook))}"
            self.findings.append(Finding("notebook", "note", said, reason="lines that only a notebook can run"))
        self.filled: dict[str, Any] = {}
        """Globals that were given a size in place of a statement that was not run."""
        self.left = LeftOut()
        self._opened: dict[Path, Path] = {}
        """Data files that it reads by a relative name → the folder that holds it, the model and the working folder."""
        self._moved: list[Path] = []
        """Working folders that were taken in place of the user's."""
        self._failure: AnyformerError | None = None
        """What stopped the whole file, other than a package that is not installed."""

    def execute(self, given: dict[str, Any] | None = None, fallback: dict[str, Any] | None = None) -> types.ModuleType:
        """Run the file, or its definitions only where it would start training or a part the model does not need fails.

        given, fallback: sizes for globals whose statements are left out (``vocab_size = len(chars)``).
        SourceError names the line that is no Python or that failed, DependencyError a missing package.
        What the file prints goes to stderr. Must run inside ``importable()``.
        """
        tree, code, why = self._parsed()
        before = LeftBehind()
        try:
            with contextlib.redirect_stdout(sys.stderr), no_way_out():
                if why:
                    self._run_definitions(tree, given, fallback)
                    self._say_left_out(why)
                else:
                    failure = self._run(code)
                    if failure is not None:
                        self._recover(tree, failure, given, fallback)
        finally:
            before.put_back(building=True)
        changed = before.finding()
        if changed is not None:
            self.findings.append(changed)
        packages = [p for left in self._finder.left for p in left.packages]
        if packages:
            said = f"left out: {', '.join(dict.fromkeys(packages))}"
            why = "not installed; files beside the model import it"
            self.findings.append(Finding("import", "note", said, reason=why))
        self._move_devices()
        return self.module

    def _parsed(self) -> tuple[ast.Module, types.CodeType, str]:
        """The syntax tree, the code, and why the whole file is not to be run; "" where it is."""
        try:
            code = compiled(self.path, self.text)
            tree = ast.parse(self.text)
            mentions(tree)  # the deepest walk that is taken later on
            return tree, code, starts_work(tree)
        except (RecursionError, MemoryError) as error:
            raise too_deep(self.path) from error

    def _run(self, code: types.CodeType) -> AnyformerError | None:
        """Run the whole file; the error to show, or None."""
        with relative_opens() as names:
            try:
                with time_limit(IMPORT_SECONDS):
                    exec(code, self.module.__dict__)
            except AnyformerError:
                raise
            except (Exception, SystemExit, OutOfTime) as error:  # noqa: BLE001  (a stranger's code may raise anything)
                if not isinstance(error, FileNotFoundError) or not self._works_beside(error, names):
                    return self._told(error)
            else:
                self._keep(names)
                return None
        self._empty()
        return self._run(code)

    def _works_beside(self, error: FileNotFoundError, names: dict[str, bool]) -> bool:
        """Whether a file was opened for reading by a name that is right in the model's folder or above: go there.

        Not where the file has written anything: it would do so again.
        """
        name = str(error.filename or "")
        if name not in names or not all(names.values()):
            return False
        for folder in (self.folder, self.folder.parent):
            if (folder / name).is_file() and folder not in self._moved:
                self._moved.append(folder)
                os.chdir(folder)  # whoever loads a model comes back
                why = f"the file opens {name} there"
                self.findings.append(Finding("working folder", "note", str(folder), reason=why))
                return True
        return False

    def _keep(self, names: dict[str, bool]) -> None:
        """Remember the data files that were read, where the copy of a run can open them in the same way.

        Never a hidden one: ``.env`` holds secrets, and runs are shared.
        """
        here = Path.cwd().resolve()
        if here not in (self.folder, self.folder.parent):
            return
        for file in ((here / name).resolve() for name, reads in names.items() if reads):
            hidden = any(part.startswith(".") for part in file.relative_to(file.anchor).parts[-2:])
            if file.is_file() and not hidden and file.suffix != ".py" and file.stat().st_size <= _LARGEST_OPENED:
                self._opened[file] = Path(os.path.commonpath((file.parent, here, self.folder)))

    def _empty(self) -> None:
        kept = {n: v for n, v in vars(self.module).items() if n in _KEPT}
        vars(self.module).clear()
        vars(self.module).update(kept)

    def _told(self, error: BaseException) -> AnyformerError:
        """What went wrong while the file ran, in our words."""
        told: AnyformerError
        if isinstance(error, ModuleNotFoundError):
            told = self._missing(error)
        elif isinstance(error, SystemExit):
            told = SourceError(
                f"{self.path} ends the program while it is loaded",
                blame(error),
                'put what is not the model under: if __name__ == "__main__":',
            )
        elif isinstance(error, OutOfTime):
            told = SourceError(
                f"{self.path} does not finish loading",
                blame(error).replace("OutOfTime: ", ""),
                'put what is not the model under: if __name__ == "__main__":',
            )
        elif isinstance(error, SyntaxError):  # of a sibling
            told = syntax_error(error)
        else:
            told = SourceError(f"{self.path} failed while it was loaded", blame(error), _FIX)
        told.__cause__ = error
        return told

    def _recover(
        self, tree: ast.Module, failure: AnyformerError, given: dict[str, Any] | None, fallback: dict[str, Any] | None
    ) -> None:
        """Load the definitions of a file that failed; raise the failure where no model is left."""
        self._empty()
        self._run_definitions(tree, given, fallback)
        if not holds_model(tree, self.module, self._finder.is_own):
            raise failure
        self._refuse_broken_classes(tree, failure)
        self._failure = None if isinstance(failure, DependencyError) else failure
        self._say_left_out(failure.what.replace(str(self.path), "the file") + f" ({_one_line(failure.detail)})")

    def _refuse_broken_classes(self, tree: ast.Module, failure: AnyformerError) -> None:
        """A module class that fails by its own fault is no part that can be left out."""
        for node in tree.body:
            error = self.left.failures.get(node.name) if isinstance(node, ast.ClassDef) else None
            if error is None or not any("Module" in ast.unparse(base) for base in getattr(node, "bases", [])):
                continue
            if not (isinstance(error, NameError) and error.name in self.left.names):
                raise failure

    def _run_definitions(self, tree: ast.Module, given: dict[str, Any] | None, fallback: dict[str, Any] | None) -> None:
        def size(name: str, space: Mapping[str, Any]) -> Any:
            return size_of(name, space, given or {}, fallback or {})

        self.left = Definitions(self.module, str(self.path), size).run(tree.body)
        self.filled = dict(self.left.filled)

    def _say_left_out(self, why: str) -> None:
        if self.left.lines:
            said = f"definitions only; not run: {shown_lines(self.left.lines)}"
            self.findings.append(Finding("script", "note", said, reason=why))
        if self.left.packages:
            said = f"left out: {', '.join(dict.fromkeys(self.left.packages))}"
            self.findings.append(Finding("import", "note", said, reason="not installed, and the model does not use it"))

    def sizes_of(self, cls: Any) -> dict[str, Any]:
        """The globals that got a value of ours and that the class, or a call of it, reads, or what these use."""
        tree, name = ast.parse(self.text), getattr(cls, "__name__", "")
        names = mentions(tree)
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] == name]
        given = {n.id for call in calls for n in ast.walk(call) if isinstance(n, ast.Name)}
        read = given.union(reached(names, name), *(reached(names, n) for n in given))
        return {n: v for n, v in self.filled.items() if n != "device" and n in read}

    def require_complete(self, cls: Any) -> None:
        """Raise the error of a left-out statement that a class needs: a missing package, a definition that failed."""
        if not self.left.failures and not self.left.stale:
            return
        values = [n for n, v in vars(self.module).items() if not inspect.isclass(v) and not inspect.isfunction(v)]
        # a global that has its value needs nothing further: it may stand in for a statement that was not run
        needed = reached(mentions(ast.parse(self.text)), getattr(cls, "__name__", ""), values)
        if self._failure is not None and self.left.stale & needed:
            raise self._failure
        lives = lived(ast.parse(self.text), getattr(cls, "__name__", ""))
        for name, error in self.left.failures.items():
            if name in vars(self.module):
                continue
            package = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else None
            if package is not None and name not in lives:
                self._finder.unused[name] = package
            elif name in needed:
                raise self._failure or self._told(error)

    def fill_globals(self, cls: Any, given: dict[str, Any] | None, fallback: dict[str, Any] | None) -> None:
        """Give a value to the globals that a class reads and that are set under ``__main__`` only, or nowhere.

        In this order: the configuration's, the program's own under ``__main__``, the caller's, a small one of ours.
        """
        if chosen := self.sizes_of(cls):
            sizes = ", ".join(f"{k}={v!r}" for k, v in chosen.items())
            why = "the statements that set these globals were not run; put your own into config.json"
            self.findings.append(Finding("sizes", "warn", sizes, reason=why))
        ours = {*self._names, self._package}
        beside = [m for n, m in list(sys.modules.items()) if n.partition(".")[0] in ours]
        found, said = filled(
            self.text, self.module, cls, given or {}, fallback or {}, (*beside, *self._siblings.values())
        )
        self.filled |= found
        self.findings += said

    def explain(self, error: ConstructError) -> ConstructError:
        """The error of a construction, with the line that was not run where it comes of that.

        Raises DependencyError instead where it comes of a package that it or a file beside it was run without.
        """
        self._finder.require(str(error), self.path, self.left)
        for name, why in self.left.names.items():
            if re.search(rf"name '{re.escape(name)}' is not defined|\bneeds {re.escape(name)}\b", str(error)):
                line = self.left.places[name]
                text = self.text.splitlines()[line - 1].strip()
                said = f"{self.path.name}:{line}: {text}\nwas not run: {why}"
                fix = "build this part in the file, from a configuration: AutoModel.from_config(…)"
                if "from a hub" not in why:
                    fix = f'give it a plain value in the file, or write config.json beside it: {{"{name}": …}}'
                return ConstructError(error.what, f"{error.detail}\n{said}", fix)
        return error

    def _move_devices(self) -> None:
        """Globals that name a GPU which is not there name the CPU instead."""
        if torch.cuda.is_available():
            return
        moved = []
        for name, value in list(vars(self.module).items()):
            is_device = isinstance(value, torch.device) or (isinstance(value, str) and aliases.role(name) == "device")
            if is_device and str(value).startswith("cuda"):
                vars(self.module)[name] = torch.device("cpu") if isinstance(value, torch.device) else "cpu"
                moved.append(f"{name}={str(value)!r}")
        if moved:
            why = "this machine has no GPU; the run moves the model where it trains"
            self.findings.append(Finding("device", "note", f"cpu instead of {', '.join(moved)}", reason=why))

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """Make the folder the first place to import from; siblings of other folders are set aside meanwhile.

        At the end the settings that the file or its constructors changed are as before: see ``leftbehind``.
        """
        aside = {k: m for k, m in sys.modules.items() if k.partition(".")[0] in self._names}
        for name in aside:
            del sys.modules[name]
        sys.modules.update(self._siblings)
        sys.modules[self._package] = LazyPackage(self._package, self.folder)
        if self._inside.startswith(f"{self._package}."):
            del sys.modules[self._package]
        enter_packages(self._inside, self.folder)
        sys.modules[self.module.__name__] = self.module
        sys.modules[f"{self._inside}.{self.path.stem}"] = self.module
        importlib.invalidate_caches()
        sys.path.insert(0, str(self.folder))
        bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        before = LeftBehind()
        self._late.entered += 1
        try:
            with kept_places(), self._finder.entered():
                yield
        finally:
            self._late.entered -= 1
            self._late.renew()
            before.put_back(building=False)
            sys.dont_write_bytecode = bytecode
            with contextlib.suppress(ValueError):
                sys.path.remove(str(self.folder))
            self._take_siblings()
            sys.modules.update(aside)

    def sources(self) -> dict[str, Path]:
        """The file and those that it imported, the file first: name relative to ``root()`` → file on disk.

        Those that its functions import when they are called count, and the __init__.py of a package where it was passed
        over, too: without it the package is another.
        """
        root = self.root()
        paths = {p for p in self._imported() if p.is_relative_to(root)}
        folders = {f for p in (self.path, *paths) for f in p.parents if root in f.parents}
        if self._inside == self._package:  # a plain folder: its __init__.py is not asked for
            folders.discard(self.folder)
        found = sorted((paths | {f / "__init__.py" for f in folders if (f / "__init__.py").is_file()}) - {self.path})
        return {p.relative_to(root).as_posix(): p for p in (self.path, *found, *self._opened)}

    def root(self) -> Path:
        """The folder that holds the file and all that it imported: its own, or one above it."""
        parts = {p for f in self._imported() for p in (f, *f.parents)} & {*self._around.places.values()}
        tops = [self.folder, *(p.parent for p in (*used_places(self._around.places, self._siblings).values(), *parts))]
        if self._inside.startswith(f"{self._package}."):
            tops.append(self.folder.parents[self._inside.count(".") - 1])
        return min([*tops, *self._opened.values()], key=lambda p: len(p.parts))

    def _imported(self) -> set[Path]:
        prefix = self._package + "."
        # a namespace package has no file, its modules have
        modules = [m for n, m in list(sys.modules.items()) if n.startswith(prefix)]
        ran = [m for m in modules if not isinstance(m, LazyPackage) or m.started]
        files = {Path(file).resolve() for m in ran if (file := getattr(m, "__file__", None))}
        paths = {p for p in files if p.suffix == ".py"}
        return paths | late_files(self.path, paths, self._around.places)

    def _take_siblings(self) -> None:
        taken = {k: m for k, m in sys.modules.items() if k.partition(".")[0] in self._names}
        for name, module in taken.items():
            del sys.modules[name]
            sys.modules[f"{self._package}.{name}"] = module
        self._siblings = taken

    def _missing(self, error: ModuleNotFoundError) -> AnyformerError:
        name = error.name or str(error)
        top = name.removeprefix(f"{self._package}.").partition(".")[0]
        where = blame(error)
        if name.startswith(self._package):
            return SourceError(
                f"{self.path} imports {top} from its own folder, where it is not",
                where,
                f"put {top}.py into {self.folder}",
            )
        if top in self._around.places:
            place = self._around.places[top].parent
            return SourceError(
                f"{self.path} imports {name}, which is not there",
                f"{where}\n{top} is taken from {place}",
                f"put {name.replace('.', '/')}.py into {place}",
            )
        return DependencyError(
            f"{self.path} imports {top}, which is not installed",
            f"{where}\nno {top}.py and no folder {top} lies beside it or above it",
            f"pip install {top}\nor, if {top} is a file of this model, put {top}.py into {self.folder}",
        )


_FIX = "run it with python to see the whole traceback"


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines())
