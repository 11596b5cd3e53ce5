"""What the model makes of the same prompts at three moments of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import TokenizerError
from anyformer.core.settings import TrainSettings
from anyformer.data.pairs import Ragged
from anyformer.evaluation._mode import evaluating
from anyformer.evaluation.generation import generate
from anyformer.evaluation.masked import likeliest
from anyformer.models.objectives import batch_logits
from anyformer.models.plan import CallPlan
from anyformer.runs.directory import RunDirectory
from anyformer.training.text import Text

SAMPLES = 3
NEW_TOKENS = 80
TEMPERATURE = 0.8
SECONDS = 20.0
"""Time allowed per moment; a large model on a slow device writes fewer samples rather than hold up its training."""
LOOK_TOKENS = 120
GAP_TOKENS = 24
GUESSES = 3
PROMPT_WORDS = 2
PROMPT_CHARACTERS = 24


def choose_prompts(setting: str | None, held_out: Any, tokenizer: Any, max_length: int) -> list[str]:
    """The user's prompt, or the beginnings of three lines spread over the held-out tokens."""
    if setting is not None:
        return [setting] * SAMPLES
    length = min(LOOK_TOKENS, max(1, max_length // 2))
    if held_out is None or len(held_out) < length:
        return [""] * SAMPLES
    places = [(len(held_out) - length) * (2 * i + 1) // (2 * SAMPLES) for i in range(SAMPLES)]
    return [_beginning(str(tokenizer.decode([int(t) for t in held_out[p : p + length]]))) for p in places]


def _beginning(text: str) -> str:
    """The first words of the first whole line that begins with a letter; of the text where there is none."""
    lines = [line.strip() for line in text.split("\n")[1:]]
    line = next((line for line in lines if line[:1].isalpha()), text.strip())
    return " ".join(line.split()[:PROMPT_WORDS])[:PROMPT_CHARACTERS]


def require_prompt(setting: str | None, tokenizer: Any) -> None:
    """TokenizerError for a prompt that the tokenizer cannot write: the model would read another one."""
    if setting is None or tokenizer is None:
        return
    ids = list(tokenizer.encode(setting))
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids and str(tokenizer.unk_token) not in setting:
        characters = " ".join(repr(c) for c in sorted(set(setting)) if unknown in list(tokenizer.encode(c)))
        raise TokenizerError(
            f"the prompt holds what the tokenizer cannot write: {characters or repr(setting)}",
            "the model would read an unknown-token there",
            "leave it out of the prompt",
        )


class SampleWriter:
    """Writes one sample per prompt and keeps the last moment's.

    answer: what the model makes of the prompt of that number, as it is now.
    """

    def __init__(self, run: RunDirectory, prompts: Sequence[str], answer: Callable[[int], str]) -> None:
        self.latest: list[dict[str, str]] = []
        self._run = run
        self._prompts = prompts
        self._answer = answer

    def __call__(self, step: int) -> None:
        """Sample after ``step`` optimizer steps, store and keep the texts (without the prompt)."""
        self.latest = []
        self._run.drop_samples_at(step)  # a run measured anew writes them anew
        begin = time.monotonic()
        for number, prompt in enumerate(self._prompts):
            if number and time.monotonic() - begin > SECONDS:
                return
            text = self._answer(number)
            self._run.append_sample(step, prompt, text)
            self.latest.append({"prompt": prompt, "text": text})


def sample_writer(
    run: RunDirectory, module: nn.Module, plan: CallPlan, text: Text, settings: TrainSettings, max_length: int
) -> SampleWriter | None:
    """What shows how the model does: continued prompts, filled gaps, translations, or classes of held-out texts.

    None where a foreign data module brings no tokenizer or nothing to show.
    """
    tokenizer = text.tokenizer
    if tokenizer is None:
        return None
    if text.objective == "causal":
        prompts = choose_prompts(settings.prompt, text.held_out, tokenizer, max_length)
        return SampleWriter(
            run, prompts, lambda number: _continue(module, plan, tokenizer, prompts[number], settings.seed + number)
        )
    if text.objective == "masked":
        gaps = _gaps(text, settings.prompt, min(max_length, GAP_TOKENS))
        return SampleWriter(run, [gap.prompt for gap in gaps], lambda n: _filled(module, plan, tokenizer, gaps[n]))
    if text.pairs is None:
        return None
    cases = _cases(text, settings.prompt, max_length)
    return SampleWriter(run, [case.prompt for case in cases], lambda n: _answered(module, plan, text, cases[n]))


def _continue(module: nn.Module, plan: CallPlan, tokenizer: Any, prompt: str, seed: int) -> str:
    ids = list(tokenizer.encode(prompt)) or [tokenizer.eos_token_id or 0]
    out = generate(
        module,
        plan,
        _tensor(module, ids),
        max_length=len(ids) + NEW_TOKENS,
        temperature=TEMPERATURE,
        eos_token_id=tokenizer.eos_token_id,
        generator=torch.Generator().manual_seed(seed),
    )
    new = [int(token) for token in out[0, len(ids) :] if int(token) != tokenizer.eos_token_id]
    return str(tokenizer.decode(new))


def _tensor(module: nn.Module, ids: Sequence[int]) -> Tensor:
    """(1, T) on the module's device."""
    return torch.tensor([list(ids)], device=_where(module))


def _where(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@dataclass(frozen=True)
class Gap:
    """A text with one hidden token."""

    prompt: str
    """The text with a line where the token was."""
    ids: list[int]
    place: int
    was: str
    """What was hidden; empty where nobody knows."""


def _gaps(text: Text, prompt: str | None, length: int) -> list[Gap]:
    """The user's text, or three parts of the held-out text, one token hidden in each."""
    assert text.masking is not None
    mask_id, tokenizer = text.masking.mask_id, text.tokenizer
    if prompt is not None:
        rows = [list(tokenizer.encode(prompt, add_special_tokens=False))]
    elif text.held_out is None or len(text.held_out) < length:
        return []
    else:
        spread = [(len(text.held_out) - length) * (2 * i + 1) // (2 * SAMPLES) for i in range(SAMPLES)]
        rows = [[int(token) for token in text.held_out[p : p + length]] for p in spread]
    gaps = []
    for ids in rows:
        open_places = [i for i, token in enumerate(ids) if token not in text.masking.special_ids]
        if mask_id in ids:
            place, was = ids.index(mask_id), ""
        elif open_places:
            # in the middle, and a word where there is one: a space or a comma shows little
            middle = sorted(open_places, key=lambda i: abs(i - len(ids) // 2))
            words = [i for i in middle if str(tokenizer.decode([ids[i]])).strip().isalpha()]
            place = (words or middle)[0]
            was = str(tokenizer.decode([ids[place]])).strip() or " "
        else:
            continue
        before, after = tokenizer.decode(ids[:place]), tokenizer.decode(ids[place + 1 :])
        gaps.append(Gap(f"{before} ____ {after}", [*ids[:place], mask_id, *ids[place + 1 :]], place, was))
    return gaps


def _filled(module: nn.Module, plan: CallPlan, tokenizer: Any, gap: Gap) -> str:
    """The three likeliest tokens, and the one that was hidden."""
    # an id beyond the tokenizer's is one that the model has and no text
    likely = likeliest(module, plan, _tensor(module, gap.ids), gap.place, GUESSES)
    guesses = " · ".join(
        str(tokenizer.decode([token])).strip() or repr(str(tokenizer.decode([token]))) for token in likely
    )
    return f"\n→ {guesses}" + (f"   (it was: {gap.was})" if gap.was else "")


@dataclass(frozen=True)
class Case:
    """A text to read, and what is right."""

    prompt: str
    ids: list[int]
    right: str
    """The class or the text to write; empty where nobody knows."""


def _cases(text: Text, prompt: str | None, max_length: int) -> list[Case]:
    """The user's text, or three held-out examples."""
    pairs, tokenizer = text.pairs, text.tokenizer
    assert pairs is not None
    if prompt is not None:
        return [Case(prompt, list(tokenizer.encode(prompt, add_special_tokens=False))[:max_length], "")]
    examples = pairs.val_examples
    chosen = sorted({len(examples) * (2 * i + 1) // (2 * SAMPLES) for i in range(SAMPLES)})
    cases = []
    for number in chosen:
        ids = [int(token) for token in examples.first.row(number)]
        if isinstance(examples.second, Ragged):
            right = str(tokenizer.decode([int(t) for t in examples.second.row(number)], skip_special_tokens=True))
        else:
            right = pairs.classes[int(examples.second[number])]
        cases.append(Case(str(tokenizer.decode(ids)), ids, right))
    return cases


def _answered(module: nn.Module, plan: CallPlan, text: Text, case: Case) -> str:
    """What the model writes, or the class it gives, and what is right."""
    pairs = text.pairs
    assert pairs is not None
    ids, mask = (each.to(_where(module)) for each in pairs.val_examples.padded(case.ids))
    if pairs.start_end is None:
        with evaluating(module):
            logits = batch_logits(module, plan, {"input_ids": ids, "attention_mask": mask})[0]
        best = int(logits.argmax())
        name = pairs.classes[best] if best < len(pairs.classes) else f"unused class {best}"
        return f"\n→ {name} ({float(logits.softmax(-1)[best]):.0%})" + (
            f"   (right: {case.right})" if case.right else ""
        )
    start, end = pairs.start_end
    out = generate(
        module,
        plan,
        ids,
        max_length=NEW_TOKENS,
        temperature=0.0,
        eos_token_id=end,
        start_token_id=start,
        attention_mask=mask,
    )
    written = str(text.tokenizer.decode([int(token) for token in out[0]], skip_special_tokens=True))
    return f"\n→ {written.strip()}" + (f"\n(right: {case.right.strip()})" if case.right else "")
