"""Halton-MaskGIT: from its authors' files to what is exported."""

from __future__ import annotations

from fewstep.export import masked_form, presets
from fewstep.export.config import ExportConfig
from fewstep.export.layout import require_agreement
from fewstep.export.masked_form import Checkpoints, Form, Networks
from fewstep.export.models.halton_transformer import HaltonTransformer
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.export.source import Exportable
from fewstep.runtime.families.masked.rules import Rules

_GUIDANCE = {(384, 6): 1.5, (512, 12): 1.0, (768, 12): 0.7, (1024, 24): 0.5}
"""What the authors evaluate with, by width and depth (``README.md`` of the repository)."""

FORM = Form(
    # Of Sampler/confidence_sampler.py; Sampler/halton_sampler.py is the same without confidences.
    rules=Rules(
        confidence="tempered-log-probability",
        known="resampled",
        counted="decided",
        precision="float32",
        mask_ratio_at="inclusive",
        guidance_at="inclusive",
        temperature_at="inclusive",
        sampling_temperature="multiplies",
        mask_sampled=True,
    ),
    at_least_one=False,  # the number that is decided says so
    defaults={
        "steps": 32,
        "schedule": "arccos",
        "order": "halton",
        "guidance": (1.0, 1.0),
        "masking_temperature": (4.5, 0.0),
    },
    presets={
        # The authors' demonstration, and the defaults of their confidence sampler.
        "demo": {
            "steps": 32,
            "order": "halton-rolled",
            "guidance": (2.0, 2.0),
            "sampling_temperature": (1.0, 1.2),
        },
        "confidence": {"steps": 12, "order": "confidence", "guidance": (0.0, 3.0)},
    },
)


def load(files: Checkpoints, config: ExportConfig) -> Exportable:
    """Read the files.

    Raises:
        CheckpointError: a file or the configuration does not fit.
    """
    masked_form.check_config("Halton-MaskGIT", config, FORM)
    tokenizer, read = presets.read(
        LlamaGenVQ, files.tokenizer, config.tokenizer, whole=files.encoder
    )
    notes = [f"tokenizer: {note}" for note in read.notes]
    transformer, read = presets.read(HaltonTransformer, files.transformer, config.transformer)
    notes += [f"transformer: {note}" for note in read.notes]
    codes = ("codebook size", transformer.codebook_size, tokenizer.codebook_size, "tokenizer")
    require_agreement([codes])
    side = transformer.input_size
    networks = Networks(
        transformer,
        tokenizer,
        grid=(side, side),
        codebook_size=transformer.codebook_size,
        width=transformer.hidden_dim,
        image_size=(side * tokenizer.downsampling, side * tokenizer.downsampling),
        classes=transformer.nclass + 1,
        notes=tuple(notes),
    )
    size = (transformer.hidden_dim, len(transformer.transformer.layers))
    scale = _GUIDANCE.get(size) if config.transformer is None else None
    form = FORM if scale is None else FORM.with_defaults(guidance=(scale, scale))
    return masked_form.exportable(files, config, form, networks)
