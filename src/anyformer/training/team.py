"""The processes of one run: who starts them, who leads, and how they learn of each other's end.

The first process (rank 0) prepares, writes and speaks; the others wait for what it has prepared, train their part and
leave with it. They talk through a small store that the first one holds (torch's TCPStore), so that waiting for minutes
of preparation has no time limit and a failure is heard by all; what trains goes through torch's process group.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from anyformer.core.errors import AnyformerError, Interrupted, TrainingError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.ranks import is_led
from anyformer.core.settings import TrainSettings
from anyformer.training.helpers import Helpers, program
from anyformer.training.places import Place, place_of, require_devices
from anyformer.training.sharing import stream_seed

TIMEOUT = timedelta(minutes=30)
"""Longest that the processes wait for each other within a step, an evaluation or a save; torch's own for gloo."""
_LOOK = 0.2  # seconds between looks into the store
_GRACE = 30.0  # seconds that a process has to leave by itself once another one has failed
_GOODBYE = 60.0  # seconds that the others have to leave after the first one is done
_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "recvValue failed", "sendBytes failed")


@dataclass
class Team:
    """The processes of one run, seen from one of them; alone where there is one process."""

    place: Place = field(default_factory=Place)
    store: Any = None
    helpers: Helpers | None = None
    """The processes that this one has started."""
    notes: tuple[Finding, ...] = ()
    """What is to be said of how many devices are used."""

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.place.size

    @property
    def leads(self) -> bool:
        """Whether this is the one that prepares, writes and speaks."""
        return self.place.rank == 0

    def environment(self) -> ClusterEnvironment:
        """As Lightning is told of it: who this is, and that nobody is left to be started."""
        return _Gathered(self.place)

    def seed(self, seed: int) -> int:
        """Seed of this process' dropout."""
        return stream_seed(seed, 0, self.place.rank)

    def tell(self, key: str, record: dict[str, Any]) -> None:
        """Give the others something that ``wait`` returns there; nothing where there is nobody."""
        if self.store is not None:
            self.store.set(key, json.dumps(record))

    def wait(self, key: str) -> dict[str, Any]:
        """What the first process tells under a name, once it does. Raises Ended where the run has failed meanwhile."""
        while not self._has(key):
            self._require_going_on()
            time.sleep(_LOOK)
        return dict(json.loads(self.store.get(key)))

    def meet(self, backend: str) -> None:
        """Come together to train: returns once every process is there. Raises TrainingError where one has failed."""
        if self.store is None:
            return
        self.store.add("ready", 1)
        while int(self.store.add("ready", 0)) < self.size:
            self._require_going_on()
            time.sleep(_LOOK)
        if backend == "nccl":
            torch.cuda.set_device(self.place.local_rank)
        dist.init_process_group(
            # decisions and random states are on the CPU, whatever trains
            "cpu:gloo,cuda:nccl" if backend == "nccl" else backend,
            store=dist.PrefixStore("group", self.store),  # type: ignore[attr-defined]
            rank=self.place.rank,
            world_size=self.size,
            timeout=TIMEOUT,
        )

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Where this process fails because another one did, raise what that one said."""
        try:
            yield
        except AnyformerError:
            raise
        except Exception as error:
            if self.store is None:
                raise
            told = self._failure(wait=5.0)
            if told is None and not _is_loss(error):
                raise
            raise told or TrainingError("another process of this run has ended", str(error).split("\n")[0]) from error

    def _require_going_on(self) -> None:
        if (told := self._failure()) is not None:
            raise told

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError as error:
            raise Ended("the process that leads this run has ended", str(error).split("\n")[0]) from error

    def _failure(self, wait: float = 0.0) -> TrainingError | None:
        """What another process has failed of; None where none has."""
        end = time.monotonic() + wait
        while True:
            if self._has("failed"):
                told = json.loads(self.store.get("failed"))
                if told["rank"] != self.place.rank:
                    return _as_error(told, self.size)
            if self.helpers is not None and (dead := self.helpers.killed()) is not None:
                return Ended(f"process {dead.rank} of {self.size} {dead.how}", dead.last_words)
            if time.monotonic() >= end:
                return None
            time.sleep(_LOOK)

    def fail(self, error: BaseException) -> None:
        """Tell the others what this process has failed of, unless one of them has told so before."""
        if self.store is None or isinstance(error, Ended) or _is_loss(error):
            return
        told: dict[str, Any] = {"rank": self.place.rank, "type": type(error).__name__, "code": 1, "what": str(error)}
        if isinstance(error, AnyformerError):
            told |= {"what": error.what, "detail": error.detail, "fix": error.fix, "code": error.exit_code}
        with suppress(RuntimeError):  # the one that holds the store is gone
            self.store.compare_set("failed", "", json.dumps(told))

    def leave(self, *, failed: bool) -> None:
        """Say goodbye: the first process stays until the others have left, and ends what does not."""
        if dist.is_available() and dist.is_initialized() and not failed:
            dist.destroy_process_group()
        if self.store is None:
            return
        if self.helpers is not None:
            self.helpers.end(5.0 if failed else _GOODBYE)
        with suppress(RuntimeError):
            gone = self.store.add("gone", 1)
            end = time.monotonic() + (_GRACE if not failed else 3.0)
            while self.leads and gone < self.size and time.monotonic() < end:
                time.sleep(_LOOK)  # they read what they were told out of this process
                gone = int(self.store.add("gone", 0))


class Ended(TrainingError):
    """Another process of this run has failed; the first one says of what."""


class _Gathered(LightningEnvironment):
    """Processes that were started by us, by torchrun or by SLURM."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    @property
    def creates_processes_externally(self) -> bool:
        """True: all are there."""
        return True

    def local_rank(self) -> int:
        """Of the processes of this machine."""
        return self._place.local_rank

    def node_rank(self) -> int:
        """Of the machines."""
        return self._place.node_rank

    def teardown(self) -> None:
        """Nothing: the environment is as it was."""


