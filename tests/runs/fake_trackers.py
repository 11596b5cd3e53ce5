"""Trackers that keep rows in a file, fail or hang; run as a script in the place of the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping
from pathlib import Path

from anyformer.runs.trackers import About, Row, Tracker, serve


class Keeping:
    """Keeps what it is given in ``NAME.jsonl`` beside the metrics; holds what lies there already."""

    def __init__(self, name: str = "keeping") -> None:
        self.name = name

    def start(self, about: About) -> Container[int]:
        self.file = Path(about.folder) / f"{self.name}.jsonl"
        self._write({"about": about.settings, "resumed_at": about.resumed_at})
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return {line["step"] for line in lines if "step" in line}

    def log(self, rows: list[Row]) -> None:
        print("a library that says what it likes" * 100)
        for row in rows:
            self._write({"step": row.step, "time": row.time, "figures": row.figures})

    def finish(self, state: str, figures: Mapping[str, float]) -> None:
        self._write({"state": state, "figures": dict(figures)})

    def _write(self, line: dict[str, object]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


class Failing(Keeping):
    """Raises at one of the three calls."""

    def __init__(self, name: str, at: str) -> None:
        super().__init__(name)
        self.at = at

    def _now(self, call: str) -> None:
        if call == self.at:
            self._fail()

    def _fail(self) -> None:
        raise ConnectionError(f"no server at {self.at}\nsee the manual")

    def start(self, about: About) -> Container[int]:
        self._now("start")
        return super().start(about)

    def log(self, rows: list[Row]) -> None:
        self._now("log")
        super().log(rows)

    def finish(self, state: str, figures: Mapping[str, float]) -> None:
        self._now("finish")
        super().finish(state, figures)


class Hanging(Failing):
    """Hangs for ever, with a process of its own that does, too."""

    def _fail(self) -> None:
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self._write({"pids": [os.getpid(), helper.pid]})
        while True:
            time.sleep(600)

    def start(self, about: About) -> Container[int]:
        self.file = Path(about.folder) / f"{self.name}.jsonl"
        return super().start(about)


class Dying(Keeping):
    """Its process ends without a word at the first rows."""

    def log(self, rows: list[Row]) -> None:
        os._exit(7)


def kinds() -> dict[str, Callable[[], Tracker]]:
    """All of them by name: keeping, dying, fails_at_start, hangs_at_log …"""
    found: dict[str, Callable[[], Tracker]] = {"keeping": Keeping, "dying": lambda: Dying("dying")}
    for name in ("tensorboard", "wandb", "mlflow"):
        found[f"keeping_{name}"] = lambda name=name: Keeping(f"keeping_{name}")  # type: ignore[misc]
    for at in ("start", "log", "finish"):
        found[f"fails_at_{at}"] = lambda at=at: Failing(f"fails_at_{at}", at)  # type: ignore[misc]
        found[f"hangs_at_{at}"] = lambda at=at: Hanging(f"hangs_at_{at}", at)  # type: ignore[misc]
    return found


if __name__ == "__main__":
    known = kinds()
    # "tensorboard=keeping": what stands for a real one
    sys.exit(serve(known | {name: known[kind] for name, kind in (word.split("=") for word in sys.argv[1:])}))
