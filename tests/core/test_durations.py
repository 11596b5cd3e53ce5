"""Lengths of time as they are written in settings."""

from __future__ import annotations

from datetime import timedelta

import pytest

from anyformer.core.durations import seconds_of
from anyformer.core.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("11h30m", timedelta(hours=11, minutes=30)),
        ("11h 30m", timedelta(hours=11, minutes=30)),
        ("90m", timedelta(minutes=90)),
        ("2h", timedelta(hours=2)),
        ("45s", timedelta(seconds=45)),
        ("1.5H", timedelta(minutes=90)),
        ("1d2h3m4s", timedelta(days=1, hours=2, minutes=3, seconds=4)),
        ("11:30:00", timedelta(hours=11, minutes=30)),
        ("0:00:45", timedelta(seconds=45)),
        ("100:00:01", timedelta(hours=100, seconds=1)),
    ],
)
def test_lengths(text: str, length: timedelta) -> None:
    assert seconds_of(text, "max_time") == length.total_seconds()


@pytest.mark.parametrize("text", ["90", "1.5", " 7 "])
def test_a_number_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"max_time is .* it has no unit") as caught:
        seconds_of(text, "max_time")
    assert f"{text.strip()}m for minutes" in caught.value.fix


@pytest.mark.parametrize("text", ["", "soon", "11:30", "1:60:00", "30m2h", "-5m", "5 minutes", "1e3s", "h"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"save_every is .* it is no length of time"):
        seconds_of(text, "save_every")


@pytest.mark.parametrize("text", ["0s", "0:00:00", "0h0m"])
def test_nothing_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="longer than nothing"):
        seconds_of(text, "max_time")
