"""A fault at every I/O call of a save: earlier checkpoints stand, nothing half-written counts, the next save works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.server import Server


def test_the_order_of_a_save(server: Server, quick_folder: Path) -> None:
    """write → fsync each file → MANIFEST.json last → rename → fsync of the parent."""
    order = server.call("tests.faults.io_cases:order_of_a_save", cwd=quick_folder, base=str(quick_folder / "a"))
    last_write = {
        name: max(i for i, call in enumerate(order) if call == f"write /NEW/{name}") for name in ("model", "state.pt")
    }
    synced = {name: order.index(f"sync /NEW/{name}") for name in ("model.safetensors", "state.pt", "manifest")}
    assert last_write["model"] < synced["model.safetensors"]
    assert last_write["state.pt"] < synced["state.pt"]
    manifest = order.index("create /NEW/manifest")
    assert max(synced["model.safetensors"], synced["state.pt"]) < manifest < synced["manifest"]
    assert order[order.index("rename /NEW/manifest") :] == ["rename /NEW/manifest", "sync /NEW", "rename /NEW", "sync "]


def check(server: Server, folder: Path, seed: int, share: int | None, least: int) -> None:
    told = server.call(
        "tests.faults.io_cases:run_cases", cwd=folder, timeout=900, base=str(folder / "b"), seed=seed, share=share
    )
    print(f"{told['cases']} of {told['of']} cases")
    assert not told["problems"], "\n".join(told["problems"][:20])
    assert told["cases"] >= least


def test_faults_at_some_calls_of_a_save(server: Server, quick_folder: Path, seed: int) -> None:
    check(server, quick_folder, seed, share=60, least=50)


@pytest.mark.soak
def test_faults_at_every_call_of_a_save(server: Server, tmp_path: Path, seed: int) -> None:
    check(server, tmp_path, seed, share=None, least=300)
