"""Whether the logits at each place follow from the tokens that are given, or from the model's own predictions.

Trained on the next token, a decoder is told each token that came before (teacher forcing). One that goes on from what
it predicted itself, always, in eval mode or by chance, has another objective, and its held-out loss is another number.
B batch, T time, V vocabulary.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.calls.causal import Sight, in_training, middling
from anyformer.models.calls.masks import with_argument
from anyformer.models.calls.names import parameters_of
from anyformer.models.calls.options import source_of
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.precise import eager
from anyformer.models.calls.probing import Prober, difference, tolerance
from anyformer.models.plan import Argument, CallPlan

_NAME = re.compile(
    r"teacher|forcing|(^|_)tf_?(ratio|rate|prob\w*|p)?$|sched\w*_?sampl\w*|sampling_?(prob\w*|ratio|rate)",
    re.IGNORECASE,
)
_OWN_PREDICTION = re.compile(r"argmax|topk|multinomial|\.max\(|Categorical")
_DRAWS = 4
_MOST = 0.9
"""Of the tokens, how many must move logits in every random state; dropout is off while they are counted."""
_HALF = 0.5


def is_forcing(name: str) -> bool:
    """Whether an argument of this name says how often the given tokens are read."""
    return bool(_NAME.search(name))


def forcing_parameters(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Those that say how often the given tokens are read."""
    return [p for p in parameters if is_forcing(p.name)]


def forced(parameter: inspect.Parameter) -> list[Argument]:
    """Its values: always first; never, where the name counts the other way."""
    if isinstance(parameter.default, bool):
        values: tuple[object, ...] = (True, False)
    elif isinstance(parameter.default, int | float):
        values = (1.0, 0.0)
    else:
        values = (1.0, True, 0.0, False)
    return [Argument(parameter.name, "constant", "", value=value) for value in values]


def settle_forcing(prober: Prober, plan: CallPlan, said: Stated) -> tuple[CallPlan, list[Finding]]:
    """The plan with the first value of such an argument with which every token is read, whatever is drawn."""
    taken = (plan.token_arg.lstrip("*"), plan.target_arg, plan.targets_arg, *said.arguments)
    findings = []
    for parameter in forcing_parameters(parameters_of(prober.module)):
        if parameter.name in taken or plan.methods or plan.graph is not None or plan.family == "classifier":
            continue
        for argument in forced(parameter):
            candidate = with_argument(plan, argument)
            if _reads_all(prober, candidate):
                plan = candidate
                why = "with it the logits follow from the tokens given, in every random state"
                findings.append(Finding("teacher forcing", "ok", argument.text(), reason=why))
                break
    return plan, findings


def order_findings(prober: Prober, plan: CallPlan, sight: Sight) -> list[Finding]:
    """Fail where logits[t] do not follow from the tokens up to t: predictions are fed back, or the input is delayed."""
    if plan.family == "classifier" or not sight.causal:
        return []
    target = plan.family == "encoder_decoder"
    token = "target token" if target else "token"
    with eager(prober.module):
        if sight.touched < _HALF:
            return [_not_touched(prober, plan, sight, token)]
        return _by_chance(prober, plan, target, token)


def _not_touched(prober: Prober, plan: CallPlan, sight: Sight, token: str) -> Finding:
    """Most tokens do not move their own logits, in eval mode."""
    target = plan.family == "encoder_decoder"
    trained = in_training(prober, plan, target=target)
    _, one, more, none = sight.first
    counted = sum(sight.first)
    text = f"{counted - sight.first[0]} of {counted} {token}s do not move their own logits in eval mode"
    if _random(prober, plan, training=False):
        why = "by chance it goes on from its own predictions: another objective; " + _advice(prober.module)
        return Finding("teacher forcing", "fail", text, "they do, whatever is drawn", why)
    if max(trained.touched, _shifted(prober, plan, target)) >= _HALF and trained.checked:
        why = "in training mode they do: in eval mode it goes on from its own predictions; " + _advice(prober.module)
        return Finding("teacher forcing", "fail", text, "they do in both modes", why)
    if none >= max(one, more):
        why = "it goes on from its own predictions, or reads nothing of them; " + _advice(prober.module)
        return Finding("teacher forcing", "fail", f"{none} of {counted} {token}s move no logits", "they do", why)
    later = 2 if more >= one else 1
    told = 1 if plan.alignment == "own" else 0
    text = f"logits[t] do not depend on {token} t, nor on t - 1" if later == 2 else f"not on {token} t"
    text = text if not told else f"{text}, where it is shifted right inside already"
    why = "the input is delayed by two inside: trained on the next token it would skip one; shift it once, not twice"
    return Finding("order", "fail", text, f"they depend on the {token}s up to t", why)


