"""Right models of four kinds, and the mistakes of planted.yaml in each of them; in heldout/ the same by another hand.

What is held out was written without a look at the checks, and no limit of theirs is set on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

_HERE = Path(__file__).parent
SETS = {"seen": _HERE, "held out": _HERE / "heldout", "held out, second": _HERE / "heldout" / "second"}
"""On the first the checks were written; each of the others was unseen until its first figures were taken."""
HOSTS = ("gpt", "llama", "stock", "translator")


@dataclass(frozen=True)
class Mutant:
    """One mistake in one host."""

    bug: str
    host: str
    causes: tuple[str, ...]
    """Names of checks; one of them is the right root cause."""
    source: str
    """The host's file with the mistake in it."""

    @property
    def name(self) -> str:
        """As tables name it."""
        return f"{self.bug} @ {self.host}"


def host_source(host: str, of: str = "seen") -> str:
    """The file of a right model."""
    return (SETS[of] / "hosts" / f"{host}.py").read_text(encoding="utf-8")


def mutants(of: str = "seen") -> list[Mutant]:
    """All of one set, bug by bug. Raises ValueError where a patch finds nothing to replace."""
    bugs = yaml.safe_load((SETS[of] / "planted.yaml").read_text(encoding="utf-8"))
    found = []
    for bug, entry in bugs.items():
        causes = tuple(entry.pop("causes"))
        for hosts, patch in entry.items():
            for host in hosts.split():
                found.append(Mutant(bug, host, causes, _patched(host_source(host, of), patch, f"{bug} @ {host}")))
    return found


def _patched(source: str, patch: list[dict[str, str]], name: str) -> str:
    for piece in patch:
        if piece["old"] not in source:
            raise ValueError(f"{name}: there is no {piece['old']!r}")
        source = source.replace(piece["old"], piece["new"])
    return source
