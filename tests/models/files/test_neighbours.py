"""Files that import from their repository: its root, its packages, and what lies above the file."""

from __future__ import annotations

import hashlib
import sys
import textwrap
import types

import pytest
import torch

from anyformer.core.errors import DependencyError, SourceError
from anyformer.models.files.neighbours import neighbours
from anyformer.models.source import LoadedModel, load_model

MODEL = """
    import torch
    from torch import nn
    {imports}
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding({rows}, 4)
            self.layer = Layer()
"""
LAYER = "from torch import nn\nclass Layer(nn.Linear):\n    def __init__(self): super().__init__(4, 4)\n"


def write(folder, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")


def net(imports: str, rows: str = "9") -> str:
    return textwrap.dedent(MODEL).format(imports=imports, rows=rows)


def rebuilt(loaded: LoadedModel, folder) -> LoadedModel:
    """From a copy of its sources alone, as a run keeps them."""
    (folder / "run.json").parent.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    for name, path in loaded.sources.items():
        copy = folder / "model" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    main = next(iter(loaded.sources))
    return load_model(f"{folder / 'model' / main}:Net", config=loaded.provenance.config)


@pytest.mark.parametrize("package", [True, False])
def test_imports_from_the_root_of_the_repository(tmp_path, package):
    """models/model/net.py: from models.layers.layer import Layer."""
    files = {
        "repo/models/model/net.py": net("from models.layers.layer import Layer"),
        "repo/models/layers/layer.py": LAYER,
        "repo/other.py": "raise RuntimeError('nobody asked for this')",
    }
    if package:
        files |= {f"repo/models/{p}__init__.py": "" for p in ("", "model/")}
    write(tmp_path, files)
    loaded = load_model(tmp_path / "repo" / "models" / "model" / "net.py")
    inits = ["models/__init__.py", "models/model/__init__.py"] if package else []
    assert sorted(loaded.sources) == sorted(["models/model/net.py", "models/layers/layer.py", *inits])
    assert next(iter(loaded.sources)) == "models/model/net.py"
    layer = hashlib.sha256(LAYER.encode()).hexdigest()
    assert loaded.provenance.files["models/layers/layer.py"] == layer
    again = rebuilt(loaded, tmp_path / "run")
    assert list(again.provenance.files.items()) == list(loaded.provenance.files.items())


def test_a_folder_beside_the_files_own(tmp_path):
    """model/net.py: from utils import tools, with utils/ beside model/."""
    write(tmp_path, {"model/net.py": net("from utils.tools import Layer"), "utils/tools.py": LAYER})
    assert list(load_model(tmp_path / "model" / "net.py").sources) == ["model/net.py", "utils/tools.py"]


def test_a_module_of_the_root(tmp_path):
    write(tmp_path, {"conf.py": "ROWS = 7", "layer.py": LAYER})
    write(tmp_path, {"model/net.py": net("from conf import *\nfrom layer import Layer", "ROWS")})
    loaded = load_model(tmp_path / "model" / "net.py")
    assert loaded.module.e.num_embeddings == 7
    assert list(loaded.sources) == ["model/net.py", "conf.py", "layer.py"]
    assert "conf" not in sys.modules


def test_relative_imports_beyond_the_folder(tmp_path):
    write(tmp_path, {"my-repo/a/b/net.py": net("from ...util import ROWS\nfrom ..layer import Layer", "ROWS")})
    write(tmp_path, {"my-repo/a/layer.py": LAYER, "my-repo/util.py": "ROWS = 6"})
    loaded = load_model(tmp_path / "my-repo" / "a" / "b" / "net.py")
    assert loaded.module.e.num_embeddings == 6
    assert list(loaded.sources) == ["a/b/net.py", "a/layer.py", "util.py"]
    assert rebuilt(loaded, tmp_path / "run").provenance.files == loaded.provenance.files


def test_relative_and_absolute_imports_of_one_package_are_one_module(tmp_path):
    write(tmp_path, {"pkg/__init__.py": "", "pkg/layer.py": LAYER, "pkg/parts.py": "from pkg.layer import Layer as L"})
    write(tmp_path, {"pkg/net.py": net("from .layer import Layer\nfrom pkg.parts import L\nassert L is Layer")})
    assert load_model(tmp_path / "pkg" / "net.py").module.e.num_embeddings == 9


def test_a_heavy_start_of_the_package_is_passed_over(tmp_path):
    init = "import a_package_of_nobody\nfrom .net import Net\n"
    write(tmp_path, {"pkg/__init__.py": init, "pkg/layer.py": LAYER, "pkg/net.py": net("from pkg.layer import Layer")})
    loaded = load_model(tmp_path / "pkg" / "net.py")
    assert list(loaded.sources) == ["pkg/net.py", "pkg/__init__.py", "pkg/layer.py"]
    assert "pkg" not in sys.modules


def test_the_start_of_a_package_runs_for_a_name_that_only_it_has(tmp_path):
    write(tmp_path, {"pkg/__init__.py": "ROWS = 5\nfrom .layer import Layer", "pkg/layer.py": LAYER})
    write(tmp_path, {"pkg/net.py": net("from pkg import ROWS, Layer", "ROWS")})
    assert load_model(tmp_path / "pkg" / "net.py").module.e.num_embeddings == 5


def test_a_function_of_the_name_of_its_file_is_the_function(tmp_path):
    write(tmp_path, {"lib/__init__.py": "from .rows import rows", "lib/rows.py": "def rows(): return 8"})
    write(tmp_path, {"layer.py": LAYER, "net.py": net("from lib import rows\nfrom layer import Layer", "rows()")})
    assert load_model(tmp_path / "net.py").module.e.num_embeddings == 8


def test_an_imported_module_of_that_name_does_not_win(tmp_path, monkeypatch):
    other = types.ModuleType("utils")
    monkeypatch.setitem(sys.modules, "utils", other)
    write(tmp_path, {"model/net.py": net("from utils.tools import Layer"), "utils/tools.py": LAYER})
    load_model(tmp_path / "model" / "net.py")
    assert sys.modules["utils"] is other


@pytest.mark.parametrize("name", ["torch", "transformers", "einops"])
def test_well_known_packages_are_not_looked_for_above(tmp_path, name):
    write(tmp_path, {f"{name}/__init__.py": "raise RuntimeError", "model/net.py": f"import {name}\n"})
    path = tmp_path / "model" / "net.py"
    assert neighbours(path, path.read_text()).places == {}


def test_a_folder_of_an_installed_packages_name_above_is_not_taken(tmp_path):
    """A clone of a repository, or a log: no package of the model."""
    write(tmp_path, {"pytest/conftest.py": "", "model/net.py": "import pytest\n"})
    path = tmp_path / "model" / "net.py"
    assert neighbours(path, path.read_text()).places == {}


def test_nothing_above_the_repository_is_looked_at(tmp_path):
    write(tmp_path, {"layer.py": LAYER, "repo/pyproject.toml": "", "repo/net.py": net("from layer import Layer")})
    with pytest.raises(DependencyError, match="imports layer, which is not installed"):
        load_model(tmp_path / "repo" / "net.py")


@pytest.mark.parametrize("main", ["setup.py", "model.py"])
def test_a_setup_file_that_installs_nothing_is_the_models_own(tmp_path, main):
    write(tmp_path, {"src/parts.py": LAYER, "src/models/setup.py": "x = 1\n"})
    write(tmp_path, {f"src/models/{main}": net("from src.parts import Layer")})
    assert load_model(tmp_path / "src" / "models" / main).module.e.num_embeddings == 9


def test_a_setup_file_that_installs_is_the_end_of_the_repository(tmp_path):
    files = {"src/parts.py": LAYER, "src/models/setup.py": "from setuptools import setup\nsetup()\n"}
    write(tmp_path, {**files, "src/models/model.py": net("from src.parts import Layer")})
    with pytest.raises(DependencyError, match="imports src, which is not installed"):
        load_model(tmp_path / "src" / "models" / "model.py")


def test_a_module_that_the_package_lacks_is_named(tmp_path):
    write(tmp_path, {"pkg/net.py": net("from pkg.missing import Layer"), "pkg/layer.py": LAYER})
    with pytest.raises(SourceError, match=r"imports pkg\.missing, which is not there(.|\n)*put pkg/missing\.py into"):
        load_model(tmp_path / "pkg" / "net.py")


OPTIONAL = """
    from nobody.has import fused, Base
    class Fused(Base): pass
    def convert(x: Base): return fused(x)
"""


def test_a_sibling_that_imports_what_is_not_installed_gives_its_definitions(tmp_path):
    write(tmp_path, {"pkg/layer.py": textwrap.dedent(OPTIONAL) + LAYER})
    write(tmp_path, {"pkg/net.py": net("from pkg.layer import Layer, convert")})
    loaded = load_model(tmp_path / "pkg" / "net.py")
    assert [f.measured for f in loaded.findings if f.name == "import"] == ["left out: nobody"]


def test_a_model_that_needs_what_is_not_installed_in_a_sibling(tmp_path):
    text = "from nobody.has import fused\n" + LAYER.replace("super().__init__(4, 4)", "fused(self)")
    write(tmp_path, {"layer.py": text, "net.py": net("from layer import Layer")})
    with pytest.raises(DependencyError, match=r"nobody.*not installed(.|\n)*pip install nobody"):
        load_model(tmp_path / "net.py")


@pytest.mark.parametrize("call", ["fused(x)", "fused.norm(x)"])
def test_a_forward_that_calls_what_is_not_installed_in_a_sibling_names_the_package(tmp_path, call):
    text = f"from nobody.has import fused\n{LAYER}    def forward(self, x):\n        return {call}\n"
    write(tmp_path, {"layer.py": text, "net.py": net("from layer import Layer")})
    module = load_model(tmp_path / "net.py").module
    with pytest.raises(ImportError, match="fused comes from nobody, which is not installed: pip install nobody"):
        module.layer(torch.ones(1))


def test_config_json_beside_a_file_of_a_package_stays_beside_it(tmp_path):
    write(tmp_path, {"pkg/layer.py": LAYER, "pkg/config.json": '{"rows": 3}'})
    text = net("from pkg.layer import Layer", "rows").replace("__init__(self)", "__init__(self, rows)")
    write(tmp_path, {"pkg/net.py": text})
    loaded = load_model(tmp_path / "pkg" / "net.py")
    assert list(loaded.sources) == ["pkg/net.py", "pkg/layer.py", "pkg/config.json"]
    again = rebuilt(loaded, tmp_path / "run")
    assert again.module.e.weight.shape == torch.Size([3, 4])


@pytest.mark.parametrize(
    "deep", ["-" * 20_000 + "1", "1" + "+1" * 20_000, "(" * 150 + "1" + ")" * 150 + "." + "a." * 9_000 + "a"]
)
def test_source_that_is_nested_too_deeply(tmp_path, deep):
    write(tmp_path, {"model.py": net("") + f"x = {deep}\n"})
    with pytest.raises(SourceError, match=r"model\.py is nested too deeply(.|\n)*split it"):
        load_model(tmp_path / "model.py")


def test_a_deep_file_that_nobody_imports_is_no_matter(tmp_path):
    files = {
        "net.py": net("from parts.layer import Layer"),
        "parts/layer.py": LAYER,
        "parts/deep.py": "x = " + "-" * 20_000 + "1",
    }
    write(tmp_path, files)
    assert load_model(tmp_path / "net.py").module.e.num_embeddings == 9


@pytest.mark.parametrize("package", [True, False])
def test_a_library_keeps_its_name_inside_a_package(tmp_path, package):
    """gpt/yaml is the package's own as gpt.yaml alone; beside a script it is what the script imports."""
    layer = "from .layer import Layer" if package else "from layer import Layer"
    files = {
        "gpt/net.py": net(f"import yaml\nROWS = 5 if hasattr(yaml, 'safe_load') else yaml.ROWS\n{layer}", "ROWS"),
        "gpt/layer.py": LAYER,
        "gpt/yaml/__init__.py": "ROWS = 7",
    }
    write(tmp_path, files | ({"gpt/__init__.py": ""} if package else {}))
    assert load_model(tmp_path / "gpt/net.py").module.e.num_embeddings == (5 if package else 7)


def test_a_file_named_like_its_package_does_not_hide_it(tmp_path):
    files = {
        "gpt/__init__.py": "",
        "gpt/gpt.py": "from gpt.layer import Layer\n",
        "gpt/layer.py": LAYER,
        "gpt/net.py": net("from gpt.gpt import Layer"),
    }
    write(tmp_path, files)
    loaded = load_model(tmp_path / "gpt/net.py")
    assert type(loaded.module.layer).__name__ == "Layer"
    assert {"gpt/gpt.py", "gpt/layer.py", "gpt/net.py"} <= set(loaded.sources)
