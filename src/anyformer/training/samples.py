"""What the model writes: the same prompts at three moments of training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from anyformer.core.errors import TokenizerError
from anyformer.evaluation.generation import generate
from anyformer.models.callplan import CallPlan
from anyformer.runs.directory import RunDirectory

SAMPLES = 3
NEW_TOKENS = 80
TEMPERATURE = 0.8
SECONDS = 20.0
"""Time allowed per moment; a large model on a slow device writes fewer samples rather than hold up its training."""
LOOK_TOKENS = 120
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
    """Writes one sample per prompt and keeps the last moment's."""

    def __init__(
        self, run: RunDirectory, module: nn.Module, plan: CallPlan, tokenizer: Any, prompts: Sequence[str], seed: int
    ) -> None:
        self.latest: list[dict[str, str]] = []
        self._run = run
        self._module = module
        self._plan = plan
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._seed = seed

    def __call__(self, step: int) -> None:
        """Sample after ``step`` optimizer steps, store and keep the texts (without the prompt)."""
        self.latest = []
        self._run.drop_samples_at(step)  # a run measured anew writes them anew
        begin = time.monotonic()
        for number, prompt in enumerate(self._prompts):
            if number and time.monotonic() - begin > SECONDS:
                return
            text = self._continue(prompt, self._seed + number)
            self._run.append_sample(step, prompt, text)
            self.latest.append({"prompt": prompt, "text": text})

    def _continue(self, prompt: str, seed: int) -> str:
        ids = list(self._tokenizer.encode(prompt)) or [self._tokenizer.eos_token_id or 0]
        device = next((parameter.device for parameter in self._module.parameters()), torch.device("cpu"))
        input_ids = torch.tensor([ids], device=device)
        out = generate(
            self._module,
            self._plan,
            input_ids,
            max_length=len(ids) + NEW_TOKENS,
            temperature=TEMPERATURE,
            eos_token_id=self._tokenizer.eos_token_id,
            generator=torch.Generator().manual_seed(seed),
        )
        new = [int(token) for token in out[0, len(ids) :] if int(token) != self._tokenizer.eos_token_id]
        return str(self._tokenizer.decode(new))
