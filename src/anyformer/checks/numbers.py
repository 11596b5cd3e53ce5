"""Tier 1: number formats and initial weights.

V vocabulary.
"""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.checks.results import CheckResult, Series
from anyformer.checks.subject import Limits, Subject
from anyformer.core.errors import AnyformerError
from anyformer.core.findings import Verdict
from anyformer.models.blame import blame, here
from anyformer.models.calling import call_logits
from anyformer.models.calls.probing import difference, seeded
from anyformer.models.calls.properties import of_large_weights, squashed
from anyformer.models.probes import set_mode
from anyformer.models.source import load_model


def output(subject: Subject) -> CheckResult:
    """Logits, not what a softmax made of them."""
    kind, expected = subject.plan.kind, "raw logits"
    if kind == "probabilities":
        cause = "cross-entropy takes logits: without the softmax inside, training is exact (their logarithm is used)"
        return CheckResult("output", 1, "warn", "probabilities", expected, cause)
    limited = squashed(subject.prober, subject.plan, subject.batch(0))
    logits = torch.stack([subject.logits(subject.batch(seed)) for seed in subject.limits.seeds])
    if limited == "sigmoid" and subject.writes and float((logits.sum(-2) - 1).abs().max()) < 1e-4:
        cause = "softmax(dim=1) is over the axis of time: leave it out, cross-entropy takes logits"
        return CheckResult("output", 1, "fail", "a softmax over time", expected, cause)
    if limited:
        cause = f"the {limited} keeps logits within one unit of each other: no token can ever be likely; leave it out"
        return CheckResult("output", 1, "warn", f"numbers of a {limited}", expected, cause)
    if subject.writes and bool((logits >= 0).all()) and bool((logits == 0).any()):
        cause = "a ReLU at the end: a token's logit cannot fall below 0, and gets no gradient there; leave it out"
        return CheckResult("output", 1, "warn", "no logit is negative", expected, cause)
    if kind == "logits" and (found := _shaped(subject, logits)):
        return CheckResult("output", 1, "warn", found[0], expected, found[1])
    words = {"log_probabilities": "log-probabilities", "logits": "raw logits"}
    return CheckResult("output", 1, "ok" if kind == "logits" else "note", words.get(kind, str(kind)), expected)


def _shaped(subject: Subject, logits: Tensor) -> tuple[str, str] | None:
    """What was done to logits last, if it keeps them from being any number: what was measured, and the likely cause."""
    plan, V = subject.plan, subject.plan.vocab_size
    if plan.layout == "B" or V < 3:
        return None
    grown = of_large_weights(subject.prober, plan, subject.batch(0))
    capped = grown is not None and float((grown > 0.99 * grown.max()).float().mean()) > 0.1  # sigmoid times 30
    if grown is not None and not capped and float(grown.min()) > -1 and float(grown.max()) > _FAR:
        cause = "an activation at the end (GELU, SiLU, softplus …): no token can be unlikely; leave it out"
        return f"with weights a thousandfold none is below {float(grown.min()):.2g}", cause
    rows = logits.double().flatten(0, -2)
    if (
        V > _ENOUGH
        and float((rows.std(-1, correction=0) - 1).abs().max()) < 0.01
        and float(rows.mean(-1).abs().max()) < 0.01
    ):
        return (
            "each row has a mean of 0 and a spread of 1",
            "a norm on the logits: no token can be likely; leave it out",
        )
    if float((logits == 0).float().mean()) < _DROPPED:
        modes = [(m, m.training) for m in subject.awake.modules()]
        try:
            set_mode(subject.awake, True)
            share = float((subject.logits(subject.batch(0)) == 0).float().mean())
        finally:
            for part, mode in modes:
                part.training = mode
        if share > _DROPPED:
            return (
                f"in training mode {share:.0%} of the logits are 0",
                "dropout falls on the logits: put it before the head",
            )
    return None


_FAR = 10.0
_ENOUGH = 16  # numbers, of which a spread of exactly 1 is no chance
_DROPPED = 0.02


