"""aMUSEd: a U-ViT that reads texts, a VQ tokenizer and CLIP's text encoder, from diffusers."""

from __future__ import annotations

from fewstep.export.source import IMAGE_ENCODER, FilesSource, Option

SOURCE = FilesSource(
    "amused",
    "masked",
    "amused",
    "aMUSEd: a masked token transformer that reads texts, with CLIP's text encoder.",
    (
        Option(
            "folder",
            "Folder of the pipeline as diffusers saves it: transformer, vqvae, text_encoder, "
            "tokenizer, scheduler.",
            "folder",
            required=True,
        ),
        IMAGE_ENCODER,
    ),
)
