"""Which points of a curve become presets."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.runtime.presets import BALANCED, BEST, FAST, PointInfo


def chosen(points: Sequence[PointInfo], within: tuple[float, float]) -> tuple[PointInfo, ...]:
    """The points, fastest first, with the presets that choose them.

    ``best`` has the least distance; ``fast`` and ``balanced`` are the fastest whose distance is at
    most so much larger. All three may be one point.

    Args:
        points: one at least.
        within: parts of the least distance, of ``fast`` and of ``balanced``: 0.25 is a quarter.
    """
    ordered = sorted(points, key=lambda each: (each.image_ms, each.frechet_distance))
    least = min(each.frechet_distance for each in ordered)
    most = {FAST: within[0], BALANCED: within[1], BEST: 0.0}
    names: list[list[str]] = [[] for _ in ordered]
    for name, loss in most.items():
        limit = least + loss * abs(least)
        first = next(i for i, each in enumerate(ordered) if each.frechet_distance <= limit)
        names[first].append(name)
    return tuple(
        each.model_copy(update={"presets": tuple(own)})
        for each, own in zip(ordered, names, strict=True)
    )