def start(subject: Subject) -> CheckResult:
    """Fresh weights know nothing: their loss on random targets is ln V."""
    name = "loss at the start"
    V, classes = subject.plan.vocab_size, subject.plan.family == "classifier"
    expected = f"within {subject.limits.start:g} of ln V = {math.log(V):.2f}"
    if subject.trained:
        return CheckResult(name, 1, "n/a", "the weights are not fresh ones", expected)
    losses = []
    for seed in subject.limits.seeds:
        inputs = subject.batch(seed, 4)
        logits = _as_it_is(subject, subject.module, inputs.input_ids, inputs.target_ids).float()
        shape = logits.shape[:-1]
        targets = torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed)).to(logits.device)
        losses.append(float(F.cross_entropy(logits.reshape(-1, V), targets.reshape(-1))))
    loss = statistics.fmean(losses)
    if not math.isfinite(loss) or abs(loss - math.log(V)) > subject.limits.start:
        cause = (
            "the weights begin too large: N(0, 1) of nn.Embedding tied to the head, or no initialisation at all;"
            " 0.02 is usual (GPT-2)"
        )
        if classes:
            cause = "the head's weights begin too large"
        return CheckResult(name, 1, "warn", f"{loss:.2f} nats on random targets", expected, cause)
    return CheckResult(name, 1, "ok", f"{loss:.2f} nats on random targets", expected)


def initial_weights(subject: Subject) -> CheckResult:
    """No matrix is constant, not finite, or far too large."""
    return weights_at_start(subject.module, subject.limits, subject.trained)


def weights_at_start(module: nn.Module, limits: Limits, trained: bool) -> CheckResult:
    """The same of a module that cannot be called."""
    name, expected = (
        "initial weights",
        f"finite, not constant, below {limits.widest:g} (standard deviation; embeddings apart)",
    )
    if trained:
        return CheckResult(name, 1, "n/a", "the weights are not fresh ones", expected)
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices = [(key, p) for key, p in module.named_parameters() if p.dim() > 1 and min(p.shape) > 4]
    zero = [key for key, p in matrices if not bool(p.detach().any())]
    if len(zero) > 1 and 2 * len(zero) > len(matrices):
        cause = "weights that begin at 0 stay alike; only the last one of a branch may: draw the others at random"
        return CheckResult(name, 1, "fail", f"{len(zero)} of {len(matrices)} matrices are 0", expected, cause, zero[0])
    if silent := _silent_norms(module):
        cause = "a weight of a norm begins at 1 (at 0 where 1 is added to it): nothing passes through it"
        measured = f"{len(silent)} norms give 0, whatever they read: {', '.join(silent[:3])}"
        return CheckResult(name, 1, "warn", measured, expected, cause, silent[0])
    broken, flat, wide = [], [], []
    for key, p in module.named_parameters():
        values = p.detach()
        if not bool(values.isfinite().all()):
            broken.append(key)
        elif p.dim() > 1 and min(p.shape) > 4:
            spread = float(values.float().std())
            if spread == 0 and bool(values.any()):
                flat.append(key)
            elif spread > limits.widest and id(p) not in tables and float(values.float().mean().abs()) < spread / 2:
                wide.append(f"{key} ({spread:.2g})")
    kinds: tuple[tuple[list[str], Verdict, str, str], ...] = (
        (broken, "fail", "not finite", "torch.empty without an initialisation, or a division"),
        (flat, "warn", "one value everywhere", "rows that begin alike stay alike: draw them at random"),
        (wide, "warn", "large", "nn.Parameter(torch.randn(…)) has a standard deviation of 1: scale it by 1/√fan-in"),
    )
    for places, verdict, what, cause in kinds:
        if places:
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            measured = f"{what}: {', '.join(places[:3])}{more}"
            return CheckResult(name, 1, verdict, measured, expected, cause, places[0].split(" ")[0])
    return CheckResult(name, 1, "ok", "finite, none constant, none large", expected, series=(_spreads(module),))


