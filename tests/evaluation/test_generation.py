"""Generated ids against a naive loop that calls the module itself, and the sampler against transformers' warpers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError, SettingsError
from anyformer.evaluation import generate, stream
from anyformer.evaluation.generation import Sampler
from anyformer.models.callplan import CallPlan
from tests.evaluation.known_models import CausalMean

PROMPT = torch.tensor([[3, 1, 4], [1, 5, 9]])


def naive_greedy(model: CausalMean, prompt: Tensor, max_length: int) -> list[list[int]]:
    rows = []
    model.eval()
    for row in prompt.tolist():
        while len(row) < max_length:
            row.append(int(model(torch.tensor([row[-12:]]))[0, -1].argmax()))
        rows.append(row)
    return rows


def test_greedy_equals_a_naive_loop_beyond_the_models_positions(model: CausalMean, plan: CallPlan) -> None:
    ids = generate(model.train(), plan, PROMPT, max_length=20, temperature=0)
    assert model.training
    assert model.longest == 12
    assert ids.tolist() == naive_greedy(model, PROMPT, 20)


def test_sampling_follows_the_softmax(model: CausalMean, plan: CallPlan) -> None:
    draws = 40_000
    prompt = torch.tensor([[3, 1, 4]]).expand(draws, 3)
    ids = generate(model, plan, prompt, max_length=4, temperature=1.7, generator=torch.Generator().manual_seed(0))
    wanted = (model.eval()(prompt[:1])[0, -1].double() / 1.7).softmax(-1)
    seen = torch.bincount(ids[:, 3], minlength=23) / draws
    # 5 standard deviations of a binomial share
    assert torch.all((seen - wanted).abs() < 5 * (wanted * (1 - wanted) / draws).sqrt() + 1e-4)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, 1.0),
        (0.7, 5, 1.0),
        (1.3, None, 0.8),
        (0.9, 7, 0.6),
        (1.0, 1, 1.0),
        (1.0, 99, 1e-9),
        (1e-6, None, 1.0),
    ],
)
def test_probabilities_equal_transformers(temperature: float, top_k: int | None, top_p: float) -> None:
    from transformers.generation import logits_process as hf

    scores = torch.randn(4, 23, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    warpers = [hf.TemperatureLogitsWarper(temperature)]
    warpers += [hf.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    wanted = scores
    for warper in warpers:
        wanted = warper(torch.zeros(4, 1, dtype=torch.long), wanted)
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(sampler.probabilities(scores), wanted.softmax(-1), rtol=1e-9, atol=1e-12)


class Counting(nn.Module):
    """Always predicts the next integer, so that where a row ends is known."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return nn.functional.one_hot((input_ids + 1) % 23, 23).float() * 100


def test_ended_rows_are_filled_and_the_result_ends_with_the_last(plan: CallPlan) -> None:
    ids = generate(Counting(), plan, torch.tensor([[5], [8]]), max_length=30, temperature=0, eos_token_id=10)
    assert ids.tolist() == [[5, 6, 7, 8, 9, 10], [8, 9, 10, 10, 10, 10]]


def test_an_end_token_in_the_prompt_ends_nothing(plan: CallPlan) -> None:
    ids = generate(Counting(), plan, torch.tensor([[10]]), max_length=4, temperature=0, eos_token_id=10)
    assert ids.tolist() == [[10, 11, 12, 13]]


def test_a_prompt_that_fills_the_length_comes_back(plan: CallPlan) -> None:
    assert generate(Counting(), plan, PROMPT, max_length=2).tolist() == PROMPT.tolist()


def test_stream_gives_what_generate_appends(model: CausalMean, plan: CallPlan) -> None:
    row = PROMPT[:1]
    whole = generate(model, plan, row, max_length=18, eos_token_id=2, generator=torch.Generator().manual_seed(7))
    piecewise = stream(model, plan, row, max_length=18, eos_token_id=2, generator=torch.Generator().manual_seed(7))
    assert list(piecewise) == whole[0, 3:].tolist()


def test_stream_is_lazy_and_leaks_no_mode_between_tokens(model: CausalMean, plan: CallPlan) -> None:
    model.train()
    ids = stream(model, plan, PROMPT[:1], max_length=10)
    next(ids)
    assert model.longest == 3
    assert model.training
    assert torch.is_grad_enabled()


def test_seeds_repeat_and_the_global_state_is_untouched(model: CausalMean, plan: CallPlan) -> None:
    before = torch.get_rng_state()
    twice = [generate(model, plan, PROMPT, max_length=12, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    free = [generate(model, plan, PROMPT, max_length=40, temperature=2.0) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*twice)
    assert not torch.equal(*free)


def test_ids_beyond_the_embedding_are_never_chosen(plan: CallPlan) -> None:
    class Padded(CausalMean):
        def forward(self, input_ids: Tensor) -> Tensor:
            logits = super().forward(input_ids)
            return torch.cat([logits, torch.full_like(logits[..., :3], 50.0)], dim=-1)

    assert int(generate(Padded(), replace(plan, vocab_size=26), PROMPT, max_length=12).max()) < 23


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_values_out_of_range_are_named(model: CausalMean, plan: CallPlan, wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        generate(model, plan, PROMPT, max_length=5, **wrong)


def test_an_empty_prompt_and_nan_logits_say_so(model: CausalMean, plan: CallPlan) -> None:
    with pytest.raises(SettingsError, match="at least one token"):
        generate(model, plan, torch.zeros(1, 0, dtype=torch.long), max_length=5)
    with torch.no_grad():
        model.head.bias[3] = torch.nan
    with pytest.raises(CallError, match="NaN"):
        generate(model, plan, PROMPT, max_length=5)
