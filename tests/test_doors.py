"""The doors: other import paths of the same objects, and a utils/ folder that finds the package or says what to do."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import anyformer

ROOT = Path(__file__).parent.parent

NAMES = {
    "adapters": ["ComputationalGraphExecutor", "ModelSignatureInspector", "UniversalModelAdapter"],
    "tokenization": [
        *("AdaptiveTokenizer", "AdaptiveTokenizerDataModule", "BPETrainerConfig", "CharacterLevelTokenizer"),
        *("FastBPETrainer", "TokenizerValidator"),
    ],
    "training": [
        *("CheckpointManager", "DriveBackupCallback", "TrainingCoordinator", "UniversalModelAdapter", "train_model"),
    ],
}


@pytest.fixture(autouse=True)
def _root_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def python(code: str, cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in ``cwd``; ``-S`` leaves it without any installed package."""
    # -E: no PYTHONPATH. The folder comes first on the path, as in a notebook
    command = [sys.executable, "-E", *options, "-c", f"import sys; sys.path.insert(0, '')\n{code}"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("door", "name"), [(door, name) for door, names in NAMES.items() for name in names])
def test_every_door_leads_to_the_same_object(door: str, name: str) -> None:
    ours = getattr(importlib.import_module(f"anyformer.{door}"), name)
    theirs = getattr(importlib.import_module(f"utils.{door}"), name)
    assert ours is theirs is getattr(anyformer, name)
    modules = [importlib.import_module(f"{prefix}.{door}") for prefix in ("anyformer", "utils")]
    assert modules[0].__all__ == modules[1].__all__
    assert all(name in module.__all__ and name in dir(module) for module in modules)


@pytest.mark.parametrize("prefix", ["anyformer", "utils"])
@pytest.mark.parametrize("door", [*NAMES, "test_functions"])
def test_an_unknown_name_is_an_attribute_error(prefix: str, door: str) -> None:
    module = importlib.import_module(f"{prefix}.{door}")
    assert not hasattr(module, "no_such_name")
    with pytest.raises(ImportError, match="no_such_name"):
        exec(f"from {prefix}.{door} import no_such_name")


def test_utils_says_which_version_and_what_it_holds() -> None:
    import utils

    assert utils.__version__ == anyformer.__version__
    modules = sorted(path.stem for path in (ROOT / "utils").glob("[a-z]*.py"))
    assert sorted(utils.__all__) == ["__version__", *modules]


def test_utils_holds_aliases_only() -> None:
    for path in (ROOT / "utils").glob("[a-z]*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert functions == ["__getattr__", "__dir__"]
        assert not hasattr(importlib.import_module(f"utils.{path.stem}"), "__path__")  # no second copy of submodules


def test_the_wheel_does_not_install_utils() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert settings["tool"]["setuptools"]["packages"]["find"] == {"where": ["src"]}
    assert not (ROOT / "src" / "utils").exists()


@pytest.mark.parametrize("prefix", ["anyformer", "utils"])
def test_opening_a_door_is_light(prefix: str) -> None:
    code = f"import {prefix}.adapters, {prefix}.training, {prefix}.test_functions\nprint('torch' in sys.modules)"
    assert python(code, ROOT).stdout == "False\n"
    code = f"from {prefix}.adapters import ModelSignatureInspector\nprint('pytorch_lightning' in sys.modules)"
    assert python(code, ROOT).stdout == "False\n"


def copy_utils(where: Path) -> Path:
    shutil.copytree(ROOT / "utils", where / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    return where


def test_utils_finds_the_sources_beside_it(tmp_path: Path) -> None:
    copy_utils(tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = "import utils.adapters, anyformer\nprint(utils.__version__, anyformer.__file__)"
    for options in (["-S"], []):  # with nothing installed, and before an installed one
        done = python(code, tmp_path, *options)
        version, file = done.stdout.split(maxsplit=1)
        assert version == anyformer.__version__, done.stderr
        assert Path(file.strip()) == tmp_path / "src" / "anyformer" / "__init__.py"


def test_utils_alone_uses_the_installed_package(tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(ROOT / "src", site, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    code = f"sys.path.append({str(site)!r})\nimport utils, anyformer\nprint(anyformer.__file__)"
    done = python(code, copy_utils(tmp_path), "-S")
    assert done.stdout.strip() == str(site / "anyformer" / "__init__.py"), done.stderr


def test_utils_alone_without_the_package_says_what_to_do(tmp_path: Path) -> None:
    done = python("from utils.training import train_model", copy_utils(tmp_path), "-S")
    assert done.returncode == 1
    message = done.stderr.partition("ImportError: ")[2]
    assert "aliases of the package anyformer" in message
    assert str(tmp_path / "src" / "anyformer") in message
    assert "move the whole repository, not utils/ alone" in message


def test_the_door_of_the_checks_leads_to_them(tmp_path: Path) -> None:
    """As it will be: a package anyformer.checks is all that is missing."""
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "checks")
    )
    checks = tmp_path / "src" / "anyformer" / "checks"
    checks.mkdir()
    (checks / "__init__.py").write_text("def run_all_tests(): ...\ndef test_gradient_flow(): ...\n")
    copy_utils(tmp_path)
    code = (
        "import utils.test_functions as door, anyformer.checks as checks\n"
        "print(door.run_all_tests is checks.run_all_tests, door.test_gradient_flow is checks.test_gradient_flow)"
    )
    done = python(code, tmp_path, "-S")
    assert done.stdout == "True True\n", done.stderr


def test_pytest_collects_nothing_from_the_doors() -> None:
    files = [ROOT / "utils" / "test_functions.py", ROOT / "src" / "anyformer" / "test_functions.py"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "--noconftest"]
    for file in files:
        done = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 5, done.stdout + done.stderr  # 5: no tests collected, and no error either


# Of our base dependencies, what Colab ships: googlecolab/backend-info, pip-freeze.gpu.txt, June 2026 (Python 3.12).
COLAB = {
    "torch": "2.11.0",
    "numpy": "2.0.2",
    "pyyaml": "6.0.3",
    "transformers": "5.9.0",
    "tokenizers": "0.22.2",
    "safetensors": "0.7.0",
    "huggingface-hub": "1.17.0",
    "datasets": "4.0.0",
    "pyarrow": "18.1.0",
    "docstring-parser": "0.18.0",
    "jinja2": "3.1.6",
    "rich": "13.9.4",
}


def floors(lines: list[str]) -> dict[str, str]:
    """Requirements with a floor (and at most a ceiling beside it): normalised name → the floor's version."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<[\d.]+)?", line)
        assert match, f"{line!r} is not a name with a floor"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_colab_gets_what_it_lacks_and_nothing_preinstalled_moves() -> None:
    needed = floors(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])
    text = (ROOT / "requirements-colab.txt").read_text("utf-8")
    listed = floors([line.partition("#")[0].strip() for line in text.splitlines() if line.partition("#")[0].strip()])
    lacking = {n: v for n, v in needed.items() if n not in COLAB or numbers(COLAB[n]) < numbers(v)}
    assert listed == lacking
    assert not {"torch", "numpy", "pandas"} & set(listed)
    for name, version in COLAB.items():  # the comment says what the test says
        assert re.search(rf"\b{name.replace('-', '[-_]')} {re.escape(version)}", text, re.I), name
