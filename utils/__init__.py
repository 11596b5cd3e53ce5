"""The import paths that builder notebooks use (``from utils.training import …``): aliases of anyformer, nothing more.

The package itself is the ``src`` folder beside this one, or an installed anyformer.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def _find_anyformer() -> None:
    """Make ``import anyformer`` work. Raises ImportError where neither source nor installation is there."""
    source = Path(__file__).resolve().parent.parent / "src"
    if (source / "anyformer" / "__init__.py").is_file():
        if str(source) not in sys.path:
            sys.path.insert(0, str(source))
    elif find_spec("anyformer") is None:
        raise ImportError(
            "utils/ holds only aliases of the package anyformer, which is not here\n"
            f"  looked for {source / 'anyformer'} and for an installed package\n"
            "  → move the whole repository, not utils/ alone, or: pip install anyformer"
        )


_find_anyformer()

from anyformer import __version__  # noqa: E402

__all__ = ["__version__", "adapters", "test_functions", "tokenization", "training"]
