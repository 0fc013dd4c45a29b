"""MAR: masked autoregression over continuous tokens, with a diffusion head."""

from __future__ import annotations

from fewstep.export.source import IMAGE_ENCODER, FilesSource, Option

SOURCE = FilesSource(
    "mar",
    "mar",
    "mar",
    "MAR: masked autoregression over continuous tokens, with a diffusion head.",
    (
        Option(
            "transformer",
            "Transformer checkpoint, with its diffusion head (mar_base/checkpoint-last.pth).",
            required=True,
        ),
        Option("tokenizer", "KL autoencoder checkpoint (kl16.ckpt).", required=True),
        IMAGE_ENCODER,
    ),
)
