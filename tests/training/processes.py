"""Several processes of one run without their start-up: forked, and told who they are as torchrun would tell them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import time
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process of one machine."""
    told = {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {name: str(value) for name, value in told.items()}


def together(task: Callable[[int], Any], size: int = 2, limit: float = 90.0) -> list[Any]:
    """What ``task(rank)`` returns, or raises, in each of so many processes; fails where one takes too long."""
    context = multiprocessing.get_context("fork")
    port = free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(size)]

    def run(rank: int) -> None:
        os.environ.update(torchrun_environment(rank, size, port))
        try:
            value: Any = task(rank)
        except BaseException as error:  # noqa: BLE001  (it is looked at in the test)
            value = error
        pipes[rank][1].send_bytes(pickle.dumps(value))  # no handles of shared memory, which ends with it

    processes = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    end, values = time.monotonic() + limit, []
    try:
        for rank, (reader, _) in enumerate(pipes):
            while not reader.poll(0.1):
                assert time.monotonic() < end, f"process {rank} of {size} hangs"
                assert processes[rank].is_alive() or reader.poll(0.1), f"process {rank} died"
            values.append(pickle.loads(reader.recv_bytes()))
        for process in processes:
            process.join(10)
            assert not process.is_alive(), "a process stays"
    finally:
        for process in processes:
            process.kill()
    return values