def _silent_norms(module: nn.Module) -> list[str]:
    """Norms that give 0 for anything, where they are more than half of all; the last of a branch may begin so."""
    silent, count = [], 0
    for name, part in module.named_modules():
        weights = list(part.parameters(recurse=False))
        if "norm" not in type(part).__name__.lower() or not weights or any(p.dim() != 1 for p in weights):
            continue
        count += 1
        if bool(torch.cat([p.detach().flatten() for p in weights]).any()):
            continue
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, weights[0].numel(), generator=generator).to(weights[0])
        try:
            with torch.no_grad():
                made = part(x)
        except Exception:  # noqa: BLE001  (a stranger's norm may want other shapes: then nothing is told)
            continue
        if isinstance(made, Tensor) and not bool(made.any()):
            silent.append(name)
    return silent if 2 * len(silent) > count else []


def _spreads(module: nn.Module) -> Series:
    """The standard deviation of each matrix."""
    named = [(key, p.detach().float()) for key, p in module.named_parameters() if p.dim() > 1]
    heights = tuple(float(values.std()) if values.numel() > 1 else 0.0 for _, values in named)
    return Series("bars", {"": heights}, tuple(key for key, _ in named), y_label="standard deviation")


def dropout(subject: Subject) -> CheckResult:
    """Training mode leaves something of the text."""
    name, expected = "dropout", f"below {_MOST:.0%}"
    rates = {n: m.p for n, m in subject.module.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd)}
    rates |= _called_dropout(subject)
    if not rates:
        return CheckResult(name, 0, "n/a", "it has no layer of dropout")
    place = max(rates, key=lambda n: rates[n])
    if rates[place] >= _MOST:
        cause = "nothing, or next to nothing, is left in training mode: a rate, not a share that is kept"
        verdict: Verdict = "fail" if rates[place] >= 1 else "warn"
        return CheckResult(name, 0, verdict, f"{place} drops {rates[place]:.0%}", expected, cause, place)
    return CheckResult(name, 0, "ok", f"{len(rates)} layers, up to {rates[place]:.0%}", expected)


def _called_dropout(subject: Subject) -> dict[str, float]:
    """Where F.dropout is called in training mode → its rate."""
    modes = [(m, m.training) for m in subject.awake.modules()]
    try:
        set_mode(subject.awake, True)
        dropped = _Dropped()
        with dropped:
            subject.prober.try_logits(subject.plan, subject.batch(0, 2))
    finally:
        for part, mode in modes:
            part.training = mode
    return dropped.rates