def _shifted(prober: Prober, plan: CallPlan, target: bool) -> float:
    """Share of the tokens that are read in training mode, where the input is shifted right there."""
    if plan.alignment == "own":
        return 0.0
    return in_training(prober, replace(plan, alignment="own"), target=target).touched


def _by_chance(prober: Prober, plan: CallPlan, target: bool, token: str) -> list[Finding]:
    """Tokens that are read in some random states only."""
    drawn = {"eval": _random(prober, plan, training=False), "training": _random(prober, plan, training=True)}
    shares = {"eval": 1.0, "training": 1.0}
    for draw in range(_DRAWS):
        if drawn["eval"]:
            shares["eval"] = min(shares["eval"], middling(prober, plan, target=target, draw=draw).touched)
        if drawn["training"] or draw == 0:
            seen = in_training(prober, plan, target=target, draw=draw)
            shares["training"] = min(shares["training"], seen.touched)
    mode = min(shares, key=lambda m: shares[m])
    if shares[mode] >= _MOST:
        return []
    if not drawn["training"] and shares[mode] < _HALF:
        text = f"in training mode {shares[mode]:.0%} of the {token}s move their own logits, in eval mode all"
        why = "it shifts its input, or goes on from its own predictions, in training mode alone: do the same in both"
        return [Finding("order", "fail", text, "the same in both modes", why)]
    named = _switches(prober.module)
    source = " ".join(source_of(m) for m in prober.module.modules() if not type(m).__module__.startswith("torch."))
    text = f"in {mode} mode only {shares[mode]:.0%} of the {token}s move their own logits, in one of {_DRAWS} draws"
    if named or _OWN_PREDICTION.search(source) or mode == "eval":
        why = "by chance it goes on from its own predictions: another objective; " + _advice(prober.module)
        return [Finding("teacher forcing", "fail", text, "all, whatever is drawn", why)]
    why = "tokens are left out by chance: word dropout, perhaps; what it predicts is the next token all the same"
    return [Finding("teacher forcing", "warn", text, "all, whatever is drawn", why)]


def _reads_all(prober: Prober, plan: CallPlan) -> bool:
    target = plan.family == "encoder_decoder"
    if _random(prober, plan, training=False) or _random(prober, plan, training=True):
        return False
    own = replace(plan, alignment="own")
    plans = [plan, own] if plan.alignment == "next" else [plan]
    return any(
        min(middling(prober, p, target=target).touched, in_training(prober, p, target=target).touched) >= _MOST
        for p in plans
    )


def _random(prober: Prober, plan: CallPlan, *, training: bool) -> bool:
    """Whether the logits of one batch differ between random states, dropout apart."""
    T = prober.fixed or max(4, min(8, prober.length))
    inputs = prober.inputs(plan, 2, T, 1, T)
    modes = [(m, m.training) for m in prober.module.modules()]
    try:
        for part, _ in modes:
            part.training = training and not isinstance(part, nn.modules.dropout._DropoutNd)
        drawn = [prober.try_logits(plan, inputs, seed=seed) for seed in range(_DRAWS)]
    finally:
        for part, mode in modes:
            part.training = mode
    first = drawn[0]
    return first is not None and any(other is not None and _moved(first, other) for other in drawn[1:])


def _moved(first: Tensor, other: Tensor) -> bool:
    return first.shape != other.shape or float(difference(first, other).max()) > tolerance(first)


def _switches(module: nn.Module) -> list[str]:
    """Numbers and switches of that name which the module keeps: "teacher_forcing_ratio = 0.5"."""
    found = {f"{k} = {v}": None for m in module.modules() for k, v in vars(m).items() if _is_switch(k, v)}
    return list(found)


def _is_switch(name: str, value: object) -> bool:
    return isinstance(value, bool | int | float) and name != "training" and is_forcing(name)


def _advice(module: nn.Module) -> str:
    arguments = [p.name for p in forcing_parameters(parameters_of(module))]
    if arguments:
        return f"no value of {arguments[0]} makes it read every token"
    kept = _switches(module)
    if kept:
        return f"it keeps {kept[0]}: always read the given tokens (1.0, as it is usually meant)"
    return "let forward read the given tokens in both modes, and write a generate() for its own"
