"""Tier 2: what a module learns in some hundred steps of a copy: two texts by heart, an answer that is known, no noise.

B batch, T time (of the text whose positions the logits belong to), V vocabulary, C classes.
"""

from __future__ import annotations

import copy
import io
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyformer.checks.results import CheckResult, Series
from anyformer.checks.stepper import Steps
from anyformer.checks.subject import Subject
from anyformer.models.calling import call_logits
from anyformer.models.inputs import Inputs
from anyformer.models.objectives import IGNORE_INDEX, next_token_targets

_SYMBOLS = 8
"""Ids of the tasks: few, so that little is to be learned but where to look."""
_BATCH = 16


def _cross_entropy(subject: Subject, module: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
    """Mean over targets (B, T), or (B,) of a classifier, in nats."""
    logits = call_logits(module, subject.plan, inputs.input_ids, target_ids=inputs.target_ids).float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE_INDEX)


def _symbols(subject: Subject, step: int, period: int | None = None) -> Inputs:
    """Random ids of few kinds, new at each step, 1 … 8: 0 may be padding. period: of the text, repeated."""
    inputs = subject.batch(step, _BATCH)
    read = subject.read(inputs)
    generator = torch.Generator().manual_seed(1_000_003 * (step + 1))
    ids = torch.randint(1, 1 + _SYMBOLS, read.shape, generator=generator)
    if period:
        ids = ids[:, :period].repeat(1, -(-read.shape[1] // period))[:, : read.shape[1]]
    return subject.with_read(inputs, ids.to(read))


def _cannot(subject: Subject, least: int = 6) -> str:
    """Why its tokens cannot be tasks; "" where they can."""
    if not subject.decodes or subject.plan.layout == "last" or subject.plan.packed:
        return "not for this kind of call"
    if subject.length < least or subject.ids <= _SYMBOLS + 1 or subject.plan.vocab_size <= _SYMBOLS + 1:
        return "its texts or its vocabulary are too small"
    return ""


_AGAIN = 20.0
"""Seconds within which a task that was not learned is tried with another seed: what is learned once can be learned."""


def _with_any_seed(subject: Subject, tried: Callable[[int], CheckResult]) -> CheckResult:
    """The first result that is no warning, of a seed after the other."""
    begin = time.monotonic()
    for seed in subject.limits.seeds:
        result = tried(seed)
        if result.verdict != "warn" or time.monotonic() - begin > _AGAIN:
            break
    return result


def overfit(subject: Subject) -> CheckResult:
    """Two texts are learned by heart."""
    return _with_any_seed(subject, lambda seed: _overfit(subject, seed))


def _overfit(subject: Subject, seed: int) -> CheckResult:
    name, expected = "overfit", f"a loss below {subject.limits.heart:.0%} of the first"
    inputs = subject.batch(seed, 2)
    read = subject.read(inputs)
    V, generator = subject.plan.vocab_size, torch.Generator().manual_seed(seed)
    if not subject.writes:
        targets = torch.arange(2) % V
    elif subject.decodes and subject.plan.layout != "last":
        targets = next_token_targets(read)
        if read.shape[1] < 2:
            return CheckResult(name, 2, "n/a", "its texts are of one token")
    else:
        targets = torch.randint(0, V, read.shape, generator=generator)
    targets = targets.to(read.device)
    done = Steps.of(subject.module)
    first = float(_cross_entropy(subject, done.module, inputs, targets).detach())
    aim = subject.limits.heart * first
    done.go(subject.limits.steps, lambda m, _: _cross_entropy(subject, m, inputs, targets), until=aim)
    last, steps = done.losses[-1], len(done.losses)
    if not math.isfinite(last):
        cause = "the loss is no number after some steps: a division, a logarithm, or logits that grow without limit"
        return CheckResult(name, 2, "fail", f"the loss is {last} after {steps} steps", expected, cause)
    if last <= aim:
        measured = f"from {first:.2f} to {last:.2f} nats in {steps} steps"
        return CheckResult(name, 2, "ok", measured, expected, series=(_curve(done.losses),))
    if steps < subject.limits.steps:
        return CheckResult(name, 2, "n/a", f"{steps} steps in the time there is, too few to tell", expected)
    cause = (
        "it cannot learn two texts: gradients that do not arrive, logits that are squashed, weights that begin far too"
        " large, dropout that hides too much"
    )
    return CheckResult(name, 2, "warn", f"{last:.2f} nats after {steps} steps, {first:.2f} before", expected, cause,
                       series=(_curve(done.losses),))  # fmt: skip


def _curve(losses: list[float], floor: float | None = None) -> Series:
    """The loss of each step. floor: what a guess costs."""
    level = {} if floor is None else {"a guess": (floor,)}
    return Series("line", {"loss": tuple(losses), **level}, tuple(range(1, len(losses) + 1)), "", "step", "nats")


def noise(subject: Subject) -> CheckResult:
    """On fresh noise no model does better than chance: one that does sees its targets."""
    name, floor = "noise", math.log(_SYMBOLS)
    expected = f"not below ln {_SYMBOLS} = {floor:.2f}, the loss of a guess"
    if why := _cannot(subject):
        return CheckResult(name, 2, "n/a", why, expected)

    def loss(module: nn.Module, step: int) -> Tensor:
        inputs = _symbols(subject, step)
        return _cross_entropy(subject, module, inputs, next_token_targets(subject.read(inputs)))

    done = Steps.of(subject.module).go(subject.limits.steps, loss)
    last = statistics.fmean(done.losses[-20:])
    if last < floor - subject.limits.beaten:
        cause = "in training it sees the token that it is to predict: a leak, or labels that are not shifted"
        return CheckResult(name, 2, "fail", f"{last:.2f} nats on random tokens", expected, cause,
                           series=(_curve(done.losses, floor),))  # fmt: skip
    measured = f"{last:.2f} nats after {len(done.losses)} steps"
    return CheckResult(name, 2, "ok", measured, expected, series=(_curve(done.losses, floor),))


def previous(subject: Subject) -> CheckResult:
    """The token before can be found, and told from others: order counts, and nothing is shifted twice."""
    name = "previous token"
    if why := _cannot(subject):
        return CheckResult(name, 2, "n/a", why)

    def loss(module: nn.Module, step: int) -> Tensor:
        inputs = _symbols(subject, step)
        read = subject.read(inputs)
        targets = torch.cat((torch.full_like(read[:, :1], IGNORE_INDEX), read[:, :-1]), dim=1)
        return _cross_entropy(subject, module, inputs, targets)

    cause = "positions are missing, or the same everywhere; or attention does not reach the token before"
    return _known(subject, name, loss, cause)


def repeated(subject: Subject) -> CheckResult:
    """A text that repeats itself is gone on with: the road from tokens to labels, shift included, is whole."""
    name, period = "copy", 3
    if why := _cannot(subject, 2 * period):
        return CheckResult(name, 2, "n/a", why)

    def loss(module: nn.Module, step: int) -> Tensor:
        inputs = _symbols(subject, step, period)
        read = subject.read(inputs)
        targets = next_token_targets(read)
        targets[:, : period - 1] = IGNORE_INDEX  # what no one can know
        return _cross_entropy(subject, module, inputs, targets)

    cause = "positions are missing, or attention does not reach far enough; or labels lie one place off"
    return _known(subject, name, loss, cause)


_TRIES = ((3e-3, 1), (1e-3, 3))
"""Learning rate, and how many times the steps: norms after the layers want it small, and stay on a plateau at first."""


def _known(subject: Subject, name: str, loss: Callable[[nn.Module, int], Tensor], cause: str) -> CheckResult:
    def tried(seed: int) -> CheckResult:
        return _learned(subject, name, lambda module, step: loss(module, 10_000 * seed + step), cause)

    return _with_any_seed(subject, tried)


def _learned(subject: Subject, name: str, loss: Callable[[nn.Module, int], Tensor], cause: str) -> CheckResult:
    floor, aim = math.log(_SYMBOLS), 0.5 * math.log(_SYMBOLS)
    expected = f"well below {floor:.2f} nats, what a guess costs"
    best, steps, whole = floor, 0, True
    for rate, times in _TRIES:
        wanted = times * subject.limits.steps
        done = Steps.of(subject.module, rate).go(wanted, loss, until=aim)
        steps += len(done.losses)
        best = min(best, statistics.fmean(done.losses[-20:]), done.losses[-1] if done.losses[-1] < aim else best)
        whole = whole and (len(done.losses) == wanted or done.losses[-1] < aim)
        if best < subject.limits.learned * floor:
            measured = f"{best:.2f} nats after {steps} steps"
            return CheckResult(name, 2, "ok", measured, expected, series=(_curve(done.losses, floor),))
    if not whole:
        return CheckResult(name, 2, "n/a", f"{steps} steps in the time there is, too few to tell", expected)
    drawn = (_curve(done.losses, floor),)
    return CheckResult(name, 2, "warn", f"{best:.2f} nats after {steps} steps", expected, cause, series=drawn)


def goes_on(subject: Subject) -> CheckResult:
    """Saved and loaded in the middle, training ends with the same weights."""
    name, expected = "save and go on", "3 steps, save, load, 3 steps = 6 steps"
    inputs = [subject.batch(step, 2) for step in range(6)]
    V = subject.plan.vocab_size

    def loss(module: nn.Module, step: int) -> Tensor:
        logits = call_logits(module, subject.plan, inputs[step].input_ids, target_ids=inputs[step].target_ids)
        generator = torch.Generator().manual_seed(step)
        targets = torch.randint(0, V, logits.shape[:-1], generator=generator).to(logits.device)
        return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())

    whole = Steps.of(subject.module).go(6, loss)
    half = Steps.of(subject.module).go(3, loss)
    if len(whole.losses) < 6 or len(half.losses) < 3:
        return CheckResult(name, 2, "n/a", "too slow to tell", expected)
    file = io.BytesIO()
    torch.save({"module": half.module.state_dict(), "optimizer": half.optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    rest = Steps.of(subject.module)
    rest.module.load_state_dict(state["module"])
    rest.optimizer.load_state_dict(state["optimizer"])
    rest.losses = list(half.losses)
    rest.go(3, loss)
    theirs = dict(rest.module.state_dict())
    apart = [k for k, v in whole.module.state_dict().items() if not torch.equal(v.nan_to_num(), theirs[k].nan_to_num())]
    if not apart:
        return CheckResult(name, 2, "ok", "equal bit for bit", expected)
    cause = "something that training changes is no parameter and no buffer, and is not saved: register_buffer"
    return CheckResult(name, 2, "warn", f"{len(apart)} tensors differ: {apart[0]}", expected, cause, apart[0])


def recomputed(subject: Subject) -> CheckResult:
    """Computed a second time for the backward pass (activation checkpointing), gradients are the same."""
    name, expected = "checkpointing", "the same gradients as without"
    inputs = subject.batch(0, 2)
    module = copy.deepcopy(subject.awake)

    def gradients(again: bool) -> list[Tensor | None]:
        torch.manual_seed(0)

        def run(ids: Tensor) -> Tensor:
            return call_logits(module, subject.plan, ids, target_ids=inputs.target_ids)

        with torch.enable_grad(), subject.training_of(module), torch.autograd.set_detect_anomaly(True, check_nan=True):
            logits = checkpoint(run, inputs.input_ids, use_reentrant=False) if again else run(inputs.input_ids)
            wanted = [p for p in module.parameters() if p.requires_grad]
            return list(torch.autograd.grad(logits.float().logsumexp(-1).sum(), wanted, allow_unused=True))

    plain, twice = gradients(False), gradients(True)
    largest = max((float(g.abs().max()) for g in plain if g is not None), default=0.0)
    for (key, _), one, two in zip(module.named_parameters(), plain, twice, strict=False):
        if (one is None) != (two is None) or (one is not None and two is not None and _far(one, two, largest)):
            cause = "what forward computes a second time differs: a state it keeps, or numbers drawn anew"
            return CheckResult(name, 2, "warn", f"another gradient for {key}", expected, cause, key)
    return CheckResult(name, 2, "ok", "the same, and no NaN on the way", expected)


def _far(one: Tensor, two: Tensor, largest: float) -> bool:
    return float((one - two).abs().max()) > 1e-5 * largest
