"""Line charts drawn on the server: the curves are a stretched SVG, the words around them HTML of constant size.

A chart that scales as one picture has unreadable labels on a phone; here only the curves scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]
MAX_POINTS = 600  # per curve: more than the pixels of a page's width show
_SIDE = 1000.0  # the SVG's own units in both directions; it is stretched to its box
_LABEL = 17.0  # height of a label in pixels


@dataclass(frozen=True)
class Curve:
    """One curve; a y that is not finite leaves a gap."""

    name: str
    points: Sequence[Point]
    style: str
    """CSS class: "main" or "quiet"."""


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line."""

    name: str
    value: float


def line_chart(
    curves: Sequence[Curve],
    levels: Sequence[Level] = (),
    *,
    title: str,
    number: Callable[[float], str],
    height: int = 280,
    log: bool = False,
    from_zero: bool = False,
) -> Markup:
    """A chart over optimizer steps as an HTML figure; empty where no curve has a finite point.

    number: how values are written. height: pixels. log: both axes logarithmic (a power law is then a straight line).
    from_zero: the vertical axis begins at 0.
    """
    kept = [Curve(curve.name, downsample(_drawable(curve.points, log)), curve.style) for curve in curves]
    kept = [curve for curve in kept if any(math.isfinite(y) for _, y in curve.points)]
    if not kept:
        return Markup("")
    levels = [level for level in levels if math.isfinite(level.value) and (level.value > 0 or not log)]
    xs = [x for curve in kept for x, _ in curve.points]
    ys = [y for curve in kept for _, y in curve.points if math.isfinite(y)] + [level.value for level in levels]
    x_axis = _Axis(min(xs), max(xs), log=log)
    y_axis = _Axis(0.0 if from_zero and not log else min(ys), max(ys), log=log, pad=0.05)
    parts = [_svg(kept, levels, x_axis, y_axis)]
    parts += [_tick("y", "top", 1 - y_axis.at(tick), short(tick)) for tick in y_axis.ticks(5)]
    parts += [_tick("x", "left", x_axis.at(tick), short(tick)) for tick in x_axis.ticks(4) if tick.is_integer()]
    parts += _end_labels(kept, levels, y_axis, number, height)
    return Markup(
        '<div class="chart" role="img" aria-label="{}" style="height:{}px"><div class="plot">{}</div></div>'
    ).format(_spoken(title, kept, levels, number), height, Markup("").join(parts))


