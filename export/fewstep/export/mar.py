"""MAR: from its authors' files to what is exported.

A transformer with its diffusion head, and a KL autoencoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep.export import checkpoint, presets
from fewstep.export.conditions import class_condition
from fewstep.export.config import ExportConfig
from fewstep.export.layout import require_agreement
from fewstep.export.mar_graphs import graphs
from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.export.source import Exportable
from fewstep.runtime.errors import CheckpointError, RequestError
from fewstep.runtime.examples import example_request
from fewstep.runtime.families import Model
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.families.mar.settings import UNGUIDED, MarSettings

PUBLISHED_SCALE = 0.2325
"""What latents of KL-16 are multiplied by (``main_mar.py`` of LTH14/mar): no file says it."""

_GUIDANCE = {16: 3.0, 20: 3.2}
"""What the authors evaluate their larger models with, by blocks (``README.md`` of LTH14/mar)."""

_MOST_FULL_BLOCKS = 3


@dataclass(frozen=True)
class Checkpoints:
    """The files to read.

    Args:
        transformer: MAR's checkpoint; the averaged weights (EMA) are taken.
        tokenizer: of the KL autoencoder.
        encoder: whether the bundle can edit pictures.
    """

    transformer: Path
    tokenizer: Path
    encoder: bool = False


@dataclass(frozen=True)
class Models:
    """Loaded models that belong together, in evaluation mode.

    ``notes``: what was removed from the files or preferred in them.
    """

    transformer: MAR
    tokenizer: AutoencoderKL
    notes: tuple[str, ...] = ()


def load(files: Checkpoints, config: ExportConfig) -> Exportable:
    """Read the files.

    Raises:
        CheckpointError: a file or the configuration does not fit.
    """
    config.refuse("mar", "policy", "policy_residual", "policy_schedule", "pixel_range")
    scale = _latent_scale(config)
    config.settings(MarSettings())
    models = load_models(files, config)
    model, notes = describe(models, config, scale)
    model = model.model_copy(update={"editable": files.encoder})
    return Exportable(
        files.transformer.stem,
        model,
        graphs(model, models.transformer, models.tokenizer),
        checkpoint.named_files(vars(files)),
        notes=(*models.notes, *notes),
    )


def _latent_scale(config: ExportConfig) -> float:
    if config.latent_scale is not None:
        return config.latent_scale
    if config.tokenizer is None:
        return PUBLISHED_SCALE
    raise CheckpointError(
        "latent_scale is missing in --config: what the latents of this tokenizer are multiplied by "
        f"before the transformer sees them, 1 / their standard deviation ({PUBLISHED_SCALE} for "
        "KL-16)"
    )


def load_models(files: Checkpoints, config: ExportConfig) -> Models:
    """Load models, and check that they belong together.

    Raises:
        CheckpointError: a file does not load, or the models do not fit each other.
    """
    tokenizer, read = presets.read(
        AutoencoderKL, files.tokenizer, config.tokenizer, whole=files.encoder
    )
    notes = [f"tokenizer: {note}" for note in read.notes]
    transformer, read = presets.read(MAR, files.transformer, config.transformer)
    notes += [f"transformer: {note}" for note in read.notes]
    require_agreement(
        (
            (
                "channels of the latents",
                transformer.vae_embed_dim,
                tokenizer.embed_dim,
                "tokenizer",
            ),
            (
                "pixels of a position (vae_stride)",
                transformer.vae_stride,
                tokenizer.downsampling,
                "tokenizer",
            ),
        )
    )
    return Models(transformer, tokenizer, tuple(notes))


def describe(
    models: Models, config: ExportConfig, scale: float
) -> tuple[MarModel, tuple[str, ...]]:
    """What the manifest says of loaded models, and what to say of that to the user.

    Raises:
        CheckpointError: class names, or the names or values of defaults or presets, do not fit.
    """
    mar = models.transformer
    condition, notes = class_condition(mar.class_num + 1, config, certain=True)
    defaults = config.settings(MarSettings())
    if "iterations" not in config.defaults:
        fewer = min(defaults.iterations, mar.seq_len)
        defaults = defaults.model_copy(update={"iterations": fewer})
    if "guidance" not in config.defaults:
        guidance = defaults.guidance
        if config.transformer is None and len(mar.decoder_blocks) in _GUIDANCE:
            guidance = (UNGUIDED, _GUIDANCE[len(mar.decoder_blocks)])
        if not condition.has_unconditional:
            guidance = (UNGUIDED, UNGUIDED)
        defaults = defaults.model_copy(update={"guidance": guidance})
    pixels = mar.side * mar.patch_size * mar.vae_stride
    first = mar.decoder_blocks[0]
    try:
        model = MarModel(
            side=mar.side,
            channels=mar.token_embed_dim,
            patch_size=mar.patch_size,
            latent_scale=scale,
            buffer_size=mar.buffer_size,
            encoder_width=mar.encoder_width,
            encoder_depth=len(mar.encoder_blocks),
            decoder_width=mar.decoder_width,
            decoder_depth=len(mar.decoder_blocks),
            decoder_heads=first.attn.heads,  # type: ignore[union-attr,arg-type]
            # A quarter of them, as LazyMAR does with the published models.
            full_blocks=min(_MOST_FULL_BLOCKS, len(mar.decoder_blocks) // 4),
            head_width=mar.diffloss.net.width,
            image_size=(pixels, pixels),
            condition=condition,
            presets=config.presets,
            defaults=defaults,
        )
    except ValueError as error:
        raise CheckpointError(f"--config: {_first(error)}") from error
    try:  # as if a request said them, so that no guidance of theirs is passed over
        example_request(Model(model, graphs={}), config.settings(defaults))
    except RequestError as error:
        raise CheckpointError(f"the configuration's defaults: {error}") from error
    return model, notes


def _first(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    return error.errors()[0]["msg"].removeprefix("Value error, ")
