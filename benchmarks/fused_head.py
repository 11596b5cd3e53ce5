"""Head and cross-entropy in one, or the loss in the logits' own memory, beside the plain way; from where on it pays.

    python benchmarks/fused_head.py rows [--rounds 4]
    python benchmarks/fused_head.py from [--rounds 12]
    python benchmarks/fused_head.py capped [--rounds 4]
    python benchmarks/fused_head.py memory

rows: forward and backward of the head and the loss alone (N 2,048, D 256), for some numbers of rows at a time.
from: a whole step of small GPTs. Both: one thread, CPU time, ways taken in turn, medians.
capped: head, soft-cap and loss (N 2,048, D 256), and whole small GPTs with such a cap, plain against in place; of the
first two also what the memory of a process grows by, each in one of its own.
memory: what the resident memory of a process grows by after its imports in four steps of the bare loop of
train_loop.py and of ours (4 layers, width 256, T 256, B 8), each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.example_gpt import GPT
from anyformer.models.objectives import batch_logits, objective_loss
from anyformer.training import fusedhead, headloss, inplace

SIZES = ((2, 32, 256, 64), (4, 64, 512, 64), (8, 64, 1024, 64), (8, 128, 1024, 64), (4, 64, 4096, 64))
SIZES += ((8, 128, 2048, 128), (8, 128, 4096, 128), (16, 256, 512, 64), (16, 256, 1024, 64))


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of each way, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            taken[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def rows(rounds: int) -> None:
    """Print the time of the head and the loss alone."""
    print("| V | plain, ms | " + " | ".join(f"{r} rows" for r in (64, 128, 256, 512)) + " |\n|---|---|---|---|---|---|")
    for V in (8192, 50_257):
        hidden = torch.randn(2048, 256, requires_grad=True)
        weight = (torch.randn(V, 256) * 0.02).requires_grad_()
        targets = torch.randint(0, V, (2048,))

        def plain(hidden=hidden, weight=weight, targets=targets) -> None:  # type: ignore[no-untyped-def]
            F.cross_entropy(F.linear(hidden, weight), targets).backward()

        def fused(number: int, hidden=hidden, weight=weight, targets=targets) -> None:  # type: ignore[no-untyped-def]
            headloss._CPU_ROWS = number
            headloss.HeadLoss.apply(hidden, weight, None, targets, 0.0).backward()

        ways: dict[str, Callable[[], object]] = {"plain": plain}
        ways |= {str(number): lambda number=number: fused(number) for number in (64, 128, 256, 512)}  # type: ignore[misc]
        times = medians(ways, rounds)
        ratios = [f"{times['plain'] / times[name]:.2f} ×" for name in ways if name != "plain"]
        print(f"| {V:,} | {times['plain'] * 1e3:.0f} | " + " | ".join(ratios) + " |")


def pays_from(rounds: int) -> None:
    """Print forward and backward of whole small models, plain against fused."""
    fusedhead.FUSE_FROM = 0
    print("| B, T, V, D | logits | plain, ms | fused |\n|---|---|---|---|")
    for B, T, V, D in sorted(SIZES, key=lambda size: size[0] * size[1] * size[2]):
        torch.manual_seed(0)
        module = GPT(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=D)
        plan = infer_call_plan(module)
        ids = torch.randint(0, V, (B, T))
        batch = {"input_ids": ids, "labels": ids, "next_ids": ids[:, 0]}
        head, _ = fusedhead.choose_head(module, plan, "causal", batch)
        assert head is not None

        def plain(module=module, plan=plan, batch=batch) -> None:  # type: ignore[no-untyped-def]
            logits = batch_logits(module, plan, batch)
            objective_loss("causal", logits, batch["labels"], batch["next_ids"]).backward()

        def fused(module=module, plan=plan, batch=batch, head=head) -> None:  # type: ignore[no-untyped-def]
            fusedhead.fused_loss(module, plan, "causal", batch, head).backward()

        times = medians({"plain": plain, "fused": fused}, rounds)
        ratio = times["plain"] / times["fused"]
        print(f"| {B}, {T}, {V:,}, {D} | {B * T * V:,} | {times['plain'] * 1e3:.1f} | {ratio:.2f} × |")


class Capped(nn.Module):
    """A model with a soft cap on its logits, as Gemma 2 has it (arXiv:2408.00118, §2)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return 30 * torch.tanh(self.model(ids) / 30)


