"""The ``--config`` file: constructor arguments of models that are not a published size.

A JSON object with the keys ``transformer``, ``tokenizer`` and ``policy``, each the official
constructor's arguments (``policy`` also has ``channels`` and ``widths``, constants of the official
class), and optionally ``policy_residual``, ``policy_schedule``, ``unconditional``,
``pixel_range``, ``latent_scale``, ``name``, ``class_names``, ``defaults`` (what ``generate`` uses
when nothing is said) and ``presets`` (more such settings, by the name of a preset).

``policy_residual`` is AdaNAT's ``heu``: the heuristic schedule is added to the policy's actions.
Left out, it is what the policy's file says; where that says nothing the official default, yes for
text and no for classes; for an untrained policy yes. ``policy_schedule`` is AdaGen's recipe, the
settings that a policy's action of zeros follows; left out, the published one. ``unconditional`` is
the class id that stands for no class, or "none"; left out, the last one. ``pixel_range`` is the
least and the largest pixel value that the tokenizer was trained on, [0, 1] if left out.
``latent_scale`` is what MAR multiplies the tokenizer's latents by, 0.2325 for KL-16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
)

from fewstep.runtime.errors import CheckpointError, RequestError
from fewstep.runtime.records import found_wrong
from fewstep.runtime.settings import Chosen, settings_of


def _class_id(value: object) -> object:
    if value in (None, "none") or (type(value) is int and value >= 0):
        return value
    raise ValueError(f'must be a class id or "none", got {json.dumps(value)}')


def _range(value: object) -> object:
    numbers = (int, float)
    if value is None or (
        isinstance(value, list) and len(value) == 2 and all(type(x) in numbers for x in value)
    ):
        return value
    raise ValueError(f"must be [LOW, HIGH], got {json.dumps(value)}")


class ExportConfig(BaseModel):
    """Contents of a ``--config`` file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transformer: dict[str, Any] | None = None
    tokenizer: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None
    policy_residual: bool | None = None
    policy_schedule: dict[str, Any] | None = None
    unconditional: Annotated[int | Literal["none"] | None, BeforeValidator(_class_id)] = None
    pixel_range: Annotated[tuple[float, float] | None, BeforeValidator(_range)] = None
    latent_scale: PositiveFloat | None = Field(default=None, allow_inf_nan=False)
    name: str | None = None
    class_names: tuple[str, ...] | None = None
    defaults: dict[str, Any] = {}
    presets: dict[str, dict[str, Any]] = {}

    def refuse(self, form: str, *names: str) -> None:
        """Raise ``CheckpointError`` for what the file says that is not for a form."""
        for name in names:
            if getattr(self, name) not in (None, {}):
                raise CheckpointError(f"{name} in --config is not for {form}; leave it out")

    def settings(self, defaults: Chosen) -> Chosen:
        """A family's settings, with ``defaults`` of the file in the place of its own.

        Raises:
            CheckpointError: a name that the family does not have, or a value that does not fit.
        """
        try:
            return settings_of(defaults, self.defaults)
        except RequestError as error:
            raise CheckpointError(f"the configuration's defaults: {error}") from error


def read_config(path: Path | None) -> ExportConfig:
    """Read a ``--config`` file; ``None`` gives an empty configuration.

    Raises:
        CheckpointError: unreadable, not JSON, or with unknown keys.
    """
    if path is None:
        return ExportConfig()
    try:
        return ExportConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        problems = found_wrong(error, "file")
        raise CheckpointError(f"{path} is not an export configuration: {problems}") from error
