"""A process that has imported everything and forks a real process for each job: a start takes 20 ms instead of 10 s.

It runs under the shim (``shim.c``), so that any of its children can be told to meet a fault at its n-th I/O call.
Each child is a process like any other: it is killed, interrupted and waited for as one.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

OPEN, CREATE, READ, WRITE, SYNC, RENAME, MKDIR, REMOVE, CHMOD, TRUNCATE, LISTDIR, CLOSE, MAP = (
    1 << bit for bit in range(13)
)
EVERYTHING = (1 << 13) - 1
CHANGES = CREATE | WRITE | SYNC | RENAME | MKDIR | REMOVE | CHMOD | TRUNCATE
COUNT, FAIL, SHORT, LOSE, KILL, SIGNAL = range(6)


@dataclass(frozen=True)
class Fault:
    """What happens at the ``at``-th I/O call of ``kinds`` under ``folder``, counted from 1 (0: calls are only counted).

    number: the errno, or the signal. sticky: at each call from there on; of signals, at the next one, too.
    """

    folder: str
    kinds: int = EVERYTHING
    action: int = COUNT
    at: int = 0
    number: int = errno.EIO
    sticky: bool = False

    def arm(self) -> None:
        """From now on in this process, which must run under the shim."""
        _shim().fault_arm(self.folder.encode(), self.kinds, self.action, self.at, self.number, int(self.sticky))


def disarm() -> tuple[int, list[str]]:
    """End of the fault: how many calls were counted, and each as "kind path"."""
    shim = _shim()
    count = shim.fault_disarm()
    return count, shim.fault_trace().decode().splitlines()


def _shim() -> ctypes.CDLL:
    shim = ctypes.CDLL(None)
    shim.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    shim.fault_disarm.restype = ctypes.c_long
    shim.fault_trace.restype = ctypes.c_char_p
    return shim


def why_not() -> str | None:
    """Why the shim cannot be used here; None where it can."""
    if not sys.platform.startswith("linux"):
        return f"faults are injected through LD_PRELOAD and /proc; this is {sys.platform}"
    return None if shutil.which("cc") or shutil.which("gcc") else "needs a C compiler (cc) to build the shim"


def build_shim(folder: Path) -> Path:
    """Compile shim.c into ``folder``."""
    target = folder / "shim.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [str(compiler), "-O1", "-shared", "-fPIC", "-o", str(target), str(HERE / "shim.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


class Server:
    """The client's side. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = 0

    def __enter__(self) -> Server:
        self.shim = build_shim(self.folder)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": str(self.shim), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the server of the fault tests has died")
        return json.loads(answer)

    def start(self, call: str, *, cwd: Path, fault: Fault | None = None, **arguments: Any) -> Job:
        """Fork a process that calls ``module:function`` with the arguments, under the fault."""
        self._jobs += 1
        said = self.folder / f"job-{self._jobs}.txt"
        made = self.folder / f"job-{self._jobs}.json"
        pid = self._ask(
            start=call,
            arguments=arguments,
            cwd=str(cwd),
            said=str(said),
            made=str(made),
            fault=asdict(fault) if fault else None,
        )
        return Job(self, pid, said, made)

    def call(self, call: str, *, cwd: Path, timeout: float = 600, **arguments: Any) -> Any:
        """What the function returned in a process of its own. AssertionError with what it said where it failed."""
        job = self.start(call, cwd=cwd, **arguments)
        code = job.wait(timeout)
        assert code == 0, f"{call} ended with {code}:\n{job.output()}"
        return json.loads(job.made.read_text())

    def train(self, *argv: str, cwd: Path, fault: Fault | None = None, trace: Path | None = None) -> Job:
        """Start ``anyformer train ARGV`` as a process; where it ends by itself, its I/O calls are written to trace."""
        return self.start(
            "tests.faults.server:train", cwd=cwd, fault=fault, argv=list(argv), trace=trace and str(trace)
        )

    def fresh(self, *argv: str, cwd: Path, fault: Fault) -> Fresh:
        """Start ``anyformer train ARGV`` as a user does: a new interpreter, armed through its environment."""
        self._jobs += 1
        return Fresh(list(argv), cwd, self.folder / f"job-{self._jobs}.txt", self.shim, fault)


class Fresh:
    """A process with an interpreter of its own; with Job's methods."""

    def __init__(self, argv: list[str], cwd: Path, said: Path, shim: Path, fault: Fault) -> None:
        told = {"FOLDER": fault.folder, "MASK": fault.kinds, "ACTION": fault.action, "AT": fault.at}
        told |= {"NUMBER": fault.number, "STICKY": int(fault.sticky)}
        env = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        env |= {f"FAULT_{name}": str(value) for name, value in told.items()}
        self._said = said
        with said.open("wb") as stream:
            command = [sys.executable, "-m", "anyformer", "train", *argv]
            self._process = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )

    def wait(self, timeout: float = 300) -> int:
        """Its exit code; minus the signal that ended it."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def kill(self, number: int) -> None:
        """Send a signal, if it still runs."""
        self._process.send_signal(number)

    def output(self) -> str:
        """What it wrote to stdout and stderr."""
        return self._said.read_text(errors="replace")


@dataclass
class Job:
    """A process that the server forked."""

    server: Server
    pid: int
    said: Path
    made: Path
    code: int | None = None

    def wait(self, timeout: float = 120) -> int:
        """Its exit code; minus the signal that ended it."""
        if self.code is None:
            self.code = self.server._ask(wait=self.pid, timeout=timeout)
        if self.code is None:
            os.kill(self.pid, 9)
            self.server._ask(wait=self.pid, timeout=10)
            raise AssertionError(f"it hung for {timeout} s:\n{self.output()}")
        return self.code

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        if self.code is None:
            self.code = self.server._ask(wait=self.pid, timeout=0)
        return self.code

    def kill(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.said.read_text(errors="replace") if self.said.exists() else ""


def train(argv: list[str], trace: str | None) -> None:
    """The command itself, in this process."""
    from anyformer import cli

    code = cli.main(["train", *argv])
    if trace:
        Path(trace).write_text("\n".join(disarm()[1]))
    sys.exit(code)


def _start(job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        handle = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(job["cwd"])
        module, name = job["start"].split(":")
        function = getattr(importlib.import_module(module), name)
        if job["fault"]:
            Fault(**job["fault"]).arm()
        result = function(**job["arguments"])
        Path(job["made"]).write_text(json.dumps(result))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (the process ends here, and says why)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.005)


def _serve() -> None:
    for name in ("anyformer.api", "anyformer.cli", "anyformer.ui.results", "tests.faults.io_cases"):
        importlib.import_module(name)

    for text in sys.stdin:
        question = json.loads(text)
        if "start" in question:
            sys.stdout.flush()
            answer: Any = _start(question)
        else:
            answer = _wait(question["wait"], question["timeout"])
        print(json.dumps(answer), flush=True)
    os._exit(0)  # taking the libraries apart would take seconds


if __name__ == "__main__":
    _serve()