def capped_ways(module: nn.Module, B: int, T: int, V: int) -> dict[str, Callable[[], object]]:
    """Forward and backward, plain and in place; the second is proven here."""
    fusedhead.FUSE_FROM = 0
    plan: CallPlan = infer_call_plan(module)
    ids = torch.randint(0, V, (B, T))
    batch = {"input_ids": ids, "labels": ids, "next_ids": ids[:, 0]}
    module.train()
    assert fusedhead.choose_head(module, plan, "causal", batch)[0] is None
    chosen, finding = inplace.choose_in_place(module, plan, "causal", batch)
    assert chosen, finding

    def plain() -> None:
        logits = batch_logits(module, plan, batch)
        objective_loss("causal", logits, batch["labels"], batch["next_ids"]).backward()

    def in_place() -> None:
        loss, reason = inplace.loss_of_logits(module, plan, "causal", batch)
        assert not reason
        loss.backward()

    return {"plain": plain, "in place": in_place}


def head_alone(V: int) -> nn.Module:
    """An embedding and a head of width 256."""
    return Capped(nn.Sequential(nn.Embedding(V, 256), nn.Linear(256, V, bias=False)))


def capped(rounds: int) -> None:
    """Print time and memory of a capped head, then the time of whole small models."""
    print("| V | plain, ms | in place | plain, MB | in place, MB | ratio |\n|---|---|---|---|---|---|")
    grown: dict[tuple[str, int], float] = {}
    for V in (8192, 50_257):  # before this process grows: theirs begin with its largest size
        for way in ("plain", "in place"):
            command = [sys.executable, __file__, "one", way, str(V)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            grown[way, V] = float(said.split()[-1])
    for V in (8192, 50_257):
        torch.manual_seed(0)
        times = medians(capped_ways(head_alone(V), 8, 256, V), rounds)
        plain, ours = grown["plain", V], grown["in place", V]
        ratio = f"{times['plain'] / times['in place']:.2f} ×"
        print(f"| {V:,} | {times['plain'] * 1e3:.0f} | {ratio} | {plain:.0f} | {ours:.0f} | {ours / plain:.2f} |")
    print("\n| B, T, V, D | logits | plain, ms | in place |\n|---|---|---|---|")
    for B, T, V, D in sorted(SIZES, key=lambda size: size[0] * size[1] * size[2]):
        torch.manual_seed(0)
        module = Capped(GPT(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=D))
        times = medians(capped_ways(module, B, T, V), 3 * rounds)
        ratio = times["plain"] / times["in place"]
        print(f"| {B}, {T}, {V:,}, {D} | {B * T * V:,} | {times['plain'] * 1e3:.1f} | {ratio:.2f} × |", flush=True)


def memory() -> None:
    """Print how much the memory of a process grows."""
    print("| V | bare loop, MB | ours, MB | ratio |\n|---|---|---|---|")
    for V in (8192, 50_257):
        grown = {}
        for way in ("bare", "ours"):
            command = [sys.executable, __file__, "one", way, str(V)]
            grown[way] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"| {V:,} | {grown['bare']:.0f} | {grown['ours']:.0f} | {grown['ours'] / grown['bare']:.2f} |")


def one(way: str, vocab_size: int) -> None:
    """Four steps in this process; prints what its largest resident memory grew by, in MB."""
    if way in ("plain", "in place"):
        step = capped_ways(head_alone(vocab_size), 8, 256, vocab_size)[way]
        begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(4):
            step()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin) / 1024)
        return
    sys.path.insert(0, str(Path(__file__).parent))
    import train_loop

    importlib.import_module("benchmarks.contenders.ours")  # what a run imports is no growth
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "bare":
        module = GPT(vocab_size=vocab_size, block_size=train_loop.SMALL.T, n_layer=4, n_head=4, n_embd=256)
        loop = train_loop.BareLoop(module)
        for _ in range(4):
            loop(*torch.randint(0, vocab_size, (2, train_loop.SMALL.B, train_loop.SMALL.T)))
    else:
        train_loop.measure(4, vocab_size, beside=False)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("rows", "from", "capped", "memory", "one"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "rows":
        rows(given.rounds or 4)
    elif given.what == "from":
        pays_from(given.rounds or 12)
    elif given.what == "capped":
        capped(given.rounds or 4)
    elif given.what == "memory":
        memory()
    else:
        one(given.rest[0], int(given.rest[1]))


if __name__ == "__main__":
    main()