class _Dropped(TorchFunctionMode):
    """The rates of calls of F.dropout that drop."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: dict[str, float] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout:
            given = dict(zip(("input", "p", "training"), args, strict=False)) | (kwargs or {})
            line = here()
            if given.get("training", True) and line:
                self.rates.setdefault(line.partition(": ")[0], float(given.get("p", 0.5)))
        return func(*args, **(kwargs or {}))


class _Halved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The first line at which numbers of the text are turned into half precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.line = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.line and "_to_copy" in str(func) and isinstance(out, Tensor) and out.dim() > 2:
            halved = out.dtype in (torch.float16, torch.bfloat16) and args[0].dtype == torch.float32
            self.line = here() if halved else ""
        return out


_MOST = 0.75
"""Of what comes in; 0.5 is the highest rate in use (Srivastava et al. 2014)."""


def float64(subject: Subject) -> CheckResult:
    """In double precision it gives the same, but for rounding."""
    name, expected, inputs = "float64", "equal to a thousandth of the usual logit", subject.batch(0)
    if why := subject.no_room(8):
        return CheckResult(name, 1, "n/a", why, expected)
    try:
        double = copy.deepcopy(subject.awake).double()
    except Exception as error:  # noqa: BLE001  (a stranger's attributes may refuse to be copied in any way)
        return CheckResult(name, 1, "n/a", f"no copy can be made: {type(error).__name__}", expected)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        theirs = _as_it_is(subject, double, inputs.input_ids, inputs.target_ids)
    except Exception as error:  # noqa: BLE001  (a stranger's forward may raise anything; it is the result)
        line, _, words = blame(error).rpartition("\n")
        cause = "a number format is fixed there: .to(x.dtype) in place of .float() or dtype=torch.float32"
        return CheckResult(name, 1, "warn", words, expected, cause, line)
    finally:
        torch.set_default_dtype(before)
    with _Halved() as halved:
        ours = _as_it_is(subject, subject.awake, inputs.input_ids, inputs.target_ids)
    if halved.line:
        cause = "three digits are left of them: autocast chooses what may be computed so"
        return CheckResult(name, 1, "warn", "numbers are rounded to half precision", expected, cause, halved.line)
    scale = float(ours[ours.isfinite()].abs().median()) or 1.0
    apart = float(difference(ours.double(), theirs.double()).max()) / scale
    if not _numbers(theirs) or apart > 1e-3:
        cause = "it rounds much: a division by a small number, a sum that cancels, a half-precision part"
        return CheckResult(name, 1, "warn", f"{apart:.2g} of the usual logit apart", expected, cause)
    return CheckResult(name, 1, "ok", f"{apart:.1g} of the usual logit apart", expected)


def bfloat16(subject: Subject) -> CheckResult:
    """In bfloat16, as training in mixed precision computes, it runs and gives no NaN."""
    name, expected, inputs = "bfloat16", "it runs under autocast, every logit finite", subject.batch(0)
    try:
        with torch.autocast(inputs.input_ids.device.type, dtype=torch.bfloat16):
            logits = _as_it_is(subject, subject.awake, inputs.input_ids, inputs.target_ids)
    except Exception as error:  # noqa: BLE001  (a stranger's forward may raise anything; it is the result)
        line, _, words = blame(error).rpartition("\n")
        cause = "a number format is fixed there: .to(x.dtype) in place of .float() or dtype=torch.float32"
        return CheckResult(name, 1, "warn", words, expected, cause, line)
    if not _numbers(logits):
        cause = "a number there exceeds what 8 bits of mantissa tell apart: float32 for it alone"
        return CheckResult(name, 1, "warn", "NaN or infinite logits", expected, cause)
    return CheckResult(name, 1, "ok", "it runs, every logit finite", expected)


def _numbers(logits: Tensor) -> bool:
    """Whether no logit is NaN or infinite; −inf may be meant."""
    return bool((logits.isfinite() | (logits == -torch.inf)).all())


def _as_it_is(subject: Subject, module: nn.Module, ids: Tensor, target: Tensor | None) -> Tensor:
    seeded()
    with torch.no_grad():
        return call_logits(module, subject.plan, ids, target_ids=target)


def reload(subject: Subject) -> CheckResult:
    """Built anew with another seed, the saved weights give the same logits: nothing that counts is left out."""
    name, expected = "reload", "a new module with the saved weights gives the same logits"
    loaded = subject.loaded
    if loaded is None or loaded.provenance.kind == "module":
        return CheckResult(name, 1, "n/a", "given as an object: how it is built is not known", expected)
    if why := subject.no_room(4):
        return CheckResult(name, 1, "n/a", why, expected)
    try:
        other = load_model(subject.place, config=loaded.provenance.config, seed=10_007).module
        other.load_state_dict(subject.module.state_dict())
    except (AnyformerError, RuntimeError, KeyError) as error:
        return CheckResult(name, 1, "warn", f"{type(error).__name__}: {str(error)[:200]}", expected)
    other.eval()
    inputs = subject.batch(0)
    ours = _as_it_is(subject, subject.module, inputs.input_ids, inputs.target_ids)
    theirs = _as_it_is(subject, other, inputs.input_ids, inputs.target_ids)
    if ours.shape == theirs.shape and torch.equal(ours.nan_to_num(), theirs.nan_to_num()):
        return CheckResult(name, 1, "ok", "equal bit for bit", expected)
    cause = "something drawn at random is no parameter and no buffer: a layer in a list, a tensor attribute"
    return CheckResult(name, 1, "fail", "another seed gives other logits from the same weights", expected, cause)
