"""Presets as points of a curve, against the definition written out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.calibration.presets.curve import chosen
from fewstep.runtime.presets import PointInfo

_NUMBERS = st.floats(0.1, 100)
_POINTS = st.lists(st.tuples(_NUMBERS, _NUMBERS), min_size=1, max_size=9)


def _point(image_ms: float, distance: float, settings: dict[str, Any] | None = None) -> PointInfo:
    return PointInfo(settings=settings or {}, image_ms=image_ms, frechet_distance=distance)


def _by_name(
    numbers: list[tuple[float, float]], within: tuple[float, float]
) -> dict[str, PointInfo]:
    points = chosen([_point(*each, {"steps": i}) for i, each in enumerate(numbers)], within)
    return {name: point for point in points for name in point.presets}


@given(numbers=_POINTS, losses=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_each_preset_is_the_fastest_that_is_near_enough(
    numbers: list[tuple[float, float]], losses: tuple[float, float]
) -> None:
    within = max(losses), min(losses)
    found = _by_name(numbers, within)
    assert found.keys() == {"fast", "balanced", "best"}
    least = min(distance for _, distance in numbers)
    for name, loss in {"fast": within[0], "balanced": within[1], "best": 0.0}.items():
        near = [ms for ms, distance in numbers if distance <= least + loss * least]
        assert found[name].image_ms == min(near)
        assert found[name].frechet_distance <= least + loss * least
    assert found["fast"].image_ms <= found["balanced"].image_ms <= found["best"].image_ms


def test_points_stay_and_are_in_the_order_of_their_times() -> None:
    points = chosen([_point(3.0, 9.0), _point(1.0, 11.0), _point(2.0, 20.0)], (0.3, 0.1))
    assert [(each.image_ms, each.presets) for each in points] == [
        (1.0, ("fast",)),
        (2.0, ()),
        (3.0, ("balanced", "best")),
    ]


def test_equal_times_take_the_nearer_one() -> None:
    points = chosen([_point(1.0, 12.0), _point(1.0, 10.0)], (0.5, 0.5))
    assert [each.presets for each in points] == [("fast", "balanced", "best"), ()]


@pytest.mark.parametrize("within", [(0.0, 0.0), (1e9, 0.0)])
def test_one_point_is_everything(within: tuple[float, float]) -> None:
    assert set(_by_name([(5.0, 7.0)], within)) == {"fast", "balanced", "best"}
