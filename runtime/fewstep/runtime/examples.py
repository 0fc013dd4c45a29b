"""Requests for examples of a model's condition: they check settings, and need no engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fewstep.runtime.families import Model, family_of
from fewstep.runtime.settings import Settings, settings_of


def example_request(model: Model, settings: Settings, images: int = 1) -> Any:
    """A request for examples of the model's condition: it checks settings, and needs no engines.

    Raises:
        RequestError: settings that the model cannot serve.
    """
    condition, seeds = model.info.condition.examples(images), np.arange(images, dtype=np.uint64)
    return family_of(model.info.kind).request(model, condition, seeds, settings)


def complete_settings(model: Model, given: Mapping[str, Any]) -> dict[str, Any]:
    """Given settings with nothing left open, as JSON has them.

    Raises:
        RequestError: settings that the model cannot serve.
    """
    settings = settings_of(model.info.defaults, given)
    example_request(model, settings)
    found: dict[str, Any] = json.loads(
        json.dumps(family_of(model.info.kind).complete(model, settings))
    )
    return found
