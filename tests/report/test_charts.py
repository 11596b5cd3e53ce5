"""Geometry of the charts, checked on the coordinates that were drawn."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from anyformer.report.charts import Curve, Level, downsample, line_chart, short, spread


def draw(points: list[tuple[float, float]], *, log: bool = False, levels: tuple[Level, ...] = ()) -> str:
    return str(line_chart([Curve("train", points, "main")], levels, title="Loss", number=str, log=log))


def paths(chart: str, style: str) -> list[str]:
    return re.findall(rf'<path class="{style}" d="([^"]+)"', chart)


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_straight_line_is_drawn_straight() -> None:
    drawn = coordinates(paths(draw([(0, 4.0), (50, 3.0), (100, 2.0)]), "main")[0])
    assert [x for x, _ in drawn] == [0, 500, 1000]
    assert drawn[1][1] - drawn[0][1] == pytest.approx(drawn[2][1] - drawn[1][1], abs=0.2)
    assert drawn[0][1] < drawn[2][1]  # larger values are higher up, and SVG counts downwards


def test_a_power_law_is_straight_on_logarithmic_axes() -> None:
    drawn = coordinates(paths(draw([(step, 8 * step**-0.3) for step in (1, 10, 100, 1000)], log=True), "main")[0])
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(drawn)]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-2)


def test_a_level_lies_where_the_curve_has_its_value() -> None:
    chart = draw([(0, 5.0), (10, 1.0)], levels=(Level("pairs", 1.0),))
    height = float(re.findall(r"M0 ([\d.]+)H1000", paths(chart, "level")[0])[0])
    assert height == coordinates(paths(chart, "main")[0])[-1][1]


def test_nothing_and_single_points() -> None:
    assert draw([]) == ""
    assert draw([(1, math.nan)]) == ""
    assert draw([(0, 3.0)], log=True) == ""  # step 0 has no logarithm
    chart = draw([(10, 3.0)])
    assert len(paths(chart, "main dot")) == 1
    assert re.findall(r'class="x"[^>]*>([^<]+)', chart) == ["9", "10", "11"]  # no half steps
    assert "nan" not in chart


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    chart = draw([(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 1.0), (6, 2.0)])
    assert paths(chart, "main")[0].count("M") == 2
    assert paths(chart, "main dot")[0].count("M") == 1


def test_downsampling_keeps_ends_spikes_and_gaps() -> None:
    points = [(float(step), math.sin(step / 500)) for step in range(10_000)]
    points[7777] = (7777.0, 50.0)
    points[3333] = (3333.0, -50.0)
    for step in range(5000, 5100):
        points[step] = (float(step), math.nan)
    kept = downsample(points)
    assert len(kept) <= 600
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert points[7777] in kept
    assert points[3333] in kept
    assert any(math.isnan(y) for _, y in kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert set(kept[:100]) <= set(points)
    assert downsample(points[:600]) == points[:600]


def test_labels_never_overlap_and_stay_inside() -> None:
    assert spread([0.1, 0.5], 0.06) == [0.1, 0.5]
    for places in ([0.95, 0.96, 0.97, 0.99], [0.0, 0.0, 0.0], [1.0, 1.0]):
        moved = spread(places, 0.06)
        assert all(b - a >= 0.06 - 1e-9 for a, b in itertools.pairwise(moved))
        assert 0.0 <= min(moved) <= max(moved) <= 1.0


def test_names_are_escaped() -> None:
    chart = str(line_chart([Curve("<b>", [(0, 1.0), (1, 2.0)], "main")], title='"><script>', number=str))
    assert "<script>" not in chart
    assert "&lt;b&gt;" in chart


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (12, "12"),
        (1200, "1,200"),
        (150_000, "150k"),
        (2.5e6, "2.5M"),
        (3e-4, "3e-4"),
        (-7, "-7"),
    ],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert short(value) == text
