"""A user's Python file as a module: executed under a name of its own, with its folder importable while it runs."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

from anyformer.core.errors import AnyformerError, DependencyError, SourceError
from anyformer.models.blame import blame

_COUNT = itertools.count(1)


class UserFile:
    """A Python file and the modules that it imports from its own folder.

    Its siblings are visible as plain imports (``import layers``) and as relative ones (``from .layers import X``) while
    ``importable()`` is entered. Afterwards they leave sys.modules under their plain names, so that neither another
    model nor an installed package of that name meets them; they stay there under a name of their own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.folder = self.path.parent
        self._package = f"_anyformer_source_{next(_COUNT)}"
        self._siblings: dict[str, types.ModuleType] = {}
        self.text = read_text(path)
        self.module = types.ModuleType(f"{self._package}.{self.path.stem.replace('.', '_')}")
        self.module.__file__ = str(self.path)
        self.module.__package__ = self._package

    def execute(self) -> types.ModuleType:
        """Run the file; SourceError names the line that is no Python or that failed, DependencyError a missing package.

        What the file prints goes to stderr. Must run inside ``importable()``.
        """
        code = _compile(self.path, self.text)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                exec(code, self.module.__dict__)
        except AnyformerError:
            raise
        except ModuleNotFoundError as error:
            raise self._missing(error) from error
        except SystemExit as error:
            raise SourceError(
                f"{self.path} ends the program while it is loaded",
                blame(error),
                'put what is not the model under: if __name__ == "__main__":',
            ) from error
        except SyntaxError as error:  # of a sibling
            raise syntax_error(error) from error
        except Exception as error:  # a stranger's code may raise anything
            raise SourceError(f"{self.path} failed while it was loaded", blame(error), _FIX) from error
        return self.module

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """Make the folder the first place to import from; siblings of other folders are set aside meanwhile."""
        names = _importable_names(self.folder)
        aside = {k: m for k, m in sys.modules.items() if k.partition(".")[0] in names}
        for name in aside:
            del sys.modules[name]
        sys.modules.update(self._siblings)
        package = types.ModuleType(self._package)
        package.__path__ = [str(self.folder)]
        sys.modules[self._package] = package
        sys.modules[self.module.__name__] = self.module
        importlib.invalidate_caches()
        sys.path.insert(0, str(self.folder))
        bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            yield
        finally:
            sys.dont_write_bytecode = bytecode
            with contextlib.suppress(ValueError):
                sys.path.remove(str(self.folder))
            self._take_siblings(names)
            sys.modules.update(aside)

    def sources(self) -> dict[str, Path]:
        """The file and the siblings that it imported: name relative to the folder → file on disk, the file first."""
        prefix = self._package + "."
        # a namespace package has no file, its modules have
        siblings = [m for n, m in list(sys.modules.items()) if n.startswith(prefix) and hasattr(m, "__file__")]
        paths = sorted({Path(m.__file__).resolve() for m in siblings if m.__file__} - {self.path})
        own = [self.path, *(p for p in paths if p.is_relative_to(self.folder) and p.suffix == ".py")]
        return {p.relative_to(self.folder).as_posix(): p for p in own}

    def _take_siblings(self, names: set[str]) -> None:
        taken = {k: m for k, m in sys.modules.items() if k.partition(".")[0] in names}
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
        return DependencyError(
            f"{self.path} imports {top}, which is not installed",
            where,
            f"pip install {top}\nor, if {top} is a file of this model, put {top}.py into {self.folder}",
        )


_FIX = "run it with python to see the whole traceback"


def read_text(path: Path) -> str:
    """The file's text; SourceError for what is no UTF-8 text."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path} is not a text file",
            f"byte 0x{data[error.start]:02x} at offset {error.start:,} (line {line}) is not UTF-8",
            "give a Python file; weights go to --weights",
        ) from error
    if "\0" in text:
        raise SourceError(f"{path} is not a text file", "it holds null bytes", "give a Python file")
    return text


def syntax_error(error: SyntaxError) -> SourceError:
    """SourceError with file:line, the source line and a caret under the column."""
    line = (error.text or "").rstrip("\n")
    stripped = line.lstrip()
    column = max(0, (error.offset or 1) - 1 - (len(line) - len(stripped)))
    pointer = f"{stripped}\n{' ' * column}^" if stripped else ""
    fix = "correct this line"
    if any(quote in line for quote in "“”‘’"):
        fix = "replace the typographic quotes by plain ones, \" or '"
    return SourceError(
        f"{error.filename}:{error.lineno} is not Python: {error.msg}",
        pointer,
        fix,
    )


def _compile(path: Path, text: str) -> types.CodeType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return compile(text, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise syntax_error(error) from error
    except ValueError as error:  # null bytes
        raise SourceError(f"{path} is not Python", str(error)) from error


def _importable_names(folder: Path) -> set[str]:
    """Names under which the folder's files can be imported, less those of the standard library and of torch."""
    files = {p.stem for p in folder.glob("*.py")}
    packages = {p.name for p in folder.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    return {n for n in files | packages if n.isidentifier()} - sys.stdlib_module_names - {"torch", "numpy", "anyformer"}
