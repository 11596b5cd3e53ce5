"""Which of the processes of a run this one is, and how many there are: by torchrun, SLURM or the settings."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from anyformer.core.errors import SettingsError
from anyformer.core.findings import Finding
from anyformer.core.ranks import is_led, is_under_slurm, is_under_torchrun, why_alone
from anyformer.core.settings import TrainSettings
from anyformer.training.effective import choose_device


@dataclass(frozen=True)
class Place:
    """One process among all of a run; the only one where nothing is given."""

    rank: int = 0
    local_rank: int = 0
    local_size: int = 1
    """Processes on this machine."""
    nodes: int = 1
    node_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    """Of the first process; 0: any that is free."""
    starts: bool = False
    """Whether this process has to start the others of its machine."""

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.local_size * self.nodes


def place_of(settings: TrainSettings, command: str) -> tuple[Place, tuple[Finding, ...]]:
    """This process' place, and what is to be said of it. command: the command line of this run, if there is one.

    Raises SettingsError where the settings and what started the processes do not agree.
    """
    asked = settings.devices * settings.num_nodes
    if is_led():
        return _from_environment("NODE_RANK"), ()
    if is_under_torchrun():
        place = _from_environment("GROUP_RANK")
        if asked not in (1, place.size):
            raise SettingsError(
                f"devices {settings.devices} and num_nodes {settings.num_nodes} make {asked} processes, but torchrun"
                f" has started {place.size}",
                fix="leave both out, or start as many",
            )
        return place, ()
    if asked == 1:
        return Place(), _unused(settings)
    if is_under_slurm():
        return _of_slurm(settings), ()
    if not command and (reason := why_alone()):
        ways = f"{reason}; anyformer train … --devices {settings.devices} in a terminal does it"
        return Place(), (Finding("devices", "warn", "1 is used", str(asked), ways),)
    return _own(settings), ()


def require_devices(settings: TrainSettings, place: Place) -> None:
    """SettingsError where there are fewer GPUs than asked for, or fewer rows in a batch than processes."""
    if not dist.is_available():
        raise SettingsError(
            f"{place.size} processes are asked for, but this torch was built without them", fix="--devices 1"
        )
    kind = choose_device(settings.use_gpu).type
    if kind == "cuda" and torch.cuda.device_count() < place.local_size:
        raise SettingsError(
            f"devices is {place.local_size}, but there are {torch.cuda.device_count()} GPUs here",
            fix=f"--devices {torch.cuda.device_count()}, or --use_gpu false for as many processes on the CPU",
        )
    if kind == "mps":
        raise SettingsError(
            f"devices is {place.local_size}, but there is one GPU here, which processes cannot share",
            fix="--devices 1, or --use_gpu false for as many processes on the CPU",
        )
    if settings.batch_size == "auto":
        raise SettingsError(
            f"batch_size is auto, which tries out what fits one device; {place.size} processes are asked for",
            fix="--batch_size N (it counts the sequences of all processes together)",
        )
    if settings.batch_size < place.size:
        raise SettingsError(
            f"batch_size is {settings.batch_size}, but {place.size} processes divide each batch among them",
            fix=f"--batch_size {place.size} or more (it counts the sequences of all processes together)",
        )


def _unused(settings: TrainSettings) -> tuple[Finding, ...]:
    if settings.strategy == "auto":
        return ()
    return (Finding("strategy", "warn", f"{settings.strategy} is not used", reason="there is one device"),)


def _from_environment(node: str) -> Place:
    """As torchrun, and we ourselves, tell it."""
    env = os.environ
    size, local = int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"])
    if size % local:
        raise SettingsError(f"{size} processes in all and {local} on this machine: each needs as many as the others")
    return Place(
        rank=int(env["RANK"]),
        local_rank=int(env["LOCAL_RANK"]),
        local_size=local,
        nodes=size // local,
        node_rank=int(env.get(node, "0")),
        address=env["MASTER_ADDR"],
        port=int(env["MASTER_PORT"]),
    )


def _of_slurm(settings: TrainSettings) -> Place:
    slurm = SLURMEnvironment(auto_requeue=False)
    if slurm.world_size() != settings.devices * settings.num_nodes:
        raise SettingsError(
            f"devices {settings.devices} and num_nodes {settings.num_nodes} make"
            f" {settings.devices * settings.num_nodes} processes, but SLURM has started {slurm.world_size()} tasks",
            fix="srun --nodes NUM_NODES --ntasks-per-node DEVICES anyformer train …",
        )
    return Place(
        rank=slurm.global_rank(),
        local_rank=slurm.local_rank(),
        local_size=settings.devices,
        nodes=settings.num_nodes,
        node_rank=slurm.node_rank(),
        address=slurm.main_address,
        port=slurm.main_port,
    )


def _own(settings: TrainSettings) -> Place:
    """The first process of this machine, which starts the others."""
    if settings.num_nodes == 1:
        return Place(local_size=settings.devices, starts=True)
    env = os.environ
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing:
        raise SettingsError(
            f"num_nodes is {settings.num_nodes}, but {missing[0]} is not set",
            "each machine has to know its number and where the first one is",
            "start it with torchrun or srun, or set NODE_RANK, MASTER_ADDR and MASTER_PORT on each",
        )
    node = int(env["NODE_RANK"])
    return Place(
        rank=node * settings.devices,
        local_size=settings.devices,
        nodes=settings.num_nodes,
        node_rank=node,
        address=env["MASTER_ADDR"],
        port=int(env["MASTER_PORT"]),
        starts=settings.devices > 1,
    )
