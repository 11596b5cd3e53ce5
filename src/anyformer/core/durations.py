"""Lengths of time as people write them in a setting: 11h30m, 90m, 45s, 11:30:00."""

from __future__ import annotations

import re

from anyformer.core.errors import SettingsError

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PARTS = re.compile("".join(rf"(?:(\d+(?:\.\d+)?)\s*{unit}\s*)?" for unit in _UNITS))
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d)")


def seconds_of(text: str, name: str) -> float:
    """Seconds of a text like "1d12h", "11h30m", "90m", "2.5h", "45s" or "11:30:00" (hours:minutes:seconds).

    name: of the setting, for the SettingsError that any other text and no time at all raise. A plain number is refused:
    some read it as seconds, some as minutes.
    """
    wanted = text.strip().lower()
    if clock := _CLOCK.fullmatch(wanted):
        hours, minutes, rest = (int(part) for part in clock.groups())
        seconds = 3_600.0 * hours + 60 * minutes + rest
    elif wanted and (parts := _PARTS.fullmatch(wanted)):
        seconds = sum(
            float(number) * unit for number, unit in zip(parts.groups(), _UNITS.values(), strict=True) if number
        )
    else:
        plain = re.fullmatch(r"\d+(\.\d+)?", wanted)
        what = f"{name} is {text!r}; it has no unit" if plain else f"{name} is {text!r}; it is no length of time"
        fix = (
            f"{name}: {wanted}m for minutes, {wanted}s for seconds" if plain else f"{name}: 11h30m, 90m, 45s, 11:30:00"
        )
        raise SettingsError(what, fix=fix)
    if seconds <= 0:
        raise SettingsError(f"{name} is {text!r}; it must be longer than nothing")
    return seconds
