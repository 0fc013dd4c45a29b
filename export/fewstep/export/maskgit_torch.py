"""Google's MaskGIT, from the files of maskgit-torch to what is exported."""

from __future__ import annotations

from fewstep.export import masked_form, presets
from fewstep.export.config import ExportConfig
from fewstep.export.layout import require_agreement
from fewstep.export.masked_form import Checkpoints, Form, Networks
from fewstep.export.models.maskgit_tokenizer import VQVAE
from fewstep.export.models.maskgit_transformer import BidirectionalTransformer
from fewstep.export.source import Exportable
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families.masked.rules import Rules

FORM = Form(
    # Of maskgit/libml/parallel_decode.py.
    rules=Rules(last_token="decided"),
    at_least_one=True,
    defaults={
        "steps": 16,
        "schedule": "cosine",
        "guidance": (0.0, 0.0),
        "masking_temperature": (4.5, 0.0),
    },
)


def load(files: Checkpoints, config: ExportConfig) -> Exportable:
    """Read the files.

    Raises:
        CheckpointError: a file or the configuration does not fit.
    """
    masked_form.check_config("MaskGIT", config, FORM)
    tokenizer, read = presets.read(VQVAE, files.tokenizer, config.tokenizer, whole=files.encoder)
    notes = [f"tokenizer: {note}" for note in read.notes]
    transformer, read = presets.read(
        BidirectionalTransformer, files.transformer, config.transformer
    )
    notes += [f"transformer: {note}" for note in read.notes]
    codes = ("codebook size", transformer.codebook_size, tokenizer.codebook_size, "tokenizer")
    require_agreement([codes])
    try:
        grid = tokenizer.grid(transformer.num_tokens)
    except ValueError as error:
        raise CheckpointError(f"the checkpoints do not belong together: {error}") from error
    networks = Networks(
        transformer,
        tokenizer,
        grid=grid,
        codebook_size=transformer.codebook_size,
        width=transformer.embed_dim,
        image_size=(grid[0] * tokenizer.downsampling, grid[1] * tokenizer.downsampling),
        classes=transformer.num_classes,
        unconditional=False,
        notes=tuple(notes),
    )
    return masked_form.exportable(files, config, FORM, networks)
