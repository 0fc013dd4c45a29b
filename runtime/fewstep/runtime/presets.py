"""Settings that a bundle knows by a name: points of a curve of quality over time, say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field

from fewstep.runtime.errors import RequestError
from fewstep.runtime.settings import Settings, settings_of

Presets = Annotated[dict[str, dict[str, Any]], Field(default={})]
"""Settings by the name of a preset, as a manifest has them."""

Chosen = TypeVar("Chosen", bound=Settings)


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
