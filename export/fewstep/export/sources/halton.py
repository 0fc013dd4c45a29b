"""Halton-MaskGIT: a DiT-like masked transformer, with LlamaGen's tokenizer."""

from __future__ import annotations

from fewstep.export.source import IMAGE_ENCODER, FilesSource, Option

SOURCE = FilesSource(
    "halton",
    "masked",
    "halton",
    "Halton-MaskGIT: a masked token transformer whose positions are decided in a known order.",
    (
        Option("transformer", "Transformer checkpoint (ImageNet_256_base.pth).", required=True),
        Option("tokenizer", "LlamaGen tokenizer checkpoint (vq_ds16_c2i.pt).", required=True),
        IMAGE_ENCODER,
    ),
)
