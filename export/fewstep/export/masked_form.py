"""Masked models of any form: from loaded networks to what is exported.

They are conditioned on classes, or on texts that an encoder of the bundle reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from fewstep.export import checkpoint
from fewstep.export.conditions import class_condition, refuse_classes
from fewstep.export.config import ExportConfig
from fewstep.export.masked_graphs import masked_graphs
from fewstep.export.source import Exportable
from fewstep.export.text_encoder import Encoder
from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.masked.rules import Rules
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.records import found_wrong


@dataclass(frozen=True)
class Checkpoints:
    """The files to read.

    Args:
        transformer: of the network that predicts tokens.
        tokenizer: of the one that decodes them.
        encoder: whether the bundle can edit pictures.
    """

    transformer: Path
    tokenizer: Path
    encoder: bool = False


@dataclass(frozen=True)
class Form:
    """How the authors of a form sample.

    Args:
        rules: what no request says.
        at_least_one: whether every step decides a token at least.
        defaults: settings of their evaluation or demonstration.
        presets: more of them, by name.
    """

    rules: Rules = Rules()
    at_least_one: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def with_defaults(self, **settings: Any) -> Form:
        """The same with other defaults."""
        return replace(self, defaults={**self.defaults, **settings})


@dataclass(frozen=True)
class Networks:
    """Two networks that belong together, and what the manifest has to say of them.

    Args:
        transformer: tokens ``[B, N]`` and class ids ``[B]`` or text states → logits.
        decoder: tokens ``[B, N]`` → image ``[B, 3, H, W]`` in 0…1; ``unclamped`` gives it as it
            was before it was clamped. With ``--encoder``, ``encode`` is the way back.
        grid: rows and columns of tokens.
        codebook_size: codes V.
        width: of the transformer.
        image_size: height and width in pixels.
        classes: rows of the embedding of classes; 0 with an encoder.
        unconditional: whether the last of them stands for no class.
        encoder: what makes states of texts.
        mask_token: its id; V if ``None``.
        notes: what was removed from the files or preferred in them.
    """

    transformer: nn.Module
    decoder: nn.Module
    grid: tuple[int, int]
    codebook_size: int
    width: int
    image_size: tuple[int, int]
    classes: int = 0
    unconditional: bool = True
    encoder: Encoder | None = None
    mask_token: int | None = None
    notes: tuple[str, ...] = ()


def exportable(
    files: Checkpoints, config: ExportConfig, form: Form, networks: Networks
) -> Exportable:
    """What is exported of two networks.

    Args:
        files: that they came from.
        config: contents of the ``--config`` file.
        form: how the authors sample.
        networks: both.

    Raises:
        CheckpointError: the configuration does not fit, or the way back does not.
    """
    model, notes = _describe(config, form, networks, editable=files.encoder)
    graphs = masked_graphs(model, networks.transformer, networks.decoder)
    checkpoints, contents = checkpoint.named_files(vars(files)), dict[str, bytes]()
    if (encoder := networks.encoder) is not None:
        graphs[encoder.info.graph] = encoder.graph()
        checkpoints, contents = checkpoints | encoder.checkpoints, encoder.files()
        notes = (*encoder.notes, *notes)
    return Exportable(
        files.transformer.stem,
        model,
        graphs,
        checkpoints,
        contents,
        notes=(*networks.notes, *notes),
    )


def check_config(name: str, config: ExportConfig, form: Form) -> None:
    """Refuse what a configuration says, before any file is read.

    Raises:
        CheckpointError: it is for another form, or its defaults do not fit.
    """
    config.refuse(
        name, "policy", "policy_residual", "policy_schedule", "latent_scale", "pixel_range"
    )
    config.settings(_defaults(form))


def _defaults(form: Form) -> MaskedSettings:
    return MaskedSettings(**form.defaults)


def _describe(
    config: ExportConfig, form: Form, networks: Networks, *, editable: bool
) -> tuple[MaskedModel, tuple[str, ...]]:
    condition, notes = _condition(config, networks)
    defaults = config.settings(_defaults(form))
    if not condition.has_unconditional and "guidance" not in config.defaults:
        defaults = defaults.model_copy(update={"guidance": (0.0, 0.0)})
    tokens, codes = networks.grid[0] * networks.grid[1], networks.codebook_size
    if "steps" not in config.defaults:
        defaults = defaults.model_copy(update={"steps": min(defaults.steps, tokens)})
    try:
        model = MaskedModel(
            grid=networks.grid,
            codebook_size=codes,
            mask_token=codes if networks.mask_token is None else networks.mask_token,
            feature_width=networks.width,
            image_size=networks.image_size,
            condition=condition,
            at_least_one=form.at_least_one,
            rules=form.rules,
            editable=editable,
            presets={**_fitting(form, tokens), **config.presets},
            defaults=defaults,
        )
    except ValidationError as error:
        raise CheckpointError(f"--config: {found_wrong(error, 'configuration')}") from error
    return model, notes


def _condition(
    config: ExportConfig, networks: Networks
) -> tuple[ClassCondition | TextCondition, tuple[str, ...]]:
    if networks.encoder is not None:
        refuse_classes(config)
        return networks.encoder.condition(), ()
    return class_condition(networks.classes, config, True, nothing=networks.unconditional)


def _fitting(form: Form, tokens: int) -> dict[str, dict[str, Any]]:
    """The form's presets, in no more steps than there are tokens."""
    return {
        name: {**preset, "steps": min(preset["steps"], tokens)}
        for name, preset in form.presets.items()
    }