def downsample(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most ``limit`` points: smallest and largest of each bucket, in order, so that no spike is lost.

    A bucket without a finite value stays one gap. First and last point are kept.
    """
    if len(points) <= limit:
        return list(points)
    buckets = (limit - 2) // 2
    inner = points[1:-1]
    kept = [points[0]]
    for index in range(buckets):
        bucket = inner[index * len(inner) // buckets : (index + 1) * len(inner) // buckets]
        finite = [point for point in bucket if math.isfinite(point[1])]
        if not finite:
            kept.append((bucket[0][0], math.nan))
            continue
        low, high = min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])
        kept += sorted({low, high})
    return [*kept, points[-1]]


def short(value: float) -> str:
    """A tick's number in few characters: 0, 0.5, 12, 1,200, 150k, 2.5M, 3e-4."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 999_500:
        return f"{value / 1e6:g}M"
    if size >= 100_000:
        return f"{value / 1e3:g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 0.01:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


class _Axis:
    def __init__(self, low: float, high: float, *, log: bool, pad: float = 0.0) -> None:
        self._log = log
        start, end = self._scale(low), self._scale(high)
        if start == end:  # a single value: in the middle
            room = 0.5 if log else abs(start) * 0.1 or 1.0
            start, end = start - room, end + room
        margin = (end - start) * pad
        # an axis that begins at 0 keeps its 0 at the very bottom
        self._start = start if low == 0 and not log else start - margin
        self._end = end + margin

    def _scale(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def at(self, value: float) -> float:
        """Position from 0 to 1."""
        return (self._scale(value) - self._start) / (self._end - self._start)

    def ticks(self, count: int) -> list[float]:
        """Round values inside the axis, about ``count``."""
        if self._log:
            powers = range(math.floor(self._start), math.ceil(self._end) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
                values = [float(f"{step}e{power}") for power in powers for step in steps]
                values = [value for value in values if self._start <= math.log10(value) <= self._end]
                if len(values) >= 3:
                    return values[:: math.ceil(len(values) / (count + 2))]
            return _round_values(10**self._start, 10**self._end, count)
        return _round_values(self._start, self._end, count)


def _round_values(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _drawable(points: Sequence[Point], log: bool) -> list[Point]:
    ordered = sorted((point for point in points if math.isfinite(point[0])), key=lambda point: point[0])
    if not log:
        return ordered
    return [(x, y if y > 0 else math.nan) for x, y in ordered if x > 0]


def _svg(curves: Sequence[Curve], levels: Sequence[Level], x_axis: _Axis, y_axis: _Axis) -> Markup:
    paths = []
    for tick in y_axis.ticks(5):
        paths.append(_path("grid", f"M0 {_y(y_axis, tick)}H1000"))
    for level in levels:
        paths.append(_path("level", f"M0 {_y(y_axis, level.value)}H1000"))
    for curve in curves:
        line, dots = _outline(curve.points, x_axis, y_axis)
        if line:
            paths.append(_path(curve.style, line))
        if dots:
            paths.append(_path(f"{curve.style} dot", dots))
    return Markup('<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{}</svg>').format(
        Markup("").join(paths)
    )


def _path(style: str, outline: str) -> Markup:
    return Markup('<path class="{}" d="{}" vector-effect="non-scaling-stroke"/>').format(style, outline)


def _outline(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> tuple[str, str]:
    """Path data of the joined points, and of the dots: points that stand alone between gaps."""
    runs: list[list[str]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append(f"{x_axis.at(x) * _SIDE:.1f} {_y(y_axis, y)}")
        elif runs[-1]:
            runs.append([])
    line = "".join("M" + "L".join(run) for run in runs if len(run) > 1)
    # a path of no length with round ends is a dot that stays round however the SVG is stretched
    dots = "".join(f"M{run[0]}h0" for run in runs if len(run) == 1)
    return line, dots


def _y(axis: _Axis, value: float) -> str:
    return f"{(1 - axis.at(value)) * _SIDE:.1f}"


def _tick(kind: str, edge: str, position: float, text: str) -> Markup:
    return Markup('<span class="{}" style="{}:{:.2f}%">{}</span>').format(kind, edge, position * 100, text)


def _end_labels(
    curves: Sequence[Curve], levels: Sequence[Level], axis: _Axis, number: Callable[[float], str], height: int
) -> list[Markup]:
    wanted = [(1 - axis.at(_last(curve)), curve.style, curve.name, _last(curve)) for curve in curves]
    wanted += [(1 - axis.at(level.value), "level", level.name, level.value) for level in levels]
    wanted.sort(key=lambda label: label[0])
    places = spread([label[0] for label in wanted], _LABEL / height)
    return [
        Markup('<span class="end {}" style="top:{:.2f}%">{} <b>{}</b></span>').format(
            style, place * 100, name, number(value)
        )
        for place, (_, style, name, value) in zip(places, wanted, strict=True)
    ]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending positions in [0, 1] moved apart to at least ``gap`` (1/n where there is no room for that)."""
    gap = min(gap, 1 / max(len(places), 1))
    moved = list(places)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    limit = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def _last(curve: Curve) -> float:
    return next(y for _, y in reversed(curve.points) if math.isfinite(y))


def _spoken(title: str, curves: Sequence[Curve], levels: Sequence[Level], number: Callable[[float], str]) -> str:
    parts = [f"{curve.name} ends at {number(_last(curve))}" for curve in curves]
    parts += [f"{level.name}: {number(level.value)}" for level in levels]
    return f"{title}. " + "; ".join(parts)
