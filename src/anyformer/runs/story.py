"""What happened to a run, from its folder alone: state, checkpoints, resumes, damage, steps that were left out.

Light: no torch, nothing is loaded but JSON and the table of metrics.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from anyformer.core.names import list_runs, run_folder
from anyformer.core.view import count, duration
from anyformer.runs.directory import RunDirectory
from anyformer.runs.table import FILE, read_metrics

_CHECKPOINT = re.compile(r"step-(\d+)(?:-v\d+)?")


def find_run(name: str, parent: str = "runs") -> Path:
    """The folder of a run given by its path, or by its name alone in ``parent``."""
    folder = run_folder(name)
    beside = Path(parent) / name
    return beside if not folder.exists() and beside.is_dir() else folder


def run_story(path: str | Path) -> dict[str, Any]:
    """The story of a run as plain values. Raises SourceError where there is no such run."""
    run = RunDirectory.open(path)
    record = run.manifest
    state = str(record.get("state", "unknown"))
    if state == "running" and not run.is_held():
        state = "killed"  # nobody trains it, and nobody wrote how it ended
    results = record.get("results") or {}
    checkpoints, aside = _checkpoints(run.checkpoints)
    rows = read_metrics(run.path / FILE)
    reached = [int(rows[-1]["step"] or 0)] if rows else []
    reached += [checkpoints[0]["step"]] if checkpoints else []
    resumable = bool(checkpoints) and state in ("killed", "interrupted", "paused", "failed")
    return {
        "run": str(run.path),
        "state": state,
        "model": (record.get("model") or {}).get("class_name"),
        "data": (record.get("data") or {}).get("name"),
        "step": max(reached, default=0),
        "total_steps": (record.get("effective") or {}).get("total_steps"),
        "seconds": record.get("seconds"),
        "held_out_loss": results.get("val_loss"),
        "best_checkpoint": results.get("best_checkpoint"),
        "error": record.get("error"),
        "history": record.get("history") or [],
        "checkpoints": checkpoints,
        "set_aside": aside,
        "bad_batches": _bad_batches(run.path / "bad_batches"),
        "findings": [f for f in record.get("findings") or [] if f.get("verdict") in ("warn", "fail")],
        "next": f"anyformer train --resume {shlex.quote(str(run.path))}" if resumable else None,
    }


def run_list(parent: str | Path = "runs") -> list[dict[str, Any]]:
    """State, step and loss of each run in a folder, newest first; a folder that cannot be read is left out."""
    found = []
    for name in list_runs(parent):
        try:
            story = run_story(Path(parent) / name)
        except (OSError, ValueError, TypeError):  # SourceError is an OSError
            continue
        found.append({key: story[key] for key in ("run", "state", "step", "total_steps", "held_out_loss")})
    return found


def story_lines(story: dict[str, Any]) -> list[str]:
    """The story in plain words, one fact a line."""
    total = story["total_steps"]
    of = f" of {total:,}" if total else ""
    lines = [f"{story['run']}: {story['state']} at step {story['step']:,}{of}"]
    if story["model"]:
        lines.append(f"  {story['model']} on {story['data']}")
    if story["held_out_loss"] is not None:
        best = f", best: {Path(story['best_checkpoint']).name}" if story["best_checkpoint"] else ""
        lines.append(f"  held-out loss {story['held_out_loss']:.4g}{best}")
    lines += ["", "what happened"] if story["history"] else []
    lines += [f"  {_event(event)}" for event in story["history"]]
    if story["state"] == "killed":
        lines.append("  then its process died without a word")
    lines += ["", f"checkpoints: {len(story['checkpoints'])}"]
    lines += [f"  {one['name']}   {count(one['bytes'])}B" for one in story["checkpoints"]]
    lines += [f"  {name}   set aside" for name in story["set_aside"]]
    if story["bad_batches"]:
        lines += ["", f"bad steps: {len(story['bad_batches'])}"]
        lines += [f"  step {bad['step']:,}: {bad['action']}, {bad['reason']}" for bad in story["bad_batches"]]
    if story["findings"]:
        lines += ["", "warnings"]
        lines += [f"  {f['name']}: {f['measured']}" + (f" ({f['reason']})" if f["reason"] else "")
                  for f in story["findings"]]  # fmt: skip
    if story["error"] and story["state"] == "failed":
        lines += ["", *(f"  {line}" for line in str(story["error"]).splitlines())]
    return lines + (["", f"next: {story['next']}"] if story["next"] else [])


def _event(event: dict[str, Any]) -> str:
    """One line of the history."""
    step = event.get("step")
    at = "" if step is None else f" at step {step:,}"
    if event.get("event") == "resumed":
        words = f"resumed from step {step:,}, after it was {event.get('after')}"
        changed = [*event.get("damaged", ()), *event.get("changed", ()), *event.get("elsewhere", ())]
        words += "".join(f"\n{'':24}{one}" for one in changed)
    elif event.get("event") == "began":
        words = "began"
    else:
        took = event.get("seconds")
        words = f"{event.get('event')}{at}" + ("" if took is None else f" after {duration(took)} in all")
    return f"{event.get('at', ''):<19.19}   {words}"


def _checkpoints(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Checkpoints, newest first; and the names of those that were set aside."""
    good, aside = [], []
    for entry in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        if match := _CHECKPOINT.fullmatch(entry.name):
            size = sum(file.stat().st_size for file in entry.iterdir() if file.is_file())
            good.append({"name": entry.name, "step": int(match[1]), "bytes": size})
        else:
            aside.append(entry.name)
    return good, aside


def _bad_batches(folder: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted(folder.glob("step-*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found.append({"file": str(file), **{name: record[name] for name in ("step", "action", "reason")}})
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half-written or foreign: nothing that could be told
    return found
