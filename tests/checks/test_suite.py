"""The functions of the API reference: which checks they run, what they print, what a configuration is for."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

from anyformer import UniversalModelAdapter, checks
from anyformer.checks import run_all_tests, run_all_tier1_tests, run_all_tier2_tests, runner
from tests.checks.hosts import GPT, POSITIONS, NoMask, V

LONGER = ("test_fine_tuning", "test_benchmark_comparison", "test_hyperparameter_search")  # in test_trials.py
NAMES = [name for name in checks.__all__ if name.startswith("test_") and name not in LONGER]


class Unmasked(GPT):
    attention = NoMask


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_checks_that_there_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = getattr(checks, name)(GPT())
    known = {label for listed in runner.TIERS.values() for label, _ in listed}
    ran = [result.name for result in report.results if result.name != "call"]
    assert ran
    assert set(ran) <= known
    source = inspect.getsource(getattr(checks, name))
    assert all(f'"{label}"' in source for label in ran)
    assert source.count('", "') + 1 == len(ran)  # none is misspelt and left out
    assert not report.causes
    printed = capsys.readouterr().out
    assert all(label in printed for label in ran)


def test_the_tiers_run_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert {result.tier for result in run_all_tier1_tests(GPT()).results} == {0, 1}
    second = run_all_tier2_tests(Unmasked())
    assert {result.tier for result in second.results if result.name != "call"} == {2}
    report = run_all_tests(Unmasked())
    assert report.causes[0].name == "future"
    assert "future" in capsys.readouterr().out
    waiting = {result.name: result for result in report.results}["noise"]
    assert (waiting.verdict, waiting.measured) == ("n/a", "not tried: mend future first")


def test_a_configuration_is_compared_with_the_module() -> None:
    right = {"vocab_size": V, "block_size": POSITIONS}
    for config, verdict in (
        *((right, "ok"), (SimpleNamespace(**right), "ok"), ({}, "n/a")),
        *(({"vocab_size": V + 1}, "warn"), ({"n_ctx": 5}, "warn")),
    ):
        (result,) = (r for r in checks.test_inference_speed(GPT(), config).results if r.name == "config")
        assert result.verdict == verdict
        assert result.tier == 0


def test_an_adapter_is_as_good_as_its_model() -> None:
    adapter = UniversalModelAdapter(GPT())
    report = run_all_tier1_tests(adapter)
    assert report.model == "GPT"
    assert report.plan is adapter.call_plan
    assert not report.causes
