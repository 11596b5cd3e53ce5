"""Encoder-decoders whose two texts must have one length: a certain one, or any.

B batch, T time.
"""

from __future__ import annotations

from itertools import islice

from anyformer.core.errors import CallError
from anyformer.models.blame import blame
from anyformer.models.calls.locating import Found
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.positions import candidates
from anyformer.models.calls.probing import Prober, changed_inputs, difference, tolerance
from anyformer.models.calls.seq2seq import (
    AS_SOURCE,
    DRAFTS_AT_A_LENGTH,
    by_forward,
    drafts,
    has_methods,
    names_two_sequences,
)
from anyformer.models.calls.unusual import refuses_others
from anyformer.models.inputs import Inputs
from anyformer.models.plan import CallPlan

_LENGTHS_TRIED, _LONGEST_TRIED = 3, 1024  # of those that the module names, for one that runs at no other


def find_at_one_length(prober: Prober, stated: Stated, failures: list[str]) -> Found | None:
    """The same for a module that runs at one length alone, of both sequences; where nothing else was found.

    failures: what was told before, of one that ran at usual lengths, too.
    """
    if has_methods(prober.module) or not names_two_sequences(prober.module, stated):
        return None
    if any(AS_SOURCE in failure for failure in failures):
        return None
    for L in [n for n in candidates(prober.module, []) if n <= _LONGEST_TRIED][:_LENGTHS_TRIED]:
        found = by_forward(prober, stated, [], (((2, L, L), (3, L, L)),))
        if found is not None and refuses_others(prober, found, L) and _writes(prober, found.plan):
            return found
        prober.sizes = ()
    return None


def refuse_equal_lengths(prober: Prober, stated: Stated, detail: str) -> None:
    """CallError where two texts of one length run, whatever that is, and others do not; where nothing was found."""
    if has_methods(prober.module) or not names_two_sequences(prober.module, stated):
        return

    def error(plan: CallPlan, T: int, S: int) -> Exception | None:
        ids = Inputs(prober.ids(2, T, 0, 3), target_ids=prober.ids(2, S, 1, 3))
        return prober.run(plan, ids)[1]

    for plan in islice(drafts(prober.module, stated), DRAFTS_AT_A_LENGTH):
        if not (error(plan, 7, 7) or error(plan, 9, 9)) and error(plan, 7, 5) and (apart := error(plan, 5, 7)):
            raise CallError(
                f"{type(prober.module).__name__} runs only where its two texts have the same length",
                f"{plan.token_arg} (2, 5) and {plan.target_arg} (2, 7):\n{blame(apart)}\n{detail}",
                f"source and target seldom have: let the attention between them take the length of {plan.token_arg} and"
                f" that of {plan.target_arg} each from its own tensor",
                check="source",
            )


def _writes(prober: Prober, plan: CallPlan) -> bool:
    """Whether the second text moves any logit: of two texts of one length its shape tells nothing."""
    T = prober.length
    inputs = prober.inputs(plan, 2, T, 1, T)
    base = prober.try_logits(plan, inputs)
    others = [prober.try_logits(plan, changed_inputs(prober, plan, inputs, t, target=True)) for t in (0, T // 2)]
    return base is not None and any(
        other is not None and bool((difference(base, other) > tolerance(base)).any()) for other in others
    )
