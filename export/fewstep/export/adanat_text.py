"""The text encoder of a text-conditional transformer in AdaNAT's form."""

from __future__ import annotations

from pathlib import Path

from fewstep.export.bert_encoder import read_bert
from fewstep.export.layout import require_agreement
from fewstep.export.models import UViT
from fewstep.export.text_encoder import BERT, Encoder, architectures, places, read_encoder
from fewstep.runtime.errors import CheckpointError


def text_encoder_of(folder: Path | None, transformer: UViT) -> Encoder | None:
    """The text encoder, whose states after the last layer and norm the transformer reads.

    So does ``train.py`` of the AdaNAT repository: ``last_hidden_state`` of CLIP bigG, of texts that
    are padded with 0.

    Raises:
        CheckpointError: the folder cannot be read, or its encoder does not fit the transformer.
        MissingDependencyError: ``tokenizers`` is not installed.
    """
    if folder is None:
        return None
    if transformer.class_conditional:
        raise CheckpointError("a class-conditional transformer takes no --text-encoder")
    folder, tokenizer = places(folder)
    if BERT in architectures(folder):
        encoder = read_bert(folder, tokenizer, transformer.extras)
    else:
        encoder = read_encoder(folder, tokenizer, "last", pooled=False, pad_id=0)
    require_agreement(
        (
            ("tokens of a text", transformer.extras, encoder.length, "text encoder"),
            ("text width", transformer.context_width, encoder.module.width, "text encoder"),
        )
    )
    return encoder
