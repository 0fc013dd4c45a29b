"""Settings that a bundle knows by a name, and the curve of quality over time that some of them are
points of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from fewstep.runtime.errors import RequestError
from fewstep.runtime.records import Strict
from fewstep.runtime.settings import Settings, settings_of

Presets = Annotated[dict[str, dict[str, Any]], Field(default={})]
"""Settings by the name of a preset, as a manifest has them."""

Chosen = TypeVar("Chosen", bound=Settings)

FAST, BALANCED, BEST = "fast", "balanced", "best"
"""The presets that are points of a curve."""


class PointInfo(Strict):
    """One point: settings, milliseconds of an image alone, and the distance to real images.

    ``presets``: the names that choose it.
    """

    settings: dict[str, Any]
    image_ms: PositiveFloat
    frechet_distance: float
    presets: tuple[str, ...] = ()


class CurveInfo(Strict):
    """A measured curve of distance over time, fastest point first.

    ``images`` and ``seed``: what distances are of. ``reference``: the real images, and ``features``
    the network they are compared by. ``others_load``: share of the CPUs that other programs took
    while times were measured, 0 … 1.
    """

    points: tuple[PointInfo, ...]
    images: PositiveInt
    seed: NonNegativeInt
    reference: str
    features: str
    backend: str
    precision: str
    device: str
    processor: str
    threads: NonNegativeInt
    others_load: float | None = None
    tools: dict[str, str] = {}


def resolved(presets: Mapping[str, dict[str, Any]], defaults: Chosen, settings: Chosen) -> Chosen:
    """The settings with those of their preset in the place of defaults.

    Args:
        presets: of the bundle.
        defaults: of the bundle.
        settings: what a request uses; ``preset`` is a name, or ``None``.

    Raises:
        RequestError: there is no such preset.
    """
    name = getattr(settings, "preset", None)
    if name is None:
        return settings
    if name not in presets:
        known = f"it has {', '.join(presets)}" if presets else "it has none"
        raise RequestError(f"this bundle has no preset {name!r}: {known}")
    own = {field: getattr(settings, field) for field in settings.model_fields_set}
    return settings_of(defaults, {**presets[name], **own})


def check_presets(presets: Mapping[str, dict[str, Any]], defaults: Settings) -> None:
    """Refuse presets that no request could use.

    Raises:
        ValueError: one names another preset, or has a setting or value that does not fit.
    """
    for name, settings in presets.items():
        if "preset" in settings:
            raise ValueError(f"preset {name!r} names another one: write its settings instead")
        try:
            settings_of(defaults, settings)
        except RequestError as error:
            raise ValueError(f"preset {name!r}: {error}") from error


def presets_described(presets: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """What ``fewstep inspect`` shows of them."""
    return {"presets": ", ".join(presets)} if presets else {}
