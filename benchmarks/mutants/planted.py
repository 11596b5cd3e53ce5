"""Right models of four kinds, and the mistakes of planted.yaml in each of them; in heldout/ the same by another hand.

What is held out was written without a look at the checks, and no limit of theirs is set on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

HOSTS = ("gpt", "llama", "stock", "translator")
HELD_OUT = ("gpt_sdpa", "bert", "nmt", "alibi_moe")
_HERE = Path(__file__).parent


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


def host_source(host: str) -> str:
    """The file of a right model."""
    return (_folder(host in HELD_OUT) / "hosts" / f"{host}.py").read_text(encoding="utf-8")


def _folder(held_out: bool) -> Path:
    return _HERE / "heldout" if held_out else _HERE


def mutants(held_out: bool = False) -> list[Mutant]:
    """All of one kind, bug by bug. Raises ValueError where a patch finds nothing to replace."""
    bugs = yaml.safe_load((_folder(held_out) / "planted.yaml").read_text(encoding="utf-8"))
    found = []
    for bug, entry in bugs.items():
        causes = tuple(entry.pop("causes"))
        for hosts, patch in entry.items():
            for host in hosts.split():
                found.append(Mutant(bug, host, causes, _patched(host, patch, bug)))
    return found


def _patched(host: str, patch: list[dict[str, str]], bug: str) -> str:
    source = host_source(host)
    for piece in patch:
        if piece["old"] not in source:
            raise ValueError(f"{bug}: {host} has no {piece['old']!r}")
        source = source.replace(piece["old"], piece["new"])
    return source
