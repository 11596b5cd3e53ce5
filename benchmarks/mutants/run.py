"""How many planted mistakes the checks find, under which name, and what they say of right models.

    python benchmarks/mutants/run.py            # both tables; goes on where it was stopped
    python benchmarks/mutants/run.py --only "mask"

Each mutant is checked by tiers 0 and 1, and by tier 2 where these find nothing. Found: a warning or a failure. Right:
the first cause has one of the names that planted.yaml gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import good
import planted
import torch

from anyformer.checks import CheckReport, run_checks
from anyformer.core.errors import AnyformerError
from anyformer.models.source import LoadedModel, load_model

_SEEDS = (0, 1, 2)


def judged(mutant: planted.Mutant) -> dict[str, Any]:
    """What the checks say of one mutant."""
    quiet()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.py"
        path.write_text(mutant.source, encoding="utf-8")
        try:
            report = run_checks(load_model(path), tiers=(0, 1))
            seconds = time.perf_counter() - begin
            tier = 1
            if not report.causes:
                report, tier = run_checks(load_model(path), tiers=(2,)), 2
            causes = [cause.name for cause in report.causes]
        except AnyformerError as error:
            causes, tier, seconds = [f"not loaded: {error}"], 0, time.perf_counter() - begin
    right = bool(causes) and causes[0] in mutant.causes
    row = {"name": mutant.name, "bug": mutant.bug, "host": mutant.host, "causes": causes, "tier": tier}
    return {**row, "right": right, "seconds": round(seconds, 2)}


def passed(job: tuple[str, int]) -> dict[str, Any]:
    """What the checks say of one right model; tiers 0–1 timed apart."""
    quiet()
    name, seed = job
    torch.manual_seed(seed)
    build: Callable[[], Any] = good.good_models()[name]
    begin = time.perf_counter()
    built = build()
    if seed and isinstance(built, LoadedModel):
        built = load_model(built.provenance.location, seed=seed)
    early = run_checks(built, tiers=(0, 1))
    seconds = time.perf_counter() - begin
    late: CheckReport = run_checks(built, tiers=(2,))
    causes = [*early.causes, *(c for c in late.causes if c.name not in {e.name for e in early.causes})]
    said = [f"{cause.name}: {cause.measured}" for cause in causes]
    blocked = early.blocked or late.blocked
    return {"name": f"{name}, seed {seed}", "causes": said, "blocked": blocked, "seconds": round(seconds, 2)}


def quiet() -> None:
    """One thread for each process, and no library's warnings."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def kept(path: Path, jobs: dict[str, Any], work: Callable[[Any], dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """A row for each job; those of the file are not done again, new ones are added to it."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    rows = [row for row in rows if row["name"] in jobs]
    done = {row["name"] for row in rows}
    with ProcessPoolExecutor(workers) as pool, path.open("a", encoding="utf-8") as file:
        for row in pool.map(work, [job for name, job in jobs.items() if name not in done]):
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Mutants by host, then the misses."""
    lines = ["| host | mutants | found | root cause first |", "|---|---|---|---|"]
    for host in (*dict.fromkeys(row["host"] for row in rows), "all"):
        own = [row for row in rows if host in (row["host"], "all")]
        if own:
            found, right = sum(bool(row["causes"]) for row in own), sum(row["right"] for row in own)
            share = f"{found} ({found / len(own):.0%}) | {right} ({right / len(own):.0%})"
            lines.append(f"| {host} | {len(own)} | {share} |")
    lines.append("")
    lines += [f"- not found: {row['name']}" for row in rows if not row["causes"]]
    lines += [
        f"- under another name: {row['name']}: {row['causes'][0]}" for row in rows if row["causes"] and not row["right"]
    ]
    seconds = [row["seconds"] for row in rows]
    lines += ["", f"tiers 0–1: median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s"]
    return "\n".join(lines)


def main() -> None:
    """Run, or go on, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="mutants and models whose name has this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "anyformer-mutants")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for of in planted.SETS:
        mutants = {m.name: m for m in planted.mutants(of) if given.only in m.name}
        if rows := kept(given.folder / f"{of}.jsonl", mutants, judged, given.workers):
            print(f"## Mistakes: {of}\n\n{table(rows)}\n")
    models = [name for name in good.good_models() if given.only in name]
    jobs = {f"{name}, seed {seed}": (name, seed) for name in models for seed in _SEEDS}
    if runs := kept(given.folder / "good.jsonl", jobs, passed, given.workers):
        blocked, said = [r for r in runs if r["blocked"]], [r for r in runs if r["causes"] and not r["blocked"]]
        seconds = [row["seconds"] for row in runs]
        print(f"\n{len(models)} right models × {len(_SEEDS)} seeds: {len(blocked)} of {len(runs)} runs blocked")
        for row in blocked + said:
            print(f"- {'blocked' if row['blocked'] else 'warned'}: {row['name']}: {'; '.join(row['causes'])}")
        print(f"\ntiers 0–1: median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s")


if __name__ == "__main__":
    main()
