"""1d-tokenizer: MaskGIT on the tokens of TiTok, 32 to 256 an image, or of the MaskGIT VQGAN."""

from __future__ import annotations

from fewstep.export.source import IMAGE_ENCODER, FilesSource, Option

SOURCE = FilesSource(
    "titok",
    "masked",
    "titok",
    "1d-tokenizer: MaskGIT on the tokens of TiTok (32 to 256 an image) or of the MaskGIT VQGAN.",
    (
        Option("transformer", "Generator checkpoint (generator_titok_*.bin).", required=True),
        Option("tokenizer", "Tokenizer checkpoint (tokenizer_titok_*.bin).", required=True),
        IMAGE_ENCODER,
    ),
)