@contextmanager
def gathered(settings: TrainSettings, command: str, view: View) -> Iterator[tuple[Team, TrainSettings]]:
    """The processes that the settings or a launcher ask for, and the settings as they then are.

    Whatever one of them fails of ends all of them. Raises SettingsError where they cannot be had.
    """
    place, notes = place_of(settings, command)
    for finding in notes:
        view.finding(finding)
    settings = replace(settings, devices=place.local_size, num_nodes=place.nodes)
    if place.size == 1:
        yield Team(notes=notes), settings
        return
    require_devices(settings, place)
    team = Team(place, notes=notes)
    try:
        team.store, port = _store(place)
        if place.starts:
            team.helpers = Helpers(program(command), replace(place, port=port), settings.use_gpu)
        with team.helpers.threads() if team.helpers is not None else nullcontext():
            yield team, settings
    except BaseException as error:
        team.fail(error)
        team.leave(failed=True)
        _end_group()
        if is_led() and not command:  # the rest of the script belongs to the process that began it
            raise SystemExit(error.exit_code if isinstance(error, AnyformerError) else 1) from error
        raise
    team.leave(failed=False)
    if is_led() and not command:
        raise SystemExit(0)


def _store(place: Place) -> tuple[Any, int]:
    """The store that all processes reach, and the port that it is reached by."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun holds one itself
    holds = place.rank == 0 and not agent
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            place.address, place.port, is_master=holds, timeout=TIMEOUT, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        what = f"the first process of this run cannot be reached at {place.address}:{place.port}"
        raise TrainingError(what, str(error).split("\n")[0], "see MASTER_ADDR and MASTER_PORT") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives those that failed
    return dist.PrefixStore(f"anyformer-{attempt}", store), store.port  # type: ignore[attr-defined]


def _end_group() -> None:
    """Forget the process group of a run that failed: what it still waits for will not come."""
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _is_loss(error: BaseException) -> bool:
    """Whether an error only says that another process does not answer any more."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
    )


def _as_error(told: dict[str, Any], size: int) -> TrainingError:
    who = f"process {told['rank']} of {size} failed: "
    name = "" if "fix" in told else f"{told['type']}: "
    kind = Interrupted if told["type"] == "Interrupted" else Ended
    error = kind(who + name + told["what"], told.get("detail", ""), told.get("fix", ""))
    error.exit_code = told["code"]
    return error
