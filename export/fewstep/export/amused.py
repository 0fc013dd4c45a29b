"""aMUSEd: from a folder of diffusers to what is exported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.export import masked_form, presets
from fewstep.export.checkpoint import read_json
from fewstep.export.config import ExportConfig
from fewstep.export.filekind import shown
from fewstep.export.layout import require_agreement
from fewstep.export.masked_form import Form, Networks
from fewstep.export.models.amused_vq import VQModel
from fewstep.export.models.clip_text import TextStates
from fewstep.export.models.uvit2d import TextToTokens, UVit2DModel
from fewstep.export.parts.amused import constructor_arguments
from fewstep.export.source import Exportable
from fewstep.export.text_encoder import Encoder, read_encoder
from fewstep.runtime.errors import CheckpointError, choose
from fewstep.runtime.families.masked.rules import Rules

FORM = Form(
    # Of schedulers/scheduling_amused.py; defaults of pipelines/amused/pipeline_amused.py.
    rules=Rules(precision="float32", temperature_at="inclusive"),
    at_least_one=True,
    defaults={
        "steps": 12,
        "schedule": "cosine",
        # Its guidance_scale is 10 in unconditional + scale·(conditional − unconditional).
        "guidance": (9.0, 9.0),
        "masking_temperature": (2.0, 0.0),
    },
)
_SCHEDULES = ("cosine", "linear")
_SIZED = ("transformer", "vqvae")
_PARTS = (*_SIZED, "text_encoder", "tokenizer", "scheduler")
_INDEX, _SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class Checkpoints:
    """What to read.

    Args:
        folder: of the pipeline, with ``transformer``, ``vqvae``, ``text_encoder``, ``tokenizer``
            and ``scheduler``, as ``save_pretrained`` of diffusers writes it.
        encoder: whether the bundle can edit pictures.
    """

    folder: Path
    encoder: bool = False


def load(files: Checkpoints, config: ExportConfig) -> Exportable:
    """Read the folder.

    Raises:
        CheckpointError: a file is missing or of another class, the parts do not belong together, or
            the configuration does not fit.
        MissingDependencyError: ``tokenizers`` is not installed.
    """
    masked_form.check_config("aMUSEd", config, FORM)
    config.refuse("aMUSEd, whose folder says it", "transformer", "tokenizer")
    folder = files.folder
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; expected that of a pipeline of diffusers, such as amused-256"
        )
    if (folder / _INDEX).is_file():
        _settings(folder / _INDEX, "AmusedPipeline")
    if absent := [name for name in _PARTS if not (folder / name).is_dir()]:
        raise CheckpointError(
            f"{folder} is no pipeline of diffusers: it lacks {', '.join(absent)}; expected the "
            "whole folder, as hf download amused/amused-256 --local-dir amused-256 fetches it"
        )
    sampling = _settings(folder / _SCHEDULER, "AmusedScheduler")
    sizes = _settings(folder / "transformer/config.json", "UVit2DModel")
    codes = _settings(folder / "vqvae/config.json", "VQModel")
    encoder = read_encoder(
        folder / "text_encoder", folder / "tokenizer", "penultimate", pooled=True
    )
    tokenizer, read = presets.read(
        VQModel, folder / "vqvae", constructor_arguments(VQModel, codes), whole=files.encoder
    )
    notes = [f"tokenizer: {note}" for note in read.notes]
    transformer, read = presets.read(
        UVit2DModel, folder / "transformer", constructor_arguments(UVit2DModel, sizes)
    )
    notes += [f"transformer: {note}" for note in read.notes]
    networks = _networks(transformer, tokenizer, encoder, sampling, folder)
    found = masked_form.exportable(
        masked_form.Checkpoints(folder / "transformer", folder / "vqvae", files.encoder),
        config,
        _form(sampling, folder),
        replace(networks, notes=tuple(notes)),
    )
    settings = {f"{name}/config": folder / f"{name}/config.json" for name in _SIZED}
    settings["scheduler/scheduler_config"] = folder / _SCHEDULER
    return replace(found, name=folder.resolve().name, checkpoints={**found.checkpoints, **settings})


def _settings(path: Path, expected: str) -> dict[str, Any]:
    """What a folder's JSON file says, which is of this class of diffusers.

    Raises:
        CheckpointError: it cannot be read, or is of another class.
    """
    said = read_json(path)
    if (found := said.get("_class_name")) != expected:
        raise CheckpointError(f"{path}: expected _class_name {expected}, got {shown(str(found))}")
    return said


def _form(sampling: dict[str, Any], folder: Path) -> Form:
    schedule = sampling.get("masking_schedule", "cosine")
    if schedule not in _SCHEDULES:
        raise CheckpointError(
            f"{folder / _SCHEDULER}: {choose('masking_schedule', str(schedule), _SCHEDULES)}"
        )
    return FORM.with_defaults(schedule=schedule)


def _networks(
    transformer: UVit2DModel,
    tokenizer: VQModel,
    encoder: Encoder,
    sampling: dict[str, Any],
    folder: Path,
) -> Networks:
    """The networks, if they belong together."""
    assert isinstance(encoder.module, TextStates)
    text = encoder.module.encoder
    require_agreement(
        (
            ("codebook size", transformer.codebook_size, tokenizer.num_codes, "tokenizer"),
            ("text width", transformer.encoder_hidden_size, text.hidden_size, "text encoder"),
            (
                "pooled text width",
                transformer.cond_embed_dim,
                text.text_projection.out_features,
                "text encoder",
            ),
        )
    )
    mask, codes = sampling.get("mask_token_id"), transformer.codebook_size
    if type(mask) is not int or not codes <= mask < transformer.vocab_size:
        raise CheckpointError(
            f"{folder / _SCHEDULER}: mask_token_id must be {codes} … {transformer.vocab_size - 1}, "
            f"ids that the transformer knows and are no codes, got {shown(str(mask))}"
        )
    side = transformer.sample_size
    pixels = (side * tokenizer.downsampling, side * tokenizer.downsampling)
    try:
        graph = TextToTokens(transformer, image_size=pixels).eval()
    except ValueError as error:
        raise CheckpointError(f"{folder}/transformer: {error}") from error
    return Networks(
        graph,
        tokenizer,
        grid=graph.grid,
        codebook_size=codes,
        width=transformer.hidden_size,
        image_size=pixels,
        encoder=encoder,
        mask_token=mask,
    )
